"""The acceptance op's TPU kernels, interpreted on CPU; see also test_accept_tpu_ahead."""

from unittest import mock

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import pytest

from specjax import sampling as sampling_lib
from specjax.kernels import accept as accept_lib
from specjax.kernels.accept import tpu_fetch
from specjax.kernels.accept import tpu_rows
from specjax.kernels.accept import tpu_scan
from tests.support import accept_suite

pytestmark = pytest.mark.usefixtures('compiled_fast')


def interpreter():
  """The TPU interpreter, which raises where two accesses race; stale memory is NaN."""
  return pltpu.force_tpu_interpret_mode(
      pltpu.InterpretParams(detect_races=True, uninitialized_memory='nan')
  )


class TestMosaicTpu(accept_suite.AcceptSuite):
  """`implementation='mosaic_tpu'`, interpreted."""

  IMPLEMENTATION = 'mosaic_tpu'
  # Two full tiles (they are narrow here) and a tail; a tail alone is in the tests with 7.
  VOCABULARIES = (300,)

  @pytest.fixture(autouse=True)
  def interpreted(self):
    with (
        mock.patch.object(tpu_rows, 'TILE', 128),
        interpreter(),
        mock.patch.object(pl, 'pallas_call', wraps=pl.pallas_call) as self.calls,
    ):
      yield

  def op(self, case, rule, *args, **options):
    found = super().op(case, rule, *args, **options)
    given = {name: value for name, value in options.items() if value}  # not what is default
    key = (rule, case.shape, case.draft is None, str(args[1:]), str(given))
    # A program that was compiled before is not traced again.
    assert self.calls.called or key in RAN
    RAN.add(key)
    return found


RAN: set = set()


class TestTpu:

  def test_a_missing_wait_shows(self):
    """The interpreter copies when it is waited for: a row that nobody waits for is stale, NaN."""
    fetch = tpu_fetch.Stream.fetch

    class Unwaited:

      def __init__(self, copy):
        self.start, self.wait = copy.start, lambda: None

    wrong = lambda *args: [Unwaited(copy) for copy in fetch(*args)]
    case = accept_suite.random_case(1, 1, 7)
    right, _ = accept_suite.reference(case, 'rejection', 0)
    assert right[0] > 0.0
    tpu_scan.scan.clear_cache()
    with interpreter(), mock.patch.object(tpu_fetch.Stream, 'fetch', wrong):
      found = accept_lib.accept(
          jnp.asarray(case.target, jnp.float32).reshape(2, 7),
          jnp.asarray(case.tokens, jnp.int32), rule='rejection', numbers=accept_lib.Uniforms(
              jnp.full((1, 1), 0.5), jnp.full((1, 2), 0.5)
          ),
          draft_logits=jnp.asarray(case.draft, jnp.float32).reshape(1, 7),
          sampling=sampling_lib.make(batch_size=1), implementation='mosaic_tpu',
      )
    tpu_scan.scan.clear_cache()
    assert found.accept_probs[0, 0] == 0.0

  @pytest.mark.parametrize('name', ['rejection', 'block', 'coupled'])
  def test_same_tokens_in_the_engine(self, name):
    with interpreter():
      accept_suite.check_engine(name, 'mosaic_tpu')

  def test_not_on_other_devices(self):
    case = accept_suite.random_case(1, 1, 7)
    with pytest.raises(ValueError, match='interpret mode'):
      accept_lib.accept(
          jnp.asarray(case.target, jnp.float32).reshape(2, 7),
          jnp.asarray(case.tokens, jnp.int32), rule='greedy',
          sampling=sampling_lib.make(batch_size=1), implementation='mosaic_tpu',
      )
