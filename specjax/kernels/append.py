"""New entries written into caches in place, by one TPU kernel for all rows and arrays.

Rows end at slots of their own, which divide no tile. XLA takes a slice per row and array for that:
each one reads a tile, changes it and writes it, and waits for both, before the next one begins.
Here the tiles of all rows are fetched at once, changed, and written at once.

A buffer [B, G, S, hd] is a table of tiles, 16 slots by 128 lanes, or, where heads are narrower than
the lanes, lies with its slots along them (`specjax.cache.rows.unpadded`), 128 in a tile. The kernel
takes the tiles of a row that its new entries can reach. Compiled for TPUs; not yet run on one.
"""

from collections.abc import Sequence
import functools
import os
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

Array = jax.Array

LANES = 128
_SLOTS = 16  # of a tile; those of float32 have 8
_ROWS = 8  # of the batch that are under way together, if their tiles fit
_ROOM = 2 << 20  # bytes of tiles in VMEM, of which a kernel has 16 MiB
_MOST_NEW = 16  # entries of a row; they are put in place one by one


def fits(buffer: Array, num_new: int) -> bool:
  """Whether the kernel can write so many entries per row into a buffer [B, G, S, hd], and may.

  The environment's SPECJAX_APPEND=xla leaves the kernel out, for a TPU on which it fails.
  """
  tile = _tile(buffer)
  return (
      os.environ.get('SPECJAX_APPEND') != 'xla'
      and num_new <= _MOST_NEW
      and buffer.dtype in (jnp.bfloat16, jnp.float32)
      and buffer.shape[2] % tile == 0
      and _window(num_new, tile) <= buffer.shape[2]
      and _row_bytes(buffer, num_new) <= _ROOM
      and (buffer.shape[3] % LANES == 0 or buffer.shape[3] % _SLOTS == 0)
  )


@functools.partial(jax.jit, static_argnames=('interpret',))
def append(
    buffers: Sequence[Array], new: Sequence[Array], first: Array, *, interpret: Any = False
) -> tuple[Array, ...]:
  """Writes each row's entries one after the other, in place.

  Args:
    buffers: arrays [B, G, S, hd] of one shape and dtype, keys and values for instance, that `fits`.
    new: [B, T, G, hd] of each, in its dtype.
    first: [B] int32, the slot of each row's first entry. What lies outside [0, S) is dropped.
    interpret: Pallas' interpret mode, for tests.

  Returns:
    The buffers with slots `first + t` written.
  """
  buffer, num_new = buffers[0], new[0].shape[1]
  narrow = buffer.shape[3] % LANES != 0
  # [B, G, S, hd], or [B, G, hd, S] as narrow heads lie.
  turn = lambda x: jnp.swapaxes(x, 2, 3) if narrow else x
  batch, groups, size, head_dim = buffer.shape
  tile = _tile(buffer)
  window = _window(num_new, tile)
  rows = max(1, min(batch, _ROWS, _ROOM // (len(buffers) * _row_bytes(buffer, num_new))))
  padded = -(-batch // rows) * rows
  entries = [turn(jnp.swapaxes(each, 1, 2)) for each in new]
  if padded > batch:
    entries = [jnp.pad(each, ((0, padded - batch), (0, 0), (0, 0), (0, 0))) for each in entries]
  tiles = (rows, groups, head_dim, window) if narrow else (rows, groups, window, head_dim)
  shape = entries[0].shape[1:]
  count = len(buffers)
  made = pl.pallas_call(
      functools.partial(
          _kernel, count=count, rows=rows, batch=batch, size=size, tile=tile, num_new=num_new,
          narrow=narrow,
      ),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=1,
          grid=(padded // rows,),
          in_specs=[
              *[pl.BlockSpec((rows, *shape), lambda i, first: (i, 0, 0, 0))] * count,
              *[pl.BlockSpec(memory_space=pltpu.HBM)] * count,
          ],
          out_specs=[pl.BlockSpec(memory_space=pltpu.HBM)] * count,
          scratch_shapes=[
              *[pltpu.VMEM(tiles, buffer.dtype)] * count,
              pltpu.SemaphoreType.DMA((rows,)),
          ],
      ),
      out_shape=[jax.ShapeDtypeStruct(turn(each).shape, each.dtype) for each in buffers],
      input_output_aliases={1 + count + index: index for index in range(count)},
      cost_estimate=pl.CostEstimate(
          flops=0,
          transcendentals=0,
          bytes_accessed=2 * count * batch * groups * window * head_dim * buffer.dtype.itemsize,
      ),
      compiler_params=pltpu.CompilerParams(dimension_semantics=('arbitrary',)),
      name='cache_append',
      interpret=interpret,
  )(first, *entries, *(_in_hbm(turn(each)) for each in buffers))
  return tuple(map(turn, made))


def _in_hbm(buffer: Array) -> Array:
  """The array, which XLA would else move whole into VMEM and back, where it fits."""
  return pltpu.with_memory_space_constraint(buffer, pltpu.HBM)


def _tile(buffer: Array) -> int:
  """Slots of a tile."""
  return LANES if buffer.shape[3] % LANES else _SLOTS


def _window(num_new: int, tile: int) -> int:
  """Slots of the tiles that entries can reach, wherever they begin."""
  return -(-(num_new + tile - 1) // tile) * tile


def _row_bytes(buffer: Array, num_new: int) -> int:
  """Bytes of a row's tiles of one buffer."""
  _, groups, _, head_dim = buffer.shape
  return groups * _window(num_new, _tile(buffer)) * head_dim * buffer.dtype.itemsize


def _kernel(first_ref, *refs, count, rows, batch, size, tile, num_new, narrow):
  entries, _, buffers = refs[:count], refs[count : 2 * count], refs[2 * count : 3 * count]
  tiles, semaphores = refs[3 * count : 4 * count], refs[4 * count]
  slots_axis = 3 if narrow else 2
  window = tiles[0].shape[slots_axis]
  begin = pl.program_id(0) * rows

  def base_of(row):
    """The first slot of a row's tiles."""
    wanted = jax.lax.div(jnp.clip(first_ref[begin + row], 0, size - 1), tile) * tile
    return pl.multiple_of(jnp.minimum(wanted, size - window), tile)

  def copies(row, *, back: bool):
    at = pl.ds(base_of(row), window)
    for buffer, held in zip(buffers, tiles):
      part = buffer.at[begin + row, :, :, at] if narrow else buffer.at[begin + row, :, at, :]
      ends = (held.at[row], part) if back else (part, held.at[row])
      yield pltpu.make_async_copy(*ends, semaphores.at[row])

  def for_all(what):
    """`what` of every row of this group, of which the last group may have fewer."""
    count = jnp.minimum(rows, batch - begin) if batch % rows else rows
    jax.lax.fori_loop(0, count, lambda row, _: what(row), None)

  def fetch(row):
    for copy in copies(row, back=False):
      copy.start()

  def change(row):
    for copy in copies(row, back=False):
      copy.wait()
    offset = first_ref[begin + row] - base_of(row)
    for new, held in zip(entries, tiles):
      shape = held.shape[1:]
      slot = jax.lax.broadcasted_iota(jnp.int32, shape, slots_axis - 1)
      merged, added = held[row].astype(jnp.float32), new[row].astype(jnp.float32)
      for index in range(num_new):
        one = jax.lax.slice_in_dim(added, index, index + 1, axis=slots_axis - 1)
        merged = jnp.where(slot == offset + index, one, merged)
      held[row] = merged.astype(held.dtype)
    for copy in copies(row, back=True):
      copy.start()

  def finish(row):
    for copy in copies(row, back=True):
      copy.wait()

  for_all(fetch)
  for_all(change)
  for_all(finish)
