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
    unit: written behind values, e.g. '×'.
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
