"""Plots of a report drawn by matplotlib, as wide as a column of a paper."""

from collections.abc import Sequence
import io

from experiments.report.plots import Plot

# Okabe and Ito's colours, which colour-blind readers tell apart, with grey for the palest one.
_COLOURS = (
    '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#888888',
)  # fmt: skip
_MARKERS = 'osD^vPX*'
# Of a series whose colour is a class of the report's style sheet, or that of text.
_NAMED = {'measured': _COLOURS[0], 'predicted': '#999999', None: '#000000'}
_STYLE = {
    'font.size': 8, 'axes.titlesize': 8, 'axes.labelsize': 8, 'legend.fontsize': 7,
    'xtick.labelsize': 7, 'ytick.labelsize': 7, 'lines.linewidth': 1.2, 'lines.markersize': 3.5,
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True, 'grid.alpha': 0.25,
    'grid.linewidth': 0.5, 'axes.axisbelow': True, 'legend.frameon': False,
    # TrueType fonts, which journals ask for; letters of an SVG stay letters.
    'pdf.fonttype': 42, 'svg.fonttype': 'none',
    # The same rows give the same bytes.
    'svg.hashsalt': 'specjax',
}  # fmt: skip
_WIDTH, _HEIGHT, _LINE = 3.4, 2.3, 0.15  # inches, the last one of a line of the legend


def draw(plot: Plot, kind: str) -> bytes:
  """A figure of a plot (`experiments.report.plots`), as the bytes of a 'pdf' or 'svg'."""
  import matplotlib
  from matplotlib import figure as figure_lib

  with matplotlib.rc_context(_STYLE):
    shown = [series for series in plot['series'] if series['shown']]
    height = _HEIGHT
    if plot['kind'] == 'hbars':
      height = max(0.6 + 0.3 * len(plot['x']['values']), 1.4)
    # Below the plot a legend hides nothing, and takes no width.
    across = 1 if max(len(series['name']) for series in shown) > 32 else 2
    if len(shown) > 1:
      height += _LINE * -(-len(shown) // across)
    figure = figure_lib.Figure(figsize=(_WIDTH, height), layout='constrained')
    axes = figure.add_subplot()
    _DRAW[plot['kind']](axes, plot['x'], shown)
    _label(axes, plot)
    if len(shown) > 1:
      figure.legend(loc='outside lower center', ncols=across)
    content = io.BytesIO()
    dates = {'pdf': {'CreationDate': None}, 'svg': {'Date': None}}
    figure.savefig(content, format=kind, metadata=dates[kind], bbox_inches='tight')
  return content.getvalue()


def _label(axes, plot: Plot) -> None:
  """Names of the axes and of categories, and the line of the reference."""
  x, y = plot['x'], plot['y']
  unit = y['unit'].strip()
  # A plot of milliseconds says so already.
  label = f'{y["label"]} ({unit})' if unit and unit != 'ms' else y['label']
  categories, numbers = axes.set_xlabel, axes.set_ylabel
  reference, ticks = axes.axhline, axes.set_xticks
  if plot['kind'] == 'hbars':
    categories, numbers = axes.set_ylabel, axes.set_xlabel
    reference, ticks = axes.axvline, axes.set_yticks
    axes.invert_yaxis()
    axes.grid(axis='y', visible=False)
  numbers(label)
  if x['names']:
    # The names say what they are.
    turned = plot['kind'] != 'hbars' and max(map(len, x['names'])) > 6
    form = dict(rotation=35, ha='right') if turned else {}
    ticks(range(len(x['names'])), [_escape(name) for name in x['names']], **form)
  else:
    categories(x['label'])
    if len(x['values']) <= 12 and all(float(value).is_integer() for value in x['values']):
      ticks(x['values'])
  if plot['reference'] is not None:
    reference(plot['reference'], color='#666666', linewidth=0.8, linestyle=':')


def _escape(text: str) -> str:
  """A text that matplotlib draws as it is: what stands between two $ would be mathematics."""
  return text.replace('$', r'\$')


def _look(series) -> dict[str, str]:
  """What the legend says of a series, and its colour."""
  colour = series['colour']
  return dict(
      label=_escape(series['name']),
      color=_NAMED[colour] if colour in _NAMED else _COLOURS[colour % len(_COLOURS)],
  )


def _errors(series, at: Sequence[int]) -> list[list[float]] | None:
  """Lengths of the error bars at some points, down and up; 0 where a point has no interval."""
  if series['low'] is None:
    return None
  values, low, high = (series[name] for name in ('values', 'low', 'high'))
  return [
      [0.0 if ends[i] is None else abs(values[i] - ends[i]) for i in at] for ends in (low, high)
  ]


def _points(x, series) -> tuple[list[int], list[float], list[float]]:
  """Where a series has points: their numbers, places and values."""
  at = [i for i, value in enumerate(series['values']) if value is not None]
  return at, [x['values'][i] for i in at], [series['values'][i] for i in at]


def _lines(axes, x, shown) -> None:
  for series in shown:
    at, places, values = _points(x, series)
    colour = series['colour'] if isinstance(series['colour'], int) else 0
    axes.errorbar(
        places, values, yerr=_errors(series, at), capsize=1.5, elinewidth=0.7,
        linestyle='--' if series['dashed'] else '-',
        marker='' if series['dashed'] else _MARKERS[colour % len(_MARKERS)], **_look(series),
    )


def _bars(axes, x, shown) -> None:
  width = 0.8 / len(shown)
  for number, series in enumerate(shown):
    _, places, values = _points(x, series)
    offset = (number - (len(shown) - 1) / 2) * width
    axes.bar([place + offset for place in places], values, width, **_look(series))


def _hbars(axes, x, shown) -> None:
  height = 0.8 / len(shown)
  for number, series in enumerate(shown):
    at, places, values = _points(x, series)
    offset = (number - (len(shown) - 1) / 2) * height
    axes.barh(
        [place + offset for place in places], values, height, xerr=_errors(series, at),
        error_kw=dict(elinewidth=0.7, capsize=1.5), **_look(series),
    )


def _stack(axes, x, shown) -> None:
  """Parts on top of each other; the series in the colour of text are points beside them."""
  bottom = [0.0] * len(x['values'])
  for series in shown:
    if series['colour'] is None:
      axes.plot(x['values'], series['values'], 'o', **_look(series))
      continue
    values = [value or 0.0 for value in series['values']]
    axes.bar(x['values'], values, 0.7, bottom=bottom, **_look(series))
    bottom = [below + value for below, value in zip(bottom, values)]


_DRAW = dict(lines=_lines, bars=_bars, hbars=_hbars, stack=_stack)
