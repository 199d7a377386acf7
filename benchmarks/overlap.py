r"""How far a draft's law overlaps the target's at temperature 1: by text and by target entropy.

    python -m benchmarks.overlap --out=runs/overlap [--corpus=/usr/lib/python3.13]

The overlap sum_x min(p(x), q(x)) is the probability that a drafted token is accepted (Leviathan et
al. 2023, corollary 3.6). It is averaged over windows of three texts: the corpus (the shipped pair
was trained on the library of Python 3.13.0), the held-out files, and what the target itself draws
after held-out prompts; and within these by how uncertain the target is. For the EAGLE-3 head it is
that of its first step. Writes `metrics.jsonl`: `text`, `low` and `high` (nats) of the target's
entropy (null: no limit), `positions` (a share of the text's), `entropy` (mean, nats), `draft`,
`eagle3`.
"""

from collections.abc import Iterable, Iterator
import functools
import itertools
import json
import pathlib
from typing import Any

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

import specjax
from specjax.heads import target as target_lib
from specjax.training import data
from specjax.training import losses

_PAIR = flags.DEFINE_string('pair', 'stdlib', 'A pair of the zoo.')
_CORPUS = flags.DEFINE_string('corpus', None, "A standard library; by default Python's own.")
_WINDOWS = flags.DEFINE_integer('windows', 40, 'Windows of each text.')
_LENGTH = flags.DEFINE_integer('length', 256, 'Tokens per window.')
_PROMPT = flags.DEFINE_integer('prompt_length', 64, 'Held-out tokens before those drawn.')
_OUT = flags.DEFINE_string('out', 'runs/overlap', 'Folder for metrics.jsonl.')
BATCH = 8
# Edges of the ranges of entropy (nats).
EDGES = (0.0, 0.5, 1.5, 3.0, 4.5, float('inf'))


def random_windows(pair: specjax.zoo.Pair, texts: Iterable[str]) -> np.ndarray:
  """Windows [n, length + 1] at random places in the texts, the same ones every time."""
  tokens = np.concatenate([pair.tokenizer.encode(text).ids for text in texts]).astype(np.int32)
  starts = np.random.default_rng(0).integers(0, len(tokens) - _LENGTH.value, _WINDOWS.value)
  return tokens[starts[:, None] + np.arange(_LENGTH.value + 1)]


def sampled_windows(pair: specjax.zoo.Pair) -> np.ndarray:
  """Windows [n, length + 1] of held-out prompts and what the target draws after them."""
  size = _LENGTH.value + 1
  output = specjax.decode(
      pair.target,
      pair.prompts(_WINDOWS.value, length=_PROMPT.value),
      rule=specjax.verify.rejection(),
      max_new_tokens=size - _PROMPT.value,
      cache_length=size,
  )
  return np.asarray(output.tokens[:, :size])


@functools.partial(jax.jit, static_argnames='module')
def overlaps(target, draft, params, tokens, *, module):
  """The target's entropy, and the overlap of draft and head with its law; each [B, T - 1]."""
  layers = tuple(sorted(module.config.feature_layers))
  output = target(tokens[:, :-1], feature_layers=layers)
  goal = output.logits[:, 1:]
  log_law = jax.nn.log_softmax(goal)
  overlap = lambda logits: 1.0 - losses.divergence(goal, logits, kind='total_variation')
  # Pair i of the head is feature i and token i + 1, and predicts token i + 2.
  embedded = target_lib.embed(target, tokens[:, 1:-1])
  head = lambda module: module.logits(module(embedded, output.features[:, :-1]).hidden)
  of_head = overlap(module.apply({'params': params}, method=head))
  entropy = -(jnp.exp(log_law) * log_law).sum(axis=-1)
  return entropy, overlap(draft(tokens[:, :-1]).logits[:, 1:]), of_head


def rows(pair: specjax.zoo.Pair, text: str, tokens: np.ndarray) -> Iterator[dict[str, Any]]:
  """The row of the whole text, then one per range of entropy."""
  head = pair.head('eagle3')
  batches = [
      overlaps(pair.target, pair.draft, head.params, part, module=head.module)
      for part in np.array_split(tokens, -(-len(tokens) // BATCH))
  ]
  entropy, draft, eagle3 = (np.concatenate([np.ravel(x) for x in each]) for each in zip(*batches))
  for low, high in [(EDGES[0], EDGES[-1]), *itertools.pairwise(EDGES)]:
    inside = (entropy >= low) & (entropy < high)
    means = {
        name: round(float(values[inside].mean()), 4) if inside.any() else None
        for name, values in (('entropy', entropy), ('draft', draft), ('eagle3', eagle3))
    }
    share = round(float(inside.mean()), 4)
    yield dict(text=text, low=low, high=high if high < EDGES[-1] else None, positions=share) | means


def main(_):
  pair = specjax.zoo.load(_PAIR.value, dtype=jnp.float32)
  texts = {
      'corpus': random_windows(pair, data.read_texts(data.stdlib_files(_CORPUS.value))),
      'held out': random_windows(pair, (item.text for item in pair.held_out)),
      'drawn': sampled_windows(pair),
  }
  out = pathlib.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  with open(out / 'metrics.jsonl', 'w', encoding='utf-8') as metrics:
    for text, tokens in texts.items():
      for row in rows(pair, text, tokens):
        metrics.write(json.dumps(row) + '\n')
        print(', '.join(f'{name} {value}' for name, value in row.items()))


if __name__ == '__main__':
  app.run(main)
