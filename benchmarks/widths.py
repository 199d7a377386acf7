r"""Argmax flips between plain passes of one token and of several: rounding, and nothing else.

    python -m benchmarks.widths --out=runs/widths

Reads held-out prompts of the shipped pair in passes of 1 and of 2, 5 and 9 tokens, which order
floating-point sums differently, and counts the positions at which the most likely token is
another. Writes a row of `metrics.jsonl` per dtype and width: `dtype`, `width`, `argmax_flips`,
`positions`, `largest_logit_difference`.
"""

import json
import pathlib

from absl import app
from absl import flags
import jax.numpy as jnp
import numpy as np

import specjax
from specjax.analysis import identity

_DTYPES = flags.DEFINE_list('dtypes', ['bfloat16', 'float32'], 'Dtypes of weights and activations.')
_WIDTHS = flags.DEFINE_multi_integer('width', [2, 5, 9], 'Tokens of a pass, beside 1.')
_PROMPTS = flags.DEFINE_integer('prompts', 4, 'How many held-out prompts.')
_LENGTH = flags.DEFINE_integer('length', 64, 'Tokens of a prompt.')
_OUT = flags.DEFINE_string('out', 'runs/widths', 'Folder for metrics.jsonl.')


def main(_):
  rows = []
  for dtype in _DTYPES.value:
    pair = specjax.zoo.load(dtype=jnp.dtype(dtype))
    tokens = np.asarray(pair.prompts(_PROMPTS.value, length=_LENGTH.value))
    one = identity.logits_at_width(pair.target, tokens, width=1)
    for width in _WIDTHS.value:
      flips, difference = identity.count_flips(
          one, identity.logits_at_width(pair.target, tokens, width=width)
      )
      rows.append(
          dict(
              dtype=dtype, width=width, argmax_flips=flips, positions=tokens.size,
              largest_logit_difference=difference,
          )
      )
      print(', '.join(f'{name} {value}' for name, value in rows[-1].items()), flush=True)
  out = pathlib.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (out / 'metrics.jsonl').write_text(text, encoding='utf-8')


if __name__ == '__main__':
  app.run(main)
