"""The acceptance op over a sharded vocabulary: eight CPU devices equal one, and a TPU's text."""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from specjax import sampling as sampling_lib
from specjax.kernels import accept as accept_lib
from specjax.kernels.accept import base
from tests.support import accept_on_eight
from tests.support import tpu_ahead


class TestSharded:

  @pytest.mark.parametrize('function, message', [
      # Decisions exactly, log-probabilities to an ulp or two, for all rules and settings.
      ('compare_with_one_device', 'eight equal one'),
      ('compare_block_engines', 'engines agree'),
      ('compare_coupled_engines', 'engines agree'),
  ])
  def test_eight_devices_equal_one(self, function, message):
    environment = dict(os.environ, JAX_NUM_CPU_DEVICES='8', JAX_PLATFORMS='cpu')
    found = subprocess.run(
        [sys.executable, '-m', 'tests.support.accept_on_eight', function],
        env=environment, capture_output=True, text=True, check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert message in found.stdout

  def test_what_does_not_split_is_refused(self):
    split = accept_lib.Split(AbstractMesh((2, 8), ('data', 'model')), 'model', 'data')
    assert split.refusal(batch_size=2, vocab_size=128_256) is None
    assert 'does not split into 8' in split.refusal(batch_size=2, vocab_size=128_250)
    assert '3 sequences' in split.refusal(batch_size=3, vocab_size=128_256)
    with pytest.raises(ValueError, match='decided by xla on every shard'):
      accept_lib.accept(
          jnp.zeros((4, 640)), jnp.zeros((2, 1), jnp.int32), rule='greedy',
          sampling=sampling_lib.make(batch_size=2), split=split, implementation='mosaic_tpu',
      )

  @pytest.mark.parametrize('rule', ['rejection', 'block', 'coupled'])
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
        accept_on_eight.call, rule=rule, split=accept_lib.Split(mesh, 'model')
    )).lower(
        array((batch * (size + 1), vocab_size), jnp.float32, None, 'model'),
        array((batch, size), jnp.int32), numbers, sampling,
        array((batch * size, vocab_size), jnp.float32, None, 'model'),
    ).compile().as_text()
    sizes = collective_sizes(text)
    tiles = vocab_size // base.tile_size(vocab_size)
    assert sizes
    # All rows' masses at once is the most that is gathered.
    assert max(sizes) <= batch * (2 * size + 1) * tiles
    assert max(sizes) < vocab_size // 8


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
