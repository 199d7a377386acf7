"""A cache that is split over devices: each device writes, and reads out, what is its own.

Left to the partitioner, a slice of a split axis may be written by gathering the cache; under
`shard_map` it cannot be: the update is small and known to all, the buffer never moves.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from specjax.cache import rows as cache_rows
from specjax.sharding import layout as layout_lib

Array = jax.Array


def write(cache, layer: int, buffers, new, valid: Array | None) -> tuple[Array, ...]:
  """As the writing part of `kv_cache.append`, for a cache with a layout.

  Args:
    cache: the cache.
    layer: which layer.
    buffers: [B, G, S, hd] each, its keys and values.
    new: [B, T, G, hd] of each, in its dtype.
    valid: [B, T] bool or None.

  Returns:
    The buffers with slots `lengths + t` (modulo its size in a ring) written.
  """
  layout, ring, shape = cache.layout, cache.rings[layer], buffers[0].shape
  spec = layout.spec(layout_lib.CACHE, shape=shape, what='the cache')
  num_new, size = new[0].shape[1], shape[2]
  slots = cache.lengths[:, None] + jnp.arange(num_new)
  if ring:
    slots = slots % size
    if valid is not None:
      slots = jnp.where(valid, slots, -1)
  batch_spec = PartitionSpec(spec[0])
  split = layout.mesh_axes('slots')

  def local(buffers, new, slots):
    held = buffers[0].shape[2]
    own = slots - _offset(split, held)
    if not ring and num_new <= held:
      return cache_rows.append(buffers, new, own[:, 0], part=bool(split))
    own = jnp.where((own >= 0) & (own < held), own, held)
    return tuple(cache_rows.write(buffer, each, own) for buffer, each in zip(buffers, new))

  mapped = _shard_map(
      local,
      layout,
      in_specs=(spec, layout.spec(layout_lib.NEW_ENTRIES), batch_spec),
      out_specs=spec,
  )
  return mapped(tuple(buffers), tuple(new), slots)


def read(cache, layer: int, buffer: Array, first: Array, offsets: Array, most: int) -> Array:
  """Entries of each row after a slot of its own, without moving the buffer.

  Args:
    cache: the cache.
    layer: which layer.
    buffer: [B, G, S, hd], its keys or values.
    first: [B] int32, slots (modulo S in a ring).
    offsets: [B, D] int32 in [0, most].
    most: the largest offset that there can be.

  Returns:
    [B, D, G, hd].
  """
  layout, ring, size = cache.layout, cache.rings[layer], buffer.shape[2]
  spec = layout.spec(layout_lib.CACHE, shape=buffer.shape, what='the cache')
  split = layout.mesh_axes('slots')

  def local(buffer, first, offsets):
    if not ring and not split:
      return cache_rows.read_at(buffer, first, offsets, most)
    held = buffer.shape[2]
    own = (first[:, None] + offsets) % size - _offset(split, held)
    entries = cache_rows.read(buffer, jnp.clip(own, 0, held - 1))
    if split:
      here = (own >= 0) & (own < held)
      entries = jax.lax.psum(jnp.where(here[..., None, None], entries, 0), split)
    return entries

  batch_spec = PartitionSpec(spec[0])
  mapped = _shard_map(
      local,
      layout,
      in_specs=(spec, batch_spec, batch_spec),
      out_specs=layout.spec(layout_lib.NEW_ENTRIES),
  )
  return mapped(buffer, first, offsets)


def _offset(split: tuple[str, ...], held: int):
  """The number of a device's first slot."""
  return jax.lax.axis_index(split) * held if split else 0


def _shard_map(function, layout, *, in_specs, out_specs):
  wrap = functools.partial(
      jax.shard_map, mesh=layout.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )
  return wrap(function)
