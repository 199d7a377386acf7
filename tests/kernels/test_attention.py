"""Attention kernels over a cache against plain attention, alone and in the engine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax import drafters
from specjax import models
from specjax import verify
from specjax.kernels import attention
from specjax.models import attention as attention_lib

pytestmark = pytest.mark.usefixtures('compiled_fast')
# Before the call; the first row holds nothing.
LENGTHS = np.array([0, 5, 37])
# Node 2 hangs on the root beside node 1, node 3 on node 2.
TREE = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], bool)


@pytest.fixture
def cudnn_in_jnp(monkeypatch):
  """What cuDNN is asked for, answered by JAX's own definition; its kernel needs a GPU."""
  real = jax.nn.dot_product_attention

  def stand_in(*args, implementation, **kwargs):
    assert implementation == 'cudnn'
    return real(*args, implementation='xla', **kwargs)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)


@pytest.mark.parametrize('kind', ['cudnn', 'pallas'])
def test_outputs_are_those_of_plain_attention(kind, cudnn_in_jnp):
  keys = jax.random.split(jax.random.key(0), 3)
  queries = jax.random.normal(keys[0], (3, 4, 2, 2, 16))
  # What lies beyond a row's new slots is large: whoever reads it differs.
  stale = 1e4 * (np.arange(48) >= LENGTHS[:, None] + 4)[:, None, :, None]
  cache = [jax.random.normal(key, (3, 2, 48, 16)) + stale for key in keys[1:]]
  for case, seen, before in (
      ('chain', np.tril(np.ones((4, 4), bool)), 0),
      ('tree', TREE, 0),
      # Its last two nodes, read after the first two.
      ('level', TREE[2:], 2),
      # Padding that sees nothing: its output must be finite.
      ('padded', np.tril(np.ones((4, 4), bool)) & (np.arange(4) < 3)[:, None], 0),
  ):
    slots = LENGTHS[:, None] + np.arange(4)
    # The slots of a tree's first nodes count as new.
    num_new = 4 - before
    mask = np.zeros((3, num_new, 48), bool)
    for row, length in enumerate(LENGTHS):
      mask[row, :, :length] = True
      mask[row, :, length : length + 4] = seen
    found = attention.attend(
        queries[:, :num_new], *cache, mask, jnp.asarray(slots), implementation=kind
    )
    expected = attention_lib.attend(queries[:, :num_new], *cache, mask)
    real = 3 if case == 'padded' else num_new
    np.testing.assert_allclose(found[:, :real], expected[:, :real], atol=1e-5, err_msg=case)
    assert np.isfinite(found).all(), case


@functools.cache
def model(kind: str) -> models.LanguageModel:
  config = models.TransformerConfig(
      vocab_size=8, width=32, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=16, mlp_width=32
  )
  module = models.Transformer(config)
  params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  return models.LanguageModel(module.clone(attention=kind), params)


@pytest.mark.parametrize('kind', ['cudnn', 'pallas'])
def test_speculation_with_a_kernel_gives_plain_tokens(kind, cudnn_in_jnp):
  # The draft is the target: it reads a tree level by level, all of which is right.
  drafter = drafters.model_tree(model(kind), tree=(2, 1))
  options = dict(rule=verify.greedy(), max_new_tokens=9, cache_length=32, prefill_chunk=8)
  prompts = [[3, 1, 4, 1, 5], [7]]
  output = specjax.generate(model(kind), prompts, drafter=drafter, **options)
  plain = specjax.decode(model('xla'), prompts, **options)
  np.testing.assert_array_equal(output.tokens, plain.tokens)
  assert output.draft_acceptance_rate == 0.5 and output.mean_acceptance_length == 3.0


def test_a_cache_for_pallas_splits_evenly_and_others_are_as_asked():
  slots = lambda kind, length: jax.eval_shape(
      lambda: model(kind).init_cache(batch_size=1, cache_length=length, max_append=5)
  ).keys[0].shape[2]
  # Whole lanes of a TPU, for heads are narrow here.
  assert slots('xla', 8192) == slots('cudnn', 8192) == 8320
  assert slots('pallas', 8192) == 10_240 and attention._splits(10_240) == (16, 128)
  assert slots('pallas', 100) == 256 and attention._splits(256) == (16, 16)


@pytest.mark.parametrize('batch, num_new', [(1, 1), (8, 5), (1, 65)])
def test_the_pallas_kernel_lowers_for_a_gpu(batch, num_new, monkeypatch):
  # Of a Llama-3.1-8B, without interpretation.
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  array = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype)
  cache = array(batch, 8, 10_240, 128)
  inputs = (
      array(batch, num_new, 8, 4, 128), cache, cache,
      array(batch, num_new, 10_240, dtype=bool), array(batch, num_new, dtype=jnp.int32),
  )
  device = jax.sharding.AbstractDevice(
      device_kind='NVIDIA H100 80GB HBM3', num_cores=132, platform='cuda'
  )
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  call = jax.jit(functools.partial(attention.attend, implementation='pallas'))
  with jax.sharding.use_abstract_mesh(mesh):
    lowered = call.trace(*inputs).lower(lowering_platforms=('cuda',))
  assert 'triton' in lowered.as_text()


def test_what_a_kernel_does_not_know_is_refused():
  windowed = models.presets.PRESETS['Mistral-7B-v0.1']
  capped = models.presets.PRESETS['Gemma-2-2B']
  for config, message in ((windowed, 'sliding windows'), (capped, 'a soft cap on scores')):
    module = models.Transformer(config, attention='cudnn')
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  cache = jnp.zeros((1, 1, 16, 8))
  with pytest.raises(ValueError, match="one of .*'cudnn'.*got 'triton'"):
    attention.attend(
        jnp.zeros((1, 1, 1, 1, 8)), cache, cache, jnp.ones((1, 1, 16), bool),
        jnp.zeros((1, 1), jnp.int32), implementation='triton',
    )
