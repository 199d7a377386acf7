"""Logical axes of arrays, and the mesh axes that they are split over, as data.

A weight (`PARAMETERS`) or an activation names its axes; a `Layout` says which mesh axes each
name is split over. Everything else follows: shapes per device, memory, initialisation, loading.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Array = jax.Array

# Logical axes of a parameter by its name (the last part of its path); others are replicated.
PARAMETERS: Mapping[str, tuple[str | None, ...]] = {
    'embedding': ('vocab', 'embed'),
    'head': ('vocab', 'embed'),
    'qkv': ('kv_heads', None, None, 'qkv_embed'),
    'qkv_bias': ('kv_heads', None, None),
    'out': ('embed', 'heads'),
    'gate_up': (None, 'mlp', 'embed'),
    'down': ('embed', 'mlp'),
    'fuse': ('embed', 'mlp'),  # of EAGLE and DFlash heads
    'markov_in': ('vocab', None),  # of DSpark heads
    'markov_out': ('vocab', None),
}
# Of parameters of heads that have more axes than those of the same name in a model.
WIDER: Mapping[tuple[str, int], tuple[str | None, ...]] = {
    ('out', 3): ('embed', 'heads', None),  # EAGLE: heads and their width apart
    ('head', 3): (None, 'vocab', 'embed'),  # Medusa: its heads side by side
    ('blocks', 4): (None, None, 'mlp', 'embed'),
}
# Of activations and of a layer's cache.
RESIDUAL = ('batch', None, None)
QKV = ('batch', None, 'kv_heads', None, None)
MIXED = ('batch', None, 'heads')
GATE_UP = ('batch', None, None, 'mlp')
LOGITS = ('batch', None, 'vocab')
CACHE = ('batch', 'kv_heads', 'slots', None)
NEW_ENTRIES = ('batch', None, 'kv_heads', None)

Rules = tuple[tuple[str, tuple[str, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where the arrays of one model lie; hashable, so that it is static under `jit`.

  Attributes:
    name: of the preset.
    mesh: the devices, with named axes.
    rules: (logical axis, mesh axes) of stored arrays and activations.
    gathered: logical axes of weights that are gathered when a weight is used (FSDP).
  """

  name: str
  mesh: Mesh
  rules: Rules
  gathered: tuple[str, ...] = ()

  def __post_init__(self):
    for axis, names in self.rules:
      unknown = [name for name in names if name not in self.mesh.axis_names]
      if unknown:
        raise ValueError(
            f'Layout {self.name}: axis {axis!r} is to be split over {unknown}, but the mesh has '
            f'the axes {list(self.mesh.axis_names)}.'
        )

  def mesh_axes(self, axis: str | None) -> tuple[str, ...]:
    """The mesh axes, of more than one device, that a logical axis is split over."""
    if axis is None:
      return ()
    rules = dict(self.rules)
    if axis not in rules:
      raise ValueError(
          f'Layout {self.name} has no rule for the axis {axis!r}; it has {sorted(rules)}.'
      )
    return tuple(name for name in rules[axis] if self.mesh.shape[name] > 1)

  def ways(self, axis: str | None) -> int:
    """How many parts a logical axis is split into."""
    return math.prod(self.mesh.shape[name] for name in self.mesh_axes(axis))

  def spec(
      self,
      axes: Sequence[str | None],
      *,
      shape: Sequence[int] | None = None,
      what: str = 'array',
      at_use: bool = False,
  ) -> PartitionSpec:
    """The partition of an array with these logical axes.

    Args:
      axes: one name a dimension, None where it is never split.
      shape: checked for divisibility where given.
      what: the array's name, for messages.
      at_use: of a weight where it is used: gathered axes are whole.

    Returns:
      A `PartitionSpec` with one entry per dimension.

    Raises:
      ValueError: where two dimensions would be split over one mesh axis, or a dimension
        cannot be split evenly.
    """
    entries, seen = [], {}
    for number, axis in enumerate(axes):
      names = () if at_use and axis in self.gathered else self.mesh_axes(axis)
      for name in names:
        if name in seen:
          raise ValueError(
              f'{what}: layout {self.name} splits both {seen[name]!r} and {axis!r} over the mesh '
              f'axis {name!r}. Give one of them another mesh axis, or none.'
          )
        seen[name] = axis
      ways = math.prod(self.mesh.shape[name] for name in names)
      if shape is not None and shape[number] % ways:
        raise ValueError(_not_even(what, axis, shape[number], ways, self.name))
      entries.append(names[0] if len(names) == 1 else names or None)
    return PartitionSpec(*entries)

  def sharding(
      self,
      axes: Sequence[str | None],
      *,
      shape: Sequence[int] | None = None,
      what: str = 'array',
      at_use: bool = False,
  ) -> NamedSharding:
    """As `spec`, on the mesh."""
    return NamedSharding(self.mesh, self.spec(axes, shape=shape, what=what, at_use=at_use))

  @property
  def replicated(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  def constrain(self, x: Array, axes: Sequence[str | None]) -> Array:
    """`x`, split as its axes say."""
    return jax.lax.with_sharding_constraint(x, self.sharding(axes, shape=x.shape))

  def for_use(self, name: str, weight: Any) -> Any:
    """A weight as it is when it is used: whole along gathered axes."""
    if not self.gathered or not hasattr(weight, 'ndim'):
      return weight
    sharding = self.sharding(_axes(name, weight.ndim), at_use=True)
    return jax.lax.with_sharding_constraint(weight, sharding)

  def parameter_spec(self, path: Sequence[str], shape: Sequence[int]) -> PartitionSpec:
    """The partition of a parameter, by the last part of its path."""
    axes = _axes(path[-1], len(shape))
    if axes is None and len(path) > 1 and path[-1] in ('values', 'scales'):
      axes = PARAMETERS.get(path[-2])  # a quantised weight
      if axes is not None and path[-1] == 'scales':
        axes = axes[:-1]
    if axes is None or len(axes) != len(shape):
      axes = (None,) * len(shape)
    return self.spec(axes, shape=shape, what='/'.join(path))


def constrain(layout: Layout | None, x: Array, axes: Sequence[str | None]) -> Array:
  """`layout.constrain`, or `x` itself where there is no layout."""
  return x if layout is None else layout.constrain(x, axes)


def for_use(layout: Layout | None, name: str, weight: Any) -> Any:
  """`layout.for_use`, or the weight itself where there is no layout."""
  return weight if layout is None else layout.for_use(name, weight)


def fitted(config: Any, layout: Layout | None) -> Any:
  """The configuration with key-value heads repeated as far as the layout needs it.

  Args:
    config: a `specjax.models.TransformerConfig`.
    layout: its layout; None changes nothing.

  Returns:
    `config` with `kv_repeats` set: 1 where the key-value heads divide over their mesh axes.

  Raises:
    ValueError: for an axis that cannot be split evenly, naming it and what would do.
  """
  if layout is None:
    return config
  ways, groups = layout.ways('kv_heads'), config.num_kv_heads
  if groups % ways:
    repeats, per_group = ways // groups, config.num_heads // groups
    if ways % groups or per_group % repeats:
      whole = [
          each for each in divisors(config.num_heads) if not groups % each or not each % groups
      ]
      raise ValueError(
          f'kv_heads: {groups} key-value heads (and {config.num_heads} query heads) cannot be '
          f'split over {ways} devices, nor repeated for them. Sizes of the model axis that would '
          f'do: {", ".join(str(each) for each in whole)}; or split the cache over `sequence`.'
      )
    config = dataclasses.replace(config, kv_repeats=repeats)
  sizes = dict(
      mlp=config.mlp_width,
      vocab=config.vocab_size,
      heads=config.num_heads * config.head_dim,
      embed=config.width,
      qkv_embed=config.width,
  )
  for axis, size in sizes.items():
    layout.spec((axis,), shape=(size,), what=axis)
  return config


def _axes(name: str, rank: int) -> tuple[str | None, ...] | None:
  """The logical axes of a parameter by its name, None where it has none."""
  return WIDER.get((name, rank), PARAMETERS.get(name))


def divisors(size: int, *, limit: int = 1024) -> list[int]:
  """All divisors of `size` up to `limit`.

  >>> divisors(12)
  [1, 2, 3, 4, 6, 12]
  """
  return [ways for ways in range(1, min(size, limit) + 1) if size % ways == 0]


def _not_even(what: str, axis: str | None, size: int, ways: int, name: str) -> str:
  possible = ', '.join(str(each) for each in divisors(size))
  return (
      f'{what}: the axis {axis!r} of size {size} cannot be split evenly over {ways} devices '
      f'(layout {name}). Sizes that would do: {possible}.'
  )
