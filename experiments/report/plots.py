"""The interactive plots of a report, as the JSON that `assets/plots.js` draws with uPlot.

A plot is `id`, `x` (a label, values, and names where they are categories), `y` (a label and a
unit), `kind` ('lines', 'bars' or 'stack'), an optional `reference` line, and `series`: a name,
values, the ends of intervals (`low`, `high`), whether it is `dashed` and `shown` at first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import sweep as sweep_lib
from experiments.runs import traces as traces_lib

Row = Mapping[str, Any]
Plot = dict[str, Any]

# More lines than this are hard to read at once; the others are there to be switched on.
_SHOWN = 8


def along_sweep(rows: Sequence[Row], x: str) -> list[Plot]:
  """Speed-up, tokens per round and gain along the field `x` of a sweep."""
  rows = [row for row in rows if x in row.get('fields', {})]
  if not rows:
    return []
  plots = [
      _plot(rows, x, 'speedup', 'Speed-up', unit='×', other='predicted_speedup', reference=1.0),
      _plot(
          rows, x, 'mean_acceptance_length', 'Tokens a round', other='expected_tokens_per_round'
      ),
  ]
  if any(row.get('gain') is not None for row in rows):
    scaled = [
        row | {f'gain{end}': 100 * row[f'gain{end}'] for end in ('', '_low', '_high')}
        for row in rows
        if row.get('gain') is not None
    ]
    plots.append(_plot(scaled, x, 'gain', 'Gain over the baseline', unit=' %', reference=0.0))
  return plots


def _plot(
    rows: Sequence[Row],
    x: str,
    name: str,
    label: str,
    *,
    unit: str = '',
    other: str = '',
    reference: float | None = None,
) -> Plot:
  """One number along `x`, a line for every combination of the other fields."""
  values = list(dict.fromkeys(row['fields'][x] for row in rows))
  numeric = all(isinstance(value, (int, float)) for value in values)
  values = sorted(values) if numeric else values
  lines: dict[str, dict[Any, Row]] = {}
  for row in rows:
    rest = [pair for pair in row['fields'].items() if pair[0] != x and _varies(rows, pair[0])]
    lines.setdefault(sweep_lib.label(rest) or label, {})[row['fields'][x]] = row
  series = []
  for index, (line, found) in enumerate(lines.items()):
    at = lambda key: [found[value].get(key) if value in found else None for value in values]
    shown = index < _SHOWN
    series.append(
        dict(
            name=line, colour=index, values=at(name), low=at(f'{name}_low'),
            high=at(f'{name}_high'), dashed=False, shown=shown,
        )
    )
    if other and any(value is not None for value in at(other)):
      what = 'predicted' if other.startswith('predicted') else 'expected'
      series.append(
          dict(name=f'{line}, {what}', colour=index, values=at(other), dashed=True, shown=shown)
      )
  return dict(
      id=f'{name}-along', kind='lines', reference=reference, series=series,
      x=dict(
          label=sweep_lib.short(x),
          values=values if numeric else list(range(len(values))),
          names=None if numeric else [str(value) for value in values],
      ),
      y=dict(label=label, unit=unit),
  )


def by_cost(rows: Sequence[Row]) -> Plot | None:
  """Tokens a round against what a round takes: drafters and trees compared at equal cost."""
  rows = [row for row in rows if 'fields' in row]
  compared = ('drafter.kind', 'drafter.tree', 'drafter.draft', 'drafter.path')
  if not any(_varies(rows, field) for field in compared):
    return None
  cost = lambda row: 1000 * row['seconds'] / row['target_passes']
  lines: dict[str, dict[float, Row]] = {}
  for row in rows:
    same = ('drafter.num_speculative_tokens',)
    rest = [
        pair for pair in row['fields'].items() if pair[0] not in same and _varies(rows, pair[0])
    ]
    lines.setdefault(sweep_lib.label(rest), {})[cost(row)] = row
  values = sorted({cost(row) for row in rows})
  series = []
  for index, (name, found) in enumerate(lines.items()):
    at = lambda key: [found[value].get(key) if value in found else None for value in values]
    series.append(
        dict(
            name=name, colour=index, values=at('mean_acceptance_length'),
            low=at('mean_acceptance_length_low'), high=at('mean_acceptance_length_high'),
            dashed=False, shown=index < _SHOWN,
        )
    )
  return dict(
      id='round-cost', kind='lines', reference=None, series=series,
      x=dict(label='milliseconds a round', values=values, names=None),
      y=dict(label='Tokens a round', unit=''),
  )


def _varies(rows: Sequence[Row], field: str) -> bool:
  return len({str(row['fields'].get(field)) for row in rows}) > 1


def per_position(rows: Sequence[Row]) -> Plot | None:
  """Conditional on nothing: the share of rounds that accepted up to each position."""
  rows = [row for row in rows if row.get('acceptance_rate_per_position')]
  if not rows:
    return None
  depth = max(len(row['acceptance_rate_per_position']) for row in rows)
  return dict(
      id='per-position', kind='lines', reference=None,
      x=dict(label='position in the draft', values=list(range(1, depth + 1)), names=None),
      y=dict(label='accepted', unit=' %'),
      series=_by_row(
          rows,
          lambda row: [
              None if rate is None else 100 * rate for rate in row['acceptance_rate_per_position']
          ],
          depth,
      ),
  )


def histogram(rows: Sequence[Row]) -> Plot | None:
  """Share of the rounds that accepted exactly so many tokens."""
  rows = [row for row in rows if len(row.get('accepted_lengths') or ()) > 1]
  if not rows:
    return None
  size = max(len(row['accepted_lengths']) for row in rows)
  return dict(
      id='accepted-lengths', kind='bars', reference=None,
      x=dict(label='drafted tokens accepted in a round', values=list(range(size)), names=None),
      y=dict(label='rounds', unit=' %'),
      series=_by_row(rows, lambda row: [100 * share for share in row['accepted_lengths']], size),
  )


def along_text(rows: Sequence[Row], traces: Sequence[Row] = ()) -> Plot | None:
  """Tokens a round against where in the new text the round began.

  Args:
    rows: those of a sweep have the counts of all prompts.
    traces: serve where no row has counts.
  """
  rows = [row for row in rows if row.get('along')] or [
      dict(arm=trace['name'], along=_along(trace['rounds'])) for trace in traces
  ]
  if not rows:
    return None
  size = max(len(row['along'][0]) for row in rows)
  stretch = traces_lib.STRETCH
  ratio = lambda row: [1 + a / r if r else None for r, a in zip(*row['along'])]
  return dict(
      id='along-text', kind='lines', reference=None,
      x=dict(
          label='new tokens before the round',
          values=[stretch * index + stretch // 2 for index in range(size)], names=None,
      ),
      y=dict(label='Tokens a round', unit=''),
      series=_by_row(rows, ratio, size),
  )


def _along(rounds: Sequence[Row]) -> list[list[int]]:
  """Rounds, and drafted tokens that they accepted, by stretch."""
  counts, position = [], 0
  for each in rounds:
    index = position // traces_lib.STRETCH
    while len(counts) <= index:
      counts.append([0, 0])
    counts[index][0] += 1
    counts[index][1] += sum(node['accepted'] for node in each['nodes'])
    position += len(each['emitted'])
  return [list(column) for column in zip(*counts)]


def _by_row(rows: Sequence[Row], values, size: int) -> list[dict[str, Any]]:
  """A line for each row, filled up to `size`."""
  return [
      dict(
          name=name_of(row), colour=index, values=(values(row) + [None] * size)[:size],
          dashed=False, shown=index < _SHOWN,
      )
      for index, row in enumerate(rows)
  ]


def name_of(row: Row) -> str:
  """What a row is called in plots: the arm's fields, or method and rule."""
  return row['arm'] if 'arm' in row else f'{row["name"]}, {row["rule"]}, T={row["temperature"]:g}'


def round_split(rows: Sequence[Row]) -> Plot | None:
  """Modelled milliseconds of a round, stacked, and the measured ones as points."""
  rows = [row for row in rows if row.get('round_seconds')]
  if not rows:
    return None
  part = lambda name: [1000 * row['round_seconds'][name] for row in rows]
  return dict(
      id='round-split', kind='stack', reference=None,
      x=dict(
          label='arm', values=list(range(len(rows))), names=[name_of(row) for row in rows],
      ),
      y=dict(label='milliseconds a round', unit=' ms'),
      series=[
          dict(name=name, colour=index, values=part(name), dashed=False, shown=True)
          for index, name in enumerate(('draft', 'verify', 'rest'))
      ] + [dict(name='measured', colour=None, values=part('measured'), dashed=False, shown=True)],
  )


def pass_costs(calibration: Row) -> Plot:
  """r(m): a target pass over m tokens, in plain steps."""
  plain = calibration['rules'][0]['plain']
  return dict(
      id='pass-costs', kind='lines', reference=1.0,
      x=dict(label='tokens in the pass, m', values=list(calibration['widths']), names=None),
      y=dict(label='target pass, in plain steps', unit=''),
      series=[
          dict(
              name='r(m)', colour=0, dashed=False, shown=True,
              values=[seconds / plain for seconds in calibration['pass_seconds']],
          )
      ],
  )


def losses(rows: Sequence[Row]) -> Plot | None:
  """Loss against step: of training in the mean of some 120 stretches, and held out."""
  found = {}
  for name, kind in (('train', 'train'), ('held out', 'held_out')):
    points = [
        (row['step'], row['loss'])
        for row in rows
        if row.get('kind', 'train') == kind and row['loss'] is not None
    ]
    groups = np.array_split(np.arange(len(points)), min(len(points), 120)) if points else []
    if groups:
      means = [np.mean([points[i] for i in group], axis=0) for group in groups]
      found[name] = {float(step): float(loss) for step, loss in means}
  if not found:
    return None
  steps = sorted({step for points in found.values() for step in points})
  return dict(
      id='losses', kind='lines', reference=None,
      x=dict(label='step', values=steps, names=None), y=dict(label='loss', unit=''),
      series=[
          dict(
              name=name, colour=index, values=[points.get(step) for step in steps], dashed=False,
              shown=True,
          )
          for index, (name, points) in enumerate(found.items())
      ],
  )
