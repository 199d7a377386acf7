"""Intervals over prompts: what they are of, how often they cover, and quantiles as published."""

import math

import numpy as np
import pytest

from experiments.report import plots
from experiments.runs import tables
from specjax.analysis import statistics
from tests.support import reports
from tests.support import tolerance

TRIALS = 4000


def test_a_ratio_of_sums_is_not_a_mean_of_ratios():
  estimate = statistics.ratio_of_sums([100, 10], [50, 1])
  assert estimate.value == tolerance.approx(110 / 51)
  assert estimate.low <= estimate.value <= estimate.high
  assert estimate.num_prompts == 2


def test_the_interval_is_the_jackknifes_written_out():
  tokens, rounds = np.array([9.0, 20.0, 4.0]), np.array([3.0, 8.0, 3.0])
  without = [math.log(24 / 11), math.log(13 / 6), math.log(29 / 11)]
  error = math.sqrt(2 / 3 * sum((each - sum(without) / 3) ** 2 for each in without))
  estimate = statistics.ratio_of_sums(tokens, rounds)
  quantile = 0.95 / math.sqrt(2 * 0.975 * 0.025)  # of two degrees of freedom, in closed form
  ends = [33 / 14 * math.exp(sign * quantile * error) for sign in (-1, 1)]
  assert [estimate.low, estimate.high] == tolerance.approx(ends, roundings=1e4)
  # Of what is turned round, the interval is too.
  other = statistics.ratio_of_sums(rounds, tokens)
  assert [1 / other.high, 1 / other.low] == tolerance.approx([estimate.low, estimate.high])


def test_pairing_takes_out_what_prompts_share():
  random = np.random.default_rng(1)
  length = random.integers(50, 500, size=40)
  plain = 0.01 * length
  fast = plain / 2 * random.normal(1, 0.02, size=40)
  estimate = statistics.paired_speedup(
      plain_seconds=plain, plain_tokens=length, seconds=fast, tokens=length
  )
  assert estimate.low < 2.0 < estimate.high
  assert estimate.high - estimate.low < 0.05
  # The seconds alone vary much more from prompt to prompt.
  alone = statistics.ratio_of_sums(fast, np.ones(40))
  assert (alone.high - alone.low) / alone.value > 0.2


def prompts(size: int) -> np.ndarray:
  """Tokens and rounds of lognormal lengths and lognormal rates, [TRIALS, 2, P] float64."""
  random = np.random.default_rng(size)
  rounds = random.lognormal(0, 0.3, size=(TRIALS, size))
  return np.stack([rounds * random.lognormal(0, 0.5, size=(TRIALS, size)), rounds], 1)


def percentiles(columns: np.ndarray, num_samples: int = 200) -> np.ndarray:
  """The percentile bootstrap of a ratio of sums, [2, TRIALS]: too narrow for a few prompts."""
  size = columns.shape[-1]
  indices = np.random.default_rng(0).integers(size, size=(num_samples, size))
  counts = (indices[..., None] == np.arange(size)).sum(1)  # how often each prompt is drawn
  numerators, denominators = np.moveaxis(columns @ counts.T, 1, 0)
  return np.quantile(numerators / denominators, [0.025, 0.975], axis=-1)


@pytest.mark.parametrize('size', [5, 8, 16])
def test_an_interval_of_95_percent_covers(size):
  columns, truth = prompts(size), math.exp(0.5**2 / 2)
  estimates = [statistics.ratio_of_sums(*each) for each in columns]
  assert np.mean([each.low <= truth <= each.high for each in estimates]) >= 0.92
  if size < 16:  # the planted one
    low, high = percentiles(columns)
    assert np.mean((low <= truth) & (truth <= high)) <= 0.87


def test_the_gain_of_an_arm_covers():
  """The ratio of two ratios over the same prompts, whose lengths and rates they share."""
  random = np.random.default_rng(0)
  hits = 0
  for tokens, rounds in prompts(5):
    others = rounds * random.lognormal(0, 0.1, size=5)
    columns = tokens, others, tokens, rounds
    estimate = statistics.jackknife(lambda t, r, u, s: (t / r) / (u / s), *columns)
    hits += estimate.low <= math.exp(-(0.1**2) / 2) <= estimate.high
  assert hits / TRIALS >= 0.92


@pytest.mark.parametrize('columns', [
    ([5], [2]),  # one prompt
    ([5, 0], [2, 0]),  # as much as one
    ([0, 0], [2, 3]),
])
def test_no_interval_where_nothing_is_known_of_other_prompts(columns):
  estimate = statistics.ratio_of_sums(*columns)
  assert (estimate.low, estimate.high) == (None, None)
  assert str(estimate) == f'{estimate.value:.3g}'


def test_tables_and_plots_do_without_an_interval():
  row = reports.arm(
      2, 'block', mean_acceptance_length_low=None, mean_acceptance_length_high=None,
      speedup_low=None, speedup_high=None, gain=0.04, gain_low=None, gain_high=None,
  )
  shown = tables.sweep_summary(row, ())
  assert (shown['tokens/round'], shown['speed-up'], shown['gain, %']) == ('2.00', '1.50', '4.0')
  (gain,) = [
      plot for plot in plots.along_sweep([row], 'drafter.num_speculative_tokens')
      if plot['id'] == 'gain-along'
  ]
  assert gain['series'][0]['values'] == [4.0] and gain['series'][0]['low'] is None


@pytest.mark.parametrize('arguments, options, message', [
    (([], []), {}, 'at least one prompt'),
    (([1], [1, 2]), {}, 'one entry'),
    (([1, 2], [1, 2]), dict(confidence=95), 'between 0 and 1, e.g. 0.95, got 95'),
])
def test_bad_arguments(arguments, options, message):
  with pytest.raises(ValueError, match=message):
    statistics.ratio_of_sums(*arguments, **options)


# Abramowitz and Stegun, table 26.10, and NIST/SEMATECH e-Handbook, 1.3.6.7.2, to their digits.
@pytest.mark.parametrize('probability, degrees_of_freedom, quantile', [
    (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.975, 4, 2.776),
    (0.975, 7, 2.365), (0.975, 15, 2.131), (0.975, 30, 2.042), (0.975, 120, 1.980),
    (0.9, 1, 3.078), (0.95, 10, 1.812), (0.995, 5, 4.032), (0.9995, 6, 5.959), (0.9995, 60, 3.460),
])  # fmt: skip
def test_quantiles_are_the_published_ones(probability, degrees_of_freedom, quantile):
  result = statistics.t_quantile(probability, degrees_of_freedom)
  assert round(result, 3) == quantile
  assert statistics.t_quantile(1 - probability, degrees_of_freedom) == tolerance.approx(
      -result, roundings=1e4
  )


def test_quantiles_in_closed_form():
  for p in (0.6, 0.975, 0.99):
    one, two = (statistics.t_quantile(p, degrees) for degrees in (1, 2))
    assert one == tolerance.approx(math.tan(math.pi * (p - 0.5)), roundings=1e4)
    assert two == tolerance.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), roundings=1e4)
  assert abs(statistics.t_quantile(0.5, 3)) < 1e-15
  assert round(statistics.t_quantile(0.975, 100_001), 2) == 1.96  # the normal distribution's
  for wrong in ((0, 3), (1, 3), (0.5, 0)):
    with pytest.raises(ValueError, match='at least 1 degree of freedom'):
      statistics.t_quantile(*wrong)
