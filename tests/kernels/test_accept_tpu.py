"""The acceptance op's TPU kernels: interpreted on CPU, and compiled for real TPUs."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import pytest

from specjax import sampling as sampling_lib
from specjax.kernels import accept as accept_lib
from specjax.kernels.accept import tpu_rows
from specjax.kernels.accept import tpu_scan
from specjax.kernels.accept import tpu_stream
from tests.support import accept_suite
from tests.support import tpu_ahead

pytestmark = pytest.mark.usefixtures('compiled_fast')


def interpreter():
  """The TPU interpreter, which raises where two accesses race; stale memory is NaN."""
  return pltpu.force_tpu_interpret_mode(
      pltpu.InterpretParams(detect_races=True, uninitialized_memory='nan')
  )


class MosaicTpuTest(accept_suite.AcceptSuite):
  """`implementation='mosaic_tpu'`, interpreted."""

  IMPLEMENTATION = 'mosaic_tpu'
  # Two full tiles (they are narrow here) and a tail; a tail alone is in the tests with 7.
  VOCABULARIES = (300,)

  def setUp(self):
    super().setUp()
    self.enter_context(absltest.mock.patch.object(tpu_rows, 'TILE', 128))
    self.enter_context(interpreter())
    self.calls = self.enter_context(absltest.mock.patch.object(
        pl, 'pallas_call', wraps=pl.pallas_call
    ))

  def op(self, case, rule, *args, **options):
    found = super().op(case, rule, *args, **options)
    key = (rule, case.shape, case.draft is None, str(args[1:]), str(options))
    # A program that was compiled before is not traced again.
    RAN.add(key) if self.calls.called else self.assertIn(key, RAN)
    return found


RAN: set = set()


class TpuTest(parameterized.TestCase):

  def test_a_missing_wait_shows(self):
    """The interpreter copies when it is waited for: a row that nobody waits for is stale, NaN."""
    fetch = tpu_stream.Stream.fetch

    class Unwaited:

      def __init__(self, copy):
        self.start, self.wait = copy.start, lambda: None

    wrong = lambda *args: [Unwaited(copy) for copy in fetch(*args)]
    case = accept_suite.random_case(1, 1, 7)
    right, _ = accept_suite.reference(case, 'rejection', 0)
    self.assertGreater(right[0], 0.0)
    tpu_scan.scan.clear_cache()
    with interpreter(), absltest.mock.patch.object(tpu_stream.Stream, 'fetch', wrong):
      found = accept_lib.accept(
          jnp.asarray(case.target, jnp.float32).reshape(2, 7),
          jnp.asarray(case.tokens, jnp.int32), rule='rejection', numbers=accept_lib.Uniforms(
              jnp.full((1, 1), 0.5), jnp.full((1, 2), 0.5)
          ),
          draft_logits=jnp.asarray(case.draft, jnp.float32).reshape(1, 7),
          sampling=sampling_lib.make(batch_size=1), implementation='mosaic_tpu',
      )
    tpu_scan.scan.clear_cache()
    self.assertEqual(found.accept_probs[0, 0], 0.0)

  @parameterized.parameters('rejection', 'block', 'coupled')
  def test_same_tokens_in_the_engine(self, name):
    self.enter_context(interpreter())
    accept_suite.check_engine(self, name, 'mosaic_tpu')

  def test_not_on_other_devices(self):
    case = accept_suite.random_case(1, 1, 7)
    with self.assertRaisesRegex(ValueError, 'interpret mode'):
      accept_lib.accept(
          jnp.asarray(case.target, jnp.float32).reshape(2, 7),
          jnp.asarray(case.tokens, jnp.int32), rule='greedy',
          sampling=sampling_lib.make(batch_size=1), implementation='mosaic_tpu',
      )

  @parameterized.parameters(
      ('v5e:2x2', 'block', 128_256), ('v5p:2x2x1', 'block', 262_144), ('v6e:2x2', 'block', 151_936),
      ('v5e:2x2', 'rejection', 7), ('v5p:2x2x1', 'rejection', 32_000),
      ('v6e:2x2', 'coupled', 128_256), ('v5e:2x2', 'coupled', 262_144),
      ('v5p:2x2x1', 'coupled', 151_936), ('v6e:2x2', 'greedy', 32_000),
  )
  def test_compiles_for(self, topology, rule, vocab_size):
    """By the TPU's own compiler; no temporary is as wide as the vocabulary times a few rows."""
    batch, size = 8, 8
    of = jax.ShapeDtypeStruct
    numbers = {
        'greedy': None,
        'coupled': accept_lib.Noise(of((batch, 2), jnp.uint32), of((batch, size + 1), jnp.int32)),
    }.get(rule, accept_lib.Uniforms(
        of((batch, size), jnp.float32), of((batch, size + 1), jnp.float32)
    ))
    with_draft = rule in ('rejection', 'block')
    arguments = tpu_ahead.abstract((
        of((batch * (size + 1), vocab_size), jnp.float32),
        of((batch, size), jnp.int32),
        numbers,
        sampling_lib.make(batch_size=batch),
        of((batch * size, vocab_size), jnp.float32) if with_draft else None,
    ), tpu_ahead.devices(topology)[0])
    call = jax.jit(functools.partial(ahead, rule=rule))
    compiled = call.lower(*arguments).compile()
    self.assertIn('tpu_custom_call', compiled.as_text())
    # Scalars, and what crosses between the kernels. One row of the vocabulary of each sequence
    # would be more.
    limit = max(batch * vocab_size * 4, 2**20)
    self.assertLess(compiled.memory_analysis().temp_size_in_bytes, limit)


def ahead(target, tokens, numbers, sampling, draft, *, rule):
  return accept_lib.accept(
      target, tokens, rule=rule, numbers=numbers, sampling=sampling, draft_logits=draft,
      implementation='mosaic_tpu',
  )


if __name__ == '__main__':
  absltest.main()
