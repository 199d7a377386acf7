"""Notebooks: clean in git, explained cell by cell, run whole; results that show themselves."""

import dataclasses
import html.parser
import itertools
import os
import re
import signal
import threading
import time

import nbclient
import nbformat
import numpy as np
import pytest

import specjax
from specjax import drafters
from specjax import verify
from tests.support import notebooks
from tests.support import tiny
from tests.support import tiny_pair


@pytest.mark.parametrize('path', notebooks.FILES, ids=lambda path: path.stem)
class TestFiles:

  def test_is_clean(self, path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
      if cell.cell_type == 'code':
        assert cell.outputs == [] and cell.execution_count is None
    assert set(notebook.metadata) == {'kernelspec', 'language_info'}

  def test_each_cell_is_explained_before_it(self, path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == 'markdown' and cells[0].source.startswith('# ')
    for before, cell in itertools.pairwise(cells):
      if cell.cell_type == 'code':
        assert before.cell_type == 'markdown' and re.search(r'[.:]\s*$', before.source)

  def test_runs_from_top_to_bottom(self, path, tmp_path):
    notebook = notebooks.prepared(path)
    notebooks.client(notebook, tmp_path).execute()
    shown = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    assert any('image/png' in output.get('data', {}) for output in shown), 'no plot was drawn'
    said = ''.join(output.get('text', '') for output in shown)
    for wanted in EXPECTED[path.stem]:
      assert re.search(wanted, said), (wanted, said)


# What the cells of each notebook print when all is well.
EXPECTED = {
    'plan_70b': [r'H100:8: \d+ tokens/s at acceptance 0\.9'],
    'train_a_drafter': [r'EAGLE-3: \d\.\d\d tokens per round', r'draft model: \d\.\d\d'],
    'quickstart': [r'K=2: \d+\.\d\dx plain decoding, [12]\.\d\d tokens per round'],
    'losslessness': [
        r'rejection: \d+ texts, largest difference of a probability \d\.\de-0[6-9]',
        r'threshold: largest difference 0\.\d',
        r'greedy: 4 of 4 outputs are equal',
        r'coupled: 4 of 4 outputs are equal',
    ],
}


def test_every_notebook_has_its_expectations():
  assert sorted(EXPECTED) == [path.stem for path in notebooks.FILES]


def test_an_interrupted_cell_leaves_nothing_broken(tmp_path):
  """The kernel is interrupted in the middle of a stream; the next cell runs as ever."""
  cells = [
      'import specjax, time\n'
      'from tests.support import tiny\n'
      'options = dict(max_new_tokens=40, drafter=specjax.drafters.ngram())\n'
      'wanted = specjax.generate(tiny.target(), tiny.PROMPTS, **options)',
      'for output in specjax.stream(tiny.target(), tiny.PROMPTS, **options, rounds_per_chunk=1):\n'
      '  print("a chunk", flush=True)\n'
      '  time.sleep(60)',
      'again = specjax.generate(tiny.target(), tiny.PROMPTS, **options)\n'
      'print("equal" if (again.tokens == wanted.tokens).all() else "different")',
  ]
  notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
  client = notebooks.client(notebook, tmp_path)
  with client.setup_kernel():
    client.execute_cell(notebook.cells[0], 0)

    def interrupt():
      for _ in range(2000):
        if notebook.cells[1].outputs:  # the first chunk is there: it waits for the next
          os.kill(client.km.provisioner.pid, signal.SIGINT)
          return
        time.sleep(0.1)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(nbclient.exceptions.CellExecutionError, match='KeyboardInterrupt'):
      client.execute_cell(notebook.cells[1], 1)
    thread.join()
    client.execute_cell(notebook.cells[2], 2)
  assert notebook.cells[2].outputs[0].text == 'equal\n'


class Texts(html.parser.HTMLParser):
  """Cells of the table, and the texts and titles of spans."""

  def __init__(self, text):
    super().__init__()
    self.cells, self.spans, self._tag = [], [], None
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self._tag = tag
    if tag == 'span' and 'title' in dict(attributes):
      self.spans.append([dict(attributes)['title'], ''])

  def handle_data(self, data):
    if self._tag in ('td', 'th'):
      self.cells.append(data)
    elif self._tag == 'span' and self.spans:
      self.spans[-1][1] += data


@pytest.fixture(scope='module')
def output():
  loaded = tiny_pair.loaded()
  return specjax.generate(
      loaded.target,
      loaded.pair.prompts(1, length=8),
      drafter=drafters.ngram(num_speculative_tokens=2),
      rule=verify.greedy(),
      max_new_tokens=12,
      tokenizer=loaded.tokenizer,
      trace=True,
  )


class TestResults:

  def test_the_text_is_coloured_and_the_table_is_there(self, output):
    shown = Texts(output._repr_html_())
    assert shown.cells[shown.cells.index('ended by') + 1 :][1] == '12'
    assert len([title for title, _ in shown.spans if title.startswith('round ')]) == 12
    for wanted in ('target passes', 'mean acceptance length', 'length'):
      assert wanted in shown.cells

  def test_what_was_not_kept_is_left_out(self, output):
    plain = dataclasses.replace(output, trace=None)._repr_html_()
    assert 'title=' not in plain and '<pre' in plain
    assert '<pre' not in dataclasses.replace(output, tokenizer=None)._repr_html_()

  def test_text_is_escaped(self, output):
    evil = dataclasses.replace(output, tokenizer=Evil())._repr_html_()
    assert '<script>' not in evil and '&lt;script&gt;' in evil

  def test_many_rows_are_cut(self):
    many = specjax.decode(
        tiny.target(), [[1]] * 20, max_new_tokens=2, tokenizer=Letters()
    )._repr_html_()
    assert many.count('<pre') == 8 and '12 more rows' in many

  def test_one_line_where_there_is_no_html(self, output):
    assert re.fullmatch(r'GenerateOutput\(rows=1, new_tokens=12, .*\)', repr(output))
    assert np.array_equal(dataclasses.replace(output).tokens, output.tokens)


class Evil:

  def decode(self, ids):
    return '<script>' * len(ids)


class Letters:

  def decode(self, ids):
    return ''.join(chr(65 + token % 26) for token in ids)
