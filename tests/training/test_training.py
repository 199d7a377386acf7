"""The train loop: it learns, resumes after a kill to the same losses, and saves nothing broken."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from specjax.training import checkpoints
from specjax.training import losses
from specjax.training import optimizers
from specjax.training import train
from tests.support import tolerance
from tests.support import toy_training


def test_loss_falls_and_the_record_is_complete(tmp_path):
  held_out = lambda: iter([toy_training.counting(1000), toy_training.counting(1001)])
  state, records = toy_training.fit(tmp_path, held_out=held_out)
  kinds = [(r.kind, r.step) for r in records]
  assert kinds == [
      ('train', 5), ('train', 10), ('held_out', 10), ('train', 15), ('train', 20), ('held_out', 20)
  ]
  by_kind = lambda kind: [r.metrics['loss'] for r in records if r.kind == kind]
  assert by_kind('train')[0] > np.log(toy_training.VOCAB) * 0.7
  assert by_kind('train')[-1] < 0.5 * by_kind('train')[0]
  assert by_kind('held_out')[-1] < 0.5 * by_kind('train')[0]
  assert int(state.step) == 20
  assert checkpoints.Checkpoints(tmp_path / 'checkpoints').latest_step() == 20
  assert records[-2].seconds_left == 0.0 and records[0].seconds_left > 0.0
  assert set(records[0].metrics) == {'loss', 'gradient_norm'}


def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path):
  whole, all_records = toy_training.fit(tmp_path / 'whole', num_steps=20)
  toy_training.fit(tmp_path / 'parts', num_steps=10)
  parts, records = toy_training.fit(tmp_path / 'parts', num_steps=20)
  assert [r.step for r in records] == [15, 20]
  assert [r.metrics for r in records] == [r.metrics for r in all_records if r.step > 10]
  np.testing.assert_array_equal(whole.params['table'], parts.params['table'])


def test_resumes_after_sigkill_to_bitwise_the_same_losses(tmp_path):
  root = str(pathlib.Path(__file__).resolve().parents[2])

  def start(workdir, pause):
    return subprocess.Popen(
        [sys.executable, '-m', 'tests.support.toy_training', str(workdir), str(pause)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )

  child = start(tmp_path / 'killed', 1.0)
  before = []
  while not before or before[-1][0] < 15:
    before.append(json.loads(child.stdout.readline()))
  # The checkpoint of step 10 is on disk; steps 11 to 15 are lost.
  deadline = time.monotonic() + 30
  while not list((tmp_path / 'killed' / 'checkpoints').glob('10/_CHECKPOINT_METADATA')):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  child.send_signal(signal.SIGKILL)
  child.communicate()

  _, expected = toy_training.fit(tmp_path / 'whole', num_steps=40)
  expected = [[r.step, r.metrics] for r in expected]
  after, _ = start(tmp_path / 'killed', 0.0).communicate()
  after = [json.loads(line) for line in after.splitlines()]
  assert after[0][0] == 15 and after[-1][0] == 40
  assert before == expected[:3]
  assert after == expected[2:]


@pytest.mark.parametrize('slices', [2, 4])
def test_gradient_accumulation_equals_the_big_batch(tmp_path, slices):
  options = dict(num_steps=5, optimizer=optax.sgd(1.0))
  whole, records = toy_training.fit(tmp_path / 'whole', **options)
  sliced, other = toy_training.fit(tmp_path / 'sliced', **options, gradient_accumulation=slices)
  # Each of five steps takes off a mean over 32 positions; a token is a seventh of them, and as
  # often the target.
  terms = 5 * 4 * 8
  tolerated = tolerance.of_sum(terms, size=2 / toy_training.VOCAB)
  tolerance.assert_close(whole.params['table'], sliced.params['table'], tolerated)
  for name, value in records[-1].metrics.items():
    assert other[-1].metrics[name] == tolerance.approx(
        value, roundings=terms, dtype='float32'
    )


def test_a_bound_array_is_an_argument_of_the_step_not_a_constant(tmp_path):
  params, _ = toy_training.bigram()

  def distill(params, batch, *, table):
    loss = losses.forward_kl(table[batch], params['table'][batch])
    return loss, {'loss': loss}

  table = jnp.eye(toy_training.VOCAB)
  loss_fn = jax.tree_util.Partial(distill, table=table)
  state, records = toy_training.fit(tmp_path, params=params, loss_fn=loss_fn, num_steps=40)
  assert records[-1].metrics['loss'] < 0.1 * records[0].metrics['loss']
  step = train._make_step(optax.adam(0.1), 1)
  lowered = step.lower(loss_fn, jax.device_get(state), toy_training.counting(0))
  table_type = f'tensor<{toy_training.VOCAB}x{toy_training.VOCAB}xf32>'
  assert table_type in lowered.as_text().split('func.func')[1].split('{')[0]
  leaves = jax.tree.leaves(lowered.in_avals)
  assert len(leaves) == 2 + len(jax.tree.leaves(state))


def test_initial_parameters_survive_the_run(tmp_path):
  params, _ = toy_training.bigram()
  toy_training.fit(tmp_path, params=params, num_steps=5)
  assert np.isfinite(params['table']).all()


@pytest.mark.parametrize('where', ['loss', 'update'])
def test_not_a_number_raises_and_saves_nothing(tmp_path, where):
  params, loss_fn = toy_training.bigram()

  def broken_at_12(step):
    batch = toy_training.counting(step)
    return -np.ones_like(batch) if where == 'loss' and step == 12 else batch

  def loss_or_nan(params, batch):
    loss, _ = loss_fn(params, batch)
    loss = jnp.where((batch < 0).any(), jnp.nan, loss)
    return loss, {'loss': loss}

  rate = lambda count: jnp.where((count == 12) & (where == 'update'), jnp.nan, 0.1)
  with pytest.raises(FloatingPointError, match=r'step 15 .*\n?.*Lower the learning rate'):
    toy_training.fit(
        tmp_path, params=params, loss_fn=loss_or_nan, batches=broken_at_12,
        optimizer=optax.adam(rate), num_steps=15,
    )
  store = checkpoints.Checkpoints(tmp_path / 'checkpoints')
  assert store.latest_step() == 10
  restored = store.restore(10, train.TrainState(0, params, optax.adam(rate).init(params)))
  assert np.isfinite(restored.params['table']).all()


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(num_steps=0), 'num_steps must be at least 1'),
        (dict(record_every=0), 'record_every must be at least 1'),
        (dict(checkpoint_every=7), 'multiple of record_every, got 7 and 5'),
        (dict(gradient_accumulation=3), '4 rows cannot be cut into gradient_accumulation=3'),
        (dict(loss_fn=lambda p, b: (p['table'], {'loss': 0.0})), 'scalar loss'),
        (dict(loss_fn=lambda p, b: (p['table'].sum(), {})), 'key "loss"'),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    toy_training.fit(tmp_path / 'run', **options)
  assert not (tmp_path / 'run').exists()


def test_a_full_disk_is_said_before_the_first_step(tmp_path, monkeypatch):
  class Full:
    free = 100

  monkeypatch.setattr(train.shutil, 'disk_usage', lambda path: Full)
  with pytest.raises(OSError, match='Make room'):
    toy_training.fit(tmp_path)


def test_a_checkpoint_beyond_the_end_is_refused(tmp_path):
  toy_training.fit(tmp_path, num_steps=10)
  with pytest.raises(ValueError, match='holds step 10, beyond the 5 steps'):
    toy_training.fit(tmp_path, num_steps=5)


def test_evaluations_are_not_counted_as_training_time(tmp_path, monkeypatch):
  now = [0.0]

  def clock():
    now[0] += 0.001
    return now[0]

  def slow():
    now[0] += 100.0
    return iter([toy_training.counting(0)])

  monkeypatch.setattr(train.time, 'perf_counter', clock)
  _, records = toy_training.fit(tmp_path, held_out=slow, evaluate_every=3)
  speeds = [r.tokens_per_second for r in records if r.kind == 'train']
  assert min(speeds) > 36 * 4 / 0.1
  # The estimate of what is left does count them: an evaluation every three steps.
  assert records[0].step == 3 and records[0].seconds_left > 100 / 3 * 17


def test_warmup_stable_decay():
  rate = optimizers.warmup_stable_decay(
      peak=1.0, num_steps=100, warmup_steps=10, decay_fraction=0.3
  )
  near = lambda value: tolerance.approx(value, roundings=4, dtype='float32')
  assert float(rate(0)) == near(0.1) and float(rate(10)) == 1.0
  assert float(rate(69)) == 1.0 and float(rate(85)) == near(0.5)
  assert float(rate(100)) == 0.0


def test_losses_agree_with_their_definitions():
  target, draft = jax.random.normal(jax.random.key(1), (2, 3, 2, 5))
  p, q = np.asarray(jax.nn.softmax(target)), np.asarray(jax.nn.softmax(draft))
  close = lambda found, wanted: tolerance.assert_close(
      found, wanted, tolerance.of_probs(5, logits=(target, draft), probs=wanted)
  )
  close(losses.forward_kl(target, target), 0.0)
  close(losses.forward_kl(target, draft), (p * np.log(p / q)).sum(-1).mean())
  close(losses.acceptance(target, draft), 1 - 0.5 * np.abs(p - q).sum(-1).mean())
