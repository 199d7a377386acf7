"""The sections of a plan: what fits on which slice, and how fast it should be there."""

from collections.abc import Sequence

from experiments.report import page
from experiments.report import plots
from experiments.report.page import Cell, Column, Row, Section, Tile
from experiments.runs import plan_tables


def subtitle(row: Row) -> str:
  """What was planned: the same for all rows."""
  drafted = f'K = {row["num_speculative_tokens"]}'
  if row['tree']:
    drafted = f'trees {row["tree"]} of {row["num_nodes"]} tokens (predicted: chains)'
  return (
      f'Batch {row["batch_size"]}, context {row["context"]}, {drafted}, rule {row["rule"]}.'
  )


def tiles(rows: Sequence[Row]) -> list[Tile]:
  """The numbers to take away, at the middle acceptance rate."""
  fitting = [row for row in rows if row['fits']]
  number = Tile(f'{len(fitting)} of {len(rows)}', 'slices have room for the run')
  if not fitting:
    return [number]
  middle = lambda row: row['predictions'][len(row['predictions']) // 2]
  fastest = max(fitting, key=lambda row: middle(row)['speculative'])
  most = max(fitting, key=lambda row: middle(row)['speedup'])
  speed, rate = middle(fastest), f'α = {middle(fastest)["acceptance"]:g}'
  return [
      number,
      Tile(
          f'{speed["speculative"]:.0f} tok/s',
          f'fastest at {rate}: {fastest["topology"]} (plain: {speed["plain"]:.0f})',
      ),
      Tile(f'{middle(most)["speedup"]:.2f}×', f'largest speed-up at {rate}: {most["topology"]}'),
  ]


def sections(rows: Sequence[Row]) -> list[Section]:
  """Memory, what does not fit, and the speeds."""
  refused = [row for row in rows if not row['fits']]
  return [
      _memory(rows),
      *([_advice(refused)] if refused else []),
      page.of_plot(plots.plan_speedups(rows)),
      _speeds(rows),
  ]


def _name(row: Row) -> str:
  return row['topology'] + ('' if row['compiled'] else ' (not compiled)')


def _memory(rows: Sequence[Row]) -> Section:
  """What a chip holds."""
  gigabytes = lambda name: lambda row: f'{row[name] / 1e9:.2f}'
  of_compiled = lambda name, form: lambda row: f'{row[name]:{form}}' if row['compiled'] else '–'
  columns = [
      Column('slice', _name),
      Column('weights GB', gigabytes('weight_bytes')),
      Column('caches GB', gigabytes('cache_bytes')),
      Column('temporaries GB', gigabytes('temporary_bytes')),
      Column('free GB', gigabytes('free_bytes')),
      Column(
          'fits',
          lambda row: Cell('yes', style='yes') if row['fits'] else Cell('no', style='no'),
          'left',
      ),
      Column('collectives per layer', of_compiled('collectives_per_layer', 'g'), 'wrap'),
      Column('compile s', of_compiled('compile_seconds', '.0f'), 'wrap'),
  ]
  return Section(
      'Memory per chip',
      'Of compiled slices, memory and collectives are what the compiler says; of the others, '
      'memory is counted and there is no program to look into.',
      table=page.table(columns, rows),
  )


def _advice(rows: Sequence[Row]) -> Section:
  columns = [
      Column('', _name),
      Column('', lambda row: row['advice'], 'left text'),
  ]
  return Section('What does not fit', table=page.table(columns, rows))


def _speeds(rows: Sequence[Row]) -> Section:
  def column(index: int, rate: float) -> Column:
    def cell(row: Row) -> Cell:
      each = row['predictions'][index]
      return Cell(f'{each["speculative"]:.0f}', small=f'K = {each["num_speculative_tokens"]}')

    return Column(f'α = {rate:g}', cell, 'left')

  rates = [each['acceptance'] for each in rows[0]['predictions']]
  columns = [
      Column('slice', _name),
      Column('plain', lambda row: f'{row["predictions"][0]["plain"]:.0f}'),
      *(column(index, rate) for index, rate in enumerate(rates)),
      Column('pays up to batch', plan_tables.paying, 'wrap'),
  ]
  return Section(
      'Tokens per second',
      'Of all rows, by roofline: plain decoding, and speculation at the best K for each acceptance '
      'rate α. K = 0: plain decoding is faster.',
      table=page.table(columns, rows),
  )
