"""The acceptance op's GPU kernels: interpreted on CPU, and lowered for an H100.

What lowers may still fail to compile or run; `scripts/check_accept_gpu.py` is for the hardware.
"""

from unittest import mock

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh
import pytest

from specjax.kernels.accept import mosaic_gpu
from tests.support import accept_suite

pytestmark = pytest.mark.usefixtures('compiled_fast')
H100 = AbstractMesh((), (), abstract_device=AbstractDevice(
    device_kind='NVIDIA H100 80GB HBM3', num_cores=132, platform='cuda'
))
HAS_INTERPRETER = hasattr(plgpu, 'InterpretGPUParams')  # from JAX 0.12 on


if HAS_INTERPRETER:

  class TestMosaicGpu(accept_suite.AcceptSuite):
    """`implementation='mosaic_gpu'`, interpreted, with races looked for."""

    IMPLEMENTATION = 'mosaic_gpu'
    # Three blocks, the last one begins inside the second; tests with 7 fill one up.
    VOCABULARIES = (1100,)

    @pytest.fixture(autouse=True)
    def interpreted(self):
      with (
          mock.patch.object(mosaic_gpu, 'BLOCK', 512),
          plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)),
          mock.patch.object(mosaic_gpu.plgpu, 'kernel', wraps=plgpu.kernel) as self.calls,
      ):
        yield

    def op(self, case, rule, *args, **options):
      found = super().op(case, rule, *args, **options)
      given = {name: value for name, value in options.items() if value}  # not what is default
      key = (rule, case.shape, case.draft is None, str(given))
      # A program that was compiled before is not traced again.
      assert self.calls.called or key in RAN
      RAN.add(key)
      return found

    @pytest.mark.parametrize('name', ['rejection', 'block', 'coupled'])
    def test_same_tokens_in_the_engine(self, name):
      accept_suite.check_engine(name, 'mosaic_gpu')
      assert self.calls.called


RAN: set = set()


class TestGpu:

  @pytest.mark.parametrize('rule', ('rejection', 'block', 'coupled', 'greedy'))
  @pytest.mark.parametrize('vocab_size', (128_256, 50_257))
  @pytest.mark.parametrize('dtype', ('float32', 'bfloat16'))
  def test_lowers_for_an_h100(self, rule, vocab_size, dtype):
    shapes = accept_suite.shapes(rule, batch=2, size=4, vocab_size=vocab_size, dtype=dtype)
    call = accept_suite.caller(rule, 'mosaic_gpu')
    with jax.sharding.use_abstract_mesh(H100):
      lowered = call.trace(*shapes).lower(lowering_platforms=('cuda',))
    assert 'mosaic_gpu' in lowered.as_text()
