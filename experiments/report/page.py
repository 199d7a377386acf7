"""A page as data, and the templates that write it as HTML.

What a page says is plain text, which the templates escape; a `style` is names of classes in
`assets/report.css`. Only the scripts and styles of this package, and the data of the plots and of
the viewer as JSON, go into a page as they are.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import jinja2
import markupsafe

from experiments import workdir as workdir_lib
from experiments.report.plots import Plot

Row = Mapping[str, Any]

# The text of a cell that has nothing to say.
NOTHING = '–'

_FOLDER = pathlib.Path(__file__).parent
_STYLES = ('vendor/uplot/uPlot.min.css', 'assets/report.css')
_SCRIPTS = ('vendor/uplot/uPlot.iife.min.js', 'assets/plots.js', 'assets/viewer.js')

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


class Tile(NamedTuple):
  """A number to take away, in large letters, and what it is."""

  number: str
  text: str


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a table.

  Attributes:
    text: what it says.
    small: an interval, or another remark, in small letters after it.
    style: its classes.
    share: of its background, how much is the colour of acceptance, in percent; None for none.
  """

  text: str
  small: str = ''
  style: str = ''
  share: int | None = None


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table.

  Attributes:
    name: its head.
    cell: what it says of a row; None where the row has nothing there, nor after it.
    style: classes of the head and of all cells.
  """

  name: str
  cell: Callable[[Row], Cell | str | None]
  style: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
  """A table.

  Attributes:
    columns: nothing is written above a table in which none has a name.
    lines: the cells of each row.
    best: the number of the line that stands out, or None.
  """

  columns: Sequence[Column]
  lines: Sequence[Sequence[Cell]]
  best: int | None = None

  @property
  def has_head(self) -> bool:
    return any(column.name for column in self.columns)


@dataclasses.dataclass(frozen=True)
class Section:
  """A section of the page, from top to bottom; what is empty is left out.

  Attributes:
    title: its heading.
    note: what there is to know first.
    plot: see `experiments.report.plots`.
    table: one that is always open.
    summary: the line that unfolds `details`.
    details: a table that is folded at first.
    items: lines of a list.
  """

  title: str
  note: str = ''
  plot: Plot | None = None
  table: Table | None = None
  summary: str = ''
  details: Table | None = None
  items: Sequence[str] = ()


def table(columns: Sequence[Column], rows: Sequence[Row], *, best: Row | None = None) -> Table:
  """The table of `rows`, in which `best` stands out; columns that say nothing are left out."""
  number = next((number for number, row in enumerate(rows) if row is best), None)
  lines = [_line(columns, row) for row in rows]
  silent = lambda index: all(len(line) <= index or line[index].text == NOTHING for line in lines)
  said = [index for index in range(len(columns)) if not silent(index)]
  lines = [[line[index] for index in said if index < len(line)] for line in lines]
  return Table([columns[index] for index in said], lines, number)


def _line(columns: Sequence[Column], row: Row) -> list[Cell]:
  line = []
  for column in columns:
    if (cell := column.cell(row)) is not None:
      cell = Cell(cell) if isinstance(cell, str) else cell
      line.append(dataclasses.replace(cell, style=f'{column.style} {cell.style}'.strip()))
  return line


def of_plot(plot: Plot, **below: Any) -> Section:
  """The section of a plot, and what stands below the plot."""
  return Section(plot['title'], plot['note'], plot=plot, **below)


def render(
    *,
    title: str,
    subtitle: str,
    tiles: Sequence[Tile],
    sections: Sequence[Section],
    traces: Sequence[Row],
    appendix: Sequence[Section],
    config: Mapping[str, Any],
    remark: str,
    environment: jinja2.Environment = ENVIRONMENT,
) -> str:
  """The HTML of a page.

  Args:
    title: of the page.
    subtitle: below it.
    tiles: the numbers to take away.
    sections: with tables and plots.
    traces: what the viewer after them shows; without any there is none.
    appendix: sections that stand after the viewer.
    config: of the run, shown as it is; without any it is left out.
    remark: for the foot of the page.
    environment: of the templates.
  """
  plots = [each.plot for each in (*sections, *appendix) if each.plot is not None]
  data = json.dumps(
      workdir_lib.to_json({'plots': plots, 'traces': traces}),
      ensure_ascii=False, separators=(',', ':'),
  )
  # '<' is escaped, so that no text can end the element or begin a comment.
  data = data.replace('<', '\\u003c')
  return environment.get_template('templates/page.html.jinja').render(
      title=title,
      subtitle=subtitle,
      tiles=tiles,
      sections=sections,
      has_viewer=bool(traces),
      appendix=appendix,
      config=json.dumps(config, indent=2) if config else '',
      remark=remark,
      styles=[_asset(name) for name in _STYLES],
      scripts=[_asset(name) for name in _SCRIPTS],
      data=markupsafe.Markup(data),
  )


def _asset(name: str) -> markupsafe.Markup:
  return markupsafe.Markup((_FOLDER / name).read_text(encoding='utf-8-sig'))
