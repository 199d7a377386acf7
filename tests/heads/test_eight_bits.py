"""Heads stored in eight bits: what comes back, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from specjax import heads
from specjax import models
from specjax.models import quantization
from tests.support import tiny
from tests.support import tiny_heads


@pytest.fixture(scope='module')
def target():
  config = models.TransformerConfig(
      vocab_size=11, width=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_width=8
  )
  return models.LanguageModel(models.Transformer(config), {})


def some_heads() -> heads.Medusa:
  config = heads.MedusaConfig(
      num_heads=2, num_layers=1, target_width=8, target_vocab_size=11, target_layers=1
  )
  module = heads.MedusaHeads(config, jnp.float32, jnp.float32)
  params = module.init(jax.random.key(0), jnp.zeros((1, 8)))['params']
  noise = lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape)
  return heads.Medusa(module, jax.tree.map(noise, params))


@pytest.mark.parametrize('layout', heads.MEDUSA_LAYOUTS)
def test_weights_come_back_rounded_to_a_level_of_their_output_and_biases_exactly(
    layout, target, tmp_path
):
  made = some_heads()
  heads.save_medusa(made, tmp_path / 'heads', layout=layout, int8=True)
  again = heads.load_medusa(tmp_path / 'heads', target)
  assert again.config == made.config and again.module.dtype == jnp.float32
  np.testing.assert_array_equal(again.params['bias'], made.params['bias'])
  for name in ('blocks', 'head'):
    expected = quantization.dequantize(quantization.quantize(made.params[name]))
    np.testing.assert_array_equal(again.params[name], expected)
  halves = heads.load_medusa(tmp_path / 'heads', target, dtype=jnp.bfloat16)
  assert halves.params['head'].dtype == halves.module.dtype == jnp.bfloat16


@pytest.mark.parametrize('change', ['missing', 'per tensor'])
def test_eight_bits_without_a_scale_per_output_are_refused(change, target, tmp_path):
  heads.save_medusa(some_heads(), tmp_path / 'heads', int8=True)
  path = tmp_path / 'heads' / 'medusa_lm_head.safetensors'
  tensors = safetensors.load_file(path)
  assert tensors['1.1.weight'].dtype == np.int8
  scales = tensors.pop('1.1.weight_scale')
  if change == 'per tensor':
    tensors['1.1.weight_scale'] = scales[:1]
  safetensors.save_file(tensors, path)
  with pytest.raises(ValueError, match=r'1\.1\.weight is int8 and needs 1\.1\.weight_scale of'):
    heads.load_medusa(tmp_path / 'heads', target)


def test_scales_of_weights_that_need_none_are_unexpected(target, tmp_path):
  heads.save_medusa(some_heads(), tmp_path / 'heads')
  path = tmp_path / 'heads' / 'medusa_lm_head.safetensors'
  tensors = safetensors.load_file(path)
  tensors['1.1.weight_scale'] = np.ones((11, 1), np.float32)
  safetensors.save_file(tensors, path)
  with pytest.raises(ValueError, match=r'unexpected: 1\.1\.weight_scale'):
    heads.load_medusa(tmp_path / 'heads', target)


@pytest.mark.parametrize('kind', ['eagle', 'early_exit'])
def test_other_heads_take_half_of_the_file_and_round_weights_alone(kind, tmp_path):
  made = tiny_heads.head(vocab_size=32) if kind == 'eagle' else tiny_heads.adapter()
  save, load = getattr(heads, f'save_{kind}'), getattr(heads, f'load_{kind}')
  save(made, tmp_path / 'small', dtype=jnp.bfloat16, int8=True)
  save(made, tmp_path / 'large', dtype=jnp.bfloat16)
  size = lambda name: (tmp_path / name / 'model.safetensors').stat().st_size
  assert size('small') < 0.75 * size('large')  # scales and maps weigh more in small ones
  again = load(tmp_path / 'small', tiny.target())
  assert again.config == made.config
  rows = lambda x: np.asarray(x, np.float32)
  for path, value in jax.tree_util.tree_leaves_with_path(made.params):
    found = rows(dict(jax.tree_util.tree_leaves_with_path(again.params))[path])
    # A level is a 127th of the largest weight of an output; norms have their own dtype.
    error, largest = np.abs(found - rows(value)).max(), np.abs(rows(value)).max()
    assert error <= largest / (2 * 127) + largest * 2.0**-8, path
