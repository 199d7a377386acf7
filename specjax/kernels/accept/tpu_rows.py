"""What the TPU kernels do with rows in VMEM: eight at a time, one a sublane.

Rows are swept in tiles of `TILE` lanes; the end of a vocabulary that fills no tile is copied
once into a tile of its own, filled up with -inf. Scalars of rows are [8, 1] or, broadcast
along lanes, [8, 128]. Plain jnp, so that interpreters run it too.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

Array = jax.Array

ROWS, LANES = 8, 128
# Lanes of a tile: 32 registers, so that units overlap and a loop's latency is spread.
TILE = 4096


@dataclasses.dataclass(frozen=True)
class Rows:
  """Eight rows in VMEM.

  Attributes:
    ref: [8, V], float32 or bfloat16.
    tail: [8, >= V % TILE] float32, scratch for the last lanes; None if there are none.
    size: V.
  """

  ref: Any
  tail: Any
  size: int

  @property
  def full_tiles(self) -> int:
    """Tiles that the vocabulary fills."""
    return self.size // TILE

  def load_tail(self) -> None:
    """Copies the last lanes into their tile; to be called once the row has arrived."""
    rest = self.size % TILE
    if rest:
      self.tail[...] = jnp.full(self.tail.shape, -jnp.inf, jnp.float32)
      self.tail[:, :rest] = self.ref[:, self.size - rest :].astype(jnp.float32)

  def tile(self, number) -> Array:
    """A full tile [8, TILE] float32."""
    start = pl.multiple_of(number * TILE, TILE)
    return self.ref[:, pl.ds(start, TILE)].astype(jnp.float32)


def tail_shape(size: int) -> tuple[int, int]:
  """Shape of the scratch for the last lanes of rows of `size` entries."""
  return (ROWS, max(-(-(size % TILE) // LANES), 1) * LANES)


def is_any(flags: Array) -> Array:
  """A bool scalar: whether any of [8, 1] is set; not by a maximum of what may be NaN in one row."""
  return jnp.max(jnp.where(flags, 1.0, 0.0)) > 0


def sweep(rows: tuple[Rows, ...], step: Callable, carry: Any) -> Any:
  """Calls `step(tiles, first_id, carry)` on all tiles of rows, in order.

  Args:
    rows: of one size; `step` gets one tile of each, [8, W].
    step: returns the carry.
    carry: the first one.

  Returns:
    The last one.
  """
  first = rows[0]
  if first.full_tiles:
    carry = jax.lax.fori_loop(
        0,
        first.full_tiles,
        lambda number, carry: step(
            tuple(row.tile(number) for row in rows), number * TILE, carry
        ),
        carry,
    )
  if first.size % TILE:
    tails = tuple(row.tail[...] for row in rows)
    carry = step(tails, first.full_tiles * TILE, carry)
  return carry


def ids_of(values: Array, first: Array | int) -> Array:
  """Token ids of a tile."""
  return jax.lax.broadcasted_iota(jnp.int32, values.shape, 1) + first


def fold(combine: Callable, values: Array) -> Array:
  """[8, W] to [8, 128], by registers."""
  parts = [values[:, at : at + LANES] for at in range(0, values.shape[1], LANES)]
  while len(parts) > 1:
    pairs = [combine(a, b) for a, b in zip(parts[::2], parts[1::2])]
    parts = pairs + parts[len(parts) // 2 * 2 :]
  return parts[0]


def total(rows: tuple[Rows, ...], measure: Callable) -> Array:
  """[8, 1]: the sum over the vocabulary of `measure(tiles, first_id)`."""
  return totals(rows, lambda tiles, first: (measure(tiles, first),), 1)[0]


def totals(rows: tuple[Rows, ...], measure: Callable, count: int) -> tuple[Array, ...]:
  """[8, 1] each: the sums over the vocabulary of the `count` results of `measure`."""

  def step(tiles, first, carry):
    return tuple(
        sums + fold(jnp.add, values) for sums, values in zip(carry, measure(tiles, first))
    )

  lanes = sweep(rows, step, (jnp.zeros((ROWS, LANES), jnp.float32),) * count)
  return tuple(jnp.sum(sums, axis=1, keepdims=True) for sums in lanes)


def largest(rows: tuple[Rows, ...]) -> tuple[Array, ...]:
  """[8, 1] of each stream: the largest logit."""

  def step(tiles, first, carry):
    del first
    return tuple(
        jnp.maximum(top, fold(jnp.maximum, tile)) for top, tile in zip(carry, tiles)
    )

  lanes = sweep(rows, step, (jnp.full((ROWS, LANES), -jnp.inf, jnp.float32),) * len(rows))
  return tuple(jnp.max(top, axis=1, keepdims=True) for top in lanes)


def first_largest(row: Rows, values_of: Callable) -> tuple[Array, Array]:
  """The largest of `values_of(tile, first_id)` and its token, the smaller of equals; [8, 1]."""

  def step(tiles, first, carry):
    best, token = carry
    values = values_of(tiles[0], first)
    ids = ids_of(values, first)
    for at in range(0, values.shape[1], LANES):
      part = values[:, at : at + LANES]
      better = part > best
      best = jnp.where(better, part, best)
      token = jnp.where(better, ids[:, at : at + LANES], token)
    return best, token

  start = (
      jnp.full((ROWS, LANES), -jnp.inf, jnp.float32),
      jnp.full((ROWS, LANES), row.size - 1, jnp.int32),
  )
  best, token = sweep((row,), step, start)
  top = jnp.max(best, axis=1, keepdims=True)
  return top, jnp.min(jnp.where(best == top, token, row.size - 1), axis=1, keepdims=True)


def at_tokens(row: Rows, tokens: list) -> Array:
  """[8, 1]: the logit of `tokens[s]` (int32 scalars) in row s."""
  sublane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 0)
  result = jnp.full((ROWS, LANES), -jnp.inf, jnp.float32)
  last = row.size // LANES - 1
  wanted = jnp.zeros((ROWS, LANES), jnp.int32)
  for s, token in enumerate(tokens):
    wanted = jnp.where(sublane == s, token, wanted)
    if last >= 0:
      start = pl.multiple_of(jnp.clip(jax.lax.div(token, LANES), 0, last) * LANES, LANES)
      values = row.ref[:, pl.ds(start, LANES)].astype(jnp.float32)
      here = (sublane == s) & (ids_of(values, start) == token)
      result = jnp.where(here, values, result)
  if row.size % TILE:
    values = row.tail[...]
    here = ids_of(values, row.full_tiles * TILE) == wanted[:, :1]
    result = jnp.maximum(result, fold(jnp.maximum, jnp.where(here, values, -jnp.inf)))
  return jnp.max(result, axis=1, keepdims=True)


def scalars_of(values: Array) -> list[Array]:
  """The eight entries of [8, 1] int32 as scalars."""
  sublane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, 1), 0)
  return [jnp.max(jnp.where(sublane == s, values, -1)) for s in range(ROWS)]


def column(entries: list) -> Array:
  """[8, 1] of eight scalars."""
  sublane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 0)
  result = jnp.full((ROWS, LANES), entries[0])
  for s in range(1, ROWS):
    result = jnp.where(sublane == s, entries[s], result)
  return result[:, :1]


def spread(columns: dict[int, Array]) -> Array:
  """[8, 128] float32 with [8, 1] values at their lanes, 0 elsewhere."""
  lane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 1)
  result = jnp.zeros((ROWS, LANES), jnp.float32)
  for at, value in columns.items():
    result = jnp.where(lane == at, value, result)
  return result
