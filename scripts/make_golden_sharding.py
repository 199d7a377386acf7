"""Writes `tests/golden/sharding.txt`: what every preset does to a Llama-3.1-70B and its drafts.

    python scripts/make_golden_sharding.py

Needs no accelerator and no memory: only shapes are split, over a mesh of numbered devices.
"""

import functools
import pathlib

import jax.numpy as jnp

from specjax import heads
from specjax import models
from specjax import sharding
from specjax.heads import eagle
from specjax.heads import early_exit
from specjax.heads import medusa
from specjax.models import LanguageModel
from specjax.planning import table

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / 'tests/golden/sharding.txt'
CASES = {
    'tensor, 8 devices': dict(preset='tensor', model=8, draft=4),
    'data x tensor, 2 x 8 devices': dict(preset='tensor', data=2, model=8),
    'tensor, 64 devices: key-value heads repeated': dict(preset='tensor', model=64, draft=8),
    'sequence, 2 x 8 devices': dict(preset='sequence', sequence=2, model=8, draft=8),
    'fsdp, 8 devices': dict(preset='fsdp', data=8),
    'fsdp x tensor, 4 x 2 devices': dict(preset='fsdp', data=4, model=2),
}
TARGET = 'Llama-3.1-70B'


def make() -> str:
  """The golden text."""
  parts = []
  for title, case in CASES.items():
    count = case.get('data', 1) * case.get('model', 1) * case.get('sequence', 1)
    layouts = sharding.make(**case, devices=sharding.counted_devices(count))
    tables = [
        _model(TARGET, layouts.target),
        _model('Llama-3.2-1B', layouts.draft),
        *_heads(layouts.draft),
    ]
    parts += [f'# {title}\n{text}' for text in tables]
  return '\n'.join(parts)


def _model(name: str, layout: sharding.Layout) -> str:
  config = sharding.fitted(models.presets.get(name), layout)
  module = models.Transformer(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, layout=layout)
  return f'{name}, {table.text(module, batch_size=8, cache_length=8192)}'


def _heads(layout: sharding.Layout) -> list[str]:
  """Tables of the target's heads: EAGLE-3, four Medusa heads, and an early exit's adapter."""
  cfg = models.presets.get(TARGET)
  options = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, layout=layout)
  shape = heads.MedusaConfig(
      num_heads=4,
      target_width=cfg.width,
      target_vocab_size=cfg.vocab_size,
      target_layers=cfg.num_layers,
  )
  exit_shape = heads.ExitConfig(exit_layer=20, target=cfg, mlp_width=cfg.width)
  norm = {'final_norm': {'scale': jnp.ones((cfg.width,), jnp.bfloat16)}}
  init_exit = functools.partial(
      early_exit.init_params, target=LanguageModel(models.Transformer(cfg), norm)
  )
  cases = (
      ('EAGLE-3', heads.EagleHead(heads.presets.eagle3(TARGET), **options), eagle.init_params),
      ('Medusa', heads.MedusaHeads(shape, **options), medusa.init_params),
      ('early exit', heads.ExitAdapter(exit_shape, **options), init_exit),
  )
  sizes = dict(batch_size=8, cache_length=8192)
  return [f'{name}, {table.text(module, init=init, **sizes)}' for name, module, init in cases]


if __name__ == '__main__':
  GOLDEN.write_text(make(), encoding='utf-8')
