"""Sweeps on a tiny pair: checked, paired, resumed, and never mixed with other results."""

import dataclasses
import functools
import io
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from configs import sweeps
from experiments import ablate
from experiments import build
from experiments import workdir as workdir_lib
from experiments.build import rules
from experiments.runs import arms as arms_lib
from experiments.runs import lossless
from experiments.runs import origin
from experiments.runs import run as run_lib
from experiments.runs import runner as runner_lib
from experiments.runs import tables
from experiments.sweep import param, prod
from specjax import drafters
from specjax import sampling
from specjax import testing
from specjax import verify
from specjax.analysis import sampled_law
from specjax.analysis import traces
import specjax
from tests.support import tiny_pair
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')

# Columns that a clock decides.
TIMES = (
    'origin', 'prefill_seconds', 'seconds', 'speedup', 'speedup_high', 'speedup_low',
    'tokens_per_second',
)  # fmt: skip


def config_of(arms, **changes):
  """One shape for all tests, so that programs are compiled once."""
  config = sweeps.get_config('rule,smoke')
  config.arms = arms
  config.dtype, config.num_prompts, config.cache_length, config.batch_size = 'float32', 4, 48, 2
  config.calibration.enabled = False
  config.update(changes)
  return config


def sampled(*rules):
  return prod(
      param('drafter.num_speculative_tokens', 2),
      param('sampling.temperature', 0.5),
      param('rule.name', *rules),
  )


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  tiny_pair.install(monkeypatch)


def run(config, path, terminal=False):
  screen = rich.console.Console(file=io.StringIO(), width=160, force_terminal=terminal)
  rows = ablate.run(config, str(path), console=screen)
  return types.SimpleNamespace(rows=rows, text=screen.file.getvalue())


def without_times(rows):
  return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  path = tmp_path_factory.mktemp('sweep') / 'run'
  arms = sampled('rejection', 'block', 'coupled') + prod(
      param('drafter.num_speculative_tokens', 2), param('rule.name', 'greedy')
  )
  with pytest.MonkeyPatch.context() as patch:
    tiny_pair.install(patch)
    found = run(config_of(arms, num_seeds=2), path)
  found.path = path
  return found


class TestTable:

  def test_every_arm_is_checked(self, finished):
    kinds = [(row['rule'], row['lossless'], row['identical_to_plain']) for row in finished.rows]
    assert kinds == [
        ('rejection', 'same law', None),
        ('block', 'same law', None),
        ('coupled', 'identical', True),
        ('greedy', 'identical', True),
    ]
    assert all(row['lossless_p_value'] > 1e-6 for row in finished.rows[:2])

  def test_arms_saw_the_same_prompts_and_seeds(self, finished):
    # Greedy output depends on no seed, so that one run of each prompt says all.
    assert [row['prompts'] for row in finished.rows] == [8, 8, 8, 4]
    assert [row['new_tokens'] for row in finished.rows] == [64, 64, 64, 32]
    rejection, block = finished.rows[:2]
    assert rejection['gain'] is None and 'rejection' in block['baseline']
    ratio = block['mean_acceptance_length'] / rejection['mean_acceptance_length']
    assert block['gain'] == tolerance.approx(ratio - 1)
    assert block['gain_low'] <= block['gain'] <= block['gain_high']

  def test_numbers_agree_with_each_other(self, finished):
    for row in finished.rows:
      assert row['mean_acceptance_length_low'] <= row['mean_acceptance_length']
      assert sum(row['accepted_lengths']) == tolerance.approx(1)
      decided = 1 + np.dot(np.arange(3), row['accepted_lengths'])
      assert row['decided_tokens_per_round'] == tolerance.approx(decided)
      assert np.sum(row['along'][0]) == tolerance.approx(
          row['new_tokens'] / row['mean_acceptance_length']
      )
    for row in finished.rows[:2]:
      by_rule = row['expected_by_rule']
      assert row['expected_tokens_per_round'] == by_rule[row['rule']]
      gain = row['expected_gain_of_block']
      assert gain['value'] == tolerance.approx(by_rule['block'] / by_rule['rejection'] - 1)
      # On the same drafts block accepts no fewer.
      assert gain['value'] >= -tolerance.chained(64, dtype='float64')
      assert gain['low'] <= gain['value'] <= gain['high']

  def test_files(self, finished):
    names = sorted(file.name for file in finished.path.glob('[!.]*'))
    assert names == [
        'arms', 'config.json', 'metrics.jsonl', 'report.html', 'tensorboard', 'traces.json'
    ]
    rows = workdir_lib.read_rows(finished.path)
    assert [row['arm'] for row in rows] == [row['arm'] for row in finished.rows]
    assert len(list((finished.path / 'arms').iterdir())) == 4

  def test_what_is_shown(self, finished):
    for wanted in ('against the rejection rule?', 'arm 4/4', 'tokens/round', 'same law', '±'):
      assert wanted in finished.text
    for line in tables.DEFINITIONS:
      assert line.split(':')[0] in finished.text


def test_categories_take_turns_and_have_their_own_numbers(tmp_path):
  questions = [
      dict(category=category, question_id=number, turns=[f'def {category}_{number}(x):'])
      for category in ('code', 'math') for number in range(3)
  ]
  file = tmp_path / 'question.jsonl'
  file.write_text(''.join(json.dumps(row) + '\n' for row in questions))
  config = config_of(sampled('coupled'), prompt_file=str(file))
  (row,) = run(config, tmp_path / 'all').rows
  assert sorted(row['by_category']) == ['code', 'math']
  assert [found['num_prompts'] for found in row['by_category'].values()] == [2, 2]
  assert 'Tokens per round by kind of prompt' in (tmp_path / 'all' / 'report.html').read_text()
  config.prompt_category, config.num_prompts = 'math', 2
  (row,) = run(config, tmp_path / 'math').rows
  assert row['status'] == 'done' and row['by_category'] == {}
  # Arms of one sweep have prompts of their own, too.
  config.prompt_category = ''
  config.arms = prod(sampled('coupled'), param('prompt_category', 'code', 'math'))
  names = [
      arm.prompts(tiny_pair.loaded()).timed[0][0] for arm in build.sweep(config).arms
  ]
  assert names == ['code/0', 'math/0']
  assert len({arm.prompts_key for arm in build.sweep(config).arms}) == 2
  config.arms, config.prompt_category = sampled('coupled'), 'poems'
  (row,) = run(config, tmp_path / 'poems').rows
  assert "there are: 'code', 'math'" in row['error']


class TestResuming:

  def test_a_killed_sweep_goes_on(self, tmp_path, monkeypatch):
    config = config_of(sampled('rejection', 'block', 'coupled'))
    ran, real = [], run_lib.result_of
    monkeypatch.setattr(origin, '_checkout', lambda: ('a' * 40, False))

    def interrupted(arm, *args, **more):
      if len(ran) == 2:
        raise KeyboardInterrupt
      ran.append(arm.label)
      return real(arm, *args, **more)

    monkeypatch.setattr(run_lib, 'result_of', interrupted)
    with pytest.raises(KeyboardInterrupt):
      run(config, tmp_path)
    assert len(workdir_lib.read_rows(tmp_path)) == 2
    noted = lambda arm, *args, **more: ran.append(arm.label) or real(arm, *args, **more)
    monkeypatch.setattr(run_lib, 'result_of', noted)
    monkeypatch.setattr(origin, '_checkout', lambda: ('b' * 40, True))
    found = run(config, tmp_path)
    before, after = origin.commits(found.rows)
    assert f'2 of 3 arms are finished, at commit {before}.' in found.text
    assert [origin.commits([row]) for row in found.rows] == [[before], [before], [after]]
    page = (tmp_path / 'report.html').read_text()
    assert f'commits {before}, {after}' in page and after == 'bbbbbbbb+'
    assert len(ran) == len(set(ran)) == 3
    ran.clear()
    assert without_times(run(config, tmp_path).rows) == without_times(found.rows) and not ran

  def test_results_of_another_machine_or_version_are_kept_apart(self, tmp_path, monkeypatch):
    config = config_of(sampled('coupled'))
    (before,) = run(config, tmp_path).rows
    other = arms_lib.environment() | dict(versions={'jax': '0.0'})
    monkeypatch.setattr(arms_lib, 'environment', lambda: other)
    found = run(config, tmp_path)
    assert '1 results here are of other' in found.text and len(found.rows) == 1
    assert found.rows[0]['key'] != before['key']
    assert len(list((tmp_path / 'arms').iterdir())) == 2

  def test_a_failed_arm_is_kept_and_can_be_run_again(self, tmp_path, monkeypatch):
    config = config_of(sampled('rejection', 'coupled'))
    real, fail = run_lib._run, [True]

    def run_arm(arm, *args):
      if fail[0] and 'rejection' in arm.label:
        raise RuntimeError('out of memory')
      return real(arm, *args)

    monkeypatch.setattr(run_lib, '_run', run_arm)
    found = run(config, tmp_path)
    assert [row['status'] for row in found.rows] == ['failed', 'done']
    assert found.rows[0]['error'] == 'RuntimeError: out of memory' and 'out of memory' in found.text
    fail[0] = False
    assert run(config, tmp_path).rows[0]['status'] == 'failed'
    config.retry_failed = True
    assert [row['status'] for row in run(config, tmp_path).rows] == ['done', 'done']

  def test_a_terminal_sees_a_bar_with_the_time_left(self, tmp_path):
    assert '1/1' in run(config_of(sampled('coupled')), tmp_path, terminal=True).text


@dataclasses.dataclass(frozen=True)
class AcceptsAll(type(verify.rejection())):
  """The rejection rule, but whatever is drafted stays."""

  def prob(self, numbers):
    return jnp.ones_like(numbers.target)


@dataclasses.dataclass(frozen=True)
class SecondBest(type(verify.greedy())):
  """The greedy rule, but the target's choice is now and then the next token."""

  def __call__(self, *, target_law, proposal, positions, source):
    shifted = jnp.where((positions % 5 == 0)[..., None], jnp.roll(target_law, 1, -1), target_law)
    return super().__call__(
        target_law=shifted, proposal=proposal, positions=positions, source=source
    )


class TestPlantedMistakes:

  def test_an_arm_with_another_law_fails(self, tmp_path, monkeypatch):
    monkeypatch.setattr(rules, 'rule', lambda config: AcceptsAll())
    (row,) = run(config_of(sampled('rejection'), num_seeds=8), tmp_path).rows
    assert row['status'] == 'failed' and 'do not follow the law of the target' in row['error']
    assert 'speedup' not in row

  def test_an_arm_with_other_tokens_fails(self, tmp_path, monkeypatch):
    monkeypatch.setattr(rules, 'rule', lambda config: SecondBest())
    monkeypatch.setattr(
        lossless.Case, 'references',
        lambda case, **more: [
            case.runner(
                dataclasses.replace(case.method, drafter=None, rule=verify.greedy()), batch,
                width=case.runner.width_of(case.method), **more,
            )
            for batch in case.batches
        ],
    )
    arms = prod(param('drafter.num_speculative_tokens', 2), param('rule.name', 'greedy'))
    (row,) = run(config_of(arms), tmp_path).rows
    assert row['status'] == 'failed' and 'differ from plain decoding' in row['error']

  def test_what_cannot_run_is_refused_before_anything_runs(self, tmp_path):
    with pytest.raises(ValueError, match='K=2 T=0.5 rule=greedy: The greedy rule'):
      run(config_of(sampled('block', 'greedy')), tmp_path)
    with pytest.raises(ValueError, match='multiple of config.batch_size=3'):
      run(config_of(sampled('block'), batch_size=3), tmp_path)
    with pytest.raises(ValueError, match='Two arms are the same'):
      run(config_of(sampled('block') * 2), tmp_path)
    assert not list(tmp_path.iterdir())


def test_trees_are_held_to_the_gap_rule(monkeypatch):
  """The scores are what plain decoding took the argmax of; a wrong token has too large a gap."""
  arms = prod(
      param('drafter.kind', 'model_tree'), param('drafter.tree', '2,1'),
      param('rule.name', 'coupled'), param('sampling.temperature', 0.5),
  )
  (arm,) = build.sweep(config_of(arms)).arms
  loaded = tiny_pair.loaded()
  prompts = arm.prompts(loaded)
  runner = runner_lib.runner_of(arm, loaded, prompts)
  batches = runner_lib.batches(arm, prompts.timed)
  method = arm.method(arm.recipe.make(loaded))
  case = lossless.Case(runner, batches, [method] * 2, arm.plain_key, runner_lib.Session())
  plain = case.references(logprobs='raw')
  for output, batch in zip(plain, batches):
    for row, scores in enumerate(lossless.scores(case, output, runner.seeds(batch))):
      assert (scores.argmax(-1) == output.new_tokens(row)).all()
  run = case.run

  def wrong(last):
    """The runs, but the last token of the first row is another one."""
    others = run(logprobs='raw')
    others[0].tokens[0, others[0].lengths[0] - 1] += last
    return others

  monkeypatch.setattr(lossless.Case, 'run', lambda case, **more: wrong(1))
  with pytest.raises(lossless.NotLosslessError, match='one by a gap of') as raised:
    lossless.check(case, wrong(1), law=True)
  assert raised.value.check.fields == dict(
      identical_to_plain=False, lossless='differs', flips=1
  )
  with pytest.raises(lossless.NotLosslessError, match='nothing explains'):
    lossless.check(case, wrong(2), law=True)


def test_calibrations_are_shared_and_kept(tmp_path):
  arms = prod(
      param('drafter.kind', 'model', 'ngram'),
      param('drafter.num_speculative_tokens', 2),
      param('rule.name', 'greedy'),
  )
  config = config_of(arms)
  config.calibration.enabled = True
  rows = run(config, tmp_path).rows
  files = list((tmp_path / 'calibrations').iterdir())
  assert len(files) == 1
  for row in rows:
    parts = row['round_seconds']
    modelled = parts['draft'] + parts['verify'] + parts['rest']
    terms = row['prediction']
    assert modelled * row['predicted_speedup'] / terms['tokens_per_round'] > 0
    assert row['predicted_speedup'] > 0
  written = files[0].read_text()
  assert run(config, tmp_path).rows == json.loads(json.dumps(rows))
  assert files[0].read_text() == written


class TestExpectation:

  @pytest.mark.parametrize('rule', [verify.block(), verify.rejection()], ids=lambda r: r.name)
  def test_equals_the_enumeration(self, rule):
    """Averaged over drafts, the expectation over coins is the exact one."""
    target, draft = testing.table_model(seed=0), testing.table_model(seed=3)
    drafter = drafters.model(draft, num_speculative_tokens=3)
    exact = testing.expected_accepted(target, [[0]], rule=rule, drafter=drafter)[0]
    output = specjax.generate(
        target, [[0]] * 256, drafter=drafter, rule=rule, max_new_tokens=4, trace=True, seeds=7
    )
    first = [row[0] for row in traces.expected_accepted(output, rule.name)]
    error = np.std(first) / np.sqrt(len(first))
    assert abs(np.mean(first) - exact) < 4 * error
    # The coins are averaged out: the spread is smaller than that of the counts.
    assert np.std(first) < np.std(output.trace.num_accepted[:, 0])

  def test_needs_a_chain_and_a_trace(self):
    target = testing.table_model(seed=0)
    output = specjax.decode(target, [[0]], max_new_tokens=2)
    with pytest.raises(ValueError, match='no trace'):
      traces.expected_accepted(output, 'block')


@pytest.fixture(scope='module')
def outputs():
  target = testing.table_model(seed=0)
  drafter = drafters.model(testing.table_model(seed=3), num_speculative_tokens=2)
  settings = sampling.make(batch_size=32, temperature=0.8, top_k=3)
  make = functools.cache(
      lambda rule: specjax.generate(
          target, [[0]] * 32, drafter=drafter, rule=rule, sampling=settings, max_new_tokens=60
      )
  )
  return target, settings, make


class TestLawTest:

  def test_a_lossless_rule_passes(self, outputs):
    target, settings, make = outputs
    found = sampled_law.law_test(target, [make(verify.block())], [settings], width=8)
    assert found.num_tokens == 32 * 60 and found.p_value > 1e-3 and not found.impossible

  def test_wrong_ones_do_not(self, outputs):
    target, settings, make = outputs
    assert sampled_law.law_test(target, [make(AcceptsAll())], [settings]).p_value < 1e-9
    cooler = sampling.make(batch_size=32, temperature=0.4, top_k=3)
    assert sampled_law.law_test(target, [make(verify.block())], [cooler]).p_value < 1e-9

  def test_what_cannot_be_tested_is_refused(self, outputs):
    target, _, make = outputs
    penalised = sampling.make(batch_size=32, repetition_penalty=1.2)
    with pytest.raises(ValueError, match='cannot test repetition_penalty'):
      sampled_law.law_test(target, [make(verify.block())], [penalised])
    with pytest.raises(ValueError, match='0 runs'):
      sampled_law.law_test(target, [], [])
