"""Makes `report.html` of a finished run from what lies in its workdir.

    python -m experiments.report --workdir=runs/benchmark_zoo

Reads `metrics.jsonl`, and `calibration.json`, `traces.json` and `config.json` where they are
there. The page is one file that works without a network: no script, style, font or picture is
loaded from anywhere. The same numbers go into `tensorboard/`, which TensorBoard reads.
"""

from collections.abc import Mapping, Sequence
import html
import json
import pathlib
import string
from typing import Any

from absl import app
from absl import flags

from experiments import report_plots
from experiments import report_sections as sections
from experiments import report_traces
from experiments import tensorboard
from experiments import workdir as workdir_lib
from specjax import atomic

CALIBRATION, TRACES = 'calibration.json', 'traces.json'

# The library of the plots, and what is put into each page.
_HERE = pathlib.Path(__file__).parent
_STYLES = ('vendor/uplot/uPlot.min.css', 'assets/report.css')
_SCRIPTS = ('vendor/uplot/uPlot.iife.min.js', 'assets/plots.js', 'assets/viewer.js')

Row = Mapping[str, Any]

trace_entry = report_traces.entry


def write(workdir: workdir_lib.Workdir) -> pathlib.Path:
  """Writes the report of what `workdir` holds, and its event files; returns its path.

  Raises:
    FileNotFoundError: if there is no `metrics.jsonl`.
    ValueError: if a file is not JSON.
  """
  rows = workdir_lib.read_rows(workdir.path)
  page = render(
      rows=rows,
      calibration=_read(workdir.path / CALIBRATION),
      traces=_read(workdir.path / TRACES) or [],
      config=workdir.config,
  )
  tensorboard.write(workdir.path, rows, x=str((workdir.config or {}).get('x', '')))
  return atomic.write(workdir.path / workdir_lib.REPORT, page)


def render(
    *,
    rows: Sequence[Row],
    calibration: Row | None = None,
    traces: Sequence[Row] = (),
    config: Row | None = None,
) -> str:
  """The page as text.

  Args:
    rows: of `metrics.jsonl`: of methods (`specjax.analysis.Record`), arms of a sweep, or
      training steps.
    calibration: a `specjax.analysis.Calibration` as JSON, or None.
    traces: of `trace_entry`.
    config: of the run, shown as it is.
  """
  config = config or {}
  methods = [row for row in rows if 'tokens_per_second' in row and 'rule' in row]
  methods = [_with_round(row) for row in methods]
  steps = [row for row in rows if 'step' in row and 'loss' in row]
  plots: list[report_plots.Plot] = []
  parts = []
  if methods:
    parts += [sections.tiles(methods, calibration), sections.table(methods)]
    parts.append(sections.failures([row for row in rows if row.get('status') == 'failed']))
    parts.append(sections.categories(methods))
    parts += _of_methods(methods, str(config.get('x', '')), traces, plots)
  if calibration:
    plots.append(report_plots.pass_costs(calibration))
    parts.append(sections.costs(calibration))
  if steps and (plot := report_plots.losses(steps)):
    plots.append(plot)
    parts.append(sections.plot(plot, 'Loss', 'In nats per token.'))
  if traces:
    parts.append(_asset('assets/viewer.html'))
  if methods:
    parts.append(sections.definitions(sections.definitions_of(methods)))
  if config:
    shown = html.escape(json.dumps(config, indent=2))
    parts.append(f'<details><summary>config.json</summary><pre>{shown}</pre></details>')
  # '<' is escaped, so that no text can end the element or begin a comment.
  data = json.dumps(
      workdir_lib.to_json({'plots': plots, 'traces': traces}),
      ensure_ascii=False, separators=(',', ':'),
  ).replace('<', '\\u003c')
  return string.Template(_asset('assets/report.html')).substitute(
      title=html.escape(str(config.get('title') or config.get('name') or 'specjax')),
      subtitle=html.escape(_subtitle(config, methods)),
      css='\n'.join(map(_asset, _STYLES)),
      body='\n'.join(part for part in parts if part),
      data=data,
      scripts='\n'.join(f'<script>{_asset(name)}</script>' for name in _SCRIPTS),
  )


def _of_methods(
    methods: Sequence[Row], x: str, traces: Sequence[Row], plots: list[report_plots.Plot]
) -> list[str]:
  """Sections about methods or arms; their plots are added to `plots`."""
  parts = [sections.speedups(methods)]
  notes = {
      'speedup-along': 'Solid: measured, with its 95 % interval. Dashed: predicted from the '
      'calibrated costs and the acceptance of the arm.',
      'mean_acceptance_length-along': 'Solid: measured, the bonus or recovered token counted. '
      'Dashed: in expectation over the coins of the rule, for the same drafts.',
      'gain-along': 'Tokens a round, against the arm that differs in the baseline field alone; '
      'paired by prompt.',
  }
  for plot in report_plots.along_sweep(methods, x):
    plots.append(plot)
    parts.append(sections.plot(plot, plot['y']['label'], notes[plot['id']]))
  costs = report_plots.by_cost(methods)
  if costs:
    plots.append(costs)
    note = 'Of two drafters the higher one at the same place is better: as many tokens cost less.'
    parts.append(sections.plot(costs, 'At equal cost', note))
  parts.append(sections.terms(methods))
  split = report_plots.round_split(methods)
  if split:
    plots.append(split)
    note = (
        'Drafting, the target pass over K+1 tokens, and the rest (sampling, verification, '
        'commit): from the calibration, which gives them in plain steps, times the plain step as '
        'it was measured beside the arm. Dots: the stopwatch.'
    )
    parts.append(sections.plot(split, 'The time of a round', note, sections.rounds(methods)))
  speculative = [row for row in methods if row['num_speculative_tokens']]
  for plot, title, note, below in (
      (
          report_plots.per_position(speculative),
          'Acceptance by position',
          'Share of the rounds with a draft at that position that accepted up to and with it.',
          sections.acceptance(speculative),
      ),
      (
          report_plots.histogram(speculative),
          'Accepted tokens of a round',
          'How often exactly so many drafted tokens stayed.',
          '',
      ),
      (
          report_plots.along_text(speculative, traces),
          'Acceptance along the text',
          f'Rounds by how many new tokens were there before, in stretches of '
          f'{report_plots.STRETCH}.',
          '',
      ),
  ):
    if plot:
      plots.append(plot)
      parts.append(sections.plot(plot, title, note, below))
  return parts


def _with_round(row: Row) -> Row:
  """The row with the modelled and measured seconds of a round, where they follow from it."""
  terms = row.get('prediction')
  if row.get('round_seconds') or not terms or not row.get('speedup'):
    return row
  # A plain step as it was measured beside the method: one token, at batch 1.
  plain = row['speedup'] / row['tokens_per_second']
  return dict(row) | dict(
      round_seconds=dict(
          draft=terms['num_drafted'] * terms['draft_cost'] * plain,
          verify=terms['pass_cost'] * plain,
          rest=terms['overhead'] * plain,
          measured=row['seconds'] / row['target_passes'],
      )
  )


def _subtitle(config: Row, methods: Sequence[Row]) -> str:
  said = [str(config.get('question') or '')]
  said += [sections.machine(methods[0])] if methods else []
  return ' '.join(part for part in said if part)


def _asset(name: str) -> str:
  return (_HERE / name).read_text(encoding='utf-8-sig')


def _read(path: pathlib.Path) -> Any:
  """A JSON file, or None where there is none."""
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding='utf-8-sig'))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path} is not JSON: {error}') from error


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'What is {argv[1:]}? The folder is given as --workdir=DIR.')
  path = pathlib.Path(_WORKDIR.value)
  try:
    config = _read(path / workdir_lib.CONFIG)
    print(f'Wrote {write(workdir_lib.Workdir(path=path, config=config))}.')
  except (ValueError, OSError) as error:
    raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
  _WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of a finished run.')
  _CONFIG = flags.DEFINE_string('config', None, 'Not needed: the workdir has its config.json.')
  flags.mark_flags_as_required(['workdir'])
  app.run(main)
