"""The sections of a report about methods and arms of sweeps, as data."""

from collections.abc import Sequence
from typing import Any

from experiments.report import page
from experiments.report import plots
from experiments.report.page import Cell, Column, Row, Section, Tile
from experiments.runs import origin
from experiments.runs import rows as rows_lib
from experiments.runs import tables


def of_methods(
    rows: Sequence[Row], failed: Sequence[Row], *, x: str, traces: Sequence[Row]
) -> list[Section]:
  """The sections about methods, or the arms of a sweep.

  Args:
    rows: of those that ran.
    failed: of arms that did not.
    x: the field that the sweep goes along, or ''.
    traces: of `experiments.runs.traces.entry`.
  """
  rows = [with_round(row) for row in rows]
  below = {'round-split': _rounds(rows), 'per-position': _acceptance(rows)}
  sections = [
      _methods(rows),
      _failures(failed) if failed else None,
      _categories(rows),
      *map(page.of_plot, plots.of_speed(rows, x)),
      _terms(rows),
      *(page.of_plot(plot, **below.get(plot['id'], {})) for plot in plots.of_rounds(rows, traces)),
  ]
  return [section for section in sections if section is not None]


def with_round(row: Row) -> Row:
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


def machine(row: Row) -> str:
  """Where a row was measured: device, versions and dtype."""
  hardware, versions = row.get('hardware') or {}, row.get('versions') or {}
  parts = [str(hardware.get('device', ''))]
  if hardware.get('platform') == 'cpu' and hardware.get('cpu_cores'):
    parts.append(f'{hardware["cpu_cores"]} cores')
  parts += [f'{name} {versions[name]}' for name in ('jax', 'python') if name in versions]
  return ' · '.join([part for part in parts if part] + [str(row.get('dtype', ''))])


def commits(rows: Sequence[Row]) -> str:
  """The commits that rows were measured at, several where a run went on; '' where none is known."""
  names = origin.commits(rows)
  return f'· {"commit" if len(names) == 1 else "commits"} {", ".join(names)}' if names else ''


def tiles(rows: Sequence[Row], calibration: Row | None) -> list[Tile]:
  """The numbers to take away from methods or arms."""
  tiles = []
  fastest = _best(rows)
  if fastest is not None:
    name = fastest['name'] if 'arm' in fastest else f'{fastest["name"]}, {fastest["rule"]}'
    text = f'fastest: {name}'
    if 'batch_size' in fastest:
      text += f'; batch {fastest["batch_size"]}'
    if fastest.get('speedup_low') is not None and fastest['prompts'] > 1:
      text += f'; 95 %: {fastest["speedup_low"]:.2f}–{fastest["speedup_high"]:.2f}'
    tiles.append(Tile(f'{fastest["speedup"]:.2f}×', text))
  checked = [row for row in rows if row['identical_to_plain'] is not None]
  if checked:
    same = sum(row['identical_to_plain'] for row in checked)
    rounded = sum(row.get('lossless') == 'rounding' for row in checked)
    text = 'methods give the tokens of plain decoding, where tokens can be compared'
    text += f'; {rounded} of them but for rounding' if rounded else ''
    tiles.append(Tile(f'{same + rounded} of {len(checked)}', text))
  predicted = [row for row in rows if row.get('predicted_speedup') and row.get('speedup')]
  if predicted:
    largest = max(abs(row['predicted_speedup'] / row['speedup'] - 1) for row in predicted)
    tiles.append(Tile(f'{100 * largest:.0f} %', 'largest difference, predicted and measured'))
  terms = [row['prediction']['overhead'] for row in rows if row.get('prediction')]
  if terms and calibration:
    tiles.append(Tile(f'{100 * terms[0]:.1f} %', 'overhead of a round, in plain steps'))
  return tiles


def _best(rows: Sequence[Row]) -> Row | None:
  """The fastest row that speculates."""
  return max(rows_lib.sped_up(rows), key=lambda row: row['speedup'], default=None)


def _methods(rows: Sequence[Row]) -> Section:
  """The headline table: a row per method, or per arm of a sweep."""
  swept = any('arm' in row for row in rows)
  plain = lambda row: not row['num_speculative_tokens']
  columns = [
      Column('arm' if swept else 'method', lambda row: row['name'], 'left'),
      Column('rule', lambda row: row['rule'], 'left'),
      Column('temp.', lambda row: f'{row["temperature"]:g}'),
  ]
  # A study of losslessness alone measures no times.
  if any(row['tokens_per_second'] is not None for row in rows):
    columns += [
        Column('tokens/s', lambda row: _number(row['tokens_per_second'], digits=0)),
        Column(
            'speed-up',
            lambda row: _estimate(
                row, 'speedup', '×', with_ends=not plain(row) and row['prompts'] > 1
            ),
            'left',
        ),
        Column('predicted', lambda row: _number(row['predicted_speedup'], '×')),
    ]
  columns += [
      Column(
          'mean acceptance length', lambda row: _estimate(row, 'mean_acceptance_length'),
          'left wrap',
      ),
  ]
  if any(row.get('expected_tokens_per_round') for row in rows):
    columns.append(Column('expected', lambda row: _number(row.get('expected_tokens_per_round'))))
  if any(row.get('gain') is not None for row in rows):
    gain = lambda row: _estimate(row, 'gain', ' %', scale=100.0, digits=1)
    columns.append(Column('gain', gain, 'left'))
  columns += [
      Column('drafts accepted', lambda row: _percent(row['draft_acceptance_rate']), 'wrap'),
      Column('target passes', lambda row: str(row['target_passes']), 'wrap'),
      Column('identical to plain', _identity, 'left wrap'),
  ]
  return Section(
      'Arms' if swept else 'Methods',
      f'Prompts: {rows_lib.extent(row["prompts"] for row in rows)}. New tokens of each row: '
      f'{rows_lib.extent(row["new_tokens"] for row in rows)}, decoding only (no prefill, no '
      'compilation). Small numbers: 95 % interval over prompts. “Same law” marks rules that draw '
      'other tokens from the same distribution.',
      table=page.table(columns, rows, best=_best(rows)),
  )


def _identity(row: Row) -> Cell:
  same = row['identical_to_plain']
  if same is not None:
    if row.get('lossless') == 'rounding':
      return Cell(f'but for rounding ({row["flips"]})', style='yes')
    return Cell('yes', style='yes') if same else Cell('no', style='no')
  if row.get('lossless') == 'lossy':
    return Cell('lossy', style='no')
  return Cell('same law' if row['num_speculative_tokens'] else 'reference', style='na')


def _failures(rows: Sequence[Row]) -> Section:
  """Arms that failed, with their errors."""
  columns = [Column('', lambda row: row['arm']), Column('', lambda row: row['error'], 'left no')]
  return Section('Failed arms', table=page.table(columns, rows))


def _categories(rows: Sequence[Row]) -> Section | None:
  """Tokens per round by category of prompts, where there are several."""
  rows = [row for row in rows if row.get('by_category')]
  if not rows:
    return None

  def column(name: str) -> Column:
    estimate = lambda row: row['by_category'].get(name, {})
    ends = lambda row: [estimate(row).get(end) for end in ('value', 'low', 'high')]
    return Column(name, lambda row: _interval(*ends(row)), 'left')

  names = sorted({name for row in rows for name in row['by_category']})
  columns = [Column('arm', plots.name_of), *map(column, names)]
  return Section('Tokens per round by kind of prompt', table=page.table(columns, rows))


_METHOD = (
    Column('method', lambda row: row['name']),
    Column('rule', lambda row: row['rule'], 'left'),
)


def _terms(rows: Sequence[Row]) -> Section | None:
  """The formula, term by term."""
  rows = [row for row in rows if row.get('prediction')]
  if not rows:
    return None
  term = lambda name, digits=2: lambda row: _number(row['prediction'][name], digits=digits)
  difference = lambda row: f'{100 * (row["predicted_speedup"] / row["speedup"] - 1):+.0f} %'
  columns = [
      *_METHOD,
      Column('E', term('tokens_per_round')),
      Column('steps', term('num_drafted')),
      Column('c', term('draft_cost', 3)),
      Column('r(K+1)', term('pass_cost', 3)),
      Column('o', term('overhead', 3)),
      Column('predicted', lambda row: _number(row['predicted_speedup'], '×')),
      Column('measured', lambda row: _number(row['speedup'], '×')),
      Column('difference', difference),
  ]
  return Section(
      'Where the time goes',
      'S = E / (steps · c + r(K+1) + o): expected tokens per round (other prompts), draft steps '
      'per round, cost of a draft step, of the target pass over K+1 tokens, and of everything '
      'else, in plain decoding steps.',
      table=page.table(columns, rows),
  )


def _acceptance(rows: Sequence[Row]) -> dict[str, Any]:
  """Acceptance by position as a table below its plot."""
  rates = lambda row: row['acceptance_rate_per_position']
  rows = [row for row in rows if row['num_speculative_tokens'] and rates(row)]

  def column(index: int) -> Column:
    def cell(row: Row) -> Cell | None:
      if index >= len(rates(row)):
        return None
      rate = rates(row)[index]
      return Cell(_percent(rate), style='heat', share=round(70 * (rate or 0.0)))

    return Column(str(index + 1), cell, 'centre')

  depth = max((len(rates(row)) for row in rows), default=0)
  columns = [*_METHOD, *map(column, range(depth))]
  return dict(summary='The numbers, in percent', details=page.table(columns, rows))


def _rounds(rows: Sequence[Row]) -> dict[str, Any]:
  """Where the time of a round goes, as a table below its plot: parts, sum, and the stopwatch."""
  rows = [row for row in rows if row.get('round_seconds')]
  modelled = ('draft', 'verify', 'rest')
  total = lambda row: sum(row['round_seconds'][name] for name in modelled)
  part = lambda name: lambda row: f'{1000 * row["round_seconds"][name]:.3f}'
  columns = [
      Column('arm', plots.name_of),
      *(Column(name, part(name)) for name in modelled),
      Column('sum', lambda row: f'{1000 * total(row):.3f}'),
      Column('measured', part('measured')),
      Column(
          'difference',
          lambda row: f'{100 * (total(row) / row["round_seconds"]["measured"] - 1):+.0f} %',
      ),
  ]
  return dict(summary='The numbers, in milliseconds per round', details=page.table(columns, rows))


def definitions(rows: Sequence[Row]) -> list[Section]:
  """What the columns of a sweep mean; methods have theirs beside their tables."""
  swept = any('arm' in row for row in rows)
  return [Section('Definitions', items=tables.definitions(rows))] if swept else []


def _estimate(row: Row, name: str, unit: str = '', *, with_ends: bool = True, **form: Any) -> Cell:
  """A number of a row with its interval."""
  ends = (row.get(f'{name}{end}') if with_ends else None for end in ('_low', '_high'))
  return _interval(row.get(name), *ends, unit=unit, **form)


def _interval(
    value: float | None = None,
    low: float | None = None,
    high: float | None = None,
    *,
    unit: str = '',
    scale: float = 1.0,
    digits: int = 2,
) -> Cell:
  """A number, and in small letters its interval."""
  if value is None:
    return Cell(page.NOTHING)
  text = lambda number: f'{scale * number:.{digits}f}'
  return Cell(text(value) + unit, small='' if low is None else f'{text(low)}–{text(high)}')


def _number(value: float | None, unit: str = '', *, digits: int = 2) -> str:
  return page.NOTHING if value is None else f'{value:.{digits}f}{unit}'


def _percent(value: float | None) -> str:
  return page.NOTHING if value is None else f'{100 * value:.0f} %'
