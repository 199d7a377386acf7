"""The entries of a cache on one device: how they are read, and written in place.

Everywhere: a buffer is [B, G, S, hd], the keys or values of one layer; a row's entries are [T, G,
hd]. A gather and a scatter do for any slots. For narrow heads a TPU's compiler wants padded tiles
for them and copies the buffer, in the worst case before and after every call; for entries that lie
one after another a slice per row needs none, and a kernel (`specjax.kernels.append`) writes all
rows at once.
"""

from collections.abc import Sequence
import functools

import jax
from jax.experimental import layout as device_layout
import jax.numpy as jnp

from specjax.kernels import append as append_kernel

Array = jax.Array

LANES = 128  # of a TPU's tile
_FEW_ROWS = 8  # that are read and written by slices on any platform
# The most rows that a TPU reads by slices, which its compiler unrolls: compile time per row. For
# more, a gather pads narrow heads (64 rows of 34 MB on a v5e: 173 MB of temporaries, not 71).
_MOST_SLICES = 64
# Rows per step of the loop that writes more than a few: one per step costs fourteen times as much
# per row (a v5p, by the compiler's estimate), and without a loop 64 rows take half as long again to
# compile.
_UNROLLED = 16


def has_narrow_heads(buffer: Array) -> bool:
  """Whether heads do not fill a TPU's lanes."""
  return buffer.shape[3] % LANES != 0


def unpadded(buffer: Array) -> Array:
  """The buffer [B, G, S, hd], kept on a TPU as it came: narrow heads along the slots.

  A TPU's tile is 128 wide. An argument whose heads are narrower lies with its slots along the
  lanes, unpadded. For some products with it (one row of one head; a tree's level of several
  nodes) XLA would rather have the heads there, padded: the loop would begin and end with a copy
  of the cache into twice its size, and read that much in every step.
  """
  if not has_narrow_heads(buffer):
    return buffer
  slots_last = device_layout.Layout(major_to_minor=(0, 1, 3, 2))
  return jax.lax.platform_dependent(
      buffer,
      tpu=lambda buffer: device_layout.with_layout_constraint(buffer, slots_last),
      default=lambda buffer: buffer,
  )


def write(buffer: Array, new: Array, slots: Array) -> Array:
  """Writes entries [B, T, G, hd] into slots [B, T] int32; those at or beyond S are dropped."""
  # The indexed axes come first, for a slice stands between them: [B, T, G, hd].
  return buffer.at[jnp.arange(buffer.shape[0])[:, None], :, slots].set(new, mode='drop')


def read(buffer: Array, slots: Array) -> Array:
  """The entries [B, D, G, hd] of slots [B, D] int32."""
  return buffer[jnp.arange(buffer.shape[0])[:, None], :, slots]


def append(
    buffers: Sequence[Array],
    new: Sequence[Array],
    first: Array,
    *,
    part: bool = False,
    spare: bool = False,
) -> tuple[Array, ...]:
  """Writes each row's entries one after the other, on a TPU by one kernel for all arrays.

  Args:
    buffers: arrays [B, G, S, hd] of one shape: a layer's keys and values.
    new: [B, T, G, hd] of each, in its dtype, T at most S.
    first: [B] int32, the slot of each row's first entry.
    part: whether the buffers are a part of the cache, of which entries may lie outside: they are
      dropped. In a whole one `first + T` must not exceed S.
    spare: whether a stale entry may be written after the last one.

  Returns:
    The buffers with slots `first + t` written.
  """

  def one_by_one(buffers, new, first):
    write_one = functools.partial(_append_one, part=part, spare=spare)
    return tuple(write_one(*each, first) for each in zip(buffers, new))

  buffers, new = tuple(buffers), tuple(new)
  if not append_kernel.fits(buffers[0], new[0].shape[1]):
    return one_by_one(buffers, new, first)
  return jax.lax.platform_dependent(
      buffers, new, first, tpu=append_kernel.append, default=one_by_one
  )


def _append_one(buffer: Array, new: Array, first: Array, *, part: bool, spare: bool) -> Array:
  """As `append`, for one array and without a kernel."""
  if buffer.shape[0] <= _FEW_ROWS:
    # A contiguous copy per row: in place, and cheaper than a scatter's index arithmetic.
    if spare and new.shape[1] == 1:
      # XLA's CPU compiler writes a float32 cache twice (for the product that reads it, and for
      # the loop) and copies it whole in between where the update is a single slot.
      new = jnp.pad(new, ((0, 0), (0, 1), (0, 0), (0, 0)))
    return _write_rows(buffer, new, first, part=part, unroll=buffer.shape[0])

  def scatter(buffer, new, first):
    slots = first[:, None] + jnp.arange(new.shape[1])
    return write(buffer, new, jnp.where(slots >= 0, slots, buffer.shape[2]))

  if not has_narrow_heads(buffer):
    return scatter(buffer, new, first)
  slices = lambda *args: _write_rows(*args, part=part, unroll=_UNROLLED)
  return jax.lax.platform_dependent(buffer, new, first, tpu=slices, default=scatter)


def _write_rows(buffer: Array, new: Array, first: Array, *, part: bool, unroll: int) -> Array:
  """As `append`, row by row however many there are.

  A scan is traced once, whatever the batch; as many rows as are unrolled need no loop when it is
  compiled.
  """
  new = jnp.swapaxes(new, 1, 2)

  def one(row, buffer):
    entries = jax.lax.dynamic_slice_in_dim(new, row, 1)
    return unpadded(_write_row(buffer, entries, row, first[row], part=part))

  return jax.lax.fori_loop(0, buffer.shape[0], one, buffer, unroll=unroll)


def _write_row(buffer: Array, new: Array, row, first, *, part: bool) -> Array:
  """One row's entries [1, G, T, hd], as in `append`."""
  if not part:
    return jax.lax.dynamic_update_slice(buffer, new, (row, 0, first, 0))
  num_new, num_slots = new.shape[2], buffer.shape[2]
  at = jnp.clip(first, 0, num_slots - num_new)
  old = jax.lax.dynamic_slice(buffer, (row, 0, at, 0), new.shape)
  # Slot at + j takes entry at + j - first, where there is one.
  entry = jnp.arange(num_new) + at - first
  inside = (entry >= 0) & (entry < num_new)
  moved = jnp.take(new, jnp.clip(entry, 0, num_new - 1), axis=2)
  moved = jnp.where(inside[:, None], moved, old)
  return jax.lax.dynamic_update_slice(buffer, moved, (row, 0, at, 0))


def read_at(buffer: Array, first: Array, offsets: Array, most: int) -> Array:
  """Entries of a short stretch of each row.

  Args:
    buffer: [B, G, S, hd].
    first: [B] int32, the stretch's first slot.
    offsets: [B, D] int32 in [0, most], from there on.
    most: the largest offset that there can be.

  Returns:
    [B, D, G, hd].
  """
  gather = lambda buffer, first, offsets: read(buffer, first[:, None] + offsets)
  if not has_narrow_heads(buffer) or most >= buffer.shape[2]:
    # The cheaper read: 0.02 ms less a layer of Llama-3.1-70B on a v5p, by the compiler's estimate.
    return gather(buffer, first, offsets)
  slices = lambda *args: _read_rows(*args, most)
  if buffer.shape[0] <= _FEW_ROWS:
    return slices(buffer, first, offsets)
  if buffer.shape[0] > _MOST_SLICES:
    return gather(buffer, first, offsets)
  return jax.lax.platform_dependent(buffer, first, offsets, tpu=slices, default=gather)


def _read_rows(buffer: Array, first: Array, offsets: Array, most: int) -> Array:
  """As `read_at`: one slice per row, and what is asked for of that.

  A scan is traced once, whatever the batch: both branches of `platform_dependent` are traced on
  every platform. It is unrolled when it is lowered: in a loop, a TPU's compiler would pad the
  buffer again.
  """
  num_rows, num_heads, num_slots, head_dim = buffer.shape
  start = jnp.minimum(first, num_slots - most - 1)
  shape = (1, num_heads, most + 1, head_dim)

  def one(_, row_and_start):
    row, start = row_and_start
    return None, jax.lax.dynamic_slice(buffer, (row, 0, start, 0), shape)[0]

  rows = jax.lax.scan(one, None, (jnp.arange(num_rows), start), unroll=num_rows)[1]
  return read(rows, (first - start)[:, None] + offsets)
