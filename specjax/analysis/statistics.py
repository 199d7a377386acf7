"""Ratios of sums with confidence intervals over prompts.

A speed-up is the ratio of two totals, not the mean of ratios: the latter lets short
prompts outvote long ones. What varies is the prompt, so prompts are what the bootstrap
resamples (Efron 1979, percentile interval), the same ones for both sides of a ratio: a
paired comparison.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number and how sure one may be of it.

  Attributes:
    value: from all prompts.
    low: lower end of the interval.
    high: upper end.
    confidence: of the interval, e.g. 0.95.
    num_prompts: how many prompts were resampled.
  """

  value: float
  low: float
  high: float
  confidence: float
  num_prompts: int

  def __str__(self) -> str:
    return f'{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]'


def bootstrap(
    statistic: Callable[..., np.ndarray],
    *columns: Sequence[float],
    confidence: float = 0.95,
    num_samples: int = 2000,
    seed: int = 0,
) -> Estimate:
  """A statistic of columns with one entry per prompt, and its percentile interval.

  Args:
    statistic: takes the columns with prompts on the last axis ([..., P]) and reduces it.
    *columns: [P] each; prompt i of one belongs to prompt i of the others.
    confidence: in (0, 1).
    num_samples: resamplings.
    seed: of the resampling.

  Returns:
    The `Estimate`. With one prompt the interval is the value itself.

  Raises:
    ValueError: without prompts, or for columns of different lengths.
  """
  values = [np.asarray(column, np.float64) for column in columns]
  sizes = {column.shape for column in values}
  if len(sizes) != 1 or not values[0].ndim == 1 or not values[0].size:
    raise ValueError(f'Columns must have one entry for each of at least one prompt, got {sizes}.')
  size = values[0].size
  chosen = np.random.default_rng(seed).integers(size, size=(num_samples, size))
  resampled = statistic(*(column[chosen] for column in values))
  tail = (1 - confidence) / 2
  low, high = np.quantile(resampled, [tail, 1 - tail])
  return Estimate(float(statistic(*values)), float(low), float(high), confidence, size)


def ratio_of_sums(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    confidence: float = 0.95,
    num_samples: int = 2000,
    seed: int = 0,
) -> Estimate:
  """Σ numerators / Σ denominators over prompts; the other arguments are those of `bootstrap`.

  Tokens over rounds gives the mean acceptance length, tokens over seconds the rate.
  """
  return bootstrap(
      lambda n, d: n.sum(-1) / d.sum(-1),
      numerators,
      denominators,
      confidence=confidence,
      num_samples=num_samples,
      seed=seed,
  )


def paired_speedup(
    *,
    plain_seconds: Sequence[float],
    plain_tokens: Sequence[int],
    seconds: Sequence[float],
    tokens: Sequence[int],
    confidence: float = 0.95,
    num_samples: int = 2000,
    seed: int = 0,
) -> Estimate:
  """How much faster tokens come than with plain decoding of the same prompts.

  Args:
    plain_seconds: [P], of plain decoding.
    plain_tokens: [P], tokens emitted by it.
    seconds: [P], of the method.
    tokens: [P], emitted by the method.
    confidence: as for `bootstrap`.
    num_samples: as for `bootstrap`.
    seed: as for `bootstrap`.

  Returns:
    (Σ tokens / Σ seconds) / (Σ plain_tokens / Σ plain_seconds), prompts resampled in pairs.
  """

  def statistic(plain_s, plain_n, s, n):
    return (n.sum(-1) / s.sum(-1)) / (plain_n.sum(-1) / plain_s.sum(-1))

  return bootstrap(
      statistic,
      plain_seconds,
      plain_tokens,
      seconds,
      tokens,
      confidence=confidence,
      num_samples=num_samples,
      seed=seed,
  )
