"""The plots of a report, as the JSON that `assets/plots.js` draws.

A plot is a dict of `id`, `title`, `note` and

  kind: 'lines', 'bars', 'stack', or 'hbars' (horizontal bars, a group per category).
  x: a label, values, and names where they are categories.
  y: a label and a unit; of 'hbars' also the `ticks` of their axis.
  reference: a value of y that has a line of its own, or None.
  series: dicts of a name, values, the ends of their intervals (`low` and `high`, or None), a
    colour (a number; of 'hbars' a class of the style sheet; None is the colour of text), and
    whether the series is `dashed`, and `shown` at first.

`of_speed` and `of_rounds` say which plots the methods of a run have, in the order of the page.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import numpy as np

from experiments import sweep as sweep_lib
from experiments.runs import rows as rows_lib
from experiments.runs import traces as traces_lib

Row = Mapping[str, Any]
Plot = dict[str, Any]

# More lines than this are hard to read at once; the others are there to be switched on.
_SHOWN = 8


def of_speed(rows: Sequence[Row], x: str) -> list[Plot]:
  """How fast methods or arms are.

  Args:
    rows: of methods, or of arms of a sweep.
    x: the field that the sweep goes along, or ''.
  """
  return _present(speedups(rows), *along_sweep(rows, x), by_cost(rows))


def of_rounds(rows: Sequence[Row], traces: Sequence[Row]) -> list[Plot]:
  """Where the time of a round goes, and what its tokens are."""
  speculative = [row for row in rows if row['num_speculative_tokens']]
  return _present(
      round_split(rows), per_position(speculative), histogram(speculative),
      along_text(speculative, traces),
  )


def _present(*plots: Plot | None) -> list[Plot]:
  return [plot for plot in plots if plot is not None]


def _series(
    name: str,
    colour: int | str | None,
    values: Sequence[float | None],
    *,
    low: Sequence[float | None] | None = None,
    high: Sequence[float | None] | None = None,
    dashed: bool = False,
    shown: bool = True,
) -> dict[str, Any]:
  if low is not None and all(end is None for end in low):
    low = high = None  # a legend promises no interval that no point has
  return dict(
      name=name, colour=colour, values=list(values), low=low, high=high, dashed=dashed, shown=shown
  )


def speedups(rows: Sequence[Row]) -> Plot | None:
  """Bars of methods, measured and predicted; a sweep has lines along its field instead."""
  if any('arm' in row for row in rows):
    return None
  rows = [row for row in rows if row['num_speculative_tokens'] and row['speedup'] is not None]
  if not rows:
    return None
  column = lambda name: [row[name] for row in rows]
  ends = dict(low=column('speedup_low'), high=column('speedup_high'))
  series = [_series('measured', 'measured', column('speedup'), **ends)]
  title, note = 'Speed-up, measured', ''
  if any(value is not None for value in column('predicted_speedup')):
    series.append(_series('predicted', 'predicted', column('predicted_speedup')))
    title = 'Speed-up, measured and predicted'
    note = 'Predicted from the costs of the calibration and the acceptance on other prompts.'
  names = [f'{row["name"]}, {row["rule"]}' for row in rows]
  lengths = [1.0, *ends['high'], *(value for each in series for value in each['values'])]
  return dict(
      id='speedups', title=title, note=note, kind='hbars', reference=1.0, series=series,
      x=dict(label='method', values=list(range(len(rows))), names=names),
      y=dict(label='Speed-up', unit='×', ticks=nice_ticks(max(filter(None, lengths)))),
  )


def nice_ticks(highest: float) -> list[float]:
  """0 and three to six round steps that reach `highest`.

  >>> nice_ticks(2.3)
  [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
  """
  highest = max(highest, 1e-9)
  power = 10.0 ** math.floor(math.log10(highest))
  step = next(power * f for f in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0) if highest <= 5 * power * f)
  count = max(math.ceil(highest / step - 1e-9), 1)
  return [round(step * index, 10) for index in range(count + 1)]


def along_sweep(rows: Sequence[Row], x: str) -> list[Plot]:
  """Speed-up, tokens per round and gain along the field `x` of a sweep."""
  rows = [row for row in rows if x in row.get('fields', {})]
  if not rows:
    return []
  plots = [
      _along_field(
          rows, x, 'speedup', 'Speed-up', unit='×', other='predicted_speedup', reference=1.0,
          note='Solid: measured, with its 95 % interval. Dashed: predicted from the calibrated '
          'costs and the acceptance of the arm.',
      ),
      _along_field(
          rows, x, 'mean_acceptance_length', 'Tokens per round', other='expected_tokens_per_round',
          note='Solid: measured, the bonus or recovered token counted. Dashed: in expectation over '
          'the coins of the rule, for the same drafts.',
      ),
  ]
  names = ('gain', 'gain_low', 'gain_high')
  scaled = [
      row | {name: None if row[name] is None else 100 * row[name] for name in names}
      for row in rows
      if row.get('gain') is not None
  ]
  if scaled:
    plots.append(
        _along_field(
            scaled, x, 'gain', 'Gain over the baseline', unit=' %', reference=0.0,
            note='Tokens per round, against the arm that differs in the baseline field alone; '
            'paired by prompt.',
        )
    )
  return plots


def _along_field(
    rows: Sequence[Row],
    x: str,
    name: str,
    label: str,
    *,
    note: str,
    unit: str = '',
    other: str = '',
    reference: float | None = None,
) -> Plot:
  """One number along `x`, and beside it the one named `other`, where there is any."""
  values = list(dict.fromkeys(row['fields'][x] for row in rows))
  numeric = all(isinstance(value, (int, float)) for value in values)
  values = sorted(values) if numeric else values
  series = []
  for index, (line, points) in enumerate(_lines(rows, x, lambda row: row['fields'][x]).items()):
    series.append(_with_interval(points, values, name, line or label, index))
    expected = _column(points, values, other)
    if any(value is not None for value in expected):
      what = 'predicted' if other.startswith('predicted') else 'expected'
      series.append(
          _series(
              f'{line or label}, {what}', index, expected, dashed=True, shown=index < _SHOWN
          )
      )
  return dict(
      id=f'{name}-along', title=label, note=note, kind='lines', reference=reference, series=series,
      x=dict(
          label=sweep_lib.short(x),
          values=values if numeric else list(range(len(values))),
          names=None if numeric else [str(value) for value in values],
      ),
      y=dict(label=label, unit=unit),
  )


def by_cost(rows: Sequence[Row]) -> Plot | None:
  """Tokens per round against what a round takes: drafters and trees compared at equal cost."""
  rows = [row for row in rows if 'fields' in row and row['seconds'] is not None]
  compared = ('drafter.kind', 'drafter.tree', 'drafter.draft', 'drafter.path')
  if not any(rows_lib.varies(rows, field) for field in compared):
    return None
  cost = lambda row: 1000 * row['seconds'] / row['target_passes']
  values = sorted({cost(row) for row in rows})
  lines = _lines(rows, 'drafter.num_speculative_tokens', cost)
  return dict(
      id='round-cost', title='At equal cost', kind='lines', reference=None,
      note='Of two drafters the higher one at the same place is better: as many tokens cost less.',
      x=dict(label='milliseconds per round', values=values, names=None),
      y=dict(label='Tokens per round', unit=''),
      series=[
          _with_interval(points, values, 'mean_acceptance_length', name, index)
          for index, (name, points) in enumerate(lines.items())
      ],
  )


def _lines(
    rows: Sequence[Row], field: str, place: Callable[[Row], Any]
) -> dict[str, dict[Any, Row]]:
  """The rows of every combination of the fields other than `field`, by their place on its line."""
  lines: dict[str, dict[Any, Row]] = {}
  for row in rows:
    rest = [
        (name, value)
        for name, value in row['fields'].items()
        if name != field and rows_lib.varies(rows, name)
    ]
    lines.setdefault(sweep_lib.label(rest), {})[place(row)] = row
  return lines


def _column(points: Mapping[Any, Row], values: Sequence[Any], key: str) -> list[float | None]:
  return [points[value].get(key) if value in points else None for value in values]


def _with_interval(
    points: Mapping[Any, Row], values: Sequence[Any], key: str, name: str, index: int
) -> dict[str, Any]:
  at = lambda end: _column(points, values, f'{key}{end}')
  return _series(name, index, at(''), low=at('_low'), high=at('_high'), shown=index < _SHOWN)


def round_split(rows: Sequence[Row]) -> Plot | None:
  """Modelled milliseconds of a round, stacked, and the measured ones as points."""
  rows = [row for row in rows if row.get('round_seconds')]
  if not rows:
    return None
  part = lambda name: [1000 * row['round_seconds'][name] for row in rows]
  names = ('draft', 'verify', 'rest')
  return dict(
      id='round-split', title='The time of a round', kind='stack', reference=None,
      note='Drafting, the target pass over K+1 tokens, and the rest (sampling, verification, '
      'commit): from the calibration, which gives them in plain steps, times the plain step as '
      'it was measured beside the arm. Dots: the stopwatch.',
      x=dict(label='arm', values=list(range(len(rows))), names=[*map(name_of, rows)]),
      y=dict(label='milliseconds per round', unit=' ms'),
      series=[
          *(_series(name, index, part(name)) for index, name in enumerate(names)),
          _series('measured', None, part('measured')),
      ],
  )


def per_position(rows: Sequence[Row]) -> Plot | None:
  """Conditional on nothing: the share of rounds that accepted up to each position."""
  rows = [row for row in rows if row.get('acceptance_rate_per_position')]
  if not rows:
    return None
  depth = max(len(row['acceptance_rate_per_position']) for row in rows)
  percent = lambda rate: None if rate is None else 100 * rate
  return dict(
      id='per-position', title='Acceptance by position', kind='lines', reference=None,
      note='Share of the rounds with a draft at that position that accepted up to and with it.',
      x=dict(label='position in the draft', values=list(range(1, depth + 1)), names=None),
      y=dict(label='accepted', unit=' %'),
      series=_by_row(
          rows, lambda row: [*map(percent, row['acceptance_rate_per_position'])], depth
      ),
  )


def histogram(rows: Sequence[Row]) -> Plot | None:
  """Share of the rounds that accepted exactly so many tokens."""
  rows = [row for row in rows if len(row.get('accepted_lengths') or ()) > 1]
  if not rows:
    return None
  size = max(len(row['accepted_lengths']) for row in rows)
  return dict(
      id='accepted-lengths', title='Accepted tokens of a round', kind='bars', reference=None,
      note='How often exactly so many drafted tokens stayed.',
      x=dict(label='drafted tokens accepted in a round', values=list(range(size)), names=None),
      y=dict(label='rounds', unit=' %'),
      series=_by_row(rows, lambda row: [100 * share for share in row['accepted_lengths']], size),
  )


def along_text(rows: Sequence[Row], traces: Sequence[Row] = ()) -> Plot | None:
  """Tokens per round against where in the new text the round began.

  Args:
    rows: those of a sweep have the counts of all prompts.
    traces: serve where no row has counts.
  """
  rows = [row for row in rows if row.get('along')] or [
      dict(arm=trace['name'], along=_along(trace['rounds'])) for trace in traces
  ]
  if not rows:
    return None
  size, stretch = max(len(row['along'][0]) for row in rows), traces_lib.STRETCH
  ratio = lambda row: [1 + a / r if r else None for r, a in zip(*row['along'])]
  return dict(
      id='along-text', title='Acceptance along the text', kind='lines', reference=None,
      note=f'Rounds by how many new tokens were there before, in stretches of {stretch}.',
      x=dict(
          label='new tokens before the round',
          values=[stretch * index + stretch // 2 for index in range(size)], names=None,
      ),
      y=dict(label='Tokens per round', unit=''),
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


def _by_row(rows: Sequence[Row], values: Callable[[Row], list], size: int) -> list[dict[str, Any]]:
  """A line per row, filled up to `size`."""
  return [
      _series(name_of(row), index, (values(row) + [None] * size)[:size], shown=index < _SHOWN)
      for index, row in enumerate(rows)
  ]


def name_of(row: Row) -> str:
  """What a row is called in plots: the arm's fields, or method and rule."""
  return row['arm'] if 'arm' in row else f'{row["name"]}, {row["rule"]}, T={row["temperature"]:g}'


def pass_costs(calibration: Row) -> Plot:
  """r(m): a target pass over m tokens, in plain steps."""
  plain = calibration['rules'][0]['plain']
  compared = ', '.join(
      f'{entry["dtype"]} at {entry["width"]}: {1000 * entry["seconds"]:.2f} ms'
      for entry in calibration['candidates']
  )
  compared = f' Compared for it (dtype at tokens per pass): {compared}.' if compared else ''
  return dict(
      id='pass-costs', title='Cost of a target pass', kind='lines', reference=1.0,
      note='The less a further token of a pass costs, the more drafting pays. A plain step takes '
      f'{1000 * plain:.2f} ms in {calibration["dtype"]} at {calibration["width"]} tokens per pass, '
      f'cache of {calibration["cache_length"]}.{compared} Medians of {calibration["repetitions"]} '
      f'interleaved repetitions; spread at most {100 * calibration["noise"]:.0f} %.',
      x=dict(label='tokens in the pass, m', values=list(calibration['widths']), names=None),
      y=dict(label='target pass, in plain steps', unit=''),
      series=[_series('r(m)', 0, [seconds / plain for seconds in calibration['pass_seconds']])],
  )


def losses(rows: Sequence[Row]) -> Plot | None:
  """Loss against step: of training in the mean of some 120 stretches, and held out."""
  lines = {}
  for name, kind in (('train', 'train'), ('held out', 'held_out')):
    points = [
        (row['step'], row['loss'])
        for row in rows
        if row.get('kind', 'train') == kind and row['loss'] is not None
    ]
    groups = np.array_split(np.arange(len(points)), min(len(points), 120)) if points else []
    if groups:
      means = [np.mean([points[i] for i in group], axis=0) for group in groups]
      lines[name] = {float(step): float(loss) for step, loss in means}
  if not lines:
    return None
  steps = sorted({step for points in lines.values() for step in points})
  return dict(
      id='losses', title='Loss', note='In nats per token.', kind='lines', reference=None,
      x=dict(label='step', values=steps, names=None), y=dict(label='loss', unit=''),
      series=[
          _series(name, index, [points.get(step) for step in steps])
          for index, (name, points) in enumerate(lines.items())
      ],
  )


def plan_speedups(rows: Sequence[Row]) -> Plot:
  """The speed-up of each slice of a plan against the acceptance rate."""
  lines = [
      (row, {each['acceptance']: each['speedup'] for each in row['predictions']}) for row in rows
  ]
  rates = sorted({rate for _, points in lines for rate in points})
  note = (
      'Over plain decoding of the same batch, by the compiled program or else by roofline. α is '
      'the chance that a drafted token is accepted, the same at every position.'
  )
  if not all(row['fits'] for row in rows):
    note += ' Dashed: slices that have no room for the run.'
  return dict(
      id='plan-speedups', title='Speed-up at the best K', note=note, kind='lines', reference=1.0,
      x=dict(label='acceptance rate α', values=rates, names=None),
      y=dict(label='Speed-up', unit='×'),
      series=[
          _series(
              row['topology'], index, [points.get(rate) for rate in rates],
              dashed=not row['fits'], shown=index < _SHOWN,
          )
          for index, (row, points) in enumerate(lines)
      ],
  )
