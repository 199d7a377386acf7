"""Ratios of sums with confidence intervals over prompts.

A speed-up is the ratio of two totals, not the mean of ratios: the latter lets short prompts
outvote long ones. What varies is the prompt, so intervals come from leaving out one prompt at a
time, the same one on both sides of a ratio: a paired comparison. The logarithm of a ratio is
closer to normal than the ratio, and with few prompts its standard error is uncertain itself,
which Student's t accounts for. A percentile bootstrap does neither, and is too narrow for the 5
to 16 prompts of a benchmark: `tests/experiments/test_intervals.py` measures both.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number and how sure one may be of it.

  Attributes:
    value: from all prompts.
    low: lower end of the interval, or None where there is none.
    high: upper end, or None.
    confidence: of the interval, e.g. 0.95.
    num_prompts: how many prompts it is from.
  """

  value: float
  low: float | None
  high: float | None
  confidence: float
  num_prompts: int

  def __str__(self) -> str:
    interval = '' if self.low is None else f' [{self.low:.3g}, {self.high:.3g}]'
    return f'{self.value:.3g}{interval}'


def jackknife(
    ratio: Callable[..., np.ndarray], *columns: Sequence[float], confidence: float = 0.95
) -> Estimate:
  """A ratio of the columns' sums, and its interval by the jackknife on its logarithm.

  With θ the logarithm of the ratio and θ_i that without prompt i, the interval of θ is
  θ ± t s, where s² = (P - 1) / P Σ (θ_i - mean θ)² and t is the quantile of Student's
  distribution with P - 1 degrees of freedom (Tukey 1958; Efron and Stein 1981). Its ends are
  exponentiated, so that the interval of 1 / ratio is that of the ratio, inverted.

  Args:
    ratio: takes the sum of each column, [] or [P] float64, and returns a positive ratio of the
      same shape.
    *columns: [P] each; prompt i of one belongs to prompt i of the others.
    confidence: in (0, 1).

  Returns:
    The `Estimate`. It has no interval for one prompt, which says nothing about others, nor where
    the ratio is not positive and finite with all prompts and without any one of them.

  Raises:
    ValueError: without prompts, for columns of different lengths, or for another confidence.
  """
  values = [np.asarray(column, np.float64) for column in columns]
  sizes = {column.shape for column in values}
  if len(sizes) != 1 or not values[0].ndim == 1 or not values[0].size:
    raise ValueError(f'Columns must have one entry for each of at least one prompt, got {sizes}.')
  if not 0 < confidence < 1:
    raise ValueError(f'confidence must lie between 0 and 1, e.g. 0.95, got {confidence}.')
  size = values[0].size
  totals = [column.sum() for column in values]
  value = float(ratio(*totals))
  low = high = None
  if size > 1:
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
      without = np.log(ratio(*(total - column for total, column in zip(totals, values))))
      if value > 0 and np.isfinite([value, *without]).all():
        error = math.sqrt((size - 1) / size * np.sum((without - without.mean()) ** 2))
        factor = float(np.exp(t_quantile((1 + confidence) / 2, size - 1) * error))
        low, high = value / factor, value * factor
  return Estimate(value, low, high, confidence, size)


def ratio_of_sums(
    numerators: Sequence[float], denominators: Sequence[float], *, confidence: float = 0.95
) -> Estimate:
  """Σ numerators / Σ denominators over prompts, [P] each; see `jackknife`.

  Tokens over rounds gives the mean acceptance length, tokens over seconds the rate.
  """
  return jackknife(lambda n, d: n / d, numerators, denominators, confidence=confidence)


def paired_speedup(
    *,
    plain_seconds: Sequence[float],
    plain_tokens: Sequence[int],
    seconds: Sequence[float],
    tokens: Sequence[int],
    confidence: float = 0.95,
) -> Estimate:
  """How much faster tokens come than with plain decoding of the same prompts.

  Args:
    plain_seconds: [P], of plain decoding.
    plain_tokens: [P], tokens emitted by it.
    seconds: [P], of the method.
    tokens: [P], emitted by the method.
    confidence: as for `jackknife`.

  Returns:
    (Σ tokens / Σ seconds) / (Σ plain_tokens / Σ plain_seconds), a prompt left out of all four
    sums at once.

  Raises:
    ValueError: as `jackknife`.
  """
  return jackknife(
      lambda plain_s, plain_n, s, n: (n / s) / (plain_n / plain_s),
      plain_seconds,
      plain_tokens,
      seconds,
      tokens,
      confidence=confidence,
  )


@functools.cache  # of the same few arguments for every row of a table
def t_quantile(probability: float, degrees_of_freedom: int) -> float:
  """The quantile of Student's t distribution, by its exact distribution function.

  For whole degrees of freedom ν that function is a finite sum in θ = arctan(t / √ν) (Abramowitz
  and Stegun, 26.7.3 and 26.7.4), which is inverted by bisection.

  >>> f'{t_quantile(0.975, 4):.3f}'
  '2.776'

  Args:
    probability: in (0, 1).
    degrees_of_freedom: at least 1.

  Returns:
    t with P(T <= t) = probability.

  Raises:
    ValueError: outside of these ranges.
  """
  if not 0 < probability < 1 or degrees_of_freedom < 1:
    raise ValueError(
        'Student\'s t has a quantile for a probability between 0 and 1 and at least 1 degree of '
        f'freedom, got {probability} and {degrees_of_freedom}.'
    )
  if probability < 0.5:
    return -t_quantile(1 - probability, degrees_of_freedom)
  # Of the powers cos^p θ that the sum has, p below ν - 1: even ones for an even ν (coefficients 1,
  # 1/2, 1·3/(2·4), …), odd ones for an odd ν (1, 2/3, 2·4/(3·5), …).
  is_odd = degrees_of_freedom % 2
  powers = np.arange(is_odd, degrees_of_freedom - 1, 2)
  coefficients = np.cumprod([1.0, *((powers[1:] - 1) / powers[1:])])[: powers.size]

  def within(angle: float) -> float:
    """P(|T| <= √ν tan(angle))."""
    total = math.sin(angle) * float(coefficients @ np.cos(angle) ** powers)
    return 2 / math.pi * (angle + total) if is_odd else total

  low, high = 0.0, math.pi / 2
  for _ in range(64):  # to the last bit
    middle = (low + high) / 2
    if within(middle) < 2 * probability - 1:
      low = middle
    else:
      high = middle
  return math.sqrt(degrees_of_freedom) * math.tan((low + high) / 2)
