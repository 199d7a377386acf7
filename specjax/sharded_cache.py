"""Writing into a cache that is split over devices: each device writes what is its own.

Left to the partitioner, a slice of a split axis may be written by gathering the cache; under
`shard_map` it cannot be: the update is small and known to all, the buffer never moves.
"""

import functools

import jax
from jax.experimental import layout as device_layout
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from specjax import layout as layout_lib

Array = jax.Array

_LANES = 128  # of a TPU's tile


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
  return _unpadded(layout, mapped(buffer, new, slots))


def _unpadded(layout: layout_lib.Layout, buffer: Array) -> Array:
  """The buffer [B, G, S, hd], kept on a TPU as it came: narrow heads along the slots.

  A TPU's tile is 128 wide. An argument whose heads are narrower lies with its slots along the
  lanes, unpadded. Where a device holds one row of one head, the products with it are plain
  ones, for which XLA would rather have the heads there, padded: the loop would begin and end
  with a copy of the cache into twice its size, and read that much in every step.
  """
  held = layout.sharding(layout_lib.CACHE).shard_shape(buffer.shape)
  on_tpu = layout.mesh.devices.flat[0].platform == 'tpu'
  if not on_tpu or held[0] * held[1] > 1 or buffer.shape[3] % _LANES == 0:
    return buffer
  slots_last = device_layout.Layout(major_to_minor=(0, 1, 3, 2))
  return device_layout.with_layout_constraint(buffer, slots_last)


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


def move(layout: layout_lib.Layout, buffer: Array, source: Array, target: Array) -> Array:
  """Copies slots of each row, all read before any is written; a ring's modulo its size.

  Args:
    layout: of the cache.
    buffer: [B, G, S, hd].
    source: [B, D] int32 slots.
    target: [B, D] int32 slots; what is negative is not written.

  Returns:
    The buffer.
  """
  spec = layout.spec(layout_lib.CACHE, shape=buffer.shape, what='the cache')
  batch_spec = PartitionSpec(spec[0])
  split, size = layout.mesh_axes('slots'), buffer.shape[2]
  target = jnp.where(target >= 0, target % size, -1)

  def local(buffer, source, target):
    rows, _, held, _ = buffer.shape
    rows = jnp.arange(rows)[:, None]
    offset = _offset(split, held)
    first, last = source - offset, target - offset
    moved = buffer[rows, :, jnp.clip(first, 0, held - 1)]
    if split:
      own = (first >= 0) & (first < held)
      moved = jax.lax.psum(jnp.where(own[..., None, None], moved, 0), split)
    last = jnp.where((last >= 0) & (last < held), last, held)
    return buffer.at[rows, :, last].set(moved, mode='drop')

  mapped = _shard_map(
      local, layout, in_specs=(spec, batch_spec, batch_spec), out_specs=spec
  )
  return mapped(buffer, source % size, target)


def _offset(split: tuple[str, ...], held: int):
  """The number of a device's first slot."""
  return jax.lax.axis_index(split) * held if split else 0


def _shard_map(function, layout, *, in_specs, out_specs):
  wrap = functools.partial(
      jax.shard_map, mesh=layout.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )
  return wrap(function)
