"""Runs a sweep: every arm checked for losslessness, then timed, beside plain decoding.

    python -m experiments.ablate --config=configs/sweeps.py:draft_length --workdir=runs/draft_length

Killed at any moment and started again with the same command, it goes on where it was: an arm
that is finished is a whole file in `arms/`, and is not run again. An arm that fails is kept
with its error, and the sweep goes on (`--config.retry_failed` runs failed arms again,
`--config.fresh` all of them). Results of another machine, version or source of the library stay
in the folder, but are never put into the table. The workdir gets `metrics.jsonl` with a row for
each arm, `config.json` and `report.html`.
"""

import functools
from typing import Any

import rich.console

from experiments import build
from experiments import cli
from experiments import display
from experiments import report
from experiments import workdir as workdir_lib
from experiments.runs import study as study_lib
from experiments.runs import tables


def run(
    config, workdir: str, *, console: rich.console.Console | None = None
) -> list[dict[str, Any]]:
  """Runs what is not finished of a sweep; returns the rows of its table.

  Raises:
    ValueError: if an arm sets a field that does not exist or cannot be run, before any runs.
  """
  console = rich.console.Console() if console is None else console
  study = build.sweep(config)
  results = workdir_lib.open_workdir(workdir, config, resume=True)
  rows = study_lib.run(
      study,
      results,
      console,
      rows_of=functools.partial(tables.of_sweep, baseline=study.baseline),
      publish=report.write,
  )
  _show(console, study, rows)
  page = results.path / workdir_lib.REPORT
  console.print(f'Written to {results.path}; open {page}.', highlight=False, soft_wrap=True)
  return rows


def _show(console, study, rows) -> None:
  """The table with its definitions, and what failed."""
  fields = list(dict.fromkeys(field for arm in study.arms for field, _ in arm.fields))
  console.print()
  if study.question:
    console.print(study.question, highlight=False)
  console.print(display.table([tables.sweep_summary(row, fields) for row in rows]))
  for line in tables.definitions(rows):
    console.print(line, highlight=False, style='bright_black')
  for row in rows:
    if row['status'] != 'done':
      console.print(f'failed: {row["arm"]}: {row["error"]}', highlight=False, style='red')


if __name__ == '__main__':
  cli.main(run)
