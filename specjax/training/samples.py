"""The target's own samples as a corpus: what a draft will be asked to predict.

A draft learns faster from what its target writes than from what people wrote (Zhou et al.
2023, DistillSpec, 2310.08461, section 4). Prompts are cut from a corpus at random, the target
goes on from them by plain decoding, and prompt and continuation are kept.
"""

from collections.abc import Callable
import json
import os
import pathlib

import numpy as np

from specjax import atomic
from specjax import generation
from specjax import sampling as sampling_lib
from specjax import verify
from specjax.models import LanguageModel
from specjax.training import features

_SAMPLES, _DESCRIPTION = 'samples.npy', 'samples.json'


def write(
    folder: str | os.PathLike,
    *,
    target: LanguageModel,
    tokens: np.ndarray,
    num_samples: int,
    prompt_tokens: int,
    new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> np.ndarray:
  """Samples from the target, or opens what is there already.

  A run that was stopped keeps its whole batches; a batch is a function of the seed and its
  number alone.

  Args:
    folder: where to; made if missing.
    target: the target.
    tokens: [n] integers, where prompts are cut from.
    num_samples: rounded up to whole batches.
    prompt_tokens: of each sample.
    new_tokens: that the target adds; it does not stop at ends of text.
    temperature: 0 takes the most likely tokens.
    batch_size: samples decoded together.
    seed: of prompts and samples.
    say: told of progress.

  Returns:
    [samples * (prompt_tokens + new_tokens)] uint16 or int32, memory-mapped.

  Raises:
    ValueError: if a prompt is longer than the corpus, or the folder holds other samples.
  """
  folder = pathlib.Path(folder)
  if prompt_tokens < 1 or prompt_tokens >= len(tokens):
    raise ValueError(
        f'prompt_tokens must be 1 … {len(tokens) - 1}, the corpus less one; got {prompt_tokens}.'
    )
  described = dict(
      target=features.fingerprint(target), num_samples=num_samples, prompt_tokens=prompt_tokens,
      new_tokens=new_tokens, temperature=temperature, batch_size=batch_size, seed=seed,
  )
  if (folder / _DESCRIPTION).exists():
    stored = json.loads((folder / _DESCRIPTION).read_text(encoding='utf-8-sig'))
    if stored != described:
      raise ValueError(f'{folder} holds other samples ({stored}), wanted {described}.')
  folder.mkdir(parents=True, exist_ok=True)
  atomic.write(folder / _DESCRIPTION, json.dumps(described) + '\n')
  if not (folder / _SAMPLES).exists():
    batches = -(-num_samples // batch_size)
    for index in range(batches):
      file = folder / f'batch_{index:05d}.npy'
      if not file.exists():
        samples = _sample(target, tokens, described, index)
        with atomic.replacing(file) as (temporary,):
          np.save(temporary, samples)
        say(f'{index + 1} of {batches} batches of samples.')
    whole = [np.load(folder / f'batch_{index:05d}.npy') for index in range(batches)]
    with atomic.replacing(folder / _SAMPLES) as (temporary,):
      np.save(temporary, np.concatenate(whole).reshape(-1))
    for index in range(batches):
      (folder / f'batch_{index:05d}.npy').unlink()
  return np.load(folder / _SAMPLES, mmap_mode='r')


def _sample(target, tokens, described: dict, index: int) -> np.ndarray:
  """One batch of samples [batch_size, prompt_tokens + new_tokens]."""
  size, length = described['batch_size'], described['prompt_tokens']
  rng = np.random.default_rng([described['seed'], index])
  starts = rng.integers(len(tokens) - length, size=size)
  prompts = np.asarray(tokens)[starts[:, None] + np.arange(length)].astype(np.int32)
  greedy = described['temperature'] == 0
  output = generation.decode(
      target,
      prompts.tolist(),
      rule=verify.greedy() if greedy else verify.rejection(),
      sampling=sampling_lib.make(batch_size=size, temperature=described['temperature']),
      max_new_tokens=described['new_tokens'],
      seeds=int(rng.integers(2**31)),
  )
  made = output.tokens[:, : length + described['new_tokens']]
  return made.astype(np.uint16 if target.vocab_size <= 2**16 else np.int32)
