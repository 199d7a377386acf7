"""Attention of a decoder: over a cache, whatever its new tokens form, and over fresh passes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from specjax.cache import kv_cache
from specjax.kernels import attention as attention_kernels
from specjax.kernels import attention_tpu
from specjax.models import layers
from specjax.sharding import layout as layout_lib

Array = jax.Array


class View(NamedTuple):
  """What the new tokens of a call see of a layer's slots.

  Attributes:
    mask: [B, T, S] bool, True where a query sees a slot.
    among_new: [B, T, N] bool, the part of it among the new tokens, the P nodes of their tree
      that the cache took last included (N = P + T). None where more than the slots' order decides,
      in windows.
    first: [B] int32, the slot of the first of these N; every slot before it is seen. None likewise.
  """

  mask: Array
  among_new: Array | None
  first: Array | None


def attend(
    queries: Array, keys: Array, values: Array, mask: Array, *, soft_cap: float | None = None
) -> Array:
  """Grouped-query attention, with keys and values read as they lie in a cache.

  Args:
    queries: [B, T, G, R, hd], scaled; R queries share a key-value head.
    keys: [B, G, S, hd].
    values: [B, G, S, hd].
    mask: [B, T, S] bool, True where a query sees a slot; at least one a query.
    soft_cap: bound on scores, or None.

  Returns:
    [B, T, G, R, hd] float32.
  """
  batch, num_new, groups, repeats, head_dim = queries.shape
  # [B, T, G, R, hd] -> [B, G, T * R, hd].
  queries = jnp.transpose(queries, (0, 2, 1, 3, 4))
  queries = queries.reshape(batch, groups, num_new * repeats, head_dim)
  batch_dims = ((0, 1), (0, 1))
  scores = jax.lax.dot_general(
      queries.astype(keys.dtype),
      keys,
      (((3,), (3,)), batch_dims),
      preferred_element_type=jnp.float32,
  )
  scores = layers.soft_cap(scores, soft_cap)
  scores = scores.reshape(batch, groups, num_new, repeats, -1)
  scores = jnp.where(mask[:, None, :, None, :], scores, -jnp.inf)
  weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
  weights = weights.reshape(batch, groups, num_new * repeats, -1)
  mixed = jax.lax.dot_general(
      weights, values, (((3,), (2,)), batch_dims), preferred_element_type=jnp.float32
  )
  mixed = mixed.reshape(batch, groups, num_new, repeats, head_dim)
  return jnp.transpose(mixed, (0, 2, 1, 3, 4))


def attend_causally(
    queries: Array, keys: Array, values: Array, mask: Array, *, soft_cap: float | None = None
) -> Array:
  """Attention of a fresh pass, in blocks of queries that read only what lies before them.

  At most eight blocks of at least 64 queries: for long passes it is little more than half of
  the scores, forwards and backwards (twice as fast at T = 256 on CPU).

  Args:
    queries: [B, T, G, R, hd], scaled.
    keys: [B, T, G, hd].
    values: [B, T, G, hd].
    mask: [B, T, T] bool; no token sees a later one.
    soft_cap: bound on scores, or None.

  Returns:
    [B, T, G, R, hd] float32.
  """
  num_new = queries.shape[1]
  keys, values = jnp.swapaxes(keys, 1, 2), jnp.swapaxes(values, 1, 2)
  size = max(64, -(-num_new // 8))
  blocks = []
  for start in range(0, num_new, size):
    end = min(start + size, num_new)
    block = attend(
        queries[:, start:end],
        keys[:, :, :end],
        values[:, :, :end],
        mask[:, start:end, :end],
        soft_cap=soft_cap,
    )
    blocks.append(block)
  return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)


def over_cache(
    queries: Array,
    cache: kv_cache.KVCache,
    layer: int,
    view: View,
    *,
    implementation: str = 'auto',
    soft_cap: float | None = None,
) -> Array:
  """Attention over one layer of a cache that holds the new tokens already.

  Args:
    queries: [B, T, G, R, hd], scaled.
    cache: the cache.
    layer: which layer.
    view: of the new tokens.
    implementation: one of `specjax.kernels.attention.IMPLEMENTATIONS`; 'auto' is the kernel of
      `specjax.kernels.attention_tpu` on TPUs, for long caches that lie on one device or are split
      by heads or rows, and plain attention elsewhere.
    soft_cap: bound on scores, or None.

  Returns:
    [B, T, G, R, hd] float32.
  """
  keys, values = cache.keys[layer], cache.values[layer]
  plain = lambda queries, keys, values, view: attend(
      queries, keys, values, view.mask, soft_cap=soft_cap
  )
  if implementation == 'auto':
    if soft_cap is not None or not _has_kernel(queries, keys, view, cache.layout):
      return plain(queries, keys, values, view)
    kernel = functools.partial(_kernel, layout=cache.layout)
    return jax.lax.platform_dependent(queries, keys, values, view, tpu=kernel, default=plain)
  if implementation == 'xla':
    return plain(queries, keys, values, view)
  slots = view.first[:, None] + jnp.arange(view.among_new.shape[2])
  return attention_kernels.attend(
      queries, keys, values, view.mask, slots, implementation=implementation
  )


def _has_kernel(
    queries: Array, keys: Array, view: View, layout: layout_lib.Layout | None
) -> bool:
  if view.among_new is None or layout is not None and layout.ways('slots') > 1:
    return False
  batch, groups, *rest = keys.shape
  groups //= 1 if layout is None else layout.ways('kv_heads')
  here = jax.ShapeDtypeStruct((batch, groups, *rest), keys.dtype)
  return attention_tpu.fits(queries.shape[1], queries.shape[3], view.among_new.shape[2], here)


def _kernel(
    queries: Array, keys: Array, values: Array, view: View, *, layout: layout_lib.Layout | None
) -> Array:
  """The TPU's kernel on what each device holds."""
  arguments = queries, keys, values, view.among_new, view.first
  if layout is None:
    return attention_tpu.attend(*arguments)
  queries_spec, cache_spec = layout.spec(layout_lib.QKV), layout.spec(layout_lib.CACHE)
  rows = layout.spec(('batch',))
  return jax.shard_map(
      attention_tpu.attend,
      mesh=layout.mesh,
      in_specs=(queries_spec, cache_spec, cache_spec, rows, rows),
      out_specs=queries_spec,
      check_vma=False,
  )(*arguments)


def view_of(
    positions: Array,
    lengths: Array,
    total: Array,
    num_slots: int,
    *,
    window: int | None,
    ring: bool,
    chain: bool,
    tree_mask: Array | None,
) -> View:
  """Which slots each new token sees.

  Args:
    positions: [B, T] int32 of the new tokens, or [B, P + T] with those of P more nodes of
      their tree that the cache took last.
    lengths: [B] int32, positions held before the call.
    total: [B] int32, positions held after it.
    num_slots: slots of the layer.
    window: positions that a query sees, itself included; None for all.
    ring: whether slots are reused modulo `num_slots`.
    chain: whether `positions` are `lengths` plus 0 … T-1.
    tree_mask: [B, T, T] bool among the new tokens, [B, T, P + T], or None for causal.

  Returns:
    The `View`. Its mask has at least one True per row, so that every softmax is finite; what
    a padding row sees does not matter, for nobody reads it.
  """
  width = positions.shape[1]
  num_new = width
  if tree_mask is not None:
    # Slot `lengths - P + j` holds node j of the tree.
    num_new, width = tree_mask.shape[1:]
    lengths = lengths - (width - num_new)
  if ring:
    index = kv_cache.slot_positions(total, num_slots)[:, None, :]
  else:
    index = jnp.arange(num_slots)[None, None, :]
  # Slot `lengths + j` holds new token j; what lies before is visible to all of them.
  offset = index - lengths[:, None, None]
  inside = (offset >= 0) & (offset < width)
  clipped = jnp.clip(offset, 0, width - 1)
  clipped = jnp.broadcast_to(clipped, (positions.shape[0], 1, num_slots))
  if tree_mask is None:
    mask = offset <= jnp.arange(width)[:, None]
  else:
    everywhere = jnp.broadcast_to(clipped, (positions.shape[0], num_new, num_slots))
    mask = jnp.where(inside, jnp.take_along_axis(tree_mask, everywhere, axis=2), offset < 0)
  if ring:
    mask &= index >= 0
  if window is not None:
    key_positions = index
    if not chain:
      # A tree's tokens lie in a row but share the positions of their depths.
      new_positions = jnp.take_along_axis(positions, clipped[:, 0], axis=1)[:, None, :]
      key_positions = jnp.where(inside, new_positions, index)
    mask &= positions[:, width - num_new :, None] - key_positions < window
  if ring:
    # Padding is not written into a ring: where it reaches beyond the window, it sees none.
    mask |= (jnp.arange(num_slots) == 0) & ~mask.any(-1, keepdims=True)
  if ring or window is not None:
    return View(mask, None, None)
  among_new = jnp.tril(jnp.ones((num_new, width), bool)) if tree_mask is None else tree_mask
  return View(mask, jnp.broadcast_to(among_new, (len(lengths), num_new, width)), lengths)
