"""Distances between laws, and Pearson's chi-square test of counts against a law."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import numpy as np


def max_difference(first: Mapping[Any, float], second: Mapping[Any, float]) -> float:
  """The largest difference of probability that two laws give to any outcome.

  >>> max_difference({'a': 0.5, 'b': 0.5}, {'a': 1.0})
  0.5
  """
  outcomes = first.keys() | second.keys()
  differences = (abs(first.get(x, 0.0) - second.get(x, 0.0)) for x in outcomes)
  return float(max(differences, default=0.0))


def total_variation(first: Mapping[Any, float], second: Mapping[Any, float]) -> float:
  """Half the sum of the differences: the largest one for any event, 0 … 1.

  >>> total_variation({'a': 0.5, 'b': 0.5}, {'a': 1.0})
  0.5
  """
  outcomes = first.keys() | second.keys()
  return 0.5 * float(sum(abs(first.get(x, 0.0) - second.get(x, 0.0)) for x in outcomes))


@dataclasses.dataclass(frozen=True)
class ChiSquare:
  """The outcome of a test.

  Attributes:
    statistic: sum over cells of (observed - expected)^2 / expected; about
      `degrees_of_freedom` if the law is right.
    degrees_of_freedom: cells minus one.
    p_value: the probability of a statistic at least as large if the law is right.
  """

  statistic: float
  degrees_of_freedom: int
  p_value: float


def chi_square(
    counts: Mapping[Any, int], law: Mapping[Any, float], *, min_expected: float = 5.0
) -> ChiSquare:
  """Tests counts of outcomes against a law (Pearson 1900).

  >>> test = chi_square({'a': 48, 'b': 52}, {'a': 0.5, 'b': 0.5})
  >>> round(test.statistic, 2), test.degrees_of_freedom, round(test.p_value, 3)
  (0.16, 1, 0.689)

  Args:
    counts: how often each outcome was seen.
    law: the probability of each outcome; those of probability 0 may be left out.
    min_expected: outcomes expected less often than this are put together in one cell.

  Returns:
    The test. An outcome that the law excludes was never possible: if it was seen, the
    statistic is infinite and the p-value 0.
  """
  total = sum(counts.values())
  if any(count and not law.get(outcome, 0.0) for outcome, count in counts.items()):
    return ChiSquare(float('inf'), max(len(law) - 1, 0), 0.0)
  cells = [(counts.get(outcome, 0), total * prob) for outcome, prob in law.items() if prob]
  rare = [cell for cell in cells if cell[1] < min_expected]
  cells = [cell for cell in cells if cell[1] >= min_expected]
  if rare:
    cells.append(tuple(np.sum(rare, axis=0)))
  observed, expected = np.asarray(cells, np.float64).T
  statistic = float(np.sum((observed - expected) ** 2 / expected))
  freedom = len(cells) - 1
  p_value = float(jax.scipy.special.gammaincc(freedom / 2, statistic / 2)) if freedom else 1.0
  return ChiSquare(statistic, freedom, p_value)
