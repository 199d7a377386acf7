"""The report of a run: one page that works without a network, made from the files of a workdir."""

from collections.abc import Mapping, Sequence
import html
import json
import pathlib
import string
from typing import Any

from experiments import workdir as workdir_lib
from experiments.report import plots as plots_lib
from experiments.report import sections
from experiments.report import tensorboard
from experiments.runs import traces as traces_lib
from specjax import atomic

CALIBRATION, TRACES = 'calibration.json', 'traces.json'

# The library of the plots, and what is put into each page.
_HERE = pathlib.Path(__file__).parent
_STYLES = ('vendor/uplot/uPlot.min.css', 'assets/report.css')
_SCRIPTS = ('vendor/uplot/uPlot.iife.min.js', 'assets/plots.js', 'assets/viewer.js')

Row = Mapping[str, Any]


def write(workdir: workdir_lib.Workdir) -> pathlib.Path:
  """Writes the report of what `workdir` holds, and its event files; returns its path.

  Raises:
    FileNotFoundError: if there is no `metrics.jsonl`.
    ValueError: if a file is not JSON.
  """
  rows = workdir_lib.read_rows(workdir.path)
  page = render(
      rows=rows,
      calibration=read_json(workdir.path / CALIBRATION),
      traces=read_json(workdir.path / TRACES) or [],
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
    traces: of `experiments.runs.traces.entry`.
    config: of the run, shown as it is.
  """
  config = config or {}
  methods = [row for row in rows if 'tokens_per_second' in row and 'rule' in row]
  methods = [_with_round(row) for row in methods]
  steps = [row for row in rows if 'step' in row and 'loss' in row]
  plots: list[plots_lib.Plot] = []
  parts = []
  if methods:
    parts += [sections.tiles(methods, calibration), sections.table(methods)]
    parts.append(sections.failures([row for row in rows if row.get('status') == 'failed']))
    parts.append(sections.categories(methods))
    parts += _of_methods(methods, str(config.get('x', '')), traces, plots)
  if calibration:
    plots.append(plots_lib.pass_costs(calibration))
    parts.append(sections.costs(calibration))
  if steps and (plot := plots_lib.losses(steps)):
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
    methods: Sequence[Row], x: str, traces: Sequence[Row], plots: list[plots_lib.Plot]
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
  for plot in plots_lib.along_sweep(methods, x):
    plots.append(plot)
    parts.append(sections.plot(plot, plot['y']['label'], notes[plot['id']]))
  costs = plots_lib.by_cost(methods)
  if costs:
    plots.append(costs)
    note = 'Of two drafters the higher one at the same place is better: as many tokens cost less.'
    parts.append(sections.plot(costs, 'At equal cost', note))
  parts.append(sections.terms(methods))
  split = plots_lib.round_split(methods)
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
          plots_lib.per_position(speculative),
          'Acceptance by position',
          'Share of the rounds with a draft at that position that accepted up to and with it.',
          sections.acceptance(speculative),
      ),
      (
          plots_lib.histogram(speculative),
          'Accepted tokens of a round',
          'How often exactly so many drafted tokens stayed.',
          '',
      ),
      (
          plots_lib.along_text(speculative, traces),
          'Acceptance along the text',
          f'Rounds by how many new tokens were there before, in stretches of '
          f'{traces_lib.STRETCH}.',
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


def read_json(path: pathlib.Path) -> Any:
  """A JSON file, or None where there is none."""
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding='utf-8-sig'))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path} is not JSON: {error}') from error
