"""What eight next tokens are drawn from, and the draw, for the TPU kernels."""

from collections.abc import Callable
import functools

from flax import struct
import jax
import jax.numpy as jnp

from specjax.kernels.accept import base
from specjax.kernels.accept import tpu_laws
from specjax.kernels.accept import tpu_rows
from specjax.kernels.accept.tpu_rows import LANES
from specjax.kernels.accept.tpu_rows import ROWS

Array = jax.Array


def num_masses(size: int) -> int:
  """Masses that a draw keeps: of all tiles, and then of the registers of one."""
  return max(-(-size // tpu_rows.TILE), tpu_rows.TILE // LANES)


@struct.dataclass
class Draw:
  """What eight next tokens are drawn from, [8, 1] each; see `specjax.verify.rows.Draw`.

  `share` is None where all of every row's draft is taken.
  """

  target: tpu_laws.RowLaws
  draft: tpu_laws.RowLaws | None
  scale: Array
  share: Array | None
  without: tuple[Array, ...]

  @property
  def unusual(self) -> Array:
    """Whether any row needs masks."""
    return self.target.unusual if self.draft is None else (
        self.target.unusual | self.draft.unusual
    )

  def weights(self, tiles: tuple[Array, ...], first, unusual: bool) -> Array:
    """Weights of a tile, not normalised."""
    ids = tpu_rows.ids_of(tiles[0], first)
    factor = self.scale / self.target.total
    weights = factor * self.target.powers(tiles[0], ids, unusual)
    if self.draft is not None:
      factor = (1.0 if self.share is None else self.share) / self.draft.total
      left = jnp.maximum(weights - factor * self.draft.powers(tiles[1], ids, unusual), 0.0)
      # Where none of it is taken, the draft may have no law at all (NaN).
      weights = left if self.share is None else jnp.where(self.share > 0, left, weights)
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


def surplus(rows: tuple[tpu_rows.Rows, tpu_rows.Rows], draw: Draw) -> Array:
  """[8, 1]: the sum of the weights of `draw`."""
  weigh = lambda unusual: tpu_rows.total(
      rows, lambda tiles, first: draw.weights(tiles, first, unusual)
  )
  return base.unlikely_cond(draw.unusual, lambda: weigh(True), lambda: weigh(False))


def tile_masses(rows: tuple[tpu_rows.Rows, ...], draw: Draw, masses) -> Array:
  """Writes the tiles' masses to `masses` [n, 8, 128], along lanes; returns their sum [8, 1]."""

  def run(unusual: bool) -> Array:
    def step(tiles, first, carry):
      lanes = tpu_rows.fold(jnp.add, draw.weights(tiles, first, unusual))
      mass = jnp.sum(lanes, axis=1, keepdims=True)
      masses[jax.lax.div(jnp.int32(first), tpu_rows.TILE)] = jnp.broadcast_to(mass, (ROWS, LANES))
      return carry + mass

    return tpu_rows.sweep(rows, step, jnp.zeros((ROWS, 1), jnp.float32))

  return base.unlikely_cond(
      draw.unusual, functools.partial(run, True), functools.partial(run, False)
  )


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
    part, start, run, is_passed = carry
    mass = mass_of(number)
    # Until the goal is passed, the last part with mass stands for what rounding may skip.
    takes = (is_passed == 0) & (mass > 0)
    part = jnp.where(takes, number, part)
    start = jnp.where(takes, run, start)
    run = run + mass
    return part, start, run, jnp.where(takes & (run > goal), 1, is_passed)

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


def draw(rows, drawn: Draw, masses, goal: Array, picked) -> tuple[Array, Array]:
  """Draws eight tokens by inverse CDF.

  Args:
    rows: the rows.
    drawn: what is drawn from.
    masses: [n, 8, 128], of tiles, as `tile_masses` has written them; overwritten.
    goal: [8, 1], at which running sum.
    picked: [streams, 8, tpu_rows.TILE] float32, scratch for each row's tile.

  Returns:
    Tokens [8, 1] int32 and their log-probabilities under the target's law [8, 1].
  """
  goal = jnp.broadcast_to(goal, (ROWS, LANES))
  tile, start = pick_part(-(-rows[0].size // tpu_rows.TILE), lambda number: masses[number], goal)
  goal = goal - start
  for at, row in enumerate(rows):
    _gather_tiles(row, tile, picked.at[at])
  first = tile[:, :1] * tpu_rows.TILE
  tiles = tuple(picked[at] for at in range(len(rows)))
  # Every row has a tile of its own, hence ids of its own; masks cost little on one tile.
  weights = drawn.weights(tiles, first, unusual=True)
  parts = [weights[:, at : at + LANES] for at in range(0, tpu_rows.TILE, LANES)]
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
  value = jnp.where(tpu_rows.ids_of(values, 0) == inside, values, -jnp.inf)
  value = jnp.max(tpu_rows.fold(jnp.maximum, value), axis=1, keepdims=True)
  return token, drawn.target.log_prob(value, token)


def _gather_tiles(row: tpu_rows.Rows, tile: Array, picked) -> None:
  """Puts tile `tile[s]` [8, 128] of each row s side by side into `picked` [8, tpu_rows.TILE]."""
  sublane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 0)
  rest = row.size % tpu_rows.TILE
  if rest:
    picked[...] = jnp.full((ROWS, tpu_rows.TILE), -jnp.inf, jnp.float32)
    picked[:, : row.tail.shape[1]] = row.tail[...]
  if not row.full_tiles:
    return
  wide = jax.lax.broadcasted_iota(jnp.int32, (ROWS, tpu_rows.TILE), 0)
  for s in range(ROWS):
    number = jnp.max(jnp.where(sublane == s, tile, 0))
    values = row.tile(jnp.minimum(number, row.full_tiles - 1))
    takes = (wide == s) & (number < row.full_tiles)
    picked[...] = jnp.where(takes, values, picked[...])
