"""From the results of arms to the rows of a sweep's table, each number with its interval.

All arms saw the same prompts with the same random numbers, so that they are compared in
pairs: the bootstrap resamples prompts (for times, batches of prompts), the same ones on both
sides of a ratio, all repetitions of a prompt together.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from experiments import arms as arms_lib
from experiments import forecasts
from experiments import prompts as prompts_lib
from experiments import sweep as sweep_lib
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
    '±: half of the 95 % interval, by bootstrap over prompts, paired where two arms are compared.',
    'lossless: identical (token for token, plain decoding at equal width), rounding (identical '
    'but for what rounding explains), same law (emitted tokens tested against the target\'s law).',
)  # fmt: skip

Result = Mapping[str, Any]


def rows(
    arms: Sequence[arms_lib.Arm],
    results: Mapping[str, Result],
    *,
    baseline: Sequence[tuple[str, Any]] = (),
    calibrations: Mapping[str, costs_lib.Calibration] | None = None,
) -> list[dict[str, Any]]:
  """One row an arm that has a result, in the order of the arms; failed ones say why.

  Args:
    arms: of the sweep.
    results: by arm key.
    baseline: (field, value) pairs that name, for every arm, the one it is compared with.
    calibrations: by arm key, where there are any.

  Returns:
    Rows for `metrics.jsonl`.
  """
  found = []
  for arm in arms:
    result = results.get(arm.key)
    if result is None:
      continue
    row = dict(arm=arm.label, key=arm.key, fields=dict(arm.fields), status=result['status'])
    if result['status'] != 'done':
      found.append(row | dict(name=arm.label, error=result['error']))
      continue
    row |= dict(result['record']) | _own(result)
    row |= _gain(arm, arms, results, baseline)
    if calibrations and arm.key in calibrations:
      row |= _predicted(arm.settings, result, calibrations[arm.key])
    found.append(row)
  return found


def _own(result: Result) -> dict[str, Any]:
  """Numbers of one arm, with intervals over its prompts."""
  record = result['record']
  tokens, rounds = _by_prompt(result, 'tokens'), _by_prompt(result, 'rounds')
  length = statistics.ratio_of_sums(tokens, rounds)
  seconds, plain = _by_batch(result, 'seconds'), _by_batch(result, 'plain_seconds')
  speed = statistics.paired_speedup(
      plain_seconds=plain,
      plain_tokens=_by_batch(result, 'plain_tokens'),
      seconds=seconds,
      tokens=_tokens_by_batch(result),
  )
  decided = np.asarray(result['accepted_at']).sum() / max(np.sum(result['rounds']), 1)
  return dict(
      mean_acceptance_length_low=length.low,
      mean_acceptance_length_high=length.high,
      speedup=speed.value,
      speedup_low=speed.low,
      speedup_high=speed.high,
      decided_tokens_per_round=1.0 + float(decided),
      expected_tokens_per_round=_expected(result, record['rule']),
      expected_by_rule={rule: _expected(result, rule) for rule in result['expected']},
      expected_gain_of_block=_expected_gain(result),
      lossless_p_value=result['check']['p_value'],
      batch_size=result['batch_size'],
      prompt_tokens=result['prompt_tokens'],
      timed_differently=result['timed_differently'],
      along=result['along'],
      by_category=_by_category(result, tokens, rounds),
  )


def _by_category(result: Result, tokens: np.ndarray, rounds: np.ndarray) -> dict[str, Any]:
  """Tokens a round with its interval for each category of prompts, where there are several."""
  of_prompt = np.asarray([prompts_lib.category_of(name) for name in result['prompts']])
  categories = sorted(set(of_prompt))
  if len(categories) < 2:
    return {}
  found = {}
  for category in categories:
    here = of_prompt == category
    found[category] = dataclasses.asdict(statistics.ratio_of_sums(tokens[here], rounds[here]))
  return found


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
  """Tokens a round in expectation over the coins of a rule, on this arm's drafts."""
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
  gain = statistics.ratio_of_sums(sums['block'], sums['rejection'])
  return dict(value=gain.value - 1, low=gain.low - 1, high=gain.high - 1)


def _gain(arm, arms, results, baseline) -> dict[str, Any]:
  """Tokens a round and speed against the baseline's arm, paired by prompt."""
  if not baseline:
    return {}
  wanted = dict(arm.fields) | dict(baseline)
  other = next((each for each in arms if dict(each.fields) == wanted), None)
  nothing = dict(baseline=None, gain=None, gain_low=None, gain_high=None)
  if other is None or other.key == arm.key or results.get(other.key, {}).get('status') != 'done':
    return nothing
  mine, theirs = results[arm.key], results[other.key]
  if mine['prompts'] != theirs['prompts']:
    return nothing
  counts = [_by_prompt(each, name) for each in (mine, theirs) for name in ('tokens', 'rounds')]
  ratio = statistics.bootstrap(
      lambda t, r, u, s: (t.sum(-1) / r.sum(-1)) / (u.sum(-1) / s.sum(-1)), *counts
  )
  return dict(
      baseline=other.label, gain=ratio.value - 1, gain_low=ratio.low - 1, gain_high=ratio.high - 1
  )


def _predicted(
    settings, result: Result, calibration: costs_lib.Calibration
) -> dict[str, Any]:
  """The formula's terms, and the modelled seconds of a round beside the measured ones."""
  record = result['record']
  rounds = int(np.sum(result['rounds']))
  rates = theory.conditional_rates(np.asarray(result['accepted_at']).sum(0), rounds)
  steps = forecasts.steps_of(settings, np.asarray(result['proposed_at']).sum(0), rounds)
  prediction = forecasts.predict(
      calibration, settings, rates, num_drafted=steps, free_share=result['free_rounds'] / rounds
  )
  # A plain step as it was measured in turns with the arm: every row emits one token.
  plain = np.sum(result['plain_seconds']) / np.sum(result['plain_tokens']) * result['batch_size']
  return dict(
      predicted_speedup=prediction.speedup,
      prediction=dataclasses.asdict(prediction),
      round_seconds=dict(
          draft=float(prediction.num_drafted * prediction.draft_cost * plain),
          verify=float(prediction.pass_cost * plain),
          rest=float(prediction.overhead * plain),
          measured=float(np.sum(result['seconds'])) / record['target_passes'],
      ),
  )


def summary(row: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
  """A row as it is shown in a terminal: the fields of the arm, then its numbers."""
  shown = {sweep_lib.short(name): sweep_lib.show(row['fields'].get(name, '')) for name in fields}
  if row['status'] != 'done':
    return shown | {'lossless': 'failed'}
  names = ('mean_acceptance_length', 'mean_acceptance_length_low', 'mean_acceptance_length_high')
  shown['tokens/round'] = _with_interval(*(row[name] for name in names))
  if row.get('expected_tokens_per_round') is not None:
    shown['expected'] = f'{row["expected_tokens_per_round"]:.2f}'
  shown['speed-up'] = _with_interval(row['speedup'], row['speedup_low'], row['speedup_high'])
  if row.get('predicted_speedup') is not None:
    shown['predicted'] = f'{row["predicted_speedup"]:.2f}'
  if row.get('gain') is not None:
    ends = (100 * row[name] for name in ('gain', 'gain_low', 'gain_high'))
    shown['gain, %'] = _with_interval(*ends, digits=1)
  shown['lossless'] = row['lossless']
  return shown


def _with_interval(value: float, low: float, high: float, digits: int = 2) -> str:
  return f'{value:.{digits}f} ±{(high - low) / 2:.{digits}f}'
