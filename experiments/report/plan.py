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
  compiled = [row for row in rows if row['round_ms'] is not None]
  return [
      _memory(rows),
      *([_advice(refused)] if refused else []),
      page.of_plot(plots.plan_speedups(rows)),
      _speeds(rows),
      *([_rounds(compiled)] if compiled else []),
      *(_slowest(row) for row in compiled),
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
  """Every slice at every acceptance rate."""
  made = [
      dict(slice=row, limit=limit, first=index == 0, **each)
      for row in rows
      for index, (each, limit) in enumerate(
          zip(row['predictions'], row['roofline_predictions'], strict=True)
      )
  ]
  once = lambda text: lambda each: text(each['slice']) if each['first'] else ''
  number = lambda name: lambda each: f'{each[name]:.0f}'
  columns = [
      Column('slice', once(_name)),
      Column('plain', once(lambda row: f'{row["predictions"][0]["plain"]:.0f}')),
      Column('α', lambda each: f'{each["acceptance"]:g}'),
      Column('best K', number('num_speculative_tokens')),
      Column('speculative', number('speculative')),
      Column('range', lambda each: plan_tables.span(each['slice'], each['speculative'])),
      Column('speed-up', lambda each: f'{each["speedup"]:.2f}×'),
      Column('roofline', lambda each: f'{each["limit"]["speculative"]:.0f}'),
      Column('pays up to batch', once(plan_tables.paying), 'wrap'),
  ]
  return Section(
      'Tokens per second',
      'Of all rows: plain decoding, and speculation at the best K for each acceptance rate α, by '
      'the compiled program where there is one, and by roofline, which is the limit. K = 0: plain '
      'decoding is faster. Ranges are of the errors that the model of times has on steps that '
      'others measured. Up to which batch it pays is by roofline.',
      table=page.table(columns, made),
  )


def _rounds(rows: Sequence[Row]) -> Section:
  ms = lambda name: lambda row: f'{row[name]:.2f}'

  def span(row: Row) -> str:
    low, high = row['round_errors']
    return f'{row["round_ms"] / (1 + high):.2f} – {row["round_ms"] / (1 + low):.2f}'

  columns = [
      Column('slice', _name),
      Column('round ms', ms('round_ms')),
      Column('range', span),
      Column('drafting', ms('round_draft_ms')),
      Column('target', ms('round_score_ms')),
      Column('verifying', ms('round_verify_ms')),
      Column('committing', ms('round_commit_ms')),
      Column('bytes alone', ms('round_bytes_ms')),
      Column('roofline', lambda row: f'{_roofline_round(row):.2f}'),
  ]
  return Section(
      'A round of the compiled program',
      "A walk through the program's schedule: each instruction takes its estimated cycles or its "
      'bytes, whichever is longer. The range is what the model was off on steps that others '
      'measured. Roofline: drafting and the target, without the rest.',
      table=page.table(columns, rows),
  )


def _roofline_round(row: Row) -> float:
  return row['num_speculative_tokens'] * row['draft_step_ms'] + row['target_pass_ms']


def _slowest(row: Row) -> Section:
  """What takes longest on one slice."""
  parts = dict(draft='drafting', score='target', verify='verifying', commit='committing')
  found = [
      dict(each, part=name) for part, name in parts.items() for each in row['slowest'][part][:4]
  ]
  columns = [
      Column('part', lambda each: each['part']),
      Column('instruction', lambda each: each['op_name'] or each['name'], 'left text'),
      Column('ms', lambda each: f'{each["ms"]:.3f}'),
      Column('times', lambda each: f'{each["trips"]:.0f}'),
      Column('MB each', lambda each: f'{each["num_bytes"] / 1e6:.2f}'),
      Column('bound by', lambda each: each['bound']),
  ]
  return Section(f'What takes longest on {row["topology"]}', table=page.table(columns, found))
