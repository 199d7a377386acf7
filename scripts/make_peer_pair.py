"""Makes the pair that engines are compared on: a 97 M target and a 26 M draft.

    pip install sentencepiece==0.2.3
    python -m scripts.make_peer_pair --folder=/tmp/peers

Takes a few minutes and half a gigabyte. The folder then holds `target/` and `draft/` (Hugging
Face folders in bfloat16, with tokenizer.json for specjax and transformers and
tokenizer.model for llama.cpp), `prompts.jsonl` and `pair.json`. The weights are planted, not
trained (see `benchmarks/peers/pair.py`), and the same on every machine for one version of numpy
and of Python's library. `configs/benchmark_peers.py` measures the pair.

For llama.cpp, with any interpreter that has torch, transformers and sentencepiece:

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36
    tar xzf llama_cpp_python-0.3.36.tar.gz
    cd llama_cpp_python-0.3.36/vendor/llama.cpp
    cmake -S . -B B -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \\
        -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF \\
        -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
    ninja -C B -j2 llama-speculative-simple llama-completion

The benchmark converts the weights itself (`convert_hf_to_gguf.py --outtype f32|bf16`).
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib

from absl import app
from absl import flags
import jax.numpy as jnp

from benchmarks.peers import pair
from benchmarks.peers import prompts as prompts_lib
from benchmarks.peers import tokenizer as tokenizer_lib
from specjax import atomic
from specjax import models
from specjax.training import data

_FOLDER = flags.DEFINE_string('folder', None, 'Folder for the pair; must not exist.', required=True)
_PROMPTS = flags.DEFINE_integer('prompts', 4, 'How many prompts are kept.')
_CANDIDATES = flags.DEFINE_integer('candidates', 24, 'Of how many.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the weights.')

# What configs/benchmark_peers.py runs: prompts are chosen for it.
NUM_SPECULATIVE_TOKENS, NEW_TOKENS = 4, 200
PROMPT_LENGTH = 64  # tokens, at most


def make(
    folder: pathlib.Path, recipe: pair.Recipe, *, num_prompts: int, num_candidates: int
) -> None:
  """Makes the pair in `folder`, which must exist, and prints what it is doing."""
  print(f'Training a tokenizer of {pair.TARGET.vocab_size} pieces …')
  texts = data.read_texts(data.stdlib_files())
  model = tokenizer_lib.train(texts, pair.TARGET.vocab_size)
  files = tokenizer_lib.write(model, folder / 'tokenizer')
  tokenizer = models.load_tokenizer(folder / 'tokenizer')
  target, draft = pair.make(tokenizer_lib.words(tokenizer), recipe=recipe)
  for name, member in (('target', target), ('draft', draft)):
    print(f'{name}: {member.module.config.num_parameters:,} parameters')
    models.save_hf(
        member, folder / name, dtype=jnp.bfloat16, bos_id=1, eos_ids=(2,), extra_files=files
    )
  print(f'Choosing {num_prompts} of {num_candidates} prompts …')
  prompts = prompts_lib.choose(
      target,
      draft,
      prompts_lib.candidates(tokenizer, count=num_candidates, length=PROMPT_LENGTH),
      count=num_prompts,
      num_speculative_tokens=NUM_SPECULATIVE_TOKENS,
      new_tokens=NEW_TOKENS,
  )
  for prompt in prompts:
    print(
        f'  {len(prompt.tokens)} tokens, {prompt.passes} passes for {NEW_TOKENS} tokens, '
        f'{prompt.flips} flips in bfloat16, smallest margin {prompt.margin:.1f} errors'
    )
  prompts_lib.write(prompts, folder / 'prompts.jsonl')
  about = {
      'recipe': dataclasses.asdict(recipe),
      'num_speculative_tokens': NUM_SPECULATIVE_TOKENS,
      'new_tokens': NEW_TOKENS,
  }
  (folder / 'pair.json').write_text(json.dumps(about, indent=2) + '\n', encoding='utf-8')


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}; only flags are taken.')
  folder = pathlib.Path(_FOLDER.value).expanduser()
  if folder.exists():
    raise FileExistsError(f'{folder} exists: remove it or give another --folder.')
  folder.parent.mkdir(parents=True, exist_ok=True)
  with atomic.replacing(folder) as (temporary,):  # it appears complete or not at all
    temporary.mkdir()
    make(
        temporary,
        pair.Recipe(seed=_SEED.value),
        num_prompts=_PROMPTS.value,
        num_candidates=_CANDIDATES.value,
    )


if __name__ == '__main__':
  app.run(main)
