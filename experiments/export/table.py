"""The table of a run for a paper: which columns there are, what their cells say, and a caption."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
from typing import Any

from experiments import sweep as sweep_lib
from experiments.runs import origin
from experiments.runs import rows as rows_lib

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell.

  Attributes:
    text: what it says; '' for nothing.
    interval: the ends of its interval, in brackets; '' for none.
    stands_out: whether it is the best of its column.
  """

  text: str
  interval: str = ''
  stands_out: bool = False


@dataclasses.dataclass(frozen=True)
class Column:
  """A column.

  Attributes:
    head: with its unit.
    cell: row -> cell.
    is_number: whether it is set to the right.
    is_symbol: whether the head is one letter of mathematics, as K is.
    note: what there is to know of it, a sentence; '' for nothing.
  """

  head: str
  cell: Callable[[Row], Cell]
  is_number: bool = True
  is_symbol: bool = False
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
  """A table.

  Attributes:
    columns: in their order.
    groups: lines of cells, in groups with a rule between them.
    caption: sentences.
  """

  columns: Sequence[Column]
  groups: Sequence[Sequence[Sequence[Cell]]]
  caption: str


def of_rows(rows: Sequence[Row], *, title: str) -> Table:
  """The table of finished methods or arms.

  A column in which nothing stands, and a field that is the same in all arms, is left out.

  Args:
    rows: of `metrics.jsonl`.
    title: of the run.
  """
  swept = any('arm' in row for row in rows)
  if not swept:
    # Plain decoding stands above the methods of its own batch size and temperature.
    rows = sorted(rows, key=lambda row: (row.get('batch_size') or 1, row['temperature']))
  best = _best(rows)
  columns = [
      column
      for column in (*(_fields(rows) if swept else _names(rows)), *_numbers(rows, best))
      if any(column.cell(row).text for row in rows)
  ]
  groups = [
      [[column.cell(row) for column in columns] for row in group]
      for _, group in itertools.groupby(rows, key=_group_of(rows, swept))
  ]
  notes = dict.fromkeys(column.note for column in columns if column.note)
  if any(cell.interval for group in groups for line in group for cell in line):
    notes['Brackets: 95 % intervals over prompts.'] = None
  return Table(columns, groups, ' '.join([f'{title}.', _setting(rows), *notes]))


def _best(rows: Sequence[Row]) -> Row | None:
  """The fastest row that speculates, where there are several."""
  sped_up = rows_lib.sped_up(rows)
  return max(sped_up, key=lambda row: row['speedup']) if len(sped_up) > 1 else None


def _group_of(rows: Sequence[Row], swept: bool) -> Callable[[Row], Any]:
  """What the rows of a group agree in: batch size and temperature, or the field set first."""
  if not swept:
    return lambda row: (row.get('batch_size'), row['temperature'])
  first = next(iter(_varying(rows)), None)
  runs = len(list(itertools.groupby(rows, key=lambda row: str(row['fields'].get(first)))))
  # A rule after every line would be no help.
  return lambda row: str(row['fields'].get(first)) if 2 * runs <= len(rows) else None


def _varying(rows: Sequence[Row]) -> list[str]:
  """The fields in which the arms of a sweep differ."""
  fields = dict.fromkeys(field for row in rows for field in row['fields'])
  return [field for field in fields if rows_lib.varies(rows, field)]


def _fields(rows: Sequence[Row]) -> list[Column]:
  """A column for each field in which arms differ."""
  columns = []
  for field in _varying(rows):
    values = [row['fields'].get(field) for row in rows]
    head = sweep_lib.short(field)
    columns.append(
        Column(
            head if len(head) == 1 else head.replace('_', ' ').capitalize(),
            lambda row, field=field: Cell(sweep_lib.show(row['fields'].get(field, ''))),
            is_number=all(isinstance(value, (int, float)) for value in values),
            is_symbol=len(head) == 1,
        )
    )
  return columns


def _names(rows: Sequence[Row]) -> list[Column]:
  """What tells the methods of a benchmark apart."""
  columns = [
      Column('Method', lambda row: Cell(row['name']), is_number=False),
      Column('Rule', lambda row: Cell(row['rule']), is_number=False),
      Column('T', lambda row: Cell(f'{row["temperature"]:g}'), is_symbol=True),
      Column('K', lambda row: Cell(str(row['num_speculative_tokens'] or '')), is_symbol=True),
  ]
  if len({row.get('batch_size') for row in rows}) > 1:
    columns.append(Column('B', lambda row: Cell(str(row.get('batch_size'))), is_symbol=True))
  return columns


def _numbers(rows: Sequence[Row], best: Row | None) -> list[Column]:
  """What was measured."""
  number = lambda name, **form: lambda row: _number(row, name, **form)
  is_plain = lambda row: not row['num_speculative_tokens']
  speedup = lambda row: (
      Cell(_text(row.get('speedup'), 1.0, 2)) if is_plain(row)
      else dataclasses.replace(_number(row, 'speedup'), stands_out=row is best)
  )
  acceptance = lambda row: (
      Cell('') if is_plain(row) else _number(row, 'draft_acceptance_rate', scale=100, digits=0)
  )
  return [
      Column(
          'Tokens/s', number('tokens_per_second', digits=0),
          note='Tokens per second are of decoding alone, without prefill and compilation.',
      ),
      Column(
          'Speed-up (×)', speedup,
          note='Speed-ups are over plain decoding at the same temperature, in turns with it.',
      ),
      Column(
          'Predicted (×)', number('predicted_speedup'),
          note='Predictions are from calibrated costs and measured acceptance.',
      ),
      Column(
          'Tokens/round', number('mean_acceptance_length'),
          note='Tokens per round count the bonus or recovered token.',
      ),
      Column(
          'Expected', number('expected_tokens_per_round'),
          note='They are expected over the coins of the rule, for the drafts that were made.',
      ),
      Column(
          'Gain (%)', number('gain', scale=100, digits=1),
          note='Gains are in tokens per round, paired by prompt.',
      ),
      Column('Accepted (%)', acceptance, note='Accepted: of the drafted tokens.'),
      Column('Lossless', lambda row: Cell(_lossless(row)), is_number=False),
  ]


def _number(row: Row, name: str, *, scale: float = 1.0, digits: int = 2) -> Cell:
  low, high = (_text(row.get(f'{name}_{end}'), scale, digits) for end in ('low', 'high'))
  return Cell(_text(row.get(name), scale, digits), f'[{low}, {high}]' if low and high else '')


def _text(value: float | None, scale: float, digits: int) -> str:
  return '' if value is None else f'{scale * value:.{digits}f}'


def _lossless(row: Row) -> str:
  """What the comparison with plain decoding found."""
  if not row['num_speculative_tokens']:
    return 'reference'
  if row.get('lossless') == 'rounding':
    return f'but for rounding ({row["flips"]})'
  return row.get('lossless') or ''


def _setting(rows: Sequence[Row]) -> str:
  """A sentence on what the rows were measured with."""
  first = rows[0]
  hardware, versions = first.get('hardware') or {}, first.get('versions') or {}
  prompts, sizes = (
      sorted({row[name] for row in rows if row.get(name)}) for name in ('prompts', 'batch_size')
  )
  place = str(hardware.get('device') or '')
  if hardware.get('platform') == 'cpu' and hardware.get('cpu_cores'):
    place += f' ({hardware["cpu_cores"]} cores)'
  elif hardware.get('devices', 1) > 1:
    place = f'{hardware["devices"]} × {place}'
  commits = origin.commits(rows)
  varying = _varying(rows) if 'fields' in first else ()
  same = [pair for pair in first.get('fields', {}).items() if pair[0] not in varying]
  parts = [
      f'{rows_lib.extent(prompts)} prompts' if prompts else '',
      f'batch size {rows_lib.extent(sizes)}' if sizes else '',
      sweep_lib.label(same),
      ' and '.join(sorted({row['dtype'] for row in rows if row.get('dtype')})),
      place,
      f'JAX {versions["jax"]}' if 'jax' in versions else '',
      f'commit {" and ".join(commits)}' if commits else '',
  ]
  text = ', '.join(filter(None, parts))
  return f'{text[:1].upper()}{text[1:]}.'
