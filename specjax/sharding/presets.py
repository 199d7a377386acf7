"""Layouts by name: tensor, data x tensor, sequence-sharded cache, FSDP."""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from specjax.sharding.layout import divisors
from specjax.sharding.layout import Layout

PRESETS = ('tensor', 'sequence', 'fsdp')
AXES = ('data', 'sequence', 'draft', 'model')


@dataclasses.dataclass(frozen=True)
class Layouts:
  """The layouts of a target and of the smaller model that drafts for it, on one mesh.

  Attributes:
    target: of the target.
    draft: of a draft model or head: split over the `draft` part of the model axis only.
  """

  target: Layout
  draft: Layout

  @property
  def mesh(self) -> Mesh:
    return self.target.mesh


def make(
    preset: str,
    *,
    data: int = 1,
    model: int = 1,
    sequence: int = 1,
    draft: int = 1,
    devices: Sequence[Any] | None = None,
) -> Layouts:
  """Layouts of a preset.

  The mesh has the axes `data`, `sequence`, `draft` and `model`: the model axis is the last two
  together, so that a draft can be split over the first part of it and repeated over the rest.

  - 'tensor': heads, MLP and vocabulary over the model axis, rows over `data` (Shoeybi et al.
    2019, "Megatron-LM"): two all-reduces per layer. Where the model axis exceeds the key-value
    heads these are repeated, see `fitted`.
  - 'sequence': as tensor, but key-value heads over the model axis alone and the cache's slots
    over `sequence`; every other weight over both. No head is repeated.
  - 'fsdp': as tensor, and the weights' other axis over `data`, gathered where a weight is used
    (Rajbhandari et al. 2020, "ZeRO", stage 3): for training.

  Args:
    preset: one of `PRESETS`.
    data: parts of the batch.
    model: parts of the model, those of `draft` included.
    sequence: parts of a row's cache; above 1 only for 'sequence'.
    draft: parts of a draft model or head; divides `model`. 1 repeats it on every device.
    devices: data * sequence * model devices; None takes all of `jax.devices()`.

  Returns:
    The `Layouts`.

  Raises:
    ValueError: for an unknown preset, or sizes that do not go together, naming them.
  """
  if preset not in PRESETS:
    raise ValueError(f'The layout must be one of {", ".join(PRESETS)}; got {preset!r}.')
  sizes = dict(data=data, model=model, sequence=sequence, draft=draft)
  for name, size in sizes.items():
    if size < 1:
      raise ValueError(f'{name} must be at least 1, got {size}.')
  if sequence > 1 and preset != 'sequence':
    raise ValueError(f"sequence={sequence} needs the layout 'sequence', not {preset!r}.")
  if model % draft:
    raise ValueError(
        f'draft={draft} must divide model={model}: it is a part of the model axis. Sizes that '
        f'would do: {", ".join(str(each) for each in divisors(model))}.'
    )
  devices = jax.devices() if devices is None else devices
  mesh = _mesh((data, sequence, draft, model // draft), devices)
  whole = ('draft', 'model')
  split = (*whole, 'sequence') if preset == 'sequence' else whole
  embed = ('data',) if preset == 'fsdp' else ()
  target = Layout(
      name=preset,
      mesh=mesh,
      rules=(
          ('batch', ('data',)),
          ('slots', ('sequence',)),
          ('kv_heads', whole),
          ('heads', split),
          ('mlp', split),
          ('vocab', split),
          ('embed', embed),
          ('qkv_embed', ('sequence',) if preset == 'sequence' else embed),
      ),
      gathered=('embed', 'qkv_embed') if preset == 'fsdp' else (),
  )
  part = {'kv_heads', 'heads', 'mlp', 'vocab'}
  rules = tuple(
      (axis, ('draft',) if axis in part else ('data',) if axis == 'batch' else ())
      for axis, _ in target.rules
  )
  return Layouts(target, Layout(name=f'{preset} draft', mesh=mesh, rules=rules))


class _Counted:
  """A device that is only counted: a mesh of shapes asks for no more."""

  def __init__(self, number: int):
    self.id, self.process_index = number, 0
    self.platform = self.device_kind = 'counted'

  def __repr__(self) -> str:
    return f'device {self.id}'


@functools.cache
def counted_devices(count: int) -> tuple[Any, ...]:
  """Devices by number, for layouts of what is not compiled: tables, sizes, rooflines."""
  return tuple(_Counted(number) for number in range(count))


def _mesh(shape: tuple[int, ...], devices: Sequence[Any]) -> Mesh:
  if math.prod(shape) != len(devices):
    parts = ' x '.join(f'{name}={size}' for name, size in zip(AXES, shape))
    raise ValueError(
        f'The mesh {parts} has {math.prod(shape)} devices, but there are {len(devices)} '
        f'(the model axis is draft x model). Sizes whose product is {len(devices)} would do.'
    )
  # The order of jax.devices() on TPUs follows the wires: neighbours in the last axis are near.
  return Mesh(np.asarray(devices, dtype=object).reshape(shape), AXES)
