"""Workdirs and the report: whole files, nothing loaded from elsewhere, all text escaped."""

import datetime
import html.parser
import json
import re

import jinja2
import jinja2.nodes
import markupsafe
import ml_collections
import numpy as np
import pytest

from experiments import report
from experiments import workdir as workdir_lib
from experiments.report import page as page_lib
from experiments.report import plots as plots_lib
from experiments.runs import origin
from tests.support import reports
from tests.support import tolerance


class Page(html.parser.HTMLParser):
  """Tags with their attributes, cells of tables, the content of scripts, and all other text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.cells, self.scripts, self.text, self._in = [], [], [], '', None
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    self._in = tag
    if tag == 'script':
      self.scripts.append('')

  def handle_endtag(self, tag):
    self._in = None

  def handle_data(self, data):
    if self._in == 'script':
      self.scripts[-1] += data
    else:
      self.text += data
    if self._in == 'td':
      self.cells.append(data)


@pytest.fixture(scope='module')
def page():
  rows = [
      reports.plain(), reports.row(),
      reports.row(reports.EVIL, 'rejection', temperature=1.0, identical_to_plain=None),
      reports.row(
          'prompt lookup', identical_to_plain=False, acceptance_rate_per_position=[0.2, None]
      ),
  ]
  return report.render(
      rows=rows, calibration=reports.CALIBRATION, traces=[reports.TRACE],
      config={'title': reports.EVIL, 'seed': 0},
  )


@pytest.mark.parametrize('target, title, subtitle', [
    (dict(name='stdlib', path=''), 'Drafters on the shipped pair', False),
    (dict(name='other', path=''), 'Drafters on other', False),
    (dict(name='stdlib', path='/models/Llama-8B'), 'Drafters on Llama-8B', False),
    (dict(name='stdlib', path='/models/Llama-8B'), 'Draft length', True),
])
def test_a_run_is_titled_by_its_target(target, title, subtitle):
  text = title if subtitle else 'Drafters on {target}'
  page = report.render(rows=[reports.row()], config=dict(title=text, target=target))
  assert f'<h1>{title}</h1>' in page and ('Target: Llama-8B.' in page) == subtitle


class TestReport:

  def test_nothing_is_loaded_from_anywhere(self, page):
    for tag, attributes in Page(page).tags:
      assert tag not in ('link', 'iframe', 'img', 'object', 'base')
      assert not {'src', 'href', 'action', 'onclick', 'onload'} & set(attributes)
    # The library of the plots names its home in a comment, the shapes of trees their namespace.
    own = page.replace('https://github.com/leeoniya/uPlot', '')
    assert own.count('http://www.w3.org/2000/svg') == 1
    assert not re.search(r'@import|url\(|https?://', own.replace('http://www.w3.org/2000/svg', ''))

  def test_nothing_is_parsed_from_text_by_the_scripts(self, page):
    parsed = Page(page)
    assert json.loads(parsed.scripts[0])['traces'] == [reports.TRACE]
    assert 'innerHTML' not in page.replace(parsed.scripts[1], '')  # the library has its own

  def test_every_row_is_there(self, page):
    cells = Page(page).cells
    for wanted in ('plain decode', 'draft model', 'prompt lookup', 'rejection'):
      assert wanted in cells
    assert {'reference', 'yes', 'no', 'same law'} <= set(cells)
    assert '1.50×' in cells and '1.40×' in cells and '70 %' in cells
    assert 'None' not in page and 'nan' not in cells

  def test_methods_have_bars_measured_and_predicted(self, page):
    (bars,) = [plot for plot in plots_of(page) if plot['id'] == 'speedups']
    measured, predicted = bars['series']
    assert bars['kind'] == 'hbars' and bars['reference'] == 1.0
    assert bars['y']['ticks'] == [0, 0.5, 1, 1.5, 2]
    assert measured['values'] == [1.5] * 3 and predicted['values'] == [1.4] * 3
    assert (measured['low'], measured['high'], predicted['low']) == ([1.3] * 3, [1.7] * 3, None)
    assert bars['x']['names'][:2] == ['draft model, greedy', f'{reports.EVIL}, rejection']
    rows = [reports.plain(), reports.row(predicted_speedup=None, prediction=None)]
    (bars,) = [p for p in plots_of(report.render(rows=rows)) if p['id'] == 'speedups']
    assert [series['name'] for series in bars['series']] == ['measured']
    assert not [p for p in plots_of(report.render(rows=rows[:1])) if p['id'] == 'speedups']

  @pytest.mark.parametrize('highest', [1e-4, 0.7, 1.0, 2.3, 9.9, 123.0])
  def test_ticks_are_few_and_reach(self, highest):
    ticks = plots_lib.nice_ticks(highest)
    assert ticks[0] == 0 and ticks[-1] >= highest and 3 <= len(ticks) <= 7
    assert ticks[-2] < highest

  def test_parts_that_are_missing_are_left_out(self):
    page = report.render(rows=[reports.plain()])
    assert 'Cost of a target pass' not in page and 'id="viewer"' not in page
    page = report.render(rows=[])
    assert '<h1>specjax</h1>' in page

  def test_losses_of_a_training_run(self):
    rows = [dict(step=step, kind='train', loss=5 / (1 + step)) for step in range(500)]
    rows += [dict(step=100, kind='held_out', loss=1.0), dict(step=200, kind='held_out', loss=None)]
    page = report.render(rows=rows)
    (plot,) = plots_of(page)
    train, held_out = plot['series']
    assert '<h2>Loss</h2>' in page and (train['name'], held_out['name']) == ('train', 'held out')
    assert len([value for value in train['values'] if value is not None]) == 120
    assert [value for value in held_out['values'] if value is not None] == [1.0]

  def test_is_made_anew_from_a_workdir(self, tmp_path):
    run = workdir_lib.open_workdir(tmp_path, {'name': 'a run'})
    run.record(reports.row())
    run.write_json(workdir_lib.CALIBRATION, reports.CALIBRATION)
    path = report.write(run)
    assert path == tmp_path / 'report.html'
    assert 'Cost of a target pass' in path.read_text()
    (tmp_path / workdir_lib.CALIBRATION).write_text('{')
    with pytest.raises(ValueError, match='is not JSON'):
      report.write(run)
    assert 'Cost of a target pass' in path.read_text()


def plots_of(page):
  return json.loads(Page(page).scripts[0])['plots']


@pytest.fixture(scope='module')
def swept():
  rows = [reports.arm(k, rule) for k in (2, 4) for rule in ('rejection', 'block')]
  rows[3] |= dict(gain=0.04, gain_low=0.01, gain_high=0.07)
  rows += [dict(arm=f'K=8 rule={reports.EVIL}', fields={}, status='failed', error=reports.EVIL)]
  config = dict(title='a sweep', question='Which?', x='drafter.num_speculative_tokens')
  return report.render(rows=rows, config=config)


class TestSweep:

  def test_lines_go_along_the_field_with_intervals(self, swept):
    plots = {plot['id']: plot for plot in plots_of(swept)}
    speed = plots['speedup-along']
    assert speed['x']['values'] == [2, 4] and speed['x']['label'] == 'K'
    names = [series['name'] for series in speed['series']]
    assert names == [
        'rule=rejection', 'rule=rejection, predicted', 'rule=block', 'rule=block, predicted'
    ]
    assert speed['series'][0]['low'] == [1.3, 1.3] and speed['series'][1]['dashed']
    assert plots['gain-along']['series'][0]['values'] == [4.0]
    assert plots['along-text']['series'][0]['values'] == [1.8, 1.2]
    assert plots['accepted-lengths']['series'][0]['values'] == tolerance.approx([30, 40, 30])
    split = {series['name']: series['values'][0] for series in plots['round-split']['series']}
    assert split == tolerance.approx(dict(draft=1.0, verify=2.0, rest=0.5, measured=3.7))

  def test_drafters_are_compared_at_equal_cost(self):
    rows = [
        reports.arm(k, 'greedy', seconds=seconds, mean_acceptance_length=length)
        for k, seconds, length in ((2, 1.0, 1.5), (4, 2.0, 2.0), (2, 0.4, 1.2), (4, 1.0, 1.3))
    ]
    for each, kind in zip(rows, ('model', 'model', 'ngram', 'ngram')):
      each['fields'] = each['fields'] | {'drafter.kind': kind}
    plots = plots_of(report.render(rows=rows, config=dict(x='drafter.kind')))
    (cost,) = [plot for plot in plots if plot['id'] == 'round-cost']
    assert cost['x']['values'] == [10.0, 25.0, 50.0]
    assert [series['values'] for series in cost['series']] == [[None, 1.5, 2.0], [1.2, 1.3, None]]

  def test_every_plot_has_its_place_and_every_place_its_plot(self, swept):
    places = [a['data-plot'] for tag, a in Page(swept).tags if tag == 'div' and 'data-plot' in a]
    assert sorted(places) == sorted(plot['id'] for plot in plots_of(swept))

  def test_gains_failures_and_definitions_are_said(self, swept):
    assert '4.0 %' in swept and 'Failed arms' in swept and 'Which?' in swept
    assert '<script>alert(1)' not in swept and 'jackknife of the logarithm' in swept
    assert '-5 %' in swept  # 3.5 ms modelled, 3.7 measured


class TestPlan:

  def test_its_page_is_the_reports(self, tmp_path):
    run = workdir_lib.open_workdir(tmp_path, {'name': 'llama', 'batch_size': 8})
    advice = 'it lacks 26.10 GB per chip; take int8 weights.'
    for row in (
        reports.planned(),
        reports.planned('v5e:2x2', fits=False, advice=advice, largest_paying_batch=None),
        reports.planned('v5p:2x2x2', compiled=True, compile_seconds=41., collectives_per_layer=2.),
    ):
      run.record(row)
    page = report.write(run).read_text()
    assert not (tmp_path / 'tensorboard').exists()  # there is no point of a curve
    assert '<h1>Plan: llama</h1>' in page and 'Batch 8, context 512, K = 4, rule block.' in page
    cells = Page(page).cells
    for wanted in ('H100:8 (not compiled)', 'v5p:2x2x2', advice, '18.00', 'yes', 'no', '41', '2'):
      assert wanted in cells, wanted
    assert {'1000', '1750', '8', '3.50×'} <= {*cells}
    # Of the compiled one: its round, and what times and tokens are if the model is off.
    assert {'12.50', '10.00 – 15.62', '9.00', '800–1250', '1.500', 'memory'} <= {*cells}
    assert 'What takes longest on v5p:2x2x2' in page and 'What takes longest on H100' not in page
    assert '64' in cells and 'all that fit (200)' in cells
    assert '<b>2 of 3</b>' in page and '<b>2.00×</b>' in page
    (curves,) = plots_of(page)
    assert curves['x']['values'] == [0.5, 0.7, 0.9] and curves['reference'] == 1.0
    assert [series['name'] for series in curves['series']] == ['H100:8', 'v5e:2x2', 'v5p:2x2x2']
    assert [series['dashed'] for series in curves['series']] == [False, True, False]
    assert curves['series'][0]['values'] == [1.4, 2.0, 3.5]

  def test_a_tree_and_a_plan_that_fits_nowhere(self):
    row = reports.planned(tree='3,2,1', num_nodes=15, fits=False, advice='no')
    page = report.render(rows=[row], config={'name': 'trees'})
    assert 'trees 3,2,1 of 15 tokens' in page and '<b>0 of 1</b>' in page


# Where text of others can stand, with the mark that it is found by again.
_OF_METHODS = (
    'title', 'question', 'name', 'rule', 'dtype', 'device', 'version', 'candidate', 'calibration'
)
_OF_ARMS = ('title', 'arm', 'rule', 'category', 'failed arm', 'error')
_OF_PLANS = ('title', 'topology', 'advice', 'rule', 'tree')


def evil_page(kind):
  """A page with `EVIL` wherever text of others stands."""
  evil = reports.evil
  config = dict(title=evil('title'), question=evil('question'), x=evil('x'), other=evil('other'))
  if kind == 'plans':
    rows = [
        reports.planned(evil('topology'), tree=evil('tree'), rule=evil('rule'), fits=False,
                        advice=evil('advice'))
    ]
    return report.render(rows=rows, config=config)
  if kind == 'arms':
    row = reports.arm(
        2, evil('rule'), arm=evil('arm'), name=evil('arm'), fields={evil('x'): evil('value')},
        by_category={evil('category'): dict(value=2.0, low=1.9, high=2.1)},
    )
    failed = dict(arm=evil('failed arm'), fields={}, status='failed', error=evil('error'))
    return report.render(rows=[row, failed], config=config)
  row = reports.row(
      evil('name'), evil('rule'), dtype=evil('dtype'), versions={'jax': evil('version')},
      hardware={'device': evil('device')},
  )
  candidate = reports.CALIBRATION['candidates'][0] | dict(dtype=evil('candidate'))
  calibration = reports.CALIBRATION | dict(dtype=evil('calibration'), candidates=[candidate])
  return report.render(
      rows=[row], calibration=calibration, traces=[reports.TRACE], config=config
  )


# What the templates write, as it is called there.
_VARIABLES = (
    'title', 'subtitle', 'config', 'remark', 'item', 'tile.number', 'tile.text', 'cell.text',
    'cell.small', 'cell.style', 'column.name', 'column.style', 'section.title', 'section.note',
    'section.summary', 'section.plot.id', 'section.plot.kind',
)


def variables(environment):
  """What the templates write, but for text of their own and what macros give."""

  def name_of(node):
    if isinstance(node, jinja2.nodes.Filter):
      return name_of(node.node)
    is_field = isinstance(node, jinja2.nodes.Getattr)
    return f'{name_of(node.node)}.{node.attr}' if is_field else node.name

  names = set()
  for template in environment.list_templates(extensions=['jinja']):
    source, *_ = environment.loader.get_source(environment, template)
    for output in environment.parse(source).find_all(jinja2.nodes.Output):
      own = jinja2.nodes.TemplateData, jinja2.nodes.Call
      names |= {name_of(node) for node in output.nodes if not isinstance(node, own)}
  return names


def planted(environment):
  """A page with `EVIL` in every variable of the templates."""
  evil = reports.evil
  cell = page_lib.Cell(evil('cell.text'), evil('cell.small'), evil('cell.style'), share=1)
  column = page_lib.Column(evil('column.name'), lambda row: cell, evil('column.style'))
  section = page_lib.Section(
      title=evil('section.title'), note=evil('section.note'),
      plot=dict(id=evil('section.plot.id'), kind=evil('section.plot.kind')),
      table=page_lib.table([column], [{}]), summary=evil('section.summary'),
      details=page_lib.table([column], [{}]), items=[evil('item')],
  )
  return page_lib.render(
      title=evil('title'), subtitle=evil('subtitle'), sections=[section], traces=[reports.TRACE],
      tiles=[page_lib.Tile(evil('tile.number'), evil('tile.text'))], appendix=[section],
      config={'key': evil('config')}, remark=evil('remark'), environment=environment,
  )


class TestEscaping:

  @pytest.mark.parametrize(
      'kind, places', [('methods', _OF_METHODS), ('arms', _OF_ARMS), ('plans', _OF_PLANS)]
  )
  def test_text_of_others_stays_text(self, kind, places):
    page = evil_page(kind)
    parsed = Page(page)
    assert len(parsed.scripts) == 4  # the data and three of code, none from a name or a token
    assert '<script>alert(1)' not in page
    assert not any('alert' in str(attributes) for _, attributes in parsed.tags)
    for place in places:
      assert reports.evil(place) in parsed.text, place
    assert json.dumps(reports.evil('other')) in parsed.text  # of the config
    series = [each for plot in plots_of(page) for each in plot['series']]
    assert any(reports.EVIL in each['name'] for each in series)

  def test_every_variable_of_the_templates_is_escaped(self):
    ours = {'cell.share', 'data', 'script', 'styles'}  # a number, and what this package writes
    assert variables(page_lib.ENVIRONMENT) == ours | set(_VARIABLES)
    html = planted(page_lib.ENVIRONMENT)
    careless = planted(page_lib.ENVIRONMENT.overlay(autoescape=False))
    for name in _VARIABLES:
      text = reports.evil(name)
      text = json.dumps(text) if name == 'config' else text
      assert str(markupsafe.escape(text)) in html and text not in html, name
      assert text in careless, name  # which is how the check sees a mistake

  def test_what_a_template_is_not_given_is_an_error(self):
    environment = page_lib.ENVIRONMENT
    assert environment.undefined is jinja2.StrictUndefined
    with pytest.raises(jinja2.UndefinedError, match="'title' is undefined"):
      environment.get_template('templates/page.html.jinja').render()


def without_origin(row):
  return {name: value for name, value in row.items() if name != 'origin'}


def read(folder):
  return [without_origin(row) for row in workdir_lib.read_rows(folder)]


class TestWorkdir:

  def test_every_row_says_where_it_comes_from(self, tmp_path, monkeypatch):
    monkeypatch.setattr(origin, '_checkout', lambda: ('0123456789', True))
    run = workdir_lib.open_workdir(tmp_path, {}, models=lambda: {'target': 'abc'})
    run.record({'x': 1})
    (row,) = workdir_lib.read_rows(tmp_path)
    assert list(row['origin']) == ['commit', 'dirty', 'command', 'date', 'device', 'models']
    assert row['origin']['models'] == {'target': 'abc'} and origin.commits([row]) == ['01234567+']
    assert row['origin']['command'].startswith('python ')
    assert datetime.datetime.fromisoformat(row['origin']['date']).tzinfo

  def test_rows_are_json_and_whole(self, tmp_path):
    config = ml_collections.ConfigDict(dict(a=1, b=dict(c=(1, 2))))
    run = workdir_lib.open_workdir(tmp_path / 'new' / 'run', config)
    assert not (tmp_path / 'new').exists()  # nothing before the first result
    run.record({'x': np.float32(0.5), 'y': np.arange(2), 'z': float('nan'), 'é': None})
    run.record({'x': 2})
    lines = (run.path / 'metrics.jsonl').read_text().splitlines()
    assert without_origin(json.loads(lines[0])) == {'x': 0.5, 'y': [0, 1], 'z': None, 'é': None}
    assert without_origin(workdir_lib.read_rows(run.path)[1]) == {'x': 2}
    assert json.loads((run.path / 'config.json').read_text()) == {'a': 1, 'b': {'c': [1, 2]}}
    assert sorted(file.name for file in run.path.glob('[!.]*')) == ['config.json', 'metrics.jsonl']

  def test_a_new_run_replaces_rows_at_its_first_result(self, tmp_path):
    first = workdir_lib.open_workdir(tmp_path, {})
    first.record({'run': 1})
    first.write('report.html', 'of run 1')
    second = workdir_lib.open_workdir(tmp_path, {})
    assert read(tmp_path) == [{'run': 1}]
    second.record({'run': 2})
    assert read(tmp_path) == [{'run': 2}]
    assert not (tmp_path / 'report.html').exists()

  def test_resuming_drops_half_a_line(self, tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"ste')
    assert workdir_lib.read_rows(tmp_path) == [{'step': 1}]
    run = workdir_lib.open_workdir(tmp_path, {}, resume=True)
    run.record({'step': 2})
    assert read(tmp_path) == [{'step': 1}, {'step': 2}]

  def test_a_failed_write_leaves_the_old_file_alone(self, tmp_path, monkeypatch):
    run = workdir_lib.open_workdir(tmp_path, {})
    run.write('report.html', 'old')

    def fail(*args):
      raise OSError('disk full')

    monkeypatch.setattr(workdir_lib.os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
      run.write('report.html', 'new')
    assert (tmp_path / 'report.html').read_text() == 'old'
    assert sorted(file.name for file in tmp_path.glob('[!.]*')) == ['config.json', 'report.html']

  def test_bad_places(self, tmp_path):
    with pytest.raises(ValueError, match='--workdir=DIR'):
      workdir_lib.open_workdir('', {})
    with pytest.raises(ValueError, match='on remote storage .gs., which is not written to'):
      workdir_lib.open_workdir('gs://bucket/run', {})
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='is a file'):
      workdir_lib.open_workdir(tmp_path / 'file' / 'run', {})
    with pytest.raises(FileNotFoundError, match='run an experiment'):
      workdir_lib.read_rows(tmp_path)
    (tmp_path / 'metrics.jsonl').write_text('{"a": 1}\nno\n')
    with pytest.raises(ValueError, match='line 2 is not JSON'):
      workdir_lib.read_rows(tmp_path)
