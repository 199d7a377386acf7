"""The acceptance op over a sharded vocabulary: eight CPU devices equal one, and a TPU's text."""

import functools
import os
import re
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
import numpy as np

from specjax import drafters
from specjax import generation
from specjax import sampling as sampling_lib
from specjax import sharding
from specjax import verify
from specjax.kernels import accept as accept_lib
from specjax.kernels.accept import base
from specjax.kernels.accept import rule as accept_rule
from specjax.kernels.accept import sharded
from specjax.models import LanguageModel
from tests.support import accept_suite
from tests.support import tiny
from tests.support import tpu_ahead

RULES = ('greedy', 'rejection', 'block', 'coupled')
VOCAB = 16 * 40


def compare_with_one_device():
  """Runs in a process of its own, with eight devices."""
  assert jax.device_count() == 8, jax.devices()
  suite = accept_suite.AcceptSuite()
  for shape, names in (((8,), ('model',)), ((2, 4), ('data', 'model'))):
    mesh = Mesh(np.asarray(jax.devices()).reshape(shape), names)
    split = accept_lib.Split(mesh, 'model', names[:-1])
    for rule in RULES:
      case = accept_suite.random_case(6, 3, VOCAB, seed=2, **accept_suite.MIXED)
      case.tokens[:, 1] = case.target[:, 1].argmax(axis=-1)
      numbers = suite.uniforms(6, 3)
      if rule in ('greedy', 'coupled'):
        numbers = suite.noise(6, 3) if rule == 'coupled' else None
      arguments = (
          jnp.asarray(case.target, jnp.float32).reshape(-1, VOCAB),
          jnp.asarray(case.tokens, jnp.int32),
          numbers,
          sampling_lib.make(batch_size=6, **case.settings),
          jnp.asarray(case.draft, jnp.float32).reshape(-1, VOCAB),
      )
      results = [jax.jit(functools.partial(call, rule=rule, split=s))(*arguments)
                 for s in (None, split)]
      for one, many in zip(*map(jax.tree.leaves, results)):
        if jnp.issubdtype(one.dtype, jnp.floating):
          # Inside a tile the compiler may add in another order.
          np.testing.assert_allclose(one, many, rtol=1e-6, err_msg=f'{shape} {rule}')
        else:
          np.testing.assert_array_equal(one, many, err_msg=f'{shape} {rule}')
  print('eight equal one')


def compare_engines():
  """Runs in a process of its own: the engine's default on a mesh, and one device."""
  target = tiny.model(0, num_layers=1, num_heads=8)
  draft = LanguageModel(target.module, jax.tree.map(lambda x: 1.1 * x, target.params))
  hot = sampling_lib.make(batch_size=len(tiny.PROMPTS), temperature=0.9, top_p=0.95)
  # On CPUs the default is another one at a vocabulary as small as this.
  accept_rule.CPU_VOCABULARY = 0
  for rule in ('block', 'coupled'):
    outputs = []
    for layout in (None, sharding.make('tensor', data=2, model=4, draft=4)):
      models = [target, draft]
      if layout is not None:
        models = [sharding.place(m, x) for m, x in zip(models, (layout.target, layout.draft))]
      with mock.patch.object(sharded, 'run', wraps=sharded.run) as run:
        outputs.append(generation.generate(
            models[0], tiny.PROMPTS, rule=getattr(verify, rule)(), max_new_tokens=10, seeds=3,
            drafter=drafters.model(models[1], num_speculative_tokens=3), prefill_chunk=16,
            sampling=hot,
        ))
      assert run.called == (layout is not None), (rule, layout)
    np.testing.assert_array_equal(*(output.tokens for output in outputs), err_msg=rule)
    np.testing.assert_array_equal(*(output.stats.accepted for output in outputs))
    assert int(outputs[0].stats.accepted.sum()) > 3
  print('engines agree')


def call(target, tokens, numbers, sampling, draft, *, rule, split):
  return accept_lib.accept(
      target, tokens, rule=rule, numbers=numbers, sampling=sampling,
      draft_logits=draft if rule in ('rejection', 'block') else None, split=split,
  )


class ShardedTest(parameterized.TestCase):

  @parameterized.parameters(
      # Decisions exactly, log-probabilities to an ulp or two, for all rules and settings.
      ('compare_with_one_device', 'eight equal one'),
      ('compare_engines', 'engines agree'),
  )
  def test_eight_devices_equal_one(self, function, message):
    environment = dict(os.environ, JAX_NUM_CPU_DEVICES='8', JAX_PLATFORMS='cpu')
    found = subprocess.run(
        [sys.executable, '-c',
         f'from tests.kernels import test_accept_sharded as t; t.{function}()'],
        env=environment, capture_output=True, text=True, check=False,
    )
    self.assertEqual(found.returncode, 0, found.stderr[-3000:])
    self.assertIn(message, found.stdout)

  def test_what_does_not_split_is_refused(self):
    split = accept_lib.Split(AbstractMesh((2, 8), ('data', 'model')), 'model', 'data')
    self.assertIsNone(split.refusal(batch_size=2, vocab_size=128_256))
    self.assertIn('does not split into 8', split.refusal(batch_size=2, vocab_size=128_250))
    self.assertIn('3 sequences', split.refusal(batch_size=3, vocab_size=128_256))
    with self.assertRaisesRegex(ValueError, 'decided by xla on every shard'):
      accept_lib.accept(
          jnp.zeros((4, 640)), jnp.zeros((2, 1), jnp.int32), rule='greedy',
          sampling=sampling_lib.make(batch_size=2), split=split, implementation='mosaic_tpu',
      )

  @parameterized.parameters('rejection', 'block', 'coupled')
  def test_nothing_as_wide_as_the_vocabulary_crosses_chips(self, rule):
    """The text that the TPU's compiler makes, at a real size."""
    batch, size, vocab_size = 4, 4, 128_256
    devices = np.asarray(tpu_ahead.devices('v5e:2x4'))
    mesh = Mesh(devices.reshape(8), ('model',))
    place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
    array = lambda shape, dtype, *spec: jax.ShapeDtypeStruct(shape, dtype, sharding=place(*spec))
    if rule == 'coupled':
      numbers = accept_lib.Noise(
          array((batch, 2), jnp.uint32), array((batch, size + 1), jnp.int32)
      )
    else:
      numbers = accept_lib.Uniforms(
          array((batch, size), jnp.float32), array((batch, size + 1), jnp.float32)
      )
    sampling = jax.tree.map(
        lambda x: array(x.shape, x.dtype), sampling_lib.make(batch_size=batch)
    )
    text = jax.jit(functools.partial(
        call, rule=rule, split=accept_lib.Split(mesh, 'model')
    )).lower(
        array((batch * (size + 1), vocab_size), jnp.float32, None, 'model'),
        array((batch, size), jnp.int32), numbers, sampling,
        array((batch * size, vocab_size), jnp.float32, None, 'model'),
    ).compile().as_text()
    sizes = collective_sizes(text)
    tiles = vocab_size // base.tile_size(vocab_size)
    self.assertNotEmpty(sizes)
    # All rows' masses at once is the most that is gathered.
    self.assertLessEqual(max(sizes), batch * (2 * size + 1) * tiles)
    self.assertLess(max(sizes), vocab_size // 8)


def collective_sizes(text: str) -> list[int]:
  """Elements of the result of every collective in a compiled text."""
  sizes = []
  for line in text.splitlines():
    found = re.search(
        r'= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)'
        r'(-start)?\(', line
    )
    if found:
      shapes = re.findall(r'\w+\[([\d,]*)\]', found.group(1))
      sizes += [int(np.prod([int(d) for d in x.split(',') if d] or [1])) for x in shapes]
  return sizes


if __name__ == '__main__':
  absltest.main()
