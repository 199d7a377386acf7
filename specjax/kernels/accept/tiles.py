"""The vocabulary in tiles: sums in one order, on one device or on the shards of a mesh axis.

A `Tiles` says which part of the vocabulary the arrays at hand hold. Every sum is made of
sums of tiles, gathered (one float per tile) and added in the order of the vocabulary, so that
the result does not depend on how many shards there are.
"""

import dataclasses

import jax
import jax.numpy as jnp

from specjax import randomness
from specjax.kernels.accept import base

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Tiles:
  """The part of the vocabulary that local arrays [..., V_local] hold.

  Attributes:
    vocab_size: V, of all shards.
    axis_name: the mesh axis, or axes, that the vocabulary is sharded over, inside `shard_map`;
      None on one device.
    tile: entries of a tile; 0 takes `base.tile_size`.
  """

  vocab_size: int
  axis_name: str | tuple[str, ...] | None = None
  tile: int = 0

  def __post_init__(self):
    if not self.tile:
      object.__setattr__(self, 'tile', base.tile_size(self.vocab_size))

  def offset(self, local_size: int) -> Array | int:
    """The first token id that is held here."""
    return 0 if self.axis_name is None else jax.lax.axis_index(self.axis_name) * local_size

  def ids(self, local_size: int) -> Array:
    """Token ids [V_local] int32."""
    return self.offset(local_size) + jnp.arange(local_size, dtype=jnp.int32)

  def tiles(self, values: Array, fill: float) -> Array:
    """[..., V_local] as [..., n_local, tile]; a last tile is filled up with `fill`."""
    extra = -values.shape[-1] % self.tile
    if extra:
      widths = [(0, 0)] * (values.ndim - 1) + [(0, extra)]
      values = jnp.pad(values, widths, constant_values=fill)
    # The count is given, not left to reshape, which cannot tell it where there are no rows.
    return values.reshape(*values.shape[:-1], values.shape[-1] // self.tile, self.tile)

  def masses(self, weights: Array) -> Array:
    """Sums of the tiles of `weights` [..., V_local], of all shards: [..., n]."""
    sums = jnp.sum(self.tiles(weights, 0.0), axis=-1)
    if self.axis_name is None:
      return sums
    return jax.lax.all_gather(sums, self.axis_name, axis=sums.ndim - 1, tiled=True)

  def total(self, weights: Array) -> Array:
    """The sum over the whole vocabulary, [...]."""
    return randomness.ordered_sum(self.masses(weights))

  def largest(self, values: Array) -> Array:
    """The maximum over the whole vocabulary, [...]."""
    local = jnp.max(values, axis=-1)
    return local if self.axis_name is None else jax.lax.pmax(local, self.axis_name)

  def smallest(self, values: Array) -> Array:
    """The minimum over all shards of a local value [...]."""
    return values if self.axis_name is None else jax.lax.pmin(values, self.axis_name)

  def at(self, values: Array, rows: Array, tokens: Array) -> Array:
    """`values` [R, V_local] at `rows` and `tokens`, of one shape; -inf for tokens below 0."""
    local = tokens - self.offset(values.shape[-1])
    here = (local >= 0) & (local < values.shape[-1]) & (tokens >= 0)
    picked = values[rows, jnp.where(here, local, 0)].astype(jnp.float32)
    picked = jnp.where(here, picked, -jnp.inf)
    return picked if self.axis_name is None else jax.lax.pmax(picked, self.axis_name)

  def tile_at(self, values: Array, rows: Array, tile: Array) -> tuple[Array, Array]:
    """One tile of each of `rows` [B] of `values` [R, V_local], by its global number [B].

    Returns:
      The tile [B, tile], and its first token id [B]. Entries are of some other tile on
      shards that do not hold it, and those beyond the vocabulary repeat its last ones.
    """
    size, local_size = self.tile, values.shape[-1]
    first = tile * size - self.offset(local_size)
    columns = jnp.clip(first[:, None] + jnp.arange(size), 0, local_size - 1)
    return values[rows[:, None], columns], tile * size

  def from_holder(self, tile: Array, token: Array, local_size: int) -> Array:
    """`token` [B] as the shard that holds `tile` [B] has it."""
    if self.axis_name is None:
      return token
    first = tile * self.tile - self.offset(local_size)
    here = (first >= 0) & (first < local_size)
    return jax.lax.pmax(jnp.where(here, token, -1), self.axis_name)
