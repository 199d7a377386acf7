"""Tables as text: CSV of everything that rows hold, LaTeX with booktabs, and Markdown."""

from collections.abc import Iterator, Mapping, Sequence
import csv as csv_lib
import io
import re
from typing import Any

from experiments.export.table import Cell
from experiments.export.table import Column
from experiments.export.table import Table
from experiments.runs import rows as rows_lib

Row = Mapping[str, Any]

_LATEX = {
    '\\': r'\textbackslash{}', '{': r'\{', '}': r'\}', '&': r'\&', '%': r'\%', '$': r'\$',
    '#': r'\#', '_': r'\_', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
    '<': r'\textless{}', '>': r'\textgreater{}', '|': r'\textbar{}', '"': r'\textquotedbl{}',
    '×': r'$\times$', '±': r'$\pm$', '≤': r'$\leq$', '≥': r'$\geq$', '−': '$-$', '–': '--',
    '—': '---', '…': r'\ldots{}', '“': '``', '”': "''", '’': "'", '·': r'$\cdot$',
    'α': r'$\alpha$', 'γ': r'$\gamma$', 'τ': r'$\tau$', '\u00a0': '~', '\u202f': r'\,',
}  # fmt: skip


def csv(rows: Sequence[Row]) -> str:
  """All rows, those of failed arms too, with every number as precise as it is in `metrics.jsonl`.

  What lies in an object has a dotted name, what lies in a list a numbered one. Lists of lists are
  left out, and what no row has.
  """
  flat = [dict(_numbered(row)) for row in rows]
  names = dict.fromkeys(name for row in flat for name, value in row.items() if value is not None)
  text = io.StringIO()
  writer = csv_lib.DictWriter(text, list(names), lineterminator='\n', extrasaction='ignore')
  writer.writeheader()
  writer.writerows(flat)
  return text.getvalue()


def _numbered(row: Row) -> Iterator[tuple[str, Any]]:
  for name, value in rows_lib.flat(row):
    if not isinstance(value, list):
      yield name, value
    elif not any(isinstance(each, (list, Mapping)) for each in value):
      yield from ((f'{name}.{number}', each) for number, each in enumerate(value, start=1))


def latex(table: Table, *, label: str) -> str:
  r"""A floating table with booktabs, ready for `\input`; one that is too wide is made smaller."""
  alignment = ''.join('r' if column.is_number else 'l' for column in table.columns)
  heads = [_latex_head(column) for column in table.columns]
  bodies = [
      ''.join(f'  {_latex_line([_latex_cell(cell) for cell in line])}\n' for line in group)
      for group in table.groups
  ]
  rule = '  \\midrule\n'
  return (
      '% \\usepackage{booktabs,graphicx}\n'
      '\\begin{table}[t]\n'
      '\\centering\n'
      f'\\caption{{{escape(table.caption)}}}\n'
      f'\\label{{{label}}}\n'
      '\\vspace{4pt}\n'
      '\\small\n'
      '\\setlength{\\tabcolsep}{4pt}\n'
      '\\sbox0{%\n'
      f'\\begin{{tabular}}{{@{{}}{alignment}@{{}}}}\n'
      '  \\toprule\n'
      f'  {_latex_line(heads)}\n'
      '  \\midrule\n'
      f'{rule.join(bodies)}'
      '  \\bottomrule\n'
      '\\end{tabular}}%\n'
      '\\ifdim\\wd0>\\linewidth\\resizebox{\\linewidth}{!}{\\usebox0}\\else\\usebox0\\fi\n'
      '\\end{table}\n'
  )


def _latex_line(cells: Sequence[str]) -> str:
  return f'{" & ".join(cells)} \\\\'


def _latex_head(column: Column) -> str:
  return f'${column.head}$' if column.is_symbol else escape(column.head)


def _latex_cell(cell: Cell) -> str:
  text = escape(cell.text) or '--'
  if cell.stands_out:
    text = f'\\textbf{{{text}}}'
  elif text.startswith('['):
    text = '{}' + text  # at the head of a line it would be an argument of the end of the last
  return f'{text} {{\\scriptsize {escape(cell.interval)}}}' if cell.interval else text


def escape(text: str) -> str:
  r"""A text that LaTeX sets as it is.

  >>> print(escape('50 % of a_b × {c}'))
  50\,\% of a\_b $\times$ \{c\}
  """
  # A line must not break between a number and its unit.
  text = re.sub(r'(?<=\d) (?=%)', '\u202f', text)
  return ''.join(_LATEX.get(character, character) for character in text)


def markdown(table: Table) -> str:
  """A table of GitHub's Markdown, and the caption below it."""
  heads = [f'*{column.head}*' if column.is_symbol else column.head for column in table.columns]
  rules = ['---:' if column.is_number else '---' for column in table.columns]
  lines = [[_markdown_cell(cell) for cell in line] for group in table.groups for line in group]
  rows = [' | '.join(cells) for cells in (heads, rules, *lines)]
  return ''.join(f'| {row} |\n' for row in rows) + f'\n{_markdown(table.caption)}\n'


def _markdown_cell(cell: Cell) -> str:
  text = _markdown(cell.text) or '–'
  if cell.stands_out:
    text = f'**{text}**'
  return f'{text} {cell.interval}' if cell.interval else text


def _markdown(text: str) -> str:
  """A text in which nothing is a mark of Markdown, nor ends a cell."""
  return re.sub(r'([\\`*_|<>\[\]])', r'\\\1', ' '.join(text.split()))
