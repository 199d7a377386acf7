"""A whole benchmark on tiny models, and what it refuses before it begins."""

import io
import json
import types

import numpy as np
import pytest
import rich.console

import specjax
from configs import benchmark_zoo
from configs import quickstart
from experiments import benchmark
from experiments import build
from experiments import forecasts
from experiments import lossless
from experiments import methods as methods_lib
from specjax import verify
from specjax.analysis import costs
from specjax.analysis import theory
from tests.support import tiny_pair
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')


@pytest.fixture(scope='module')
def loaded() -> build.Loaded:
  return tiny_pair.loaded()


@pytest.fixture
def tiny(loaded, monkeypatch):
  """Benchmarks load the tiny pair, whatever the config says."""
  monkeypatch.setattr(build, 'load', lambda config: loaded)
  return loaded


def config_of(module=benchmark_zoo, **changes):
  config = module.get_config('smoke')
  config.dtype = 'float32'
  config.update(changes)
  return config


def console() -> rich.console.Console:
  return rich.console.Console(file=io.StringIO(), width=120)


@pytest.fixture(scope='module')
def finished(loaded, tmp_path_factory):
  """A run of everything: calibration, streaming, timing, comparison, report."""
  path = tmp_path_factory.mktemp('run') / 'benchmark'
  order = ('draft_greedy', 'tree_greedy', 'combined_greedy', 'ngram_coupled')
  config = config_of(stream_method='draft_greedy', order=order)
  config.methods.ngram_coupled.drafter.num_speculative_tokens = 2
  screen = console()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, 'load', lambda config: loaded)
    rows = benchmark.run(config, str(path), console=screen)
  return types.SimpleNamespace(path=path, rows=rows, text=screen.file.getvalue())


class TestRun:

  def test_rows(self, finished):
    found = [(row.name, row.rule, row.temperature) for row in finished.rows]
    assert found == [
        ('plain decode', 'greedy', 0.0),
        ('plain decode', 'sampling', 1.0),
        ('draft model', 'greedy', 0.0),
        ('draft tree', 'greedy', 0.0),
        ('suffix or draft', 'greedy', 0.0),
        ('prompt lookup', 'coupled', 1.0),
    ]
    assert [row.identical_to_plain for row in finished.rows] == [None, None, *[True] * 4]
    assert [row.flips for row in finished.rows] == [None, None, 0, 0, 0, 0]
    for row in finished.rows:
      assert row.new_tokens == 2 * 12 and row.prompts == 2 and row.seconds > 0
      assert (row.speedup == 1.0) == (row.drafter == 'none')
      assert (row.prediction is None) == (row.drafter == 'none')
      assert row.mean_acceptance_length >= 1.0
    assert finished.rows[2].target_passes <= 24

  def test_files(self, finished):
    names = sorted(file.name for file in finished.path.iterdir())
    assert names == [
        'calibration.json', 'config.json', 'metrics.jsonl', 'report.html', 'tensorboard',
        'traces.json',
    ]
    lines = (finished.path / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['name'] for line in lines] == [row.name for row in finished.rows]
    traces = json.loads((finished.path / 'traces.json').read_text())
    assert [trace['name'] for trace in traces] == ['draft model, greedy, T = 0']
    assert sum(len(each['emitted']) for each in traces[0]['rounds']) <= 12
    calibration = json.loads((finished.path / 'calibration.json').read_text())
    greedy, coupled = calibration['rules']
    assert (greedy['rule'], coupled['rule']) == ('greedy', 'coupled')
    # A combination is predicted from its parts.
    assert set(greedy['drafting']) == {'model', 'suffix', 'model behind suffix'}
    assert list(greedy['trees']) == ['model_tree 3,2,1,1'] and not coupled['trees']
    assert 'prompt lookup' in (finished.path / 'report.html').read_text()

  def test_what_is_shown(self, finished):
    for wanted in ('accepted draft tokens in colour', 'plain decode', 'argmax', 'o '):
      assert wanted in finished.text
    assert str(finished.path) in finished.text.replace('\n', '')


class TestForecasts:

  def settings(self, key, **drafter):
    config = config_of()
    config.methods[key].drafter.update(drafter)
    return methods_lib.method_settings(config, key)

  def test_a_combination_costs_what_its_parts_cost_in_their_rounds(self):
    settings = self.settings('combined_greedy', num_speculative_tokens=4)
    calibration = costs.Calibration(
        dtype='float32', width=1, candidates=(), widths=(1, 5), pass_seconds=(1.0, 1.0),
        rules=(
            costs.RuleCosts(
                rule='greedy', plain=1.0, overhead=((4, 0.0),),
                drafting={'model behind suffix': ((4, 0.4),), 'suffix': ((4, 0.04),)},
            ),
        ),
        batch_size=1, cache_length=64, rounds=1, repetitions=1, noise=0.0, versions={},
        hardware={},
    )
    # Where nothing is found, both; where everything is, the model's first step of four.
    for share, drafting in ((0.0, 0.44), (0.5, 0.04 + 0.25), (1.0, 0.04 + 0.1)):
      found = forecasts.predict(
          calibration, settings, [0.5] * 4, num_drafted=4, free_share=share
      )
      assert found.num_drafted * found.draft_cost == tolerance.approx(drafting)
      assert found.speedup == tolerance.approx(1.9375 / (1 + drafting))

  def test_what_is_predicted(self):
    assert forecasts.is_predicted(self.settings('tree_greedy'))
    assert forecasts.is_predicted(self.settings('combined_greedy'))
    assert not forecasts.is_predicted(self.settings('combined_greedy', learned='model_tree'))
    assert not forecasts.is_predicted(self.settings('draft_greedy', kind='synthetic'))
    assert forecasts.case_of(self.settings('draft_greedy', num_speculative_tokens=4)) == (
        'greedy', 'model', 4
    )

  def test_rounds_of_the_free_part_are_counted(self, loaded):
    settings = dict(num_speculative_tokens=3, min_match=1)
    config = config_of()
    config.methods.combined_greedy.drafter.update(settings)
    method = methods_lib.method(config, 'combined_greedy', loaded)
    runner = TestMethods().runner(loaded, max_new_tokens=40, cache_length=64)
    found = methods_lib.acceptance(
        runner, method, loaded.pair.prompts(2, length=8), batch_size=2, first=0
    )
    assert 0 < found.free_share <= 1


class TestMethods:

  def runner(self, loaded, **changes):
    values = dict(
        target=loaded.target, width=1, max_new_tokens=10, cache_length=48, prefill_chunk=8, seed=3
    )
    return methods_lib.Runner(**(values | changes))

  def test_acceptance_agrees_with_the_runs(self, loaded):
    config = config_of()
    config.methods.adaptive_greedy.drafter.update(num_speculative_tokens=3, min_confidence=0.1)
    method = methods_lib.method(config, 'adaptive_greedy', loaded)
    runner = self.runner(loaded)
    prompts = loaded.pair.prompts(3, length=8)
    found = methods_lib.acceptance(runner, method, prompts, batch_size=2, first=5)
    # The last batch is filled up with the first prompt.
    outputs = [runner(method, prompts[:2], first=5), runner(method, [prompts[2], prompts[0]], 7)]
    rounds = sum(output.stats.rounds.sum() for output in outputs)
    accepted = sum(output.stats.decided_at.sum() for output in outputs)
    assert theory.expected_tokens(found.rates, 3) == tolerance.approx(1 + accepted / rounds)
    drafted = sum(output.stats.drafted_at[:, :2].sum() for output in outputs)
    assert found.num_drafted == tolerance.approx(1 + drafted / rounds)
    assert 1 <= found.num_drafted <= 3

  def test_a_wrong_output_is_not_identical(self, loaded):
    method = methods_lib.method(config_of(), 'draft_greedy', loaded)
    runner, prompts = self.runner(loaded), loaded.pair.prompts(1, length=8)
    output = runner(method, prompts)
    timed = {method.key: [output]}
    found = lossless.check_timed(runner, [method], prompts, timed)[method.key]
    assert (found.kind, found.identical_to_plain, found.flips) == ('identical', True, 0)
    output.tokens[0, -1 + output.lengths[0]] += 1
    found = lossless.check_timed(runner, [method], prompts, timed)[method.key]
    assert (found.kind, found.identical_to_plain, found.flips) == ('differs', False, 1)

  def test_a_tree_that_differs_is_run_again_for_the_gap_rule(self, loaded, monkeypatch):
    method = methods_lib.method(config_of(), 'tree_greedy', loaded)
    runner, prompts = self.runner(loaded), loaded.pair.prompts(2, length=8)
    timed = {method.key: [runner(method, [prompt], row) for row, prompt in enumerate(prompts)]}
    timed[method.key][1].tokens[0, -1 + timed[method.key][1].lengths[0]] += 1
    # What it does now is right: nothing explains what was timed.
    found = lossless.check_timed(runner, [method], prompts, timed)[method.key]
    assert (found.kind, found.flips) == ('differs', 1)
    seen = []

    def flipped(method, runner, outputs, references, seeds):
      seen.extend([*outputs, *references])
      return lossless.Check('rounding', 24, flips=1)

    monkeypatch.setattr(lossless, 'check', flipped)
    found = lossless.check_timed(runner, [method], prompts, timed)[method.key]
    assert found.fields == dict(identical_to_plain=False, lossless='rounding', flips=1)
    assert len(seen) == 4 and all(output.logprobs is not None for output in seen)

  def test_plain_decoding_is_the_fastest_of_its_law(self, loaded):
    config = config_of()
    found = [
        methods_lib.method(config, key, loaded)
        for key in ('draft_coupled', 'draft_block', 'draft_greedy')
    ]
    plain = methods_lib.plain_methods(config, found)
    assert [(each.temperature, each.rule) for each in plain] == [
        (0.0, verify.greedy()), (1.0, verify.rejection())
    ]
    for method in found:
      reference = methods_lib.plain_of(method, plain + found)
      assert reference.drafter is None and reference.temperature == method.temperature

  def test_a_method_changes_only_its_own_fields(self):
    config = config_of()
    settings = methods_lib.method_settings(config, 'adaptive_block')
    assert settings.drafter.min_confidence == 0.1 and settings.drafter.max_ngram == 3
    assert (settings.rule.name, settings.sampling.temperature) == ('block', 1.0)
    assert config.drafter.min_confidence is None and config.rule.name == 'auto'
    with config.unlocked():
      config.methods.draft_greedy.drafter.lenght = 3
    with pytest.raises(ValueError, match='draft_greedy.drafter: .*lenght'):
      methods_lib.method_settings(config, 'draft_greedy')


class TestRefused:

  @pytest.mark.parametrize(
      'changes, message',
      [
          (dict(order=('draft_greedily',)), "config.order must be one of .*'draft_greedily'"),
          (dict(num_prompts=0), 'num_prompts must be at least 1'),
          (dict(num_prompts=500), '502 were asked for'),
      ],
  )
  def test_before_anything_is_computed(self, tiny, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(specjax, 'generate', None)
    with pytest.raises(ValueError, match=message):
      benchmark.run(config_of(**changes), str(tmp_path / 'run'), console=console())
    assert not (tmp_path / 'run').exists()

  def test_an_open_length_needs_a_calibration(self, tiny, tmp_path):
    config = config_of()
    config.methods.draft_greedy.drafter.num_speculative_tokens = 0
    config.calibration.enabled = False
    with pytest.raises(ValueError, match=r'draft_greedy.*calibration\.enabled'):
      benchmark.run(config, str(tmp_path / 'run'), console=console())

  def test_methods_that_do_not_exist(self, tiny, tmp_path):
    config = config_of()
    config.methods.draft_greedy.drafter.kind = 'oracle'
    with pytest.raises(ValueError, match="drafter.kind must be one of .*'oracle'"):
      benchmark.run(config, str(tmp_path / 'run'), console=console())


@pytest.mark.parametrize('module', [benchmark_zoo, quickstart])
class TestConfigs:

  @pytest.mark.parametrize('arg', ['', 'smoke'])
  def test_every_method_builds(self, module, arg, loaded):
    config = module.get_config(arg)
    for key in (*config.order, *config.trace_methods):
      method = methods_lib.method(config, key, loaded)
      assert method.num_speculative_tokens >= 1
      assert (method.rule.mode == 'greedy') == (method.temperature == 0)
    assert config.stream_method in ('', *config.order)

  def test_other_arguments_are_refused(self, module):
    with pytest.raises(ValueError, match="'smok'"):
      module.get_config('smok')


def test_quickstart_shows_every_method_that_it_promises():
  config = quickstart.get_config()
  found = {(config.methods[key].name, config.methods[key].temperature) for key in config.order}
  assert {('draft model', 0.0), ('draft model', 1.0)} <= found
  assert {('prompt lookup', 0.0), ('prompt lookup', 1.0)} <= found
  assert len({config.methods[key].drafter.num_speculative_tokens for key in config.order}) == 1
  assert np.prod([config.num_prompts, config.repetitions, config.max_new_tokens]) < 3000
