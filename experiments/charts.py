"""Small charts as inline SVG: text that scales, colours from the page's style sheet."""

from collections.abc import Sequence
import dataclasses
import html
import math

WIDTH = 760
_LABELS = 200  # room for names, left of the bars


@dataclasses.dataclass(frozen=True)
class Bar:
  """One bar of a group.

  Attributes:
    value: its length; None leaves it out.
    style: CSS class.
    title: what a pointer that rests on it is told.
    low: lower end of an interval, or None.
    high: upper end.
  """

  value: float | None
  style: str
  title: str
  low: float | None = None
  high: float | None = None


def bars(groups: Sequence[tuple[str, Sequence[Bar]]], *, unit: str, reference: float) -> str:
  """Horizontal bars in groups, with a line at `reference`.

  Args:
    groups: a name and its bars.
    unit: written after values, e.g. '×'.
    reference: where the line is drawn.

  Returns:
    An `<svg>` element.
  """
  height, gap = 15, 14
  highest = max(
      [reference] + [v for _, group in groups for bar in group for v in (bar.value, bar.high) if v]
  )
  ticks = nice_ticks(highest)
  scale = (WIDTH - _LABELS - 60) / ticks[-1]
  at = lambda value: _LABELS + value * scale
  parts, y = [], 10.0
  for name, group in groups:
    shown = [bar for bar in group if bar.value is not None]
    middle = y + height * max(len(shown), 1) / 2
    parts.append(text(_LABELS - 12, middle + 4, name, 'label end'))
    for bar in shown:
      parts.append(
          f'<g><title>{html.escape(bar.title)}</title>'
          f'<rect class="{bar.style}" x="{_LABELS}" y="{y:.1f}" rx="2" '
          f'width="{bar.value * scale:.1f}" height="{height - 2}"/>'
      )
      end = at(bar.value)
      if bar.low is not None and bar.high is not None:
        centre = y + height / 2 - 1
        parts.append(line(at(bar.low), centre, at(bar.high), centre, 'whisker'))
        end = max(end, at(bar.high))
      parts.append(text(end + 6, y + height - 4, f'{bar.value:.2f}{unit}', 'value') + '</g>')
      y += height
    y += gap if shown else height + gap
  bottom = y - gap + 6
  grid = [line(at(tick), 4, at(tick), bottom, 'grid') for tick in ticks]
  axis = [text(at(tick), bottom + 16, f'{tick:g}{unit}', 'tick middle') for tick in ticks]
  baseline = line(at(reference), 4, at(reference), bottom, 'reference')
  return svg(bottom + 24, ''.join([*grid, baseline, *parts, *axis]))


def lines(
    series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
    *,
    x_label: str,
    y_label: str,
    reference: float | None = None,
) -> str:
  """Lines with markers.

  Args:
    series: name, CSS class and points (x, y) of each.
    x_label: below the axis.
    y_label: above the axis.
    reference: y of a dashed line, or None.

  Returns:
    An `<svg>` element.
  """
  left, right, top, bottom = 54, WIDTH - 130, 34, 250
  xs = [x for _, _, points in series for x, _ in points]
  ys = [y for _, _, points in series for _, y in points] + [reference or 0.0]
  ticks = nice_ticks(max(ys))
  span = max(max(xs) - min(xs), 1e-9)
  x_at = lambda x: left + 14 + (x - min(xs)) / span * (right - left - 28)
  y_at = lambda y: bottom - y / ticks[-1] * (bottom - top)
  parts = [text(left - 44, 16, y_label, 'tick'), text(right, bottom + 38, x_label, 'tick end')]
  for tick in ticks:
    parts.append(line(left, y_at(tick), right, y_at(tick), 'grid'))
    parts.append(text(left - 8, y_at(tick) + 4, f'{tick:g}', 'tick end'))
  measured = sorted(set(xs))
  for x in measured if len(measured) <= 12 else nice_ticks(max(xs)):
    if x >= min(xs):
      parts.append(text(x_at(x), bottom + 18, f'{x:g}', 'tick middle'))
  if reference is not None:
    parts.append(line(left, y_at(reference), right, y_at(reference), 'reference'))
  for name, style, points in series:
    path = ' '.join(f'{x_at(x):.1f},{y_at(y):.1f}' for x, y in points)
    parts.append(f'<polyline class="line {style}" points="{path}"/>')
    for x, y in points if len(points) <= 24 else ():
      parts.append(
          f'<circle class="{style}" cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="4">'
          f'<title>{html.escape(name)}: {y:.3f} at {x:g}</title></circle>'
      )
    last_x, last_y = points[-1]
    parts.append(text(x_at(last_x) + 12, y_at(last_y) + 4, name, 'label'))
  return svg(bottom + 46, ''.join(parts))


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


def text(x: float, y: float, content: str, style: str) -> str:
  """A piece of text; `content` is escaped."""
  return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{html.escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
  """A straight line."""
  return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def svg(height: float, content: str) -> str:
  """The element around a chart."""
  return f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img">{content}</svg>'
