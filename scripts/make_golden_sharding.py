"""Writes `tests/golden/sharding.txt`: what every preset does to a Llama-3.1-70B and its draft.

    python scripts/make_golden_sharding.py

Needs no accelerator and no memory: shapes alone are split, over a mesh of devices by number.
"""

import pathlib

import jax.numpy as jnp

from specjax import models
from specjax import sharding
from specjax.sharding import table

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / 'tests/golden/sharding.txt'
CASES = {
    'tensor, 8 devices': dict(preset='tensor', model=8, draft=4),
    'data x tensor, 2 x 8 devices': dict(preset='tensor', data=2, model=8),
    'tensor, 64 devices: key-value heads repeated': dict(preset='tensor', model=64, draft=8),
    'sequence, 2 x 8 devices': dict(preset='sequence', sequence=2, model=8, draft=8),
    'fsdp, 8 devices': dict(preset='fsdp', data=8),
    'fsdp x tensor, 4 x 2 devices': dict(preset='fsdp', data=4, model=2),
}


def make() -> str:
  """The golden text."""
  parts = []
  for title, case in CASES.items():
    count = case.get('data', 1) * case.get('model', 1) * case.get('sequence', 1)
    layouts = sharding.make(**case, devices=sharding.counted_devices(count))
    for name, layout in (('Llama-3.1-70B', layouts.target), ('Llama-3.2-1B', layouts.draft)):
      config = sharding.fitted(models.presets.get(name), layout)
      module = models.Transformer(
          config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, layout=layout
      )
      shown = table.text(module, batch_size=8, cache_length=8192)
      parts.append(f'# {title}\n{name}, {shown}')
  return '\n'.join(parts)


if __name__ == '__main__':
  GOLDEN.write_text(make(), encoding='utf-8')
