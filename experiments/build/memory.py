"""How much memory a benchmark needs, estimated before any weight is read."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments.build import drafters as drafters_lib
from experiments.build import values
from experiments.runs import records
from specjax import generation
from specjax import models
from specjax import zoo
from specjax.models import loading
from specjax.zoo import fetched

ConfigDict = ml_collections.ConfigDict

# A token of running text has some four characters; three leave room for a template and for code.
_CHARACTERS_PER_TOKEN = 3
# What XLA and the activations of a pass take beside weights and caches.
_ROOM = 1.15


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Bytes.

  Attributes:
    weights: of target and draft.
    row: of caches, per row of a batch.
    available: on the device, or in this machine; None where nothing tells.
    cache_length: slots of a row that `row` is for.
  """

  weights: int
  row: int
  available: int | None
  cache_length: int

  def total(self, batch_size: int) -> int:
    """At a batch size, with room for activations."""
    return int(_ROOM * (self.weights + batch_size * self.row))

  def fits(self, batch_size: int) -> bool:
    """Whether a batch has room, as far as is known."""
    return self.available is None or self.total(batch_size) <= self.available


def fitting(
    config: ConfigDict, study: records.Study
) -> tuple[records.Study, list[str]]:
  """A study without the arms that do not fit, and lines that say what is needed.

  Raises:
    ValueError: if no arm fits.
  """
  need = estimate(config, study)
  sizes = sorted({arm.sizes.batch_size for arm in study.arms})
  gigabytes = lambda value: f'{value / 1e9:.2f} GB'
  totals = ', '.join(f'{gigabytes(need.total(size))} at batch {size}' for size in sizes)
  has = 'unknown' if need.available is None else gigabytes(need.available)
  lines = [
      f'Memory: weights {gigabytes(need.weights)}, caches {gigabytes(need.row)} per row of '
      f'{need.cache_length} tokens, with activations about {totals}; available: {has}.'
  ]
  arms = tuple(arm for arm in study.arms if need.fits(arm.sizes.batch_size))
  left_out = [size for size in sizes if not need.fits(size)]
  if not arms:
    raise ValueError(
        f'{lines[0]} No batch fits: take a smaller model, --config.int8, fewer new tokens '
        '(--config.max_new_tokens), or a mesh of several devices (--config.mesh.preset=tensor).'
    )
  if left_out:
    lines.append(f'Left out, for want of memory: batches of {", ".join(map(str, left_out))}.')
  return dataclasses.replace(study, arms=arms), lines


def estimate(config: ConfigDict, study: records.Study) -> Estimate:
  """What weights and caches of the config take."""
  shapes = [_target_shape(config)]
  if any(_drafts_with_model(arm.recipe) for arm in study.arms):
    shapes.append(_draft_shape(config))
  shapes = [shape for shape in shapes if shape is not None]
  item = jnp.dtype(values.dtype(config.dtype)).itemsize
  length = config.cache_length or generation.bucket(_longest(config) + config.max_new_tokens)
  row = sum(
      2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * length * item
      for shape in shapes
  )
  weight = 1 if config.int8 else item
  weights = sum(shape.num_parameters * weight for shape in shapes)
  devices = jax.device_count() if config.mesh.preset else 1
  return Estimate(weights // devices, row // devices, _available(), length)


def _target_shape(config: ConfigDict) -> models.TransformerConfig:
  if config.target.path:
    return loading.read_config(config.target.path)
  if config.target.name == fetched.NAME:
    return loading.read_config(fetched.fetch())
  return zoo.load(config.target.name).target.module.config


def _drafts_with_model(recipe: records.Recipe) -> bool:
  parts = [recipe, recipe.free, recipe.learned]
  return any(part is not None and part.kind.startswith('model') for part in parts)


def _draft_shape(config: ConfigDict) -> Any:
  if config.drafter.path and drafters_lib.head_name(config.drafter.kind) is None:
    return loading.read_config(config.drafter.path)
  return None  # the shipped drafts and heads are small beside their target


def _longest(config: ConfigDict) -> int:
  """Tokens of the longest prompt, more rather than fewer."""
  if not config.prompt_file:
    return config.prompt_tokens
  size = os.path.getsize(config.prompt_file) if os.path.exists(config.prompt_file) else 0
  longest = size
  if config.prompt_file.endswith('.jsonl') and size:
    with open(config.prompt_file, encoding='utf-8-sig') as lines:
      longest = max(len(line) for line in lines)
  # Later turns of a chat hold the answers before them.
  return longest // _CHARACTERS_PER_TOKEN + config.max_new_tokens


def _available() -> int | None:
  """Bytes free on the first device; of a CPU, in this machine."""
  device = jax.devices()[0]
  if device.platform != 'cpu':
    stats = device.memory_stats() or {}
    limit = stats.get('bytes_limit')
    return None if limit is None else limit - stats.get('bytes_in_use', 0)
  try:
    with open('/proc/meminfo', encoding='ascii') as lines:
      fields = dict(line.split(':', 1) for line in lines)
    return 1024 * int(fields['MemAvailable'].split()[0])
  except (OSError, KeyError):
    return None
