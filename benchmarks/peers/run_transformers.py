"""Runs transformers' greedy, assisted and prompt-lookup generation for a comparison.

`python -m experiments.benchmark --config=configs/benchmark_peers.py` starts it in an
interpreter of its own, for torch is no dependency of this project:

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install torch==2.13.0 transformers==5.23.0 sentencepiece==0.2.3

It reads one JSON object from standard input: `target` and `draft` (folders), `dtype`,
`threads`, `num_speculative_tokens`, `max_new_tokens`, `max_ngram`, `methods` (of plain,
assisted, prompt_lookup), `rounds` and `prompts` (token lists), and writes to `--out` a line
with the versions, then one per method, round and prompt.

Time is taken from pass to pass of the target: the first one reads the prompt, and in assisted
generation already verifies a draft, so that decoding is what comes after it: `timed_tokens`
in `seconds`. `target_passes` counts every pass, for each of them emits tokens.
"""

import argparse
import json
import sys
import time

import torch
import transformers


class Watch:
  """A streamer that notes what each pass of the target emitted, and when."""

  def __init__(self, prompt_length: int):
    self.counts, self.ends, self._prompt = [], [], prompt_length

  def put(self, tokens: torch.Tensor) -> None:
    if self._prompt:  # the first call hands over the prompt
      self._prompt = 0
      return
    self.counts.append(tokens.numel())
    self.ends.append(time.perf_counter())

  def end(self) -> None:
    pass


def load(folder: str, dtype: str):
  """A model for inference; no token ends its text."""
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
  model.generation_config.eos_token_id = None
  model.generation_config.pad_token_id = 0
  return model.eval()


def fix_draft_length(draft, num_tokens: int) -> None:
  """Lets the draft propose the same number of tokens in every round."""
  config = draft.generation_config
  config.num_assistant_tokens = num_tokens
  config.num_assistant_tokens_schedule = 'constant'
  config.assistant_confidence_threshold = 0.0


def options(method: str, request: dict, draft) -> dict:
  """What `generate` is given for a method."""
  tokens = request['max_new_tokens']
  common = {'do_sample': False, 'max_new_tokens': tokens, 'min_new_tokens': tokens}
  if method == 'plain':
    return common
  if method == 'assisted':
    return common | {'assistant_model': draft}
  if method == 'prompt_lookup':
    return common | {
        'prompt_lookup_num_tokens': request['num_speculative_tokens'],
        'max_matching_ngram_size': request['max_ngram'],
    }
  raise ValueError(f'method must be plain, assisted or prompt_lookup, not {method!r}.')


def generate(target, prompt: list[int], **kwargs) -> dict:
  """One run: tokens, passes and times."""
  watch = Watch(len(prompt))
  input_ids = torch.tensor([prompt])
  started = time.perf_counter()
  with torch.inference_mode():
    output = target.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), streamer=watch, **kwargs
    )
  return {
      'tokens': output[0, len(prompt) :].tolist(),
      'target_passes': len(watch.ends),
      'emitted': watch.counts,
      'timed_tokens': sum(watch.counts[1:]),
      'seconds': watch.ends[-1] - watch.ends[0],
      'prefill_seconds': watch.ends[0] - started,
  }


def run(request: dict, write) -> None:
  """All methods, rounds and prompts of a request; `write` takes a dict each."""
  torch.set_num_threads(request['threads'])
  write({'versions': {'torch': torch.__version__, 'transformers': transformers.__version__}})
  target = load(request['target'], request['dtype'])
  draft = None
  if 'assisted' in request['methods']:
    draft = load(request['draft'], request['dtype'])
    fix_draft_length(draft, request['num_speculative_tokens'])
  for method in request['methods']:
    kwargs = options(method, request, draft)
    # Once for the caches of kernels and threads; not timed.
    generate(target, request['prompts'][0], **kwargs)
    for number in range(request['rounds']):
      for index, prompt in enumerate(request['prompts']):
        place = {'method': method, 'round': number, 'prompt': index}
        write(place | generate(target, prompt, **kwargs))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--out', required=True, help='where the JSON lines go')
  out = parser.parse_args().out
  request = json.load(sys.stdin)
  with open(out, 'w', encoding='utf-8') as file:

    def write(row: dict) -> None:
      file.write(json.dumps(row) + '\n')
      file.flush()

    run(request, write)


if __name__ == '__main__':
  main()
