"""Laws of eight rows in VMEM, and coupled noise, for the TPU kernels."""

from collections.abc import Callable
import functools

from flax import struct
import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import sampling
from specjax.kernels.accept import base
from specjax.kernels.accept import tpu_rows
from specjax.kernels.accept.tpu_rows import ROWS

Array = jax.Array

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


def laws(
    rows: tuple[tpu_rows.Rows, ...], settings: RowSettings, general: Array
) -> tuple[RowLaws, ...]:
  """Laws of eight rows of logits of each stream: one pass for maxima, and one for sums.

  Args:
    rows: of each stream.
    settings: of the rows, whichever the stream.
    general: bool scalar, whether any of the rows is greedy or filtered.
  """
  highest = tpu_rows.largest(rows)
  one = jnp.ones((ROWS, 1), jnp.float32)
  unusual = general
  for top in highest:
    unusual |= tpu_rows.is_any(top == jnp.inf)
  plain = tuple(
      RowLaws(
          top=jnp.clip(top, -_LARGEST, _LARGEST), inverse=settings.inverse, lowest=-jnp.inf * one,
          chosen=jnp.full((ROWS, 1), -1, jnp.int32), total=one, unusual=unusual,
      )
      for top in highest
  )

  def filtered():
    laws = tuple(
        law.replace(**_filters(row, law, settings)) for row, law in zip(rows, plain)
    )
    return [(law.lowest, law.chosen) for law in laws], masses(rows, laws, True)

  thresholds, sums = base.unlikely_cond(
      unusual, filtered,
      lambda: ([(law.lowest, law.chosen) for law in plain], masses(rows, plain, False)),
  )
  return tuple(
      law.replace(lowest=lowest, chosen=chosen, total=total)
      for law, (lowest, chosen), total in zip(plain, thresholds, sums)
  )


def masses(
    rows: tuple[tpu_rows.Rows, ...], laws: tuple[RowLaws, ...], unusual: bool
) -> tuple[Array, ...]:
  """[8, 1] of each stream: the sum of `powers`."""
  return tpu_rows.totals(rows, lambda tiles, first: tuple(
      law.powers(tile, tpu_rows.ids_of(tile, first), unusual) for law, tile in zip(laws, tiles)
  ), len(rows))


def given_laws() -> RowLaws:
  """Of rows that hold log-probabilities already."""
  zero = jnp.zeros((ROWS, 1), jnp.float32)
  return RowLaws(
      zero, zero + 1.0, zero - jnp.inf, jnp.full((ROWS, 1), -1, jnp.int32), zero + 1.0,
      jnp.bool_(False),
  )


def _filters(row: tpu_rows.Rows, law: RowLaws, settings: RowSettings) -> dict[str, Array]:
  """`lowest` and `chosen`, as the definition finds them."""
  greedy = settings.greedy > 0
  by_k = ~greedy & (settings.top_k > 0) & (settings.top_k < row.size)
  by_p = ~greedy & (settings.top_p < 1)
  shape = (ROWS, 1)

  def count(least: Array) -> Array:
    is_kept = lambda tiles, first: jnp.where(law.scaled(tiles[0]) >= least, 1.0, 0.0)
    return tpu_rows.total((row,), is_kept)

  lowest = sampling.bisect(
      count, settings.top_k.astype(jnp.float32), by_k, shape, stop_at_goal=True
  )

  def mass(least: Array) -> Array:
    def weigh(tiles, first):
      scaled = law.scaled(tiles[0])
      return jnp.where(scaled >= jnp.maximum(least, lowest), jnp.exp(scaled), 0.0)

    return tpu_rows.total((row,), weigh)

  goal = settings.top_p * mass(jnp.full(shape, -jnp.inf, jnp.float32))
  lowest = jnp.maximum(lowest, sampling.bisect(mass, goal, by_p, shape))
  least = jnp.where(greedy, -jnp.inf, settings.log_min_p)
  clipped = lambda values, first: jnp.minimum(values, _LARGEST)
  _, token = tpu_rows.first_largest(row, clipped)
  return dict(lowest=jnp.maximum(lowest, least), chosen=jnp.where(greedy, token, -1))


def noisy(law: RowLaws, first_key: Array, second_key: Array, unusual: bool) -> Callable:
  """For `first_largest`: scaled logits with the coupled noise of keys [8, 1]."""

  def values_of(values: Array, first) -> Array:
    ids = tpu_rows.ids_of(values, first)
    bits = randomness.mix(first_key, second_key, ids.astype(jnp.uint32))
    scaled = law.masked(values, ids) if unusual else (values - law.top) * law.inverse
    return scaled + randomness.gumbel_of(bits)

  return values_of


def row_settings(refs, sequences: list) -> tuple[RowSettings, Array]:
  """Settings of eight rows, from those of sequences in scalar memory.

  Args:
    refs: temperature, top_k, top_p and min_p, [B] each.
    sequences: of each row.

  Returns:
    Theirs, and a bool scalar, whether any is greedy or filtered.
  """
  temperature, top_k, top_p, min_p = ([ref[b] for b in sequences] for ref in refs)
  general = functools.reduce(jnp.logical_or, [
      (t == 0) | (k > 0) | (p < 1) | (m > 0)
      for t, k, p, m in zip(temperature, top_k, top_p, min_p)
  ])
  heat = tpu_rows.column(temperature)
  return RowSettings(
      inverse=1.0 / jnp.where(heat == 0, 1.0, heat),
      greedy=jnp.where(heat == 0, 1.0, 0.0),
      top_k=tpu_rows.column(top_k),
      top_p=tpu_rows.column(top_p),
      log_min_p=jnp.log(tpu_rows.column(min_p)),
  ), general
