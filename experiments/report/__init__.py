"""The report of a run: a page that works without a network, made from the files of its workdir."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from experiments import workdir as workdir_lib
from experiments.report import page
from experiments.report import plan
from experiments.report import plots
from experiments.report import sections
from experiments.report import tensorboard
from experiments.runs import rows as rows_lib
from specjax import atomic


_RATES = (
    'Rates are ratios of sums over prompts. Mean acceptance length counts the bonus or recovered '
    'token: 1 … K + 1.'
)

Row = Mapping[str, Any]


def write(workdir: workdir_lib.Workdir) -> pathlib.Path:
  """Writes the report of what `workdir` holds, and its event files; returns its path.

  Raises:
    FileNotFoundError: if there is no `metrics.jsonl`.
    ValueError: if a file is not JSON.
  """
  path = workdir.path / workdir_lib.REPORT
  if not workdir.writes:
    return path
  rows = workdir_lib.read_rows(workdir.path)
  html = render(
      rows=rows,
      calibration=workdir_lib.read_json(workdir.path / workdir_lib.CALIBRATION),
      traces=workdir_lib.read_json(workdir.path / workdir_lib.TRACES) or [],
      config=workdir.config,
  )
  tensorboard.write(workdir.path, rows, x=str((workdir.config or {}).get('x', '')))
  return atomic.write(path, html)


def render(
    *,
    rows: Sequence[Row],
    calibration: Row | None = None,
    traces: Sequence[Row] = (),
    config: Row | None = None,
) -> str:
  """The page as HTML.

  Args:
    rows: of `metrics.jsonl`: of methods (`specjax.analysis.Record`), arms of a sweep, steps of
      training, or slices of a plan.
    calibration: a `specjax.analysis.Calibration` as JSON, or None.
    traces: of `experiments.runs.traces.entry`.
    config: of the run, shown as it is.
  """
  config = config or {}
  methods = rows_lib.measured(rows)
  failed = [row for row in rows if row.get('status') == 'failed']
  steps = [row for row in rows if 'step' in row and 'loss' in row]
  slices = [row for row in rows if 'topology' in row]
  title, target = title_of(config)
  subtitle = [str(config.get('question') or '')]
  tiles, parts = [], []
  if methods:
    subtitle += [target, sections.machine(methods[0]), sections.commits(methods)]
    tiles += sections.tiles(methods, calibration)
    parts += sections.of_methods(methods, failed, x=str(config.get('x', '')), traces=traces)
  if slices:
    subtitle.append(plan.subtitle(slices[0]))
    tiles += plan.tiles(slices)
    parts += plan.sections(slices)
  if calibration:
    parts.append(page.of_plot(plots.pass_costs(calibration)))
  if loss := plots.losses(steps):
    parts.append(page.of_plot(loss))
  return page.render(
      title=f'Plan: {title}' if slices else title,
      subtitle=' '.join(part for part in subtitle if part),
      tiles=tiles,
      sections=parts,
      traces=traces,
      appendix=sections.definitions(methods),
      config=config,
      remark='' if slices else _RATES,
  )


def all_plots(
    rows: Sequence[Row], *, x: str, traces: Sequence[Row] = (), calibration: Row | None = None
) -> list[plots.Plot]:
  """Every plot of methods or arms; arguments are as for `render`, `x` as for `plots.of_speed`."""
  rows = [sections.with_round(row) for row in rows]
  costs = [plots.pass_costs(calibration)] if calibration else []
  return [*plots.of_speed(rows, x), *plots.of_rounds(rows, traces), *costs]


def title_of(config: Row) -> tuple[str, str]:
  """The title, in which '{target}' stands for the model, and a sentence that names another one."""
  title = str(config.get('title') or config.get('name') or 'specjax')
  target = config.get('target') if isinstance(config.get('target'), Mapping) else {}
  path, pair = target.get('path'), target.get('name')
  name = pathlib.Path(path).name if path else str(pair)
  if not path and pair == 'stdlib':
    name = 'the shipped pair'
  is_named = '{target}' in title or not path
  return title.replace('{target}', name), '' if is_named else f'Target: {name}.'
