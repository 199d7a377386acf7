"""From the results of arms to rows: of `metrics.jsonl`, and of a table in a terminal.

All arms saw the same prompts with the same random numbers, so that they are compared in
pairs: intervals come from leaving out one prompt at a time (for times, one batch of prompts), the
same one on both sides of a ratio, all repetitions of a prompt together.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from experiments import prompts as prompts_lib
from experiments import sweep as sweep_lib
from experiments.runs import arms as arms_lib
from experiments.runs import forecasts
from experiments.runs import records
from specjax.analysis import costs as costs_lib
from specjax.analysis import statistics
from specjax.analysis import theory

DEFINITIONS = (
    'tokens/round: all new tokens over all target passes, the bonus or recovered token counted '
    '(1 … K + 1); a mean over rounds, so every token weighs the same.',
    'expected: tokens/round in expectation over the coins of the rule, for the drafts that were '
    'made; nothing cut at the length limit.',
    'speed-up: tokens/s over those of plain decoding with its fastest sampler, batch by batch in '
    'turns; decoding only, no compilation, no prefill. predicted: from the calibrated costs and '
    'the acceptance of this arm.',
    'gain: tokens/round over that of the arm which differs in nothing but the baseline field.',
    '±: half of the 95 % interval over prompts (for times, over batches of prompts), paired where '
    'two arms are compared: jackknife of the logarithm of the ratio, with the quantile of '
    "Student's t. One prompt, or one batch, has no interval.",
    'lossless: identical (token for token, plain decoding at equal width), rounding (identical '
    'but for what rounding explains), same law (emitted tokens tested against the target\'s law).',
)  # fmt: skip

BENCHMARK_NOTE = (
    'Argmax flips: prompts that part from plain decoding where rounding explains it; all others '
    'are token for token the same. In parentheses: prompts whose text is not that of plain '
    'decoding at its own width, as it was timed, for other widths round otherwise: with '
    '--config.width=K+1 plain decoding reads as many tokens per pass as speculation, and is equal '
    "bit for bit. 'same law': other tokens from the same distribution. Speed-ups are over plain "
    'decoding at the same temperature, in turns with each method.'
)

# Columns that a definition is about; the others are in every table.
_COLUMNS = {'expected': 'expected_tokens_per_round', 'speed-up': 'speedup', 'gain': 'gain'}

Calibrations = Mapping[str, costs_lib.Calibration]
Result = arms_lib.Result
Row = dict[str, Any]


def of_sweep(
    arms: Sequence[records.Arm],
    results: Mapping[str, Result],
    *,
    baseline: Sequence[tuple[str, Any]] = (),
    calibrations: Calibrations | None = None,
) -> list[Row]:
  """One row per arm that has a result, in the order of the arms; failed ones say why.

  Args:
    arms: of the sweep.
    results: by arm key.
    baseline: (field, value) pairs that name, for every arm, the one it is compared with.
    calibrations: by arm key, where there are any.

  Returns:
    Rows for `metrics.jsonl`.
  """
  rows = []
  for arm in arms:
    result = results.get(arm.key)
    if result is None:
      continue
    row = dict(
        arm=arm.label, key=arm.key, fields=dict(arm.fields), status=result['status'],
        origin=result.get('origin'),
    )
    if result['status'] != 'done':
      rows.append(row | dict(name=arm.label, error=result['error']))
      continue
    row |= dict(result['record']) | _statistics(result)
    if 'seconds' not in result:
      # Nothing was timed: what the run took holds compilation, too.
      row |= dict(seconds=None, prefill_seconds=None, tokens_per_second=None)
    row |= _gain(arm, arms, results, baseline)
    if calibrations and arm.key in calibrations:
      prediction = _prediction(arm, result, calibrations[arm.key])
      row |= _predicted(prediction) | dict(round_seconds=_round_seconds(prediction, result))
    rows.append(row)
  return rows


def of_benchmark(
    arms: Sequence[records.Arm],
    results: Mapping[str, Result],
    *,
    calibrations: Calibrations | None = None,
) -> list[Row]:
  """Rows of plain decoding per batch size and temperature, then of methods.

  Each is an `analysis.Record` with its `origin`. A method that failed has its `name`, `status`,
  `error` and `origin` alone. Arguments are as for `of_sweep`.
  """
  done = [arm for arm in arms if arms_lib.is_done(results.get(arm.key))]
  kinds = sorted({(arm.sizes.batch_size, arm.temperature) for arm in done})
  rows = [
      _plain([
          results[arm.key] for arm in done if (arm.sizes.batch_size, arm.temperature) == kind
      ])
      for kind in kinds
  ]
  for arm in arms:
    result = results.get(arm.key)
    if result is None:
      continue
    if result['status'] != 'done':
      rows.append(
          dict(
              name=arm.label, status='failed', arm=arm.label, error=result['error'],
              origin=result.get('origin'),
          )
      )
      continue
    row = result['record'] | dict(origin=result.get('origin'))
    if 'along' in result:
      row['along'] = result['along']
    if calibrations and arm.key in calibrations:
      row |= _predicted(_prediction(arm, result, calibrations[arm.key]))
    rows.append(row)
  return rows


def _plain(results: Sequence[Result]) -> Row:
  """Plain decoding as it was timed beside each arm of its kind: medians over the arms."""
  record = dict(results[0]['plain_record'])
  seconds = float(np.median([result['plain_seconds'] for result in results], axis=0).sum())
  return record | dict(
      seconds=seconds,
      tokens_per_second=record['new_tokens'] / max(seconds, 1e-12),
      speedup=1.0,
      speedup_low=1.0,
      speedup_high=1.0,
      origin=_without_drafter(results[-1].get('origin')),
  )


def _without_drafter(origin: Row | None) -> Row | None:
  """The origin of plain decoding that was timed beside an arm."""
  if origin is None:
    return None
  models = {name: each for name, each in origin['models'].items() if name != 'drafter'}
  return origin | dict(models=models)


def _statistics(result: Result) -> Row:
  """Numbers of one arm, with intervals over its prompts; of times only where there are some."""
  tokens, rounds = _by_prompt(result, 'tokens'), _by_prompt(result, 'rounds')
  length = statistics.ratio_of_sums(tokens, rounds)
  row = dict(
      mean_acceptance_length_low=length.low,
      mean_acceptance_length_high=length.high,
      decided_tokens_per_round=1.0
      + float(np.sum(result['accepted_at']) / max(np.sum(result['rounds']), 1)),
      lossless_p_value=result['check']['p_value'],
      batch_size=result['batch_size'],
      prompt_tokens=result['prompt_tokens'],
      by_category=_by_category(result, tokens, rounds),
  )
  if result['check']['largest_gap'] is not None:
    row |= {name: result['check'][name] for name in ('largest_gap', 'gap_bound')}
  if 'expected' in result:
    row |= dict(
        expected_tokens_per_round=_expected(result, result['record']['rule']),
        expected_by_rule={rule: _expected(result, rule) for rule in result['expected']},
        expected_gain_of_block=_expected_gain(result),
        along=result['along'],
    )
  if 'seconds' in result:
    speed = statistics.paired_speedup(
        plain_seconds=_by_batch(result, 'plain_seconds'),
        plain_tokens=_by_batch(result, 'plain_tokens'),
        seconds=_by_batch(result, 'seconds'),
        tokens=_tokens_by_batch(result),
    )
    row |= dict(
        speedup=speed.value,
        speedup_low=speed.low,
        speedup_high=speed.high,
        timed_differently=result['timed_differently'],
    )
  return row


def _by_category(result: Result, tokens: np.ndarray, rounds: np.ndarray) -> Row:
  """Tokens per round with its interval for each category of prompts, where there are several."""
  of_prompt = np.asarray([prompts_lib.category_of(name) for name in result['prompts']])
  categories = sorted(set(of_prompt))
  if len(categories) < 2:
    return {}
  return {
      category: dataclasses.asdict(
          statistics.ratio_of_sums(tokens[of_prompt == category], rounds[of_prompt == category])
      )
      for category in categories
  }


def _by_prompt(result: Result, name: str) -> np.ndarray:
  """A count of every row, [P], repetitions of a prompt added up."""
  return np.asarray(result[name], np.float64).reshape(-1, len(result['prompts'])).sum(0)


def _by_batch(result: Result, name: str) -> np.ndarray:
  """A number of every batch, [P / B], repetitions added up."""
  values = np.asarray(result[name], np.float64)
  return values.reshape(-1, len(result['prompts']) // result['batch_size']).sum(0)


def _tokens_by_batch(result: Result) -> np.ndarray:
  return _by_prompt(result, 'tokens').reshape(-1, result['batch_size']).sum(1)


def _expected(result: Result, rule: str) -> float | None:
  """Tokens per round in expectation over the coins of a rule, on this arm's drafts."""
  accepted = result['expected'].get(rule)
  return None if accepted is None else 1.0 + float(np.sum(accepted) / np.sum(result['rounds']))


def _expected_gain(result: Result) -> dict[str, float] | None:
  """Block over rejection in expectation, on the same drafts of the same rounds."""
  if not result['expected']:
    return None
  rounds = _by_prompt(result, 'rounds')
  sums = {
      rule: rounds + np.reshape(values, (-1, len(result['prompts']))).sum(0)
      for rule, values in result['expected'].items()
  }
  value, low, high = _gain_of(statistics.ratio_of_sums(sums['block'], sums['rejection']))
  return dict(value=value, low=low, high=high)


def _gain_of(ratio: statistics.Estimate) -> tuple[float, float | None, float | None]:
  """A ratio and the ends of its interval as gains: 1.05 is a gain of 0.05."""
  return tuple(None if end is None else end - 1 for end in (ratio.value, ratio.low, ratio.high))


def _gain(arm, arms, results, baseline) -> Row:
  """Tokens per round and speed against the baseline's arm, paired by prompt."""
  if not baseline:
    return {}
  wanted = dict(arm.fields) | dict(baseline)
  other = next((each for each in arms if dict(each.fields) == wanted), None)
  nothing = dict(baseline=None, gain=None, gain_low=None, gain_high=None)
  if other is None or other.key == arm.key or not arms_lib.is_done(results.get(other.key)):
    return nothing
  mine, theirs = results[arm.key], results[other.key]
  if mine['prompts'] != theirs['prompts']:
    return nothing
  counts = [_by_prompt(each, name) for each in (mine, theirs) for name in ('tokens', 'rounds')]
  gain, low, high = _gain_of(statistics.jackknife(lambda t, r, u, s: (t / r) / (u / s), *counts))
  return dict(baseline=other.label, gain=gain, gain_low=low, gain_high=high)


def _prediction(
    arm: records.Arm, result: Result, calibration: costs_lib.Calibration
) -> theory.Prediction:
  """From the acceptance on other prompts, where there were some, else from the arm's own."""
  if 'other_acceptance' in result:
    observed = forecasts.Acceptance(**result['other_acceptance'])
  else:
    observed = forecasts.acceptance_of(
        arm.recipe,
        drafted_at=result['proposed_at'],
        decided_at=result['accepted_at'],
        num_rounds=int(np.sum(result['rounds'])),
        num_free_rounds=result['free_rounds'],
    )
  length = result['record']['num_speculative_tokens']
  return forecasts.predict(calibration, arm, observed, num_speculative_tokens=length)


def _predicted(prediction: theory.Prediction) -> Row:
  return dict(
      predicted_speedup=prediction.speedup, prediction=dataclasses.asdict(prediction)
  )


def _round_seconds(prediction: theory.Prediction, result: Result) -> Row:
  """The modelled seconds of a round beside the measured ones."""
  # A plain step as it was measured in turns with the arm: every row emits one token.
  plain = np.sum(result['plain_seconds']) / np.sum(result['plain_tokens']) * result['batch_size']
  return dict(
      draft=float(prediction.num_drafted * prediction.draft_cost * plain),
      verify=float(prediction.pass_cost * plain),
      rest=float(prediction.overhead * plain),
      measured=float(np.sum(result['seconds'])) / result['record']['target_passes'],
  )


def sweep_summary(row: Mapping[str, Any], fields: Sequence[str]) -> Row:
  """A row of a sweep as a terminal shows it: the fields of the arm, then its numbers."""
  shown = {sweep_lib.short(name): sweep_lib.show(row['fields'].get(name, '')) for name in fields}
  if row['status'] != 'done':
    return shown | {'lossless': 'failed'}
  shown['lossless'] = row['lossless']
  names = ('mean_acceptance_length', 'mean_acceptance_length_low', 'mean_acceptance_length_high')
  shown['tokens/round'] = _with_interval(*(row[name] for name in names))
  if row.get('expected_tokens_per_round') is not None:
    shown['expected'] = f'{row["expected_tokens_per_round"]:.2f}'
  if row.get('speedup') is not None:
    shown['speed-up'] = _with_interval(row['speedup'], row['speedup_low'], row['speedup_high'])
  if row.get('predicted_speedup') is not None:
    shown['predicted'] = f'{row["predicted_speedup"]:.2f}'
  if row.get('gain') is not None:
    ends = (row[name] for name in ('gain', 'gain_low', 'gain_high'))
    shown['gain, %'] = _with_interval(*ends, scale=100, digits=1)
  if row.get('flips'):
    shown['flips'] = str(row['flips'])
  if row.get('largest_gap') is not None:
    shown['gap'] = f'{row["largest_gap"]:.1g} of {row["gap_bound"]:.1g}'
  return shown


def benchmark_summary(row: Mapping[str, Any], *, with_forecast: bool) -> Row:
  """A row of a benchmark as a terminal shows it."""
  if 'error' in row:
    return {'method': row['name'], 'argmax flips': 'failed'}
  cells = {
      'method': row['name'],
      'rule': row['rule'],
      'T': f'{row["temperature"]:g}',
      **({'K': row['num_speculative_tokens'] or ''} if with_forecast else {}),
      'tokens/s': row['tokens_per_second'],
      'speed-up': f'{row["speedup"]:.2f}×',
  }
  if with_forecast:
    known = row['predicted_speedup'] is not None
    cells['forecast'] = f'{row["predicted_speedup"]:.2f}×' if known else ''
  words = {'same law': 'same law', 'lossy': 'LOSSY', 'differs': 'DIFFERS'}
  return cells | {
      'accept. length': f'{row["mean_acceptance_length"]:.2f}',
      'argmax flips': words.get(row['lossless'], _flips(row)),
  }


def _flips(row: Mapping[str, Any]) -> str | int | None:
  """Flips at equal width, and how many prompts differ from plain decoding as it was timed."""
  if not row['differing'] or row['flips'] is None:
    return row['flips']
  return f'{row["flips"]} ({row["differing"]})'


def calibration_summary(calibration: costs_lib.Calibration) -> list[Row]:
  """The costs of a calibration as a terminal shows them."""
  rows = []
  for costs in calibration.rules:
    points = [(name, k) for name, points in costs.drafting.items() for k, _ in points]
    terms = [(name, k, calibration.cost(costs.rule, k, drafter=name)) for name, k in points]
    terms += [
        (name, tree.num_nodes, calibration.tree_cost(costs.rule, name))
        for name, tree in costs.trees.items()
    ]
    for drafter, k, cost in terms:
      rows.append({
          'rule': costs.rule,
          'drafter': drafter,
          'K or N': k,
          'plain step, ms': 1000 * costs.plain,
          'c': cost.draft_cost,
          'r': cost.pass_cost,
          'o': cost.overhead,
      })
  return rows


def definitions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """The definitions of the columns that the rows of a sweep have."""
  return [
      line
      for line in DEFINITIONS
      if any(row.get(_COLUMNS.get(line.partition(':')[0], 'status')) is not None for row in rows)
  ]


def _with_interval(
    value: float, low: float | None, high: float | None, *, scale: float = 1, digits: int = 2
) -> str:
  text = f'{scale * value:.{digits}f}'
  return text if low is None else f'{text} ±{scale * (high - low) / 2:.{digits}f}'
