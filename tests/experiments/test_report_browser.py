"""The report in a real headless browser: opens without errors, draws, and its viewer steps."""

import json
import time

import pytest

from experiments import report
from tests.support import browser
from tests.support import reports

pytestmark = pytest.mark.skipif(browser.find() is None, reason=browser.MISSING)

NODES = [
    dict(number=1, parent=0, text='return', accepted=True),
    dict(number=2, parent=0, text=' x', accepted=False),
    dict(number=3, parent=1, text=' self', accepted=True),
    dict(number=4, parent=1, text=' a', accepted=False),
    dict(number=5, parent=4, text='.b', accepted=False),
]


def trace(name='a tree'):
  kept = {0, 1, 3}
  nodes = [
      node | dict(reached=node['parent'] in kept, accept=0.5, target=0.25, draft=0.75)
      for node in NODES
  ]
  return dict(
      name=name,
      prompt='def f():\n  ',
      rounds=[
          dict(
              before=' ',
              emitted=[['return', 'accepted'], [' self', 'accepted'], ['.c', 'recovered']],
              nodes=nodes,
          ),
          dict(before='.c', emitted=[['(', 'plain']], nodes=[]),
          dict(
              before='(',
              emitted=[[')', 'accepted'], ['\n', 'bonus']],
              nodes=[nodes[0] | dict(text=')')],
          ),
      ],
  )


def long_trace(number):
  """As much as an arm of 128 tokens at K = 8 writes."""
  nodes = [
      dict(
          number=n, parent=n - 1, text=f' token{n}', accepted=n < 2, reached=n < 3, accept=0.123,
          target=0.456, draft=0.789,
      )
      for n in range(1, 9)
  ]
  rounds = [
      dict(before='x', emitted=[[' token1', 'accepted'], ['y', 'recovered']], nodes=nodes)
  ] * 64
  return dict(name=f'arm {number}', prompt='p' * 500, rounds=rounds)


@pytest.fixture(scope='module')
def chromium():
  sync_api = pytest.importorskip('playwright.sync_api', reason='NOT TESTED: no playwright')
  with sync_api.sync_playwright() as playwright:
    # In containers Chromium's own sandbox cannot be made; the page is ours and local.
    launched = playwright.chromium.launch(
        executable_path=browser.find(), args=['--no-sandbox', '--disable-dev-shm-usage']
    )
    yield launched
    launched.close()


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  """A sweep of 24 arms."""
  rows = [
      reports.arm(k, rule, temperature=t) | dict(arm=f'K={k} rule={rule} T={t}')
      for k in (1, 2, 3, 4, 6, 8) for rule in ('rejection', 'block') for t in (0.5, 1.0)
  ]
  for row in rows:
    row['fields'] = row['fields'] | {'sampling.temperature': row['temperature']}
  path = tmp_path_factory.mktemp('report') / 'report.html'
  path.write_text(
      report.render(
          rows=rows,
          calibration=reports.CALIBRATION,
          traces=[trace()] + [long_trace(number) for number in range(23)],
          config=dict(title='24 arms', x='drafter.num_speculative_tokens'),
      ),
      encoding='utf-8',
  )
  return path


class Opened:
  """A page without a network, and all that it complained about."""

  def __init__(self, chromium, file, **context):
    self.context = chromium.new_context(offline=True, **context)
    self.page = self.context.new_page()
    self.problems = []
    self.page.on('pageerror', lambda error: self.problems.append(str(error)))
    self.page.on('console', self._note)
    self.page.on('request', self._request)
    started = time.perf_counter()
    self.page.goto(file.as_uri(), wait_until='load')
    self.seconds = time.perf_counter() - started

  def _note(self, message):
    # Reading pixels back is this test's own doing.
    if message.type in ('error', 'warning') and 'getImageData' not in message.text:
      self.problems.append(message.text)

  def _request(self, request):
    if not request.url.startswith('file:'):
      self.problems.append(f'asked for {request.url}')

  def see_all(self):
    """Scrolls through the page: plots are drawn when they come near, within 600 of the window."""
    height = self.page.evaluate('document.body.scrollHeight')
    for top in range(0, height, 1000):
      self.page.evaluate(f'window.scrollTo(0, {top})')
      self.page.wait_for_timeout(50)


@pytest.fixture
def opened(chromium, file):
  made = Opened(chromium, file, viewport=dict(width=1200, height=900))
  yield made
  made.context.close()


def test_a_sweep_of_24_arms_is_small_and_opens_at_once(opened, file):
  assert file.stat().st_size < 5e6
  assert opened.seconds < 2.0
  assert not opened.problems


def ink(page, plot):
  """How many colours a plot's canvas shows."""
  return page.evaluate(
      """(id) => {
        const canvas = document.querySelector(`[data-plot="${id}"] canvas`);
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        const seen = new Set();
        for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200) {
          seen.add(`${data[i]} ${data[i + 1]} ${data[i + 2]}`);
        }
        return seen.size;
      }""",
      plot,
  )


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_plots_are_drawn_and_answer(chromium, file, scheme):
  opened = Opened(chromium, file, color_scheme=scheme, viewport=dict(width=1000, height=800))
  opened.see_all()
  places = opened.page.locator('[data-plot]').evaluate_all('all => all.map(e => e.dataset.plot)')
  assert len(places) >= 6
  for place in places:
    assert ink(opened.page, place) > 3, place
  plot = opened.page.locator('[data-plot="speedup-along"]')
  plot.scroll_into_view_if_needed()
  plot.locator('.u-over').hover()
  assert 'K' in plot.locator('.where').inner_text()
  assert '×' in plot.locator('.keys b').first.inner_text()
  before = ink(opened.page, 'speedup-along')
  for key in plot.locator('.keys button').all():
    key.click()
  assert ink(opened.page, 'speedup-along') < before
  assert not opened.problems
  opened.context.close()


def test_horizontal_bars_have_lengths_intervals_and_names(chromium, tmp_path):
  rows = [
      reports.plain(), reports.row(),
      reports.row(
          reports.EVIL, reports.evil('rule'), predicted_speedup=None, prediction=None
      ),
      reports.row('one prompt', speedup=0.5, speedup_low=None, speedup_high=None),
  ]
  path = tmp_path / 'report.html'
  path.write_text(report.render(rows=rows), encoding='utf-8')
  opened = Opened(chromium, path, viewport=dict(width=1200, height=900))
  plot = opened.page.locator('[data-plot="speedups"]')
  plot.locator('svg').wait_for()  # it is drawn when it comes near the screen
  read = lambda selector, script: plot.locator(selector).evaluate_all(f'all => all.map({script})')
  number = lambda name: f'e => Number(e.getAttribute("{name}"))'
  # The axis goes to 2×, over 580 of the picture's 860.
  assert read('rect.measured', number('width')) == [435, 435, 145]
  assert read('rect.predicted', number('width')) == [406, 406]
  assert read('rect.predicted', number('y')) == [25, 98]  # below the measured ones, groups apart
  assert read('.reference', number('x1')) == [510]
  assert read('.whisker', '(e) => [e.getAttribute("x1"), e.getAttribute("x2")]') == [
      ['597.0', '713.0']
  ] * 2
  words = 'e => e.textContent'
  assert read('.value', words) == ['1.50×', '1.40×', '1.50×', '0.50×', '1.40×']
  assert read('.tick', words) == ['0×', '0.5×', '1×', '1.5×', '2×']
  second = f'{reports.EVIL}, {reports.evil("rule")}'
  assert read('.label', words) == ['draft model, greedy', second, 'one prompt, greedy']
  assert read('title', words)[1:3] == ['draft model, greedy: predicted', f'{second}: measured']
  assert read('.legend span', words) == ['measured, with its interval', 'predicted']
  assert plot.locator('svg').get_attribute('aria-label') == 'Speed-up, measured and predicted'
  assert not opened.problems
  opened.context.close()


def test_the_viewer_steps_through_rounds_and_draws_trees(opened):
  page = opened.page
  assert page.locator('#trace-text .token').count() == 6
  assert page.locator('#step-label').inner_text() == '3 rounds'
  page.click('#step-next')
  assert page.locator('#step-label').inner_text() == 'round 1 of 3'
  assert page.locator('svg.tree .node').count() == 7  # the root, five drafted, one recovered
  assert page.locator('svg.tree .edge').count() == 6
  for fate, count in dict(accepted=2, rejected=2, unreached=1, recovered=1).items():
    shown = page.locator(f'svg.tree .node.{fate}')
    assert shown.count() == count and shown.first.is_visible(), fate
  assert '25 % / 75 %' in page.locator('svg.tree').inner_html()
  assert page.locator('.round.current').inner_text() == 'return self.c'
  assert page.locator('.round.future').count() == 2
  page.locator('#trace-text').press('ArrowRight')
  assert 'nothing drafted' in page.locator('#trace-round').inner_text()
  page.click('#step-last')
  assert page.locator('#step-label').inner_text() == 'round 3 of 3'
  assert page.locator('svg.tree .node.bonus').count() == 1
  assert page.locator('#step-next').is_disabled()
  page.click('#step-first')
  assert page.locator('svg.tree').count() == 0
  assert not opened.problems


def test_a_token_tells_its_two_probabilities(opened):
  page = opened.page
  page.locator('#trace-text .token.accepted').first.hover()
  tip = page.locator('#tip').inner_text()
  assert 'drafted and accepted' in tip and '25 %' in tip and '75 %' in tip
  page.locator('#trace-text .token.recovered').first.hover()
  tip = page.locator('#tip').inner_text()
  assert 'recovered' in tip and 'rejected here' in tip and '·a' in tip
  page.check('#rejected-toggle')
  assert page.locator('#trace-text .rejected').first.is_visible()


def test_another_run_can_be_chosen(opened):
  opened.page.locator('#trace-tabs select').select_option('5')
  assert opened.page.locator('#step-label').inner_text() == '64 rounds'
  assert '128 tokens in 64 target passes, 2.00 a round' in opened.page.locator(
      '#trace-summary'
  ).inner_text()


def test_a_phone_needs_no_sideways_scrolling(chromium, file):
  opened = Opened(chromium, file, viewport=dict(width=390, height=844), has_touch=True)
  opened.page.click('#step-next')
  opened.see_all()
  assert opened.page.evaluate('document.documentElement.scrollWidth') <= 390
  assert not opened.problems
  opened.context.close()


def test_text_of_models_stays_text(chromium, tmp_path):
  path = tmp_path / 'report.html'
  path.write_text(
      report.render(
          rows=[reports.row(reports.EVIL)],
          traces=[reports.TRACE],
          config=dict(title=reports.EVIL),
      ),
      encoding='utf-8',
  )
  opened = Opened(chromium, path)
  asked = []
  opened.page.on('dialog', lambda dialog: (asked.append(dialog), dialog.dismiss()))
  opened.page.click('#step-next')
  opened.see_all()
  assert not asked and not opened.problems
  assert json.dumps(opened.page.locator('h1').inner_text()) == json.dumps(reports.EVIL)
  opened.context.close()
