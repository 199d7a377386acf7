"""Runs one arm: whether it is lossless, and its times beside plain decoding.

Random numbers are common to all arms: prompt i of repetition s has seed + s P + i whatever the
arm, and the engine's keys follow from it. Plain decoding runs in turns with the arm, batch by
batch, so that a ratio is of runs seconds apart on a machine in the same state.
"""

from collections.abc import Callable, Sequence
import dataclasses
import time
import traceback
from typing import Any

import numpy as np

from experiments import workdir as workdir_lib
from experiments.runs import forecasts
from experiments.runs import lossless
from experiments.runs import origin
from experiments.runs import records as records_lib
from experiments.runs import runner as runner_lib
from experiments.runs import traces as traces_lib
from specjax.analysis import calibration as calibration_lib
from specjax.analysis import records
from specjax.analysis import timed_programs
from specjax.analysis import timing
from specjax.analysis import traces
from specjax.output import GenerateOutput

Say = Callable[[str], None]
Calibration = calibration_lib.Calibration


def result_of(
    arm: records_lib.Arm,
    study: records_lib.Study,
    session: runner_lib.Session,
    say: Say,
    *,
    calibration: Calibration | None = None,
    trace: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """An arm's result as JSON values; what goes wrong becomes its error. Interruptions pass.

  Args:
    arm: the arm.
    study: says what is done with it.
    session: keeps targets.
    say: is called with each step.
    calibration: chooses the K of an arm that leaves it open, and says that its acceptance on
      other prompts is wanted.
    trace: of a run that was traced already (`experiments.runs.traces.entry`).
  """
  started = time.perf_counter()
  try:
    result = dict(status='done') | _run(arm, study, session, say, calibration, trace)
  except Exception as error:  # whatever it is: the other arms are worth having
    result = dict(
        status='failed',
        error=f'{type(error).__name__}: {error}',
        traceback=traceback.format_exc(),
    )
  # As it will be read back, so that a resumed study has the same rows.
  return workdir_lib.to_json(
      result | dict(wall_seconds=time.perf_counter() - started, origin=origin.of(arm.models))
  )


def _run(arm, study, session, say, calibration, trace) -> dict[str, Any]:
  """The numbers of an arm.

  Raises:
    NotLosslessError: if its output is not what plain decoding gives, and the study is strict.
    ValueError: for what cannot be run.
  """
  loaded = session.load(arm.target)
  prompts = session.prompts(arm)
  runner = runner_lib.runner_of(arm, loaded, prompts)
  if arm.recipe.num_speculative_tokens == 0:
    arm = _with_best_length(arm, loaded, runner, prompts, calibration, study, say)
  batches = runner_lib.batches(arm, prompts.timed)
  case = lossless.Case(
      runner, batches, _methods(arm, loaded, runner, batches), arm.plain_key, session
  )
  result: dict[str, Any] = {}
  if calibration is not None and prompts.other and forecasts.is_predicted(arm.recipe):
    say('acceptance on other prompts')
    result['other_acceptance'] = _acceptance(arm, case.method, runner, prompts, study)

  all_traced = arm.trace == records_lib.TRACE_ALL
  outputs = checked = times = differing = None
  if all_traced or not study.repetitions:
    say('checking')
    outputs = case.run(trace=all_traced)
    checked = _check(case, outputs, study)
  if study.repetitions:
    say('timing')
    plain = dataclasses.replace(
        case.method, drafter=None, kind='none', rule=timed_programs.plain_rule(arm.rule)
    )
    times, timed, plain_outputs = _time(case, plain, study, warm_ups=1 if all_traced else 2)
    if outputs is None:
      outputs = timed
      checked = _check(case, outputs, study)
    result |= _timings(times, outputs, timed, plain_outputs)
    if not case.method.temperature:  # else plain decoding takes the fastest sampler
      differing = lossless.count_differing(plain_outputs, timed)
    result['plain_record'] = _record(
        _named('plain decode', arm), plain, runner, plain_outputs, seconds=times['plain']
    )
  if all_traced:
    trace = traces_lib.entry(outputs[0], loaded.tokenizer, name=arm.label)
    result |= dict(along=traces_lib.along(outputs), expected=_expected(case.method, outputs))
  elif arm.trace == records_lib.TRACE_FIRST and trace is None:
    say('tracing')
    output = runner(case.method, batches[0], trace=True)
    trace = traces_lib.entry(output, loaded.tokenizer, name=arm.label)
  stats = records.merge_stats(outputs)
  return result | dict(
      record=_record(
          _named(arm.name, arm), case.method, runner, outputs,
          seconds=times and times['arm'],
          plain=times and (times['plain'], result['plain_tokens']),
          differing=differing,
          **checked.fields,
      ),
      check=dataclasses.asdict(checked),
      batch_size=arm.sizes.batch_size,
      prompts=[name for name, _ in prompts.timed],
      note=prompts.note,
      prompt_tokens=max(len(tokens) for _, tokens in prompts.timed),
      tokens=[int(n) for output in outputs for n in output.lengths - output.prompt_lengths],
      rounds=stats.rounds,
      # As drafted and decided: forecasts and expectations are made of them.
      proposed_at=stats.drafted_at,
      accepted_at=stats.decided_at,
      free_rounds=sum(output.drafter_state for output in outputs),
      **({} if trace is None else dict(trace=trace)),
  )


def _named(name: str, arm: records_lib.Arm) -> str:
  """What a row is called; an arm of a sweep has its batch size among its fields."""
  size = arm.sizes.batch_size
  is_sweep = arm.name == arm.label
  return name if size == 1 or is_sweep else f'{name}, batch {size}'


def _methods(arm, loaded, runner, batches) -> list[records_lib.Method]:
  """The arm's method for each batch; one that knows what plain decoding gives differs."""
  if not arm.recipe.needs_reference:
    return [arm.method(arm.recipe.make(loaded))] * len(batches)
  blank = dict(reference=np.zeros((1, 1), np.int32), reference_lengths=np.ones(1, np.int32))
  width = runner.width_of(arm.method(arm.recipe.make(loaded, **blank)))
  methods = []
  for batch in batches:
    output = runner(arm.method(None), batch, width=width)
    drafter = arm.recipe.make(
        loaded, reference=output.tokens, reference_lengths=output.lengths
    )
    methods.append(arm.method(drafter))
  return methods


def _acceptance(arm, method, runner, prompts, study) -> forecasts.Acceptance:
  """How a method fares on the other prompts: counts alone, in batches."""
  size = min(study.acceptance_batch, len(prompts.other))
  batches = runner_lib.filled(prompts.other, size, first=len(prompts.timed))
  outputs = [runner(method, batch) for batch in batches]
  stats = records.merge_stats(outputs)
  return forecasts.acceptance_of(
      arm.recipe,
      drafted_at=stats.drafted_at,
      decided_at=stats.decided_at,
      num_rounds=int(stats.rounds.sum()),
      num_free_rounds=sum(output.drafter_state for output in outputs),
  )


def _with_best_length(arm, loaded, runner, prompts, calibration, study, say) -> records_lib.Arm:
  """The arm with the K that the calibration predicts to be fastest."""
  longest = forecasts.longest(arm.recipe, loaded, calibration.max_num_speculative_tokens)
  say(f'acceptance on other prompts at K = {longest}')
  method = arm.method(arm.recipe.make(loaded, num_speculative_tokens=longest))
  observed = _acceptance(arm, method, runner, prompts, study)
  length = forecasts.best_length(calibration, arm, observed)
  recipe = dataclasses.replace(arm.recipe, num_speculative_tokens=length)
  return dataclasses.replace(arm, recipe=recipe)


def _check(case: lossless.Case, outputs, study: records_lib.Study) -> lossless.Check:
  try:
    return lossless.check(case, outputs, law=study.law)
  except lossless.NotLosslessError as error:
    if study.strict:
      raise
    return error.check


def _time(case: lossless.Case, plain: records_lib.Method, study, *, warm_ups: int):
  """Times arm and plain decoding in turns.

  Returns:
    Seconds of every batch by 'arm' and 'plain' (medians over repetitions), and the outputs of
    both, without what is as large as a cache.
  """

  def run(name: str, index: int) -> tuple[float, GenerateOutput]:
    method = case.methods[index] if name == 'arm' else plain
    output = case.runner(method, case.batches[index])
    return output.seconds, output

  times = timing.in_turns(
      run,
      ('arm', 'plain'),
      repetitions=study.repetitions,
      num_cases=len(case.batches),
      warm_ups=warm_ups,
  )
  return times.medians(), times.results['arm'], times.results['plain']


def _timings(times, outputs, timed, plain_outputs) -> dict[str, Any]:
  """Of every batch, in the order of seeds and prompts."""
  return dict(
      seconds=times['arm'],
      plain_seconds=times['plain'],
      plain_tokens=[output.num_new_tokens for output in plain_outputs],
      # Rows that came out otherwise than when they were checked.
      timed_differently=sum(
          int((one.tokens != other.tokens).any(axis=1).sum())
          for one, other in zip(timed, outputs)
      ),
  )


def _record(name, method, runner, outputs, **more) -> dict[str, Any]:
  """The row of `metrics.jsonl` of some runs of a method."""
  is_plain = method.drafter is None
  rule = ('sampling' if method.temperature else 'greedy') if is_plain else method.rule.name
  return dataclasses.asdict(
      records.record(
          outputs,
          name=name,
          rule=rule,
          drafter=method.kind,
          temperature=method.temperature,
          num_speculative_tokens=method.num_nodes,
          dtype=runner.dtype,
          width=runner.width_of(method),
          **more,
      )
  )


def _expected(
    method: records_lib.Method, outputs: Sequence[GenerateOutput]
) -> dict[str, list[float]]:
  """Accepted tokens of every row in expectation over the coins of a rule, by rule."""
  if method.rule.mode != 'sample' or not method.drafter.is_chain:
    return {}
  return {
      rule: [
          float(rows.sum())
          for output in outputs
          for rows in traces.expected_accepted(output, rule)
      ]
      for rule in ('rejection', 'block')
  }
