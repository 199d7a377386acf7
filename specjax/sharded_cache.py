"""A cache that is split over devices: each device writes, and reads out, what is its own.

Left to the partitioner, a slice of a split axis may be written by gathering the cache; under
`shard_map` it cannot be: the update is small and known to all, the buffer never moves.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from specjax import layout as layout_lib

Array = jax.Array


def write(cache, layer: int, buffer: Array, new: Array, valid: Array | None) -> Array:
  """As the writing part of `kv_cache.append`, for a cache with a layout.

  Args:
    cache: the cache.
    layer: which layer.
    buffer: [B, G, S, hd], its keys or values.
    new: [B, T, G, hd] in the buffer's dtype.
    valid: [B, T] bool or None.

  Returns:
    The buffer with slots `lengths + t` (modulo its size in a ring) written.
  """
  layout, ring, size = cache.layout, cache.rings[layer], buffer.shape[2]
  spec = layout.spec(layout_lib.CACHE, shape=buffer.shape, what='the cache')
  slots = cache.lengths[:, None] + jnp.arange(new.shape[1])
  if ring:
    slots = slots % size
    if valid is not None:
      slots = jnp.where(valid, slots, -1)
  batch_spec = PartitionSpec(spec[0])
  split = layout.mesh_axes('slots')

  def local(buffer, new, slots):
    rows, _, held, _ = buffer.shape
    first = slots - _offset(split, held)
    if ring or rows > 8 or new.shape[1] > held:
      own = jnp.where((first >= 0) & (first < held), first, held)
      return buffer.at[jnp.arange(rows)[:, None], :, own].set(new, mode='drop')
    new = jnp.swapaxes(new, 1, 2)
    for row in range(rows):
      buffer = _write_row(buffer, new, row, first[row, 0], whole=not split)
    return buffer

  mapped = _shard_map(
      local,
      layout,
      in_specs=(spec, layout.spec(layout_lib.NEW_ENTRIES), batch_spec),
      out_specs=spec,
  )
  return mapped(buffer, new, slots)


def _write_row(buffer, new, row: int, start, *, whole: bool):
  """One row's tokens [B, G, T, hd] from slot `start` on, which may lie outside of `buffer`."""
  if whole:
    return jax.lax.dynamic_update_slice(buffer, new[row : row + 1], (row, 0, start, 0))
  num_new, held = new.shape[2], buffer.shape[2]
  at = jnp.clip(start, 0, held - num_new)
  shape = (1, buffer.shape[1], num_new, buffer.shape[3])
  old = jax.lax.dynamic_slice(buffer, (row, 0, at, 0), shape)
  # Slot at + j takes token at + j - start, where there is one.
  token = jnp.arange(num_new) + at - start
  inside = (token >= 0) & (token < num_new)
  moved = jnp.take(new[row : row + 1], jnp.clip(token, 0, num_new - 1), axis=2)
  moved = jnp.where(inside[:, None], moved, old)
  return jax.lax.dynamic_update_slice(buffer, moved, (row, 0, at, 0))


def read(layout: layout_lib.Layout, buffer: Array, slots: Array) -> Array:
  """Entries of each row, without moving the buffer.

  Args:
    layout: of the cache.
    buffer: [B, G, S, hd].
    slots: [B, D] int32, each below S.

  Returns:
    [B, D, G, hd].
  """
  spec = layout.spec(layout_lib.CACHE, shape=buffer.shape, what='the cache')
  split = layout.mesh_axes('slots')

  def local(buffer, slots):
    rows, _, held, _ = buffer.shape
    own = slots - _offset(split, held)
    found = buffer[jnp.arange(rows)[:, None], :, jnp.clip(own, 0, held - 1)]
    if split:
      here = (own >= 0) & (own < held)
      found = jax.lax.psum(jnp.where(here[..., None, None], found, 0), split)
    return found

  mapped = _shard_map(
      local,
      layout,
      in_specs=(spec, PartitionSpec(spec[0])),
      out_specs=layout.spec(layout_lib.NEW_ENTRIES),
  )
  return mapped(buffer, slots)


def _offset(split: tuple[str, ...], held: int):
  """The number of a device's first slot."""
  return jax.lax.axis_index(split) * held if split else 0


def _shard_map(function, layout, *, in_specs, out_specs):
  wrap = functools.partial(
      jax.shard_map, mesh=layout.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )
  return wrap(function)
