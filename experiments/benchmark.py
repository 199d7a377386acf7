"""Measures methods beside plain decoding on held-out prompts, one prompt at a time.

    python -m experiments.benchmark --config=configs/benchmark_zoo.py --workdir=runs/benchmark_zoo

A benchmark is a sweep whose arms are `config.methods`, in `config.order`. All in this process: the
calibration (costs of this machine; fast dtype and width), then for every method its acceptance on
other prompts than those timed, its runs in turns with plain decoding, and the comparison with
plain decoding token by token. Killed and started again it goes on with the first method that is
not finished (`--config.fresh` begins anew). The workdir gets `metrics.jsonl` with a row per method,
`calibration.json`, `traces.json` and `report.html`.
"""

from typing import Any

import rich.console

from benchmarks import peers
from experiments import build
from experiments import cli
from experiments import display
from experiments import report
from experiments import workdir as workdir_lib
from experiments.runs import costs
from experiments.runs import runner as runner_lib
from experiments.runs import streams
from experiments.runs import study as study_lib
from experiments.runs import tables


def run(
    config, workdir: str, *, console: rich.console.Console | None = None
) -> list[dict[str, Any]]:
  """Benchmarks as `config` describes; returns the rows.

  Raises:
    ValueError: if the config cannot be run, before anything is computed.
    FileNotFoundError: if a model or a prompt file is missing.
    FloatingPointError: if the target's logits are not numbers.
  """
  console = rich.console.Console() if console is None else console
  if 'peers' in config:
    return peers.run(config, workdir, console=console)
  study, lines = build.fitting(config, build.benchmark(config))
  for line in lines:
    console.print(line, highlight=False, soft_wrap=True)
  results = workdir_lib.open_workdir(workdir, config, resume=True)
  session = runner_lib.Session()
  session.prompts(study.arms[0])  # what cannot be run is refused before anything is
  shown = build.streamed(config)
  traces = {} if shown is None else streams.show(shown, session, console)
  sizes = tuple({arm.sizes.batch_size for arm in study.arms})  # of those that fit
  rebuild = lambda calibration: build.benchmark(config, calibration, batch_sizes=sizes)
  with display.steps(console) as say:
    study, calibrations = costs.choose(study, rebuild, session, results, say)
  for calibration in {id(each): each for each in calibrations.values()}.values():
    _show_costs(calibration, console)
  if calibrations:
    results.write_json(workdir_lib.CALIBRATION, next(iter(calibrations.values())))
  rows = study_lib.run(
      study, results, console,
      rows_of=tables.of_benchmark, publish=report.write, session=session,
      calibrations=calibrations, traces=traces,
  )
  summaries = [tables.benchmark_summary(row, with_forecast=bool(calibrations)) for row in rows]
  console.print()
  console.print(display.table(summaries))
  console.print(f'\n{tables.BENCHMARK_NOTE}', highlight=False)
  for row in rows:
    if 'error' in row:
      console.print(f'failed: {row["name"]}: {row["error"]}', highlight=False, style='red')
  page = results.path / workdir_lib.REPORT
  console.print(f'Written to {results.path}; open {page}.', highlight=False, soft_wrap=True)
  return rows


def _show_costs(calibration, console: rich.console.Console) -> None:
  title = (
      f'Calibration: {calibration.dtype}, {calibration.width} tokens per plain pass, batch '
      f'{calibration.batch_size} (c, r, o in plain steps)'
  )
  console.print(display.table(tables.calibration_summary(calibration), title=title))
  others = [each for each in calibration.candidates if each.dtype != calibration.dtype]
  if others:
    fastest = min(others, key=lambda each: each.seconds)
    console.print(
        f'In {fastest.dtype} a plain step takes {1000 * fastest.seconds:.2f} ms, a pass of '
        f'{calibration.max_num_speculative_tokens + 1} tokens '
        f'{1000 * fastest.pass_seconds:.2f} ms.',
        highlight=False,
    )
  console.print()


if __name__ == '__main__':
  cli.main(run)
