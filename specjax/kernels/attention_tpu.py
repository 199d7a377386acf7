"""Attention over a cache by one TPU kernel, which fetches no block of slots beyond a row's length.

XLA writes the scores of a pass to HBM in float32 and reads them twice, and reads all slots of a
cache, filled or not. Here a block of slots is fetched while the one before it is attended to, and
what is kept between blocks are the running maximum, sum and output of each query (Milakov and
Gimelshein 2018, arXiv 1805.02867; Dao 2023, 2307.08691). The T * R queries that share a key-value
head are one block. New tokens lie after the cache and may be a tree: which slots a query sees is a
product of the tree's mask with ones at their slots, exact as a sum of one term.

Heads narrower than a TPU's lanes are read as they lie (`specjax.cache.rows.unpadded`), with their
slots along the lanes. Compiled for TPUs; not yet run on one.
"""

import functools
import os
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

Array = jax.Array

LANES = 128
# Below, the scores of a pass stay in VMEM, and a kernel has little to save.
_FEWEST_SLOTS = 1024
_ROOM = 12 << 20  # bytes of a kernel in VMEM, of which it has 16 MiB
_BLOCK_BYTES = 512 << 10  # of a block of keys, of which four are held, two arrays twice
_SCORE_BYTES = 1 << 20  # of one head's scores of a block
# Less than any score; with -inf a row that sees nothing yet would subtract infinities.
_NONE = -1e30


def fits(num_new: int, repeats: int, width: int, keys: jax.ShapeDtypeStruct) -> bool:
  """Whether the kernel can attend to keys [B, G, S, hd], those of one device, and may.

  The environment's SPECJAX_ATTENTION=xla leaves the kernel out, for a TPU on which it fails.

  Args:
    num_new: T.
    repeats: R, queries that share a key-value head.
    width: N, the new tokens and the nodes of their tree that came before them.
    keys: an array or its shape and dtype.
  """
  _, groups, num_slots, head_dim = keys.shape
  return (
      os.environ.get('SPECJAX_ATTENTION') != 'xla'
      and keys.dtype in (jnp.bfloat16, jnp.float32)
      and num_slots % (LANES if head_dim % LANES else 16) == 0
      and num_slots >= _FEWEST_SLOTS
      and head_dim % 16 == 0
      and _vmem_bytes(num_new * repeats, width, groups, num_slots, head_dim, keys.dtype) <= _ROOM
  )


def _vmem_bytes(count: int, width: int, groups: int, num_slots: int, head_dim: int, dtype) -> int:
  """What a kernel holds: blocks twice, what is kept between them, and one head's scores thrice.

  >>> [_vmem_bytes(t, t // 4, 8, 8336, 128, jnp.bfloat16) >> 20 for t in (20, 256, 512)]
  [2, 7, 14]
  """
  item = jnp.dtype(dtype).itemsize
  size = _block(num_slots, count, groups * head_dim * item)
  count, lanes = -(-count // 8) * 8, max(head_dim, LANES)
  kept = groups * count * (lanes * (2 * item + 2 * 4) + 2 * LANES * 4)
  seen = 2 * count * LANES * -(-(width + 1) // LANES) * 2
  slots = 4 * groups * size * head_dim * item
  return kept + seen + slots + size * (3 * 4 * count + 2 * max(width + 1, 16))


@functools.partial(jax.jit, static_argnames=('interpret',))
def attend(
    queries: Array,
    keys: Array,
    values: Array,
    among_new: Array,
    first: Array,
    *,
    interpret: Any = False,
) -> Array:
  """Grouped-query attention over a cache that holds the new tokens already.

  Args:
    queries: [B, T, G, R, hd], scaled; R queries share a key-value head.
    keys: [B, G, S, hd] that `fits`.
    values: [B, G, S, hd].
    among_new: [B, T, N] bool, which of the N new tokens, and nodes of their tree that came before
      them, a query sees.
    first: [B] int32, the slot of the first of these N; all slots before it are seen.
    interpret: Pallas' interpret mode, for tests.

  Returns:
    [B, T, G, R, hd] float32.
  """
  batch, num_new, groups, repeats, head_dim = queries.shape
  num_slots, count, width = keys.shape[2], num_new * repeats, among_new.shape[2]
  narrow = head_dim % LANES != 0
  # [B, T, G, R, hd] -> [B, G, T * R, hd].
  folded = jnp.swapaxes(queries, 1, 2).reshape(batch, groups, count, head_dim).astype(keys.dtype)
  # Of each new token, and last of all slots before them, which every query sees.
  seen = jnp.pad(among_new, ((0, 0), (0, 0), (0, 1)), constant_values=True)
  seen = jnp.repeat(seen, repeats, axis=1).astype(jnp.bfloat16)
  size = _block(num_slots, count, groups * head_dim * keys.dtype.itemsize)
  blocks = -(-num_slots // size)
  if narrow:
    # As narrow heads lie, [B, G, hd, S]: nothing is moved.
    keys, values = (jnp.swapaxes(each, 2, 3) for each in (keys, values))

  def slots_at(row, block, first):
    """Of the blocks that are not needed, none is fetched: the last one stays where it is."""
    block = jnp.minimum(block, _last(first[row], width, size, blocks))
    return (row, 0, 0, block) if narrow else (row, 0, block, 0)

  of_row = lambda *shape: pl.BlockSpec(
      (1, *shape), lambda row, block, first: (row, *[0] * len(shape))
  )
  stored = pl.BlockSpec(
      (1, groups, head_dim, size) if narrow else (1, groups, size, head_dim), slots_at
  )
  made = pl.pallas_call(
      functools.partial(
          _kernel, size=size, blocks=blocks, width=width, num_slots=num_slots, narrow=narrow
      ),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=1,
          grid=(batch, blocks),
          in_specs=[of_row(groups, count, head_dim), stored, stored, of_row(count, width + 1)],
          out_specs=of_row(groups, count, head_dim),
          scratch_shapes=[
              pltpu.VMEM((groups, count, 1), jnp.float32),
              pltpu.VMEM((groups, count, 1), jnp.float32),
          ],
      ),
      out_shape=jax.ShapeDtypeStruct(folded.shape, jnp.float32),
      cost_estimate=pl.CostEstimate(
          flops=4 * batch * groups * count * num_slots * head_dim,
          transcendentals=batch * groups * count * num_slots,
          bytes_accessed=2 * keys.size * keys.dtype.itemsize,
      ),
      # Rows are independent of each other: both cores of a chip that has two share them.
      compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary')),
      name='attend_cache',
      interpret=interpret,
  )(first, folded, keys, values, seen)
  mixed = made.reshape(batch, groups, num_new, repeats, head_dim)
  return jnp.swapaxes(mixed, 1, 2)


def _block(num_slots: int, count: int, slot_bytes: int) -> int:
  """Slots of a block: whole lanes, of which the last block has about as many as the others.

  >>> _block(8208, 40, 256), _block(8208, 512, 256), _block(400, 40, 256)
  (2176, 640, 512)
  """
  most = max(min(_BLOCK_BYTES // slot_bytes, _SCORE_BYTES // (4 * count)), LANES)
  blocks = max(1, round(num_slots / most))
  return -(-num_slots // (blocks * LANES)) * LANES


def _last(first: Array, width: int, size: int, blocks: int) -> Array:
  """The last block that a row needs."""
  return jnp.clip(jax.lax.div(first + width - 1, size), 0, blocks - 1)


def _kernel(
    first_ref, queries, keys, values, seen, mixed, largest, total, *, size, blocks, width,
    num_slots, narrow,
):  # fmt: skip
  row, block = pl.program_id(0), pl.program_id(1)
  first = first_ref[row]
  last = _last(first, width, size, blocks)
  _, groups, count, _ = mixed.shape

  @pl.when(block == 0)
  def _():
    largest[...] = jnp.full(largest.shape, _NONE)
    total[...] = jnp.zeros(total.shape)
    mixed[...] = jnp.zeros(mixed.shape)

  @pl.when(block <= last)
  def _():
    # All slots at once: parts of them would wait for each other's maximum.
    offset = block * size + jax.lax.broadcasted_iota(jnp.int32, (width + 1, size), 1) - first
    token = jax.lax.broadcasted_iota(jnp.int32, (width + 1, size), 0)
    ones = jnp.where(token < width, offset == token, offset < 0).astype(jnp.bfloat16)
    visible = jnp.dot(
        seen[0], ones, preferred_element_type=jnp.float32, precision=jax.lax.Precision.DEFAULT
    ) > 0.5
    slots_last, slots_first = ((1,), (0,)), ((1,), (1,))
    # What is asked for in general is of float32; products of bfloat16 know no other precision.
    precision = None if keys.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    for group in range(groups):
      key, value = keys[0, group], values[0, group]
      if num_slots % size:
        # What a block has beyond the cache is anything at all, and 0 times that is not 0.
        slot = block * size + jax.lax.broadcasted_iota(jnp.int32, value.shape, int(narrow))
        value = jnp.where(slot < num_slots, value, jnp.zeros_like(value))
      scores = jax.lax.dot_general(
          queries[0, group], key, (slots_last if narrow else slots_first, ((), ())),
          preferred_element_type=jnp.float32, precision=precision,
      )
      scores = jnp.where(visible, scores, _NONE)
      before = largest[group]
      now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
      weights = jnp.exp(scores - now)
      scale = jnp.exp(before - now)
      total[group] = total[group] * scale + jnp.sum(weights, axis=1, keepdims=True)
      part = jax.lax.dot_general(
          weights.astype(value.dtype), value, (slots_first if narrow else slots_last, ((), ())),
          preferred_element_type=jnp.float32, precision=precision,
      )
      mixed[0, group] = mixed[0, group] * scale + part
      largest[group] = now

  @pl.when(block == blocks - 1)
  def _():
    for group in range(groups):
      mixed[0, group] = mixed[0, group] / total[group]
