"""Results for papers: CSV, LaTeX, Markdown and plots of rows as runs write them."""

import csv
import importlib.util
import io
import json
import re

import pytest

from experiments import export
from experiments.export import figures
from experiments.export import table as table_lib
from experiments.export import text
from experiments.report import plots
from tests.support import reports

ORIGIN = dict(commit='0123456789abcdef', dirty=False, command='python -m x', models={'target': 'a'})
# What TeX reads as a command, and what ends a cell or a caption.
HOSTILE = r'50%_of $x$ & {y} \input{z} #1 ~ ^ | <b> "q"'


def methods():
  plain = reports.plain() | dict(batch_size=1, origin=ORIGIN)
  row = lambda *names, **changes: reports.row(*names, **dict(batch_size=1, origin=ORIGIN) | changes)
  return [
      plain, plain | dict(temperature=1.0, rule='sampling'),
      row('draft model', 'block', temperature=1.0, speedup=1.2, lossless='same law'),
      row('draft model', 'greedy', lossless='rounding', flips=2),
      row(HOSTILE, 'greedy', lossless='identical', predicted_speedup=None, speedup_low=None,
          speedup_high=None, speedup=1.4),
      dict(name='broken', status='failed', arm='broken', error='out of memory', origin=ORIGIN),
  ]


def sweep():
  return [reports.arm(k, rule) for rule in ('rejection', 'block') for k in (2, 4)]


def save(folder, rows, **settings):
  folder.mkdir(exist_ok=True)
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (folder / 'config.json').write_text(json.dumps(dict(name='a_run', title='A % of {target}',
      target=dict(name='stdlib', path='')) | settings))
  return folder


def test_everything_of_a_benchmark(tmp_path):
  run = save(tmp_path / 'run', methods())
  paths = export.write(run, tmp_path / 'out')
  names = {path.name for path in paths}
  assert {'rows.csv', 'table.tex', 'table.md', 'speedups.pdf', 'speedups.svg'} <= names
  assert names == {path.name for path in (tmp_path / 'out').iterdir()}
  for path in paths:
    start = path.read_bytes()[:400]
    assert path.suffix != '.pdf' or start.startswith(b'%PDF')
    assert path.suffix != '.svg' or b'<svg' in start


def test_csv_has_every_row_and_number(tmp_path):
  rows = list(csv.DictReader(io.StringIO(text.csv(methods()))))
  assert [row['name'] for row in rows] == [row['name'] for row in methods()]
  row = rows[2]
  assert float(row['speedup']) == 1.2 and row['hardware.device'] == 'a CPU'
  assert row['origin.commit'] == ORIGIN['commit'] and row['origin.models.target'] == 'a'
  assert [float(row[f'accepted_lengths.{n}']) for n in (1, 2, 3)] == [0.3, 0.4, 0.3]
  assert rows[-1]['error'] == 'out of memory' and rows[-1]['speedup'] == ''


def test_latex_is_a_whole_table_with_escaped_text():
  table = table_lib.of_rows(methods()[:-1], title='A % of it')
  written = text.latex(table, label='tab:x')
  head, *lines = [line.strip() for line in written.split('toprule')[1].splitlines() if '&' in line]
  assert head == (
      r'Method & Rule & $T$ & $K$ & Tokens/s & Speed-up ($\times$) & Predicted ($\times$) & '
      r'Tokens/round & Accepted (\%) & Lossless \\'
  )
  # Sorted by temperature, plain decoding first, the fastest in bold, and a rule between the groups.
  assert [line.split(' & ')[2] for line in lines] == ['0', '0', '0', '1', '1']
  assert lines[1] == (
      r'draft model & greedy & 0 & 2 & 40 & \textbf{1.50} {\scriptsize [1.30, 1.70]} & 1.40 & '
      r'2.00 & 50 & but for rounding (2) \\'
  )
  assert lines[0].startswith('plain decode & greedy & 0 & -- & 40 & 1.00 & -- & 1.00 & -- & ref')
  assert written.count('\\midrule') == 2 and '{@{}llrrrrrrrl@{}}' in written
  assert r'\caption{A \% of it. 4 prompts, batch size 1, float32, a CPU (2 cores), JAX 0.12, ' in (
      written
  )
  assert r'commit 01234567.' in written and r'95\,\% intervals' in written
  # Everything is closed, and nothing of a name is a command.
  bare = re.sub(r'\\[\\{}%&$#_]', '', written)
  assert bare.count('{') == bare.count('}') and r'\input' not in bare
  cells = [re.split(r'(?<!\\)&', line) for line in lines]
  assert {len(each) for each in cells} == {10}
  assert cells[2][0].startswith(r'50\%\_of \$x\$ \& \{y\} \textbackslash{}input\{z\} \#1 ')


def test_markdown_cells_stay_cells():
  written = text.markdown(table_lib.of_rows(methods()[:-1], title='A run'))
  lines = [line for line in written.splitlines() if line.startswith('|')]
  assert {len(re.split(r'(?<!\\)\|', line)) for line in lines} == {12}
  assert '**1.50** [1.30, 1.70]' in written and r'\<b\>' in written


def test_a_sweep_has_a_column_for_each_field_that_differs():
  table = table_lib.of_rows(sweep(), title='A sweep')
  assert [column.head for column in table.columns][:3] == ['K', 'Rule', 'Tokens/s']
  same = table_lib.of_rows(sweep()[:2], title='A sweep')
  assert [column.head for column in same.columns][:2] == ['K', 'Tokens/s']
  assert same.caption.startswith('A sweep. 4 prompts, rule=rejection, float32, a CPU')
  written = text.latex(table, label='tab:x')
  assert '2 & rejection & 40 & ' in written and 'same law' in written


def test_every_kind_of_plot_is_drawn_and_comes_out_the_same():
  rows = [row | dict(gain=0.1, gain_low=0.0, gain_high=0.2) for row in sweep()]
  x = 'drafter.num_speculative_tokens'
  drawn = {
      plot['kind']: plot
      for plot in (*plots.of_speed(rows, x), *plots.of_speed(methods()[2:5], ''),
                   *plots.of_rounds(rows, []))
  }
  assert set(drawn) == set(figures._DRAW)
  for plot in drawn.values():
    first = figures.draw(plot, 'svg')
    assert plot['y']['label'].encode() in first and figures.draw(plot, 'svg') == first


@pytest.mark.parametrize('rows, formats, message', [
    (methods(), ['csv', 'png'], "--formats must be of csv, latex, .*got 'png'"),
    (methods(), [], '--formats is empty'),
    ([{'step': 1, 'loss': 2.0}], ['csv'], 'no finished method or arm'),
    (methods()[-1:], ['csv'], 'no finished method or arm'),
    (methods(), ['csv', 'pdf'], r"pip install -e '\.\[export\]'.*--formats=csv\."),
])
def test_what_cannot_be_exported_leaves_nothing(tmp_path, monkeypatch, rows, formats, message):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  run = save(tmp_path / 'run', rows)
  with pytest.raises(ValueError, match=message):
    export.write(run, tmp_path / 'out', formats)
  assert not (tmp_path / 'out').exists()
