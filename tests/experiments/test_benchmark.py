"""A whole benchmark on tiny models, and what it refuses before it begins."""

import dataclasses
import io
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

import specjax
from configs import benchmark_zoo
from configs import quickstart
from experiments import benchmark
from experiments import build
from experiments import workdir as workdir_lib
from experiments.build import rules
from experiments.runs import forecasts
from experiments.runs import lossless
from experiments.runs import records
from experiments.runs import run as run_lib
from experiments.runs import runner as runner_lib
from specjax import verify
from specjax.analysis import costs
from specjax.analysis import records as analysis_records
from specjax.analysis import theory
from specjax.analysis import timed_programs
from tests.support import tiny_pair
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')


@pytest.fixture(scope='module')
def loaded() -> records.Loaded:
  return tiny_pair.loaded()


@pytest.fixture
def tiny(loaded, monkeypatch):
  tiny_pair.install(monkeypatch)
  return loaded


def config_of(module=benchmark_zoo, **changes):
  config = module.get_config('smoke')
  config.dtype = 'float32'
  config.update(changes)
  return config


def console() -> rich.console.Console:
  return rich.console.Console(file=io.StringIO(), width=120)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run of everything: calibration, streaming, timing, comparison, report."""
  path = tmp_path_factory.mktemp('run') / 'benchmark'
  order = ('draft_greedy', 'tree_greedy', 'combined_greedy', 'ngram_coupled')
  config = config_of(stream_method='draft_greedy', order=order)
  config.methods.ngram_coupled.drafter.num_speculative_tokens = 2
  screen = console()
  with pytest.MonkeyPatch.context() as patch:
    tiny_pair.install(patch)
    rows = benchmark.run(config, str(path), console=screen)
  return types.SimpleNamespace(path=path, rows=rows, text=screen.file.getvalue())


class TestRun:

  def test_rows(self, finished):
    found = [(row['name'], row['rule'], row['temperature']) for row in finished.rows]
    assert found == [
        ('plain decode', 'greedy', 0.0),
        ('plain decode', 'sampling', 1.0),
        ('draft model', 'greedy', 0.0),
        ('draft tree', 'greedy', 0.0),
        ('suffix or draft', 'greedy', 0.0),
        ('prompt lookup', 'coupled', 1.0),
    ]
    assert [row['identical_to_plain'] for row in finished.rows] == [None, None, *[True] * 4]
    assert [row['flips'] for row in finished.rows] == [None, None, 0, 0, 0, 0]
    for row in finished.rows:
      assert row['new_tokens'] == 2 * 12 and row['prompts'] == 2 and row['seconds'] > 0
      assert (row['speedup'] == 1.0) == (row['drafter'] == 'none')
      assert (row['prediction'] is None) == (row['drafter'] == 'none')
      assert row['mean_acceptance_length'] >= 1.0
    assert finished.rows[2]['target_passes'] <= 24

  def test_rows_are_records(self, finished):
    """Fields and their order, as every reader of `metrics.jsonl` relies on them."""
    fields = [field.name for field in dataclasses.fields(analysis_records.Record)]
    known = [*fields, 'origin']
    # What was traced has counts along the text.
    assert all(list(row) in (known, [*known, 'along']) for row in finished.rows)
    for row in finished.rows:
      models = row['origin']['models']
      assert len(models['target']) == 16
      assert ('drafter' in models) == (row['drafter'] not in ('none', 'ngram'))

  def test_files(self, finished):
    names = sorted(file.name for file in finished.path.glob('[!.]*'))
    assert names == [
        'arms', 'calibration.json', 'calibrations', 'config.json', 'metrics.jsonl', 'report.html',
        'tensorboard', 'traces.json',
    ]
    lines = (finished.path / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['name'] for line in lines] == [row['name'] for row in finished.rows]
    traces = json.loads((finished.path / 'traces.json').read_text())
    assert [trace['name'] for trace in traces] == ['draft model, greedy, T = 0']
    assert sum(len(each['emitted']) for each in traces[0]['rounds']) <= 12
    calibration = json.loads((finished.path / 'calibration.json').read_text())
    greedy, coupled = calibration['rules']
    assert (greedy['rule'], coupled['rule']) == ('greedy', 'coupled')
    # A combination is predicted from its parts.
    assert set(greedy['drafting']) == {'model', 'suffix', 'model after suffix'}
    assert list(greedy['trees']) == ['model_tree 3,2,1,1'] and not coupled['trees']
    assert 'prompt lookup' in (finished.path / 'report.html').read_text()

  def test_what_is_shown(self, finished):
    for wanted in ('accepted draft tokens in colour', 'plain decode', 'argmax', 'o '):
      assert wanted in finished.text
    assert str(finished.path) in finished.text.replace('\n', '')


class TestResuming:

  def test_a_killed_benchmark_goes_on(self, finished, tiny, tmp_path, monkeypatch):
    """Finished methods and the calibration are read, and the rows are those of a whole run."""
    order = ('draft_greedy', 'ngram_coupled')
    config = config_of(order=order)
    config.methods.ngram_coupled.drafter.num_speculative_tokens = 2
    real, ran = run_lib.result_of, []

    def stopped(arm, *args, **more):
      if ran:
        raise KeyboardInterrupt
      ran.append(arm.name)
      return real(arm, *args, **more)

    monkeypatch.setattr(run_lib, 'result_of', stopped)
    with pytest.raises(KeyboardInterrupt):
      benchmark.run(config, str(tmp_path), console=console())
    before = workdir_lib.read_rows(tmp_path)
    assert [row['name'] for row in before] == ['plain decode', 'draft model']
    monkeypatch.setattr(
        run_lib, 'result_of', lambda arm, *args, **more: ran.append(arm.name) or real(
            arm, *args, **more
        )
    )
    measured = []
    calibrate = forecasts.calibrate
    monkeypatch.setattr(
        forecasts, 'calibrate', lambda *args, **more: measured.append(1) or calibrate(*args, **more)
    )
    rows = benchmark.run(config, str(tmp_path), console=console())
    assert not measured
    assert ran == ['draft model', 'prompt lookup']
    assert [row for row in rows if row['name'] == 'draft model'] == before[1:]
    clocks = {
        'seconds', 'prefill_seconds', 'tokens_per_second', 'speedup', 'speedup_low',
        'speedup_high', 'predicted_speedup', 'prediction', 'origin',
    }
    for row in workdir_lib.read_rows(tmp_path):
      wanted = next(
          each for each in workdir_lib.read_rows(finished.path)
          if all(each[key] == row[key] for key in ('name', 'rule', 'temperature'))
      )
      assert {k: v for k, v in row.items() if k not in clocks} == {
          k: v for k, v in wanted.items() if k not in clocks
      }
    config.fresh = True
    monkeypatch.setattr(run_lib, 'result_of', stopped)
    with pytest.raises(KeyboardInterrupt):
      benchmark.run(config, str(tmp_path), console=console())
    assert measured  # costs, too

  def test_a_method_that_fails_is_said_to(self, tiny, tmp_path, monkeypatch):
    config = config_of(order=('ngram_greedy', 'draft_greedy'), trace_methods=())
    config.calibration.enabled = False
    real = run_lib._run

    def run(arm, *args):
      if arm.recipe.kind == 'ngram':
        raise RuntimeError('out of memory')
      return real(arm, *args)

    monkeypatch.setattr(run_lib, '_run', run)
    screen = console()
    rows = benchmark.run(config, str(tmp_path), console=screen)
    assert [row.get('error') for row in rows] == [None, 'RuntimeError: out of memory', None]
    assert 'failed: prompt lookup, greedy, T = 0: RuntimeError' in screen.file.getvalue()


class TestForecasts:

  def arm(self, key, **drafter):
    config = config_of()
    config.methods[key].drafter.update(drafter)
    return build.method(config, key)

  def test_a_combination_costs_what_its_parts_cost_in_their_rounds(self):
    arm = self.arm('combined_greedy', num_speculative_tokens=4)
    calibration = costs.Calibration(
        dtype='float32', width=1, candidates=(), widths=(1, 5), pass_seconds=(1.0, 1.0),
        rules=(
            costs.RuleCosts(
                rule='greedy', plain=1.0, overhead=((4, 0.0),),
                drafting={'model after suffix': ((4, 0.4),), 'suffix': ((4, 0.04),)},
            ),
        ),
        batch_size=1, cache_length=64, rounds=1, repetitions=1, noise=0.0, versions={},
        hardware={},
    )
    # Where nothing is found, both; where everything is, the model's first step of four.
    for share, drafting in ((0.0, 0.44), (0.5, 0.04 + 0.25), (1.0, 0.04 + 0.1)):
      seen = forecasts.Acceptance((0.5,) * 4, num_drafted=4, free_share=share)
      found = forecasts.predict(calibration, arm, seen, num_speculative_tokens=4)
      assert found.num_drafted * found.draft_cost == tolerance.approx(drafting)
      assert found.speedup == tolerance.approx(1.9375 / (1 + drafting))

  def test_what_is_predicted(self):
    predicted = lambda key, **drafter: forecasts.is_predicted(self.arm(key, **drafter).recipe)
    assert predicted('tree_greedy') and predicted('combined_greedy')
    assert not predicted('combined_greedy', learned='model_tree')
    assert not predicted('draft_greedy', kind='synthetic')
    assert forecasts.case_of(self.arm('draft_greedy', num_speculative_tokens=4)) == (
        'greedy', 'model', 4
    )

  def test_an_open_length_ends_where_the_head_does(self):
    longest = lambda recipe, most: forecasts.longest(recipe, None, most)
    draft = self.arm('draft_greedy').recipe
    head = dataclasses.replace(draft, kind='medusa', longest=lambda loaded: 4)
    assert [longest(each, 8) for each in (draft, head)] == [8, 4] and longest(head, 3) == 3
    combined = self.arm('combined_greedy').recipe
    assert longest(dataclasses.replace(combined, learned=head), 8) == 4

  def test_heads_of_two_folders_have_costs_of_their_own(self):
    names = {
        path: forecasts.cost_name(self.arm('draft_greedy', kind='dflash', path=path).recipe)
        for path in ('a', 'b')
    }
    assert names == {'a': 'dflash a', 'b': 'dflash b'}

  def test_rounds_of_the_free_part_are_counted(self, loaded):
    arm = self.arm('combined_greedy', num_speculative_tokens=3, min_match=1)
    runner = TestMethods().runner(loaded, max_new_tokens=40, cache_length=64)
    prompts = records.Prompts((), [('', tuple(t)) for t in loaded.pair.prompts(2, length=8)])
    study = records.Study((arm,), 1, False, False, acceptance_batch=2)
    method = arm.method(arm.recipe.make(loaded))
    assert 0 < run_lib._acceptance(arm, method, runner, prompts, study).free_share <= 1

  def test_an_open_length_is_the_fastest_that_is_predicted(self, tiny, tmp_path, monkeypatch):
    config = config_of(order=('ngram_greedy',), trace_methods=())
    config.methods.ngram_greedy.drafter.num_speculative_tokens = 0
    asked = []

    def best(calibration, arm, seen):
      asked.append(len(seen.rates))
      return 1

    monkeypatch.setattr(forecasts, 'best_length', best)
    rows = benchmark.run(config, str(tmp_path), console=console())
    assert asked == [2]  # acceptance was learned at the largest K
    assert rows[-1]['num_speculative_tokens'] == 1 and rows[-1]['predicted_speedup'] > 0


class TestMethods:

  def runner(self, loaded, cache_length=48, **changes):
    sizes = dict(
        batch_size=1, max_new_tokens=10, cache_length=cache_length, prefill_chunk=8, width=1, seed=3
    )
    return runner_lib.Runner(loaded.target, 1, cache_length, records.Sizes(**(sizes | changes)))

  def case(self, loaded, key, count):
    """The method of a key on some prompts, one at a time."""
    arm = build.method(config_of(), key)
    batches = [
        runner_lib.Batch((tuple(prompt),), row)
        for row, prompt in enumerate(loaded.pair.prompts(count, length=8))
    ]
    methods = [arm.method(arm.recipe.make(loaded))] * count
    return lossless.Case(
        self.runner(loaded), batches, methods, arm.plain_key, runner_lib.Session()
    )

  def test_acceptance_agrees_with_the_runs(self, loaded):
    config = config_of()
    config.methods.adaptive_greedy.drafter.update(num_speculative_tokens=3, min_confidence=0.1)
    arm = build.method(config, 'adaptive_greedy')
    method, runner = arm.method(arm.recipe.make(loaded)), self.runner(loaded)
    first, second, third = (tuple(tokens) for tokens in loaded.pair.prompts(3, length=8))
    prompts = records.Prompts([('', first)] * 5, [('', each) for each in (first, second, third)])
    study = records.Study((arm,), 1, False, False, acceptance_batch=2)
    found = run_lib._acceptance(arm, method, runner, prompts, study)
    # The last batch is filled up with the first prompt.
    outputs = [
        runner(method, runner_lib.Batch((first, second), 5)),
        runner(method, runner_lib.Batch((third, first), 7)),
    ]
    rounds = sum(output.stats.rounds.sum() for output in outputs)
    accepted = sum(output.stats.decided_at.sum() for output in outputs)
    assert theory.expected_tokens(found.rates, 3) == tolerance.approx(1 + accepted / rounds)
    drafted = sum(output.stats.drafted_at[:, :2].sum() for output in outputs)
    assert found.num_drafted == tolerance.approx(1 + drafted / rounds)
    assert 1 <= found.num_drafted <= 3

  def test_a_wrong_output_is_not_identical(self, loaded):
    case = self.case(loaded, 'draft_greedy', 1)
    outputs = case.run()
    found = lossless.check(case, outputs, law=False)
    assert (found.kind, found.identical_to_plain, found.flips) == ('identical', True, 0)
    outputs[0].tokens[0, -1 + outputs[0].lengths[0]] += 1
    with pytest.raises(lossless.NotLosslessError, match='bitwise the same') as raised:
      lossless.check(case, outputs, law=False)
    found = raised.value.check
    assert (found.kind, found.identical_to_plain, found.flips) == ('differs', False, 1)

  def test_a_benchmark_goes_on_with_what_differs(self, tiny, tmp_path, monkeypatch):
    """A wrong rule: its row says so, and has its times."""

    @dataclasses.dataclass(frozen=True)
    class Shifted(type(verify.greedy())):
      def __call__(self, *, target_law, proposal, positions, source):
        return super().__call__(
            target_law=jnp.roll(target_law, 1, -1), proposal=proposal, positions=positions,
            source=source,
        )

    monkeypatch.setattr(rules, 'rule', lambda config: Shifted())
    right = lossless.Case.references
    monkeypatch.setattr(
        lossless.Case, 'references', lambda case, **more: right(
            dataclasses.replace(
                case,
                methods=[dataclasses.replace(each, rule=verify.greedy()) for each in case.methods],
            ),
            **more,
        )
    )
    config = config_of(order=('draft_greedy',), trace_methods=())
    config.calibration.enabled = False
    row = benchmark.run(config, str(tmp_path), console=console())[-1]
    assert (row['lossless'], row['identical_to_plain'], row['flips']) == ('differs', False, 2)
    assert row['speedup'] > 0

  def test_a_tree_that_differs_is_run_again_for_the_gap_rule(self, loaded, monkeypatch):
    case = self.case(loaded, 'tree_greedy', 2)
    outputs = case.run()
    outputs[1].tokens[0, -1 + outputs[1].lengths[0]] += 1
    # What it does now is right: nothing explains what came before.
    with pytest.raises(lossless.NotLosslessError, match='nothing explains') as raised:
      lossless.check(case, outputs, law=False)
    assert (raised.value.check.kind, raised.value.check.flips) == ('differs', 1)
    real, seen = case.run, []

    def again(case, **more):
      seen.append(more)
      others = real(**more)
      others[1].tokens[0, -1 + others[1].lengths[0]] += 1
      return others

    monkeypatch.setattr(lossless.Case, 'run', again)
    report = types.SimpleNamespace(holds=True, gaps=[0.1], bound=0.2)
    monkeypatch.setattr(lossless.identity, 'gap_rule', lambda *args, **more: report)
    found = lossless.check(case, outputs, law=False)
    assert found.fields == dict(identical_to_plain=False, lossless='rounding', flips=1)
    assert seen == [dict(logprobs='raw')]

  def test_plain_decoding_is_the_fastest_of_its_law(self, finished):
    """It samples by one uniform, whatever rule the method beside it has: no noise per token."""
    plain = {row['temperature']: row for row in finished.rows if row['drafter'] == 'none'}
    assert sorted(plain) == [0.0, 1.0]
    assert timed_programs.plain_rule(verify.coupled()) == verify.rejection()
    assert timed_programs.plain_rule(verify.greedy()) == verify.greedy()

  def test_a_method_changes_only_its_own_fields(self):
    config = config_of()
    arm = build.method(config, 'adaptive_block')
    drafter = arm.recipe.make(tiny_pair.loaded())
    assert (drafter.min_confidence, drafter.num_nodes) == (np.float32(0.1), 6)
    assert (arm.rule.name, arm.temperature) == ('block', 1.0)
    assert config.drafter.min_confidence is None and config.rule.name == 'auto'
    with config.unlocked():
      config.methods.draft_greedy.drafter.lenght = 3
    with pytest.raises(ValueError, match='draft_greedy.drafter: .*lenght'):
      build.method(config, 'draft_greedy')


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
      arm = build.method(config, key)
      assert arm.recipe.make(loaded).num_nodes >= 1
      assert (arm.rule.mode == 'greedy') == (arm.temperature == 0)
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
