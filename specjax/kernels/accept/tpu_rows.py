"""What the TPU kernels do with rows in VMEM: eight at a time, one a sublane.

Rows are swept in tiles of `TILE` lanes; the end of a vocabulary that fills no tile is copied
once into a tile of its own, filled up with -inf. Scalars of rows are [8, 1] or, broadcast
along lanes, [8, 128]. Plain jnp, so that interpreters run it too.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import struct
import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from specjax import randomness
from specjax import sampling

Array = jax.Array

ROWS, LANES = 8, 128
# Lanes of a tile: 32 registers, so that units overlap and a loop's latency is spread.
TILE = 4096
_LARGEST = float(jnp.finfo(jnp.float32).max)
_LOG2_E = 1.4426950408889634


@struct.dataclass
class RowSettings:
  """Sampling settings of eight rows, [8, 1] each; see `base.Settings`."""

  inverse: Array
  greedy: Array
  top_k: Array
  top_p: Array
  log_min_p: Array


@struct.dataclass
class RowLaws:
  """Laws of eight rows, [8, 1] each; see `base.Laws`.

  Attributes:
    top, inverse, lowest, chosen: as there.
    total: the sum of exp(scaled) over what is kept.
    unusual: bool scalar, whether any of the rows is greedy, filtered or has infinite logits;
      where none is, `powers` over `total` are probabilities.
  """

  top: Array
  inverse: Array
  lowest: Array
  chosen: Array
  total: Array
  unusual: Array

  def scaled(self, values: Array) -> Array:
    """Scaled logits of a tile."""
    return (jnp.minimum(values, _LARGEST) - self.top) * self.inverse

  def powers(self, values: Array, ids: Array, unusual: bool) -> Array:
    """exp(scaled) of a tile, 0 where a token is not kept; `unusual` is static."""
    if not unusual:
      # As few operations as can be: a power of two, one factor, no masks.
      return jnp.exp2((values - self.top) * (self.inverse * _LOG2_E))
    return jnp.exp(self.masked(values, ids))

  def masked(self, values: Array, ids: Array) -> Array:
    """Scaled logits; -inf where a token is not kept."""
    scaled = self.scaled(values)
    kept = jnp.where(self.chosen >= 0, ids == self.chosen, scaled >= self.lowest)
    return jnp.where(kept, scaled, -jnp.inf)

  def log_prob(self, values: Array, tokens: Array) -> Array:
    """Log-probabilities [8, 1] of tokens [8, 1] from their logits [8, 1]."""
    return self.masked(values, tokens) - jnp.log(self.total)


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


def rarely(condition: Array, unusual: Callable, usual: Callable) -> Any:
  """`unusual()` where a bool scalar is True; the cost of a kernel is counted without it."""
  return jax.lax.cond(condition, unusual, usual)


def num_masses(size: int) -> int:
  """Masses that a draw keeps: of all tiles, and then of the registers of one."""
  return max(-(-size // TILE), TILE // LANES)


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

  def step(tiles, first, carry):
    return carry + fold(jnp.add, measure(tiles, first))

  lanes = sweep(rows, step, jnp.zeros((ROWS, LANES), jnp.float32))
  return jnp.sum(lanes, axis=1, keepdims=True)


def largest(row: Rows) -> Array:
  """[8, 1]: the largest logit."""

  def step(tiles, first, carry):
    del first
    return jnp.maximum(carry, fold(jnp.maximum, tiles[0]))

  lanes = sweep((row,), step, jnp.full((ROWS, LANES), -jnp.inf, jnp.float32))
  return jnp.max(lanes, axis=1, keepdims=True)


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


def laws(row: Rows, settings: RowSettings, general: Array) -> RowLaws:
  """Laws of eight rows of logits.

  Args:
    row: the rows.
    settings: theirs.
    general: bool scalar, whether any of them is greedy or filtered.
  """
  highest = largest(row)
  one = jnp.ones((ROWS, 1), jnp.float32)
  found = RowLaws(
      top=jnp.clip(highest, -_LARGEST, _LARGEST), inverse=settings.inverse, lowest=-jnp.inf * one,
      chosen=jnp.full((ROWS, 1), -1, jnp.int32), total=one,
      unusual=general | (jnp.max(highest) == jnp.inf),
  )

  def mass(found: RowLaws, unusual: bool) -> Array:
    return total((row,), lambda tiles, first: found.powers(
        tiles[0], ids_of(tiles[0], first), unusual
    ))

  def filtered():
    filtered = found.replace(**_filters(row, found, settings))
    return filtered.lowest, filtered.chosen, mass(filtered, True)

  lowest, chosen, sums = rarely(
      found.unusual, filtered, lambda: (found.lowest, found.chosen, mass(found, False))
  )
  return found.replace(lowest=lowest, chosen=chosen, total=sums)


def given_laws() -> RowLaws:
  """Of rows that hold log-probabilities already."""
  zero = jnp.zeros((ROWS, 1), jnp.float32)
  return RowLaws(
      zero, zero + 1.0, zero - jnp.inf, jnp.full((ROWS, 1), -1, jnp.int32), zero + 1.0,
      jnp.bool_(False),
  )


def _filters(row: Rows, found: RowLaws, settings: RowSettings) -> dict[str, Array]:
  """`lowest` and `chosen`, as the definition finds them."""
  greedy = settings.greedy > 0
  by_k = ~greedy & (settings.top_k > 0) & (settings.top_k < row.size)
  by_p = ~greedy & (settings.top_p < 1)
  shape = (ROWS, 1)

  def count(least: Array) -> Array:
    return total((row,), lambda tiles, first: jnp.where(found.scaled(tiles[0]) >= least, 1.0, 0.0))

  lowest = sampling.bisect(
      count, settings.top_k.astype(jnp.float32), by_k, shape, stop_at_goal=True
  )

  def mass(least: Array) -> Array:
    def weigh(tiles, first):
      scaled = found.scaled(tiles[0])
      return jnp.where(scaled >= jnp.maximum(least, lowest), jnp.exp(scaled), 0.0)

    return total((row,), weigh)

  goal = settings.top_p * mass(jnp.full(shape, -jnp.inf, jnp.float32))
  lowest = jnp.maximum(lowest, sampling.bisect(mass, goal, by_p, shape))
  least = jnp.where(greedy, -jnp.inf, settings.log_min_p)
  clipped = lambda values, first: jnp.minimum(values, _LARGEST)
  _, token = first_largest(row, clipped)
  return dict(lowest=jnp.maximum(lowest, least), chosen=jnp.where(greedy, token, -1))


def at_tokens(row: Rows, tokens: list) -> Array:
  """[8, 1]: the logit of `tokens[s]` (int32 scalars) in row s."""
  sublane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 0)
  found = jnp.full((ROWS, LANES), -jnp.inf, jnp.float32)
  last = row.size // LANES - 1
  wanted = jnp.zeros((ROWS, LANES), jnp.int32)
  for s, token in enumerate(tokens):
    wanted = jnp.where(sublane == s, token, wanted)
    if last >= 0:
      start = pl.multiple_of(jnp.clip(jax.lax.div(token, LANES), 0, last) * LANES, LANES)
      values = row.ref[:, pl.ds(start, LANES)].astype(jnp.float32)
      here = (sublane == s) & (ids_of(values, start) == token)
      found = jnp.where(here, values, found)
  if row.size % TILE:
    values = row.tail[...]
    here = ids_of(values, row.full_tiles * TILE) == wanted[:, :1]
    found = jnp.maximum(found, fold(jnp.maximum, jnp.where(here, values, -jnp.inf)))
  return jnp.max(found, axis=1, keepdims=True)


def scalars_of(values: Array) -> list[Array]:
  """The eight entries of [8, 1] int32 as scalars."""
  sublane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, 1), 0)
  return [jnp.max(jnp.where(sublane == s, values, -1)) for s in range(ROWS)]


def column(entries: list) -> Array:
  """[8, 1] of eight scalars."""
  sublane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 0)
  found = jnp.full((ROWS, LANES), entries[0])
  for s in range(1, ROWS):
    found = jnp.where(sublane == s, entries[s], found)
  return found[:, :1]


def noisy(found: RowLaws, first_key: Array, second_key: Array, unusual: bool) -> Callable:
  """For `first_largest`: scaled logits with the coupled noise of keys [8, 1]."""

  def values_of(values: Array, first) -> Array:
    ids = ids_of(values, first)
    bits = randomness.mix(first_key, second_key, ids.astype(jnp.uint32))
    scaled = found.masked(values, ids) if unusual else (values - found.top) * found.inverse
    return scaled + randomness.gumbel_of(bits)

  return values_of


@struct.dataclass
class Draw:
  """What eight next tokens are drawn from, [8, 1] each; see `base.Draw`."""

  target: RowLaws
  draft: RowLaws | None
  scale: Array
  share: Array
  without: tuple[Array, ...]

  @property
  def unusual(self) -> Array:
    """Whether any row needs masks."""
    return self.target.unusual if self.draft is None else (
        self.target.unusual | self.draft.unusual
    )

  def weights(self, tiles: tuple[Array, ...], first, unusual: bool) -> Array:
    """Weights of a tile, not normalised."""
    ids = ids_of(tiles[0], first)
    factor = self.scale / self.target.total
    weights = factor * self.target.powers(tiles[0], ids, unusual)
    if self.draft is not None:
      factor = self.share / self.draft.total
      weights = jnp.maximum(weights - factor * self.draft.powers(tiles[1], ids, unusual), 0.0)
    for token in self.without:
      weights = jnp.where(ids == token, 0.0, weights)
    return weights

  def or_target(self, is_empty: Array) -> 'Draw':
    """The target's own law where `is_empty` [8, 1]."""
    return self.replace(
        scale=jnp.where(is_empty, 1.0, self.scale),
        share=jnp.where(is_empty, 0.0, self.share),
        without=tuple(jnp.where(is_empty, -1, token) for token in self.without),
    )


def surplus(rows: tuple[Rows, Rows], draw: Draw) -> Array:
  """[8, 1]: the sum of the weights of `draw`."""
  weigh = lambda unusual: total(
      rows, lambda tiles, first: draw.weights(tiles, first, unusual)
  )
  return rarely(draw.unusual, lambda: weigh(True), lambda: weigh(False))


def tile_masses(rows: tuple[Rows, ...], draw: Draw, masses) -> Array:
  """Writes the tiles' masses to `masses` [n, 8, 128], along lanes; returns their sum [8, 1]."""

  def run(unusual: bool) -> Array:
    def step(tiles, first, carry):
      lanes = fold(jnp.add, draw.weights(tiles, first, unusual))
      mass = jnp.sum(lanes, axis=1, keepdims=True)
      masses[jax.lax.div(jnp.int32(first), TILE)] = jnp.broadcast_to(mass, (ROWS, LANES))
      return carry + mass

    return sweep(rows, step, jnp.zeros((ROWS, 1), jnp.float32))

  return rarely(draw.unusual, functools.partial(run, True), functools.partial(run, False))


def pick_part(count: int, mass_of: Callable, goal: Array) -> tuple[Array, Array]:
  """The first of `count` parts at whose end the running sum exceeds the goal.

  Args:
    count: static.
    mass_of: part to mass, [8, 128] along lanes.
    goal: [8, 128].

  Returns:
    Its number [8, 128], the last one with mass where none exceeds the goal (rounding), and
    the sum before it.
  """

  def step(number, carry):
    part, start, run, found = carry
    mass = mass_of(number)
    # Until the goal is passed, the last part with mass stands for what rounding may skip.
    takes = (found == 0) & (mass > 0)
    part = jnp.where(takes, number, part)
    start = jnp.where(takes, run, start)
    run = run + mass
    return part, start, run, jnp.where(takes & (run > goal), 1, found)

  zeros = jnp.zeros((ROWS, LANES), jnp.float32)
  ints = jnp.zeros((ROWS, LANES), jnp.int32)
  part, start, _, _ = jax.lax.fori_loop(0, count, step, (ints, zeros, zeros, ints))
  return part, start


def pick_lane(weights: Array, goal: Array) -> Array:
  """[8, 1]: the lane of `weights` [8, 128] that a running sum's goal [8, 128] falls into."""
  lane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 1)
  ends, shift = weights, 1
  while shift < LANES:
    moved = jnp.roll(ends, shift, axis=1)
    ends = ends + jnp.where(lane >= shift, moved, 0.0)
    shift *= 2
  positive = weights > 0
  beyond = jnp.where((ends > goal) & positive, lane, LANES)
  first = jnp.min(beyond, axis=1, keepdims=True)
  last = jnp.max(jnp.where(positive, lane, 0), axis=1, keepdims=True)
  return jnp.minimum(first, last)


def draw(rows, found: Draw, masses, goal: Array, picked) -> tuple[Array, Array]:
  """Draws eight tokens by inverse CDF.

  Args:
    rows: the rows.
    found: what is drawn from.
    masses: [n, 8, 128], of tiles, as `tile_masses` has written them; overwritten.
    goal: [8, 1], at which running sum.
    picked: [streams, 8, TILE] float32, scratch for each row's tile.

  Returns:
    Tokens [8, 1] int32 and their log-probabilities under the target's law [8, 1].
  """
  goal = jnp.broadcast_to(goal, (ROWS, LANES))
  tile, start = pick_part(-(-rows[0].size // TILE), lambda number: masses[number], goal)
  goal = goal - start
  for at, row in enumerate(rows):
    _gather_tiles(row, tile, picked.at[at])
  first = tile[:, :1] * TILE
  tiles = tuple(picked[at] for at in range(len(rows)))
  # Every row has a tile of its own, hence ids of its own; masks cost little on one tile.
  weights = found.weights(tiles, first, unusual=True)
  parts = [weights[:, at : at + LANES] for at in range(0, TILE, LANES)]
  for at, part in enumerate(parts):
    mass = jnp.sum(part, axis=1, keepdims=True)
    masses[at] = jnp.broadcast_to(mass, (ROWS, LANES))
  part, start = pick_part(len(parts), lambda number: masses[number], goal)
  chosen = parts[0]
  for at in range(1, len(parts)):
    chosen = jnp.where(part == at, parts[at], chosen)
  lane = pick_lane(chosen, goal - start)
  inside = part[:, :1] * LANES + lane
  token = first + inside
  values = tiles[0]
  here = ids_of(values, 0) == inside
  value = jnp.max(fold(jnp.maximum, jnp.where(here, values, -jnp.inf)), axis=1, keepdims=True)
  return token, found.target.log_prob(value, token)


def _gather_tiles(row: Rows, tile: Array, picked) -> None:
  """Puts tile `tile[s]` [8, 128] of each row s side by side into `picked` [8, TILE]."""
  sublane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 0)
  rest = row.size % TILE
  if rest:
    picked[...] = jnp.full((ROWS, TILE), -jnp.inf, jnp.float32)
    picked[:, : row.tail.shape[1]] = row.tail[...]
  if not row.full_tiles:
    return
  wide = jax.lax.broadcasted_iota(jnp.int32, (ROWS, TILE), 0)
  for s in range(ROWS):
    number = jnp.max(jnp.where(sublane == s, tile, 0))
    values = row.tile(jnp.minimum(number, row.full_tiles - 1))
    takes = (wide == s) & (number < row.full_tiles)
    picked[...] = jnp.where(takes, values, picked[...])
