"""The key-value cache: one pair of arrays per layer, written in place.

A layer that sees everything stores position `s` in slot `s`. A sliding-window layer
is a ring: position `s` lives in slot `s % R`, where R is at least the window plus the
longest append, so that a rejected append never overwrites what is still visible.

Entries at or beyond a row's `lengths` are stale: they are never visible, because a
query sees only slots before the row's length and the tokens of its own call. Rolling
back is therefore setting `lengths`; nothing is cleared.

Layers are separate arrays rather than one stacked one: carried through a loop and
written with `dynamic_update_slice` or a scatter they are updated in place, whereas a
stacked cache scanned over leaves a whole copy as a temporary.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from specjax.cache import rows as cache_rows
from specjax.cache import sharded as sharded_cache
from specjax.sharding import layout as layout_lib

Array = jax.Array

# Slots of a layer are a multiple of this: the rows of a TPU's tile of bfloat16. For another
# number of slots XLA lays the argument out with the batch inside, and the loop begins and ends
# with a copy of the whole cache into the layout that it works in.
SLOT_TILE = 16
# Heads that do not fill a TPU's lanes lie with their slots along them, padded to whole lanes there:
# a long cache takes that many, so that the kernel that writes entries can take whole tiles.
_LONG = 1024


@struct.dataclass
class KVCache:
  """Keys and values of the positions that a model has read.

  Attributes:
    keys: one [B, G, S or R, hd] array per layer.
    values: likewise.
    lengths: [B] int32, positions held by each row.
    rings: static, one flag per layer: True where the layer is a ring of R slots.
    max_append: static, the most tokens that one call may write.
    layout: static, how the arrays are split over devices; None is one device.
  """

  keys: tuple[Array, ...]
  values: tuple[Array, ...]
  lengths: Array
  rings: tuple[bool, ...] = struct.field(pytree_node=False)
  max_append: int = struct.field(pytree_node=False)
  layout: layout_lib.Layout | None = struct.field(pytree_node=False, default=None)

  def shardings(self) -> 'KVCache':
    """A `NamedSharding` for every array, of a cache that has a layout."""
    split = lambda x: self.layout.sharding(layout_lib.CACHE, shape=x.shape, what='cache')
    return self.replace(
        keys=tuple(map(split, self.keys)),
        values=tuple(map(split, self.values)),
        lengths=self.layout.replicated,
    )


def init(
    *,
    batch_size: int,
    cache_length: int,
    num_kv_heads: int,
    head_dim: int,
    windows: tuple[int | None, ...],
    max_append: int,
    dtype: Any,
    layout: layout_lib.Layout | None = None,
) -> KVCache:
  """An empty cache.

  Args:
    batch_size: B.
    cache_length: the longest row, in positions. `max_append` slots more are allocated,
      so that the last append may end beyond it, and then up to whole tiles.
    num_kv_heads: G.
    head_dim: hd.
    windows: one entry per layer: the window of a local layer, or None.
    max_append: the most tokens written by one call, and the most that are ever rolled
      back at once: a ring keeps that many positions beyond the window.
    dtype: of keys and values.
    layout: how the arrays are split over devices; slots are then a multiple of what each
      device's whole tiles need.

  Returns:
    A cache with `lengths` zero; contents are zeros.
  """
  parts = 1 if layout is None else layout.ways('slots')
  is_long = cache_length + max_append >= _LONG * parts
  tile = parts * (cache_rows.LANES if is_long and head_dim % cache_rows.LANES else SLOT_TILE)
  whole_tiles = lambda num_slots: -(-num_slots // tile) * tile
  full = whole_tiles(cache_length + max_append)
  sizes = [
      full if window is None else min(full, whole_tiles(window + max_append))
      for window in windows
  ]
  shapes = [(batch_size, num_kv_heads, size, head_dim) for size in sizes]
  return KVCache(
      keys=tuple(_zeros(shape, dtype, layout) for shape in shapes),
      values=tuple(_zeros(shape, dtype, layout) for shape in shapes),
      lengths=jnp.zeros([batch_size], jnp.int32),
      rings=tuple(size < full for size in sizes),
      max_append=max_append,
      layout=layout,
  )


def _zeros(shape, dtype, layout) -> Array:
  if layout is None:
    return jnp.zeros(shape, dtype)
  sharding = layout.sharding(layout_lib.CACHE, shape=shape, what='the cache')
  return jnp.zeros(shape, dtype, device=sharding)


def append(
    cache: KVCache, layer: int, keys: Array, values: Array, valid: Array | None = None
) -> KVCache:
  """Writes one layer's new entries after each row's length; `lengths` stays.

  Args:
    cache: the cache.
    layer: which layer.
    keys: [B, T, G, hd], T at most `max_append`. Rows must hold at most `cache_length`
      positions before: a longer one would be written over its own end.
    values: [B, T, G, hd].
    valid: [B, T] bool or None. In a ring, entries that are not valid are dropped: a short
      row's padding must not overwrite its own past. Elsewhere they are harmless.

  Returns:
    The cache with slots `lengths + t` (modulo R in a ring) written.

  Raises:
    ValueError: when T exceeds `max_append`.
  """
  if keys.shape[1] > cache.max_append:
    raise ValueError(
        f'{keys.shape[1]} tokens in one call, but the cache was made for at most '
        f'max_append={cache.max_append}.'
    )

  buffers = cache.keys[layer], cache.values[layer]
  new = tuple(each.astype(buffer.dtype) for each, buffer in zip((keys, values), buffers))
  if cache.layout is not None:
    written = sharded_cache.write(cache, layer, buffers, new, valid)
  elif not cache.rings[layer]:
    written = cache_rows.append(buffers, new, cache.lengths, spare=cache.max_append > 1)
  else:
    num_slots = buffers[0].shape[2]
    slots = (cache.lengths[:, None] + jnp.arange(keys.shape[1])) % num_slots
    if valid is not None:
      slots = jnp.where(valid, slots, num_slots)
    written = tuple(cache_rows.write(*each, slots) for each in zip(buffers, new))

  def replaced(buffers: tuple[Array, ...], one: Array) -> tuple[Array, ...]:
    return (*buffers[:layer], cache_rows.unpadded(one), *buffers[layer + 1 :])

  keys, values = (
      replaced(*each) for each in zip((cache.keys, cache.values), written, strict=True)
  )
  return cache.replace(keys=keys, values=values)


def slot_positions(total: Array, num_slots: int) -> Array:
  """Position held by each slot of a ring after `total` positions were written.

  Args:
    total: [B] int32.
    num_slots: R.

  Returns:
    [B, R] int32; negative where nothing was written. With R = 4 and total = 6 the
    slots hold positions 4, 5, 2, 3.
  """
  last = total[:, None] - 1
  return last - (last - jnp.arange(num_slots)) % num_slots


def roll_back(cache: KVCache, lengths: Array) -> KVCache:
  """The cache with only the first `lengths` [B] positions of each row."""
  return cache.replace(lengths=lengths)


def keep_path(
    cache: KVCache, root_lengths: Array, path: Array, path_length: Array, *, num_nodes: int
) -> KVCache:
  """Keeps the root and one path of the tree that was appended last.

  The root was written at slot `root_lengths`, node i (1-based) at `root_lengths + i`.
  The path's nodes are read and appended again, directly after the root: D entries per layer. A
  scatter would do, but a TPU's compiler wants narrow heads padded for it, and the loop would
  begin and end with a copy of the cache into twice its size.

  Args:
    cache: after the append.
    root_lengths: [B] int32, the length before the append.
    path: [B, D] int32, node numbers from the root's child on; entries beyond
      `path_length` are ignored.
    path_length: [B] int32.
    num_nodes: N, the tree's nodes below the root: no number in a path is larger.

  Returns:
    The cache with lengths `root_lengths + 1 + path_length`.
  """
  used = jnp.arange(path.shape[1]) < path_length[:, None]
  nodes = jnp.where(used, path, 0)

  def read(layer: int, buffer: Array) -> Array:
    if cache.layout is not None:
      return sharded_cache.read(cache, layer, buffer, root_lengths, nodes, num_nodes)
    if cache.rings[layer]:
      return cache_rows.read(buffer, (root_lengths[:, None] + nodes) % buffer.shape[2])
    return cache_rows.read_at(buffer, root_lengths, nodes, num_nodes)

  kept = roll_back(cache, root_lengths + 1)
  for layer, (keys, values) in enumerate(zip(cache.keys, cache.values)):
    kept = append(kept, layer, read(layer, keys), read(layer, values), used)
  return roll_back(kept, root_lengths + 1 + path_length)
