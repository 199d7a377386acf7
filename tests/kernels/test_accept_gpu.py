"""The acceptance op's GPU kernels: interpreted on CPU, and lowered for an H100.

What lowers may still fail to compile or run; `scripts/check_accept_gpu.py` is for the hardware.
"""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh
import pytest

from specjax import sampling as sampling_lib
from specjax.kernels import accept as accept_lib
from specjax.kernels.accept import mosaic_gpu
from tests.support import accept_suite

pytestmark = pytest.mark.usefixtures('compiled_fast')
H100 = AbstractMesh((), (), abstract_device=AbstractDevice(
    device_kind='NVIDIA H100 80GB HBM3', num_cores=132, platform='cuda'
))
HAS_INTERPRETER = hasattr(plgpu, 'InterpretGPUParams')  # from JAX 0.12 on


if HAS_INTERPRETER:

  class MosaicGpuTest(accept_suite.AcceptSuite):
    """`implementation='mosaic_gpu'`, interpreted, with races looked for."""

    IMPLEMENTATION = 'mosaic_gpu'
    # Three blocks, the last one begins inside the second; tests with 7 fill one up.
    VOCABULARIES = (1100,)

    def setUp(self):
      super().setUp()
      self.enter_context(absltest.mock.patch.object(mosaic_gpu, 'BLOCK', 512))
      self.enter_context(plgpu.force_gpu_interpret_mode(
          plgpu.InterpretGPUParams(detect_races=True)
      ))
      self.calls = self.enter_context(absltest.mock.patch.object(
          mosaic_gpu.plgpu, 'kernel', wraps=plgpu.kernel
      ))

    def op(self, case, rule, *args, **options):
      found = super().op(case, rule, *args, **options)
      key = (rule, case.shape, case.draft is None, str(options))
      # A program that was compiled before is not traced again.
      RAN.add(key) if self.calls.called else self.assertIn(key, RAN)
      return found

    @parameterized.parameters('rejection', 'block', 'coupled')
    def test_same_tokens_in_the_engine(self, name):
      accept_suite.check_engine(self, name, 'mosaic_gpu')
      self.assertTrue(self.calls.called)


RAN: set = set()


class GpuTest(parameterized.TestCase):

  @parameterized.product(
      rule=('rejection', 'block', 'coupled', 'greedy'), vocab_size=(128_256, 50_257),
      dtype=('float32', 'bfloat16'),
  )
  def test_lowers_for_an_h100(self, rule, vocab_size, dtype):
    batch, size = 2, 4
    of = jax.ShapeDtypeStruct
    numbers = {
        'greedy': None,
        'coupled': accept_lib.Noise(of((batch, 2), jnp.uint32), of((batch, size + 1), jnp.int32)),
    }.get(rule, accept_lib.Uniforms(
        of((batch, size), jnp.float32), of((batch, size + 1), jnp.float32)
    ))
    with_draft = rule in ('rejection', 'block')
    with jax.sharding.use_abstract_mesh(H100):
      lowered = jax.jit(functools.partial(ahead, rule=rule)).trace(
          of((batch * (size + 1), vocab_size), jnp.dtype(dtype)),
          of((batch, size), jnp.int32),
          numbers,
          sampling_lib.make(batch_size=batch),
          of((batch * size, vocab_size), jnp.dtype(dtype)) if with_draft else None,
      ).lower(lowering_platforms=('cuda',))
    self.assertIn('mosaic_gpu', lowered.as_text())


def ahead(target, tokens, numbers, sampling, draft, *, rule):
  return accept_lib.accept(
      target, tokens, rule=rule, numbers=numbers, sampling=sampling, draft_logits=draft,
      implementation='mosaic_gpu',
  )


if __name__ == '__main__':
  absltest.main()
