"""Runs a study: arm by arm, each kept when it is finished, so that a killed study goes on.

An arm that is finished is a whole file in `arms/` and is not run again. An arm that fails is kept
with its error, and the others run. Results of another machine, version or source of the library
stay in the folder, but never enter the table.
"""

from collections.abc import Callable, Mapping, Sequence
import json
from typing import Any

import rich.console

from experiments import display
from experiments import workdir as workdir_lib
from experiments.runs import arms as arms_lib
from experiments.runs import costs as costs_lib
from experiments.runs import origin
from experiments.runs import records
from experiments.runs import run as run_lib
from experiments.runs import runner as runner_lib
from experiments.runs import tables
from specjax.sharding import processes

Rows = list[dict[str, Any]]


def run(
    study: records.Study,
    workdir: workdir_lib.Workdir,
    console: rich.console.Console,
    *,
    rows_of: Callable[..., Rows],
    publish: Callable[[workdir_lib.Workdir], Any],
    session: runner_lib.Session | None = None,
    calibrations: tables.Calibrations | None = None,
    traces: Mapping[str, Any] | None = None,
) -> Rows:
  """Runs what is not finished of a study; returns the rows of its table.

  Args:
    study: the arms.
    workdir: keeps results; gets `metrics.jsonl`, `traces.json` and what `publish` writes after
      every arm.
    console: shows progress.
    rows_of: (arms, results, calibrations=) -> rows; see `experiments.runs.tables`.
    publish: makes the report of what `workdir` holds.
    session: keeps targets; None begins a new one.
    calibrations: by arm key; None measures them once the arms are finished.
    traces: by arm key, of runs that were traced already.

  Returns:
    The rows.
  """
  session = session or runner_lib.Session()
  store = arms_lib.Store(workdir)
  arms = study.arms
  results = processes.of_first(lambda: _finished(study, store))
  todo = [arm for arm in arms if results[arm.key] is None]
  _tell_what_is_there(console, arms, results, store)
  if todo:
    workdir.claim()

  def write() -> Rows:
    rows = rows_of(arms, results, calibrations=calibrations)
    return _write(workdir, arms, results, rows, publish)

  with display.ArmProgress(console, len(arms), len(arms) - len(todo)) as progress:
    for arm in todo:
      progress.begin(arm.label)
      results[arm.key] = run_lib.result_of(
          arm, study, session, progress.say,
          calibration=(calibrations or {}).get(arm.key), trace=(traces or {}).get(arm.key),
      )
      store.save(arm, results[arm.key])
      progress.end(results[arm.key].get('error'))
      write()
    if calibrations is None:
      done = [arm for arm in arms if arms_lib.is_done(results[arm.key])]
      calibrations = costs_lib.of_arms(done, study, session, workdir, progress.say)
  for note in dict.fromkeys(each.get('note') for each in results.values() if each):
    if note:
      console.print(note, highlight=False, soft_wrap=True)
  return write()


def _finished(study: records.Study, store: arms_lib.Store) -> dict[str, Any]:
  """Results by arm key; None for the arms that are to be run."""
  results = {arm.key: None if study.fresh else store.load(arm) for arm in study.arms}
  if study.retry_failed:
    results = {key: each if arms_lib.is_done(each) else None for key, each in results.items()}
  return results


def _write(workdir, arms, results, rows: Rows, publish) -> Rows:
  """Rows, traces and report of all that is there, each as a whole."""
  lines = [json.dumps(workdir_lib.to_json(row), allow_nan=False) + '\n' for row in rows]
  workdir.write(workdir_lib.METRICS, ''.join(lines))
  traces = [results[arm.key]['trace'] for arm in arms if 'trace' in (results[arm.key] or {})]
  workdir.write_json(workdir_lib.TRACES, traces)
  publish(workdir)
  return rows


def _tell_what_is_there(
    console, arms: Sequence[records.Arm], results: Mapping[str, Any], store: arms_lib.Store
) -> None:
  if finished := [each for each in results.values() if each is not None]:
    commits = ', '.join(origin.commits(finished)) or 'none that is known'
    console.print(
        f'{len(finished)} of {len(arms)} arms are finished, at commit {commits}.',
        highlight=False, soft_wrap=True,
    )
  others = store.count_others(arms)
  if others:
    console.print(
        f'{others} results here are of other settings, versions or hardware: they are kept, and '
        'are not in the table.',
        highlight=False,
        soft_wrap=True,
    )
