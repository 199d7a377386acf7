"""Runs transformers' greedy, assisted and prompt-lookup generation for a comparison.

`python -m benchmarks.peers --config=configs/benchmark_peers.py` starts it in an interpreter of
its own, for torch is no dependency of this project:

    python -m venv /tmp/peers-venv
    /tmp/peers-venv/bin/pip install torch==2.13.0 transformers==5.23.0 sentencepiece==0.2.3

It reads a JSON object from standard input (`benchmarks/peers/hugging_face.py` has its fields), and
writes to `--out` a line with the versions, then one per method and prompt.

Time is taken from pass to pass of the target. The first pass reads the prompt, and in assisted
generation already verifies a draft, so decoding is what comes after it: `timed_tokens` in
`seconds`. `target_passes` counts every pass, for each of them emits tokens.
"""

import argparse
import json
import sys
import time

import torch
import transformers


class Watch:
  """A streamer that notes how many tokens each pass of the target emitted, and when."""

  def __init__(self):
    self.counts, self.ends, self._saw_prompt = [], [], False

  def put(self, tokens: torch.Tensor) -> None:
    if self._saw_prompt:
      self.counts.append(tokens.numel())
      self.ends.append(time.perf_counter())
    self._saw_prompt = True  # the first call hands over the prompt

  def end(self) -> None:
    pass


def load(folder: str, dtype: str):
  """A model for inference; no token ends its text."""
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
  model.generation_config.eos_token_id = None
  model.generation_config.pad_token_id = 0
  return model.eval()


def load_draft(folder: str, dtype: str, num_tokens: int):
  """A model that proposes the same number of tokens in every round."""
  draft = load(folder, dtype)
  config = draft.generation_config
  config.num_assistant_tokens = num_tokens
  config.num_assistant_tokens_schedule = 'constant'
  config.assistant_confidence_threshold = 0.0
  return draft


def generate(target, prompt: list[int], **options) -> dict:
  """One run: tokens, passes and times."""
  watch = Watch()
  input_ids = torch.tensor([prompt])
  started = time.perf_counter()
  with torch.inference_mode():
    output = target.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), do_sample=False, streamer=watch,
        **options,
    )
  return {
      'tokens': output[0, len(prompt) :].tolist(),
      'target_passes': len(watch.ends),
      'timed_tokens': sum(watch.counts[1:]),
      'seconds': watch.ends[-1] - watch.ends[0],
      'prefill_seconds': watch.ends[0] - started,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--out', required=True, help='file for the JSON lines')
  out = parser.parse_args().out
  request = json.load(sys.stdin)
  k, count = request['num_speculative_tokens'], request['max_new_tokens']
  torch.set_num_threads(request['threads'])
  target = load(request['target'], request['dtype'])
  draft = request['draft'] and load_draft(request['draft'], request['dtype'], k)
  methods = {
      'plain': {},
      'assisted': {'assistant_model': draft},
      'prompt_lookup': {
          'prompt_lookup_num_tokens': k, 'max_matching_ngram_size': request['max_ngram']
      },
  }
  with open(out, 'w', encoding='utf-8') as file:
    versions = {'torch': torch.__version__, 'transformers': transformers.__version__}
    print(json.dumps({'versions': versions}), file=file)
    for method in request['methods']:
      options = methods[method] | {'max_new_tokens': count, 'min_new_tokens': count}
      # Once for the caches of kernels and threads; not timed.
      generate(target, request['prompts'][0], **options)
      for number, prompt in enumerate(request['prompts']):
        row = {'method': method, 'prompt': number} | generate(target, prompt, **options)
        print(json.dumps(row), file=file)


if __name__ == '__main__':
  main()
