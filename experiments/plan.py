"""Says whether a run fits on accelerators that are not here, and how fast it should be.

    python -m experiments.plan --config=configs/llama3_70b.py --workdir=runs/plan

Compiles the actual speculative loop for every TPU slice with the TPU's own compiler, reads memory
and collectives from the compiled program, walks through its schedule for the time of a round
(`specjax.planning.times`), and predicts tokens per second, with the roofline beside it as the
limit. The workdir gets `config.json`, `metrics.jsonl` with a row for every slice, and `report.html`
with the curves and with the instructions that take longest.
"""

import rich.console

from experiments import build
from experiments import cli
from experiments import display
from experiments import report
from experiments import workdir as workdir_lib
from experiments.runs import plan_tables
from experiments.runs import plans
from specjax.planning import schedules


def run(config, workdir: str, *, console: rich.console.Console | None = None) -> list[dict]:
  """Plans as `config` describes; returns the rows of `metrics.jsonl`, one per slice.

  Raises:
    ValueError: for a slice, model or layout that does not exist or does not go together.
    FileNotFoundError: where TPU slices are to be compiled for and their compiler is not installed.
  """
  console = rich.console.Console() if console is None else console
  results = workdir_lib.open_workdir(workdir, config)
  cases = build.plan(config)  # refusals come before compilation
  rows = []
  for case in cases:
    with console.status(f'{case.where.name}: compiling …', refresh_per_second=4):
      rows.append(plans.row(case))
    results.record(rows[-1])
    for line in plan_tables.describe(rows[-1]):
      console.print(line, highlight=False, soft_wrap=True)
  console.print(display.table([plan_tables.summary(row) for row in rows]))
  console.print(
      '* not compiled: roofline alone. Tokens per second are of all rows, at the best K for the '
      'acceptance rate α.',
      highlight=False, soft_wrap=True,
  )
  report.write(results)
  console.print(f'Written to {results.path}.', highlight=False, soft_wrap=True)
  return rows


if __name__ == '__main__':
  schedules.watch()  # of kernels, before the compiler is loaded
  # What is compiled for a device that is not here cannot be read back.
  cli.main(run, workdir='runs/plan', keeps_programs=False)
