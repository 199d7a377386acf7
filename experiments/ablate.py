"""Runs a sweep: every arm checked for losslessness, then timed, beside plain decoding.

    python -m experiments.ablate --config=configs/sweeps.py:draft_length --workdir=runs/draft_length

Killed at any moment and started again with the same command, it goes on where it was: an arm
that is finished is a whole file in `arms/`, and is not run again. An arm that fails is kept
with its error, and the sweep goes on (`--config.retry_failed` runs failed arms again). Results
of another machine, version or source of the library stay in the folder, but are never put into
the table. The workdir gets `metrics.jsonl` with a row for each arm, `config.json` and
`report.html`.
"""

import dataclasses
import json
import time
import traceback
from typing import Any

import rich.console
import rich.progress

from experiments import ablate_table
from experiments import arm_run
from experiments import arms as arms_lib
from experiments import cli
from experiments import display
from experiments import report
from experiments import sweep_costs
from experiments import workdir as workdir_lib


def run(
    config, workdir: str, *, console: rich.console.Console | None = None
) -> list[dict[str, Any]]:
  """Runs what is not finished of a sweep; returns the rows of its table.

  Raises:
    ValueError: if an arm sets a field that does not exist or cannot be run, before any runs.
  """
  console = rich.console.Console() if console is None else console
  arms = arms_lib.arms_of(config)
  for arm in arms:
    _check(arm)
  results_dir = workdir_lib.open_workdir(workdir, config, resume=True)
  store = arms_lib.Store(results_dir)
  results = {arm.key: store.load(arm) for arm in arms}
  if config.retry_failed:
    failed = [key for key, result in results.items() if result and result['status'] != 'done']
    results |= dict.fromkeys(failed)
  todo = [arm for arm in arms if results[arm.key] is None]
  _tell_what_is_there(console, arms, todo, store)
  models = arm_run.Models()
  with _Progress(console, len(arms), len(arms) - len(todo)) as progress:
    for arm in todo:
      progress.begin(arm.label)
      results[arm.key] = _run(arm, models, progress.say)
      store.save(arm, results[arm.key])
      progress.end(results[arm.key])
      _write(results_dir, config, arms, results)
    calibrations = sweep_costs.of_arms(config, arms, results, models, results_dir, progress.say)
  rows = _write(results_dir, config, arms, results, calibrations)
  _show(console, config, rows, arms)
  page = results_dir.path / workdir_lib.REPORT
  console.print(f'Written to {results_dir.path}; open {page}.', highlight=False, soft_wrap=True)
  return rows


def _check(arm: arms_lib.Arm) -> None:
  try:
    arm_run.check(arm.settings)
  except ValueError as error:
    raise ValueError(f'The arm {arm.label}: {error}') from error


def _run(arm: arms_lib.Arm, models: arm_run.Models, say) -> dict[str, Any]:
  """An arm's result; what goes wrong becomes its error. Interruptions are passed on."""
  started = time.perf_counter()
  try:
    result = arm_run.run(arm, models, say)
  except Exception as error:  # whatever it is: the other arms are worth having
    result = dict(
        status='failed',
        error=f'{type(error).__name__}: {error}',
        traceback=traceback.format_exc(),
    )
  # As it will be read back, so that a resumed sweep has the same rows.
  return workdir_lib.to_json(result | dict(wall_seconds=time.perf_counter() - started))


def _write(results_dir, config, arms, results, calibrations=None) -> list[dict[str, Any]]:
  """Table, traces and report of all that is there, each as a whole; returns the rows."""
  rows = ablate_table.rows(
      arms, results, baseline=config.baseline, calibrations=calibrations
  )
  lines = [json.dumps(workdir_lib.to_json(row), allow_nan=False) + '\n' for row in rows]
  results_dir.write(workdir_lib.METRICS, ''.join(lines))
  traces = [result['trace'] for result in results.values() if result and 'trace' in result]
  results_dir.write_json(report.TRACES, traces)
  report.write(results_dir)
  return rows


def _tell_what_is_there(console, arms, todo, store: arms_lib.Store) -> None:
  if len(todo) < len(arms):
    console.print(f'{len(arms) - len(todo)} of {len(arms)} arms are finished.', highlight=False)
  others = store.others(arms)
  if others:
    console.print(
        f'{others} results here are of other settings, versions or hardware: they are kept, and '
        'are not in the table.',
        highlight=False,
        soft_wrap=True,
    )


def _show(console, config, rows, arms) -> None:
  """The table with its definitions, and what failed."""
  if not rows:
    return
  fields = list(dict.fromkeys(field for arm in arms for field, _ in arm.fields))
  shown = [ablate_table.summary(row, fields) for row in rows]
  names = list(dict.fromkeys(name for row in shown for name in row))
  # Last comes what all have.
  names.append(names.pop(names.index('lossless')))
  table = display.table([{name: row.get(name, '') for name in names} for row in shown])
  console.print()
  if config.question:
    console.print(config.question, highlight=False)
  console.print(table)
  for line in ablate_table.DEFINITIONS:
    console.print(line, highlight=False, style='bright_black')
  failed = [row for row in rows if row['status'] != 'done']
  for row in failed:
    console.print(f'failed: {row["arm"]}: {row["error"]}', highlight=False, style='red')


@dataclasses.dataclass
class _Progress:
  """Says which arm runs and how long the others will take.

  Attributes:
    console: where to.
    total: arms of the sweep.
    done: finished ones.
    bar: on a terminal, else None.
    task: of the bar.
  """

  console: rich.console.Console
  total: int
  done: int
  bar: rich.progress.Progress | None = None
  task: Any = None
  _label: str = ''
  _ran: int = 0
  _started: float = dataclasses.field(default_factory=time.monotonic)

  def __enter__(self):
    if self.console.is_terminal:
      self.bar = rich.progress.Progress(
          rich.progress.TextColumn('arm {task.completed}/{task.total}'),
          rich.progress.BarColumn(),
          rich.progress.TextColumn('{task.description}'),
          rich.progress.TextColumn('{task.fields[left]}'),
          console=self.console,
      )
      self.task = self.bar.add_task('', total=self.total, completed=self.done, left='')
      self.bar.start()
    return self

  def __exit__(self, *error):
    if self.bar is not None:
      self.bar.stop()

  def begin(self, label: str) -> None:
    self._label = label
    self.say('')

  def say(self, line: str) -> None:
    if self.bar is not None:
      self.bar.update(self.task, description=f'{self._label}  {line}')

  def end(self, result: dict[str, Any]) -> None:
    self.done, self._ran = self.done + 1, self._ran + 1
    seconds = (time.monotonic() - self._started) / self._ran * (self.total - self.done)
    left = f'{display.duration(seconds)} left' if self.done < self.total else ''
    if self.bar is not None:
      self.bar.update(self.task, completed=self.done, left=left)
      return
    said = 'failed: ' + result.get('error', '').splitlines()[0] if 'error' in result else 'done'
    self.console.print(
        f'arm {self.done}/{self.total}  {self._label}  {said}  {left}',
        highlight=False,
        soft_wrap=True,
    )


if __name__ == '__main__':
  cli.main(run)
