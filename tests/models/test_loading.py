"""Parts of parameters, read from the tensors they are stored as; and weights of eight bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import models
from specjax.models import layers
from specjax.models import quantization
from specjax.models.hf import tensors as hf_tensors
from specjax.models.hf import weights as hf
from tests.support import tiny
from tests.support import tolerance

SHAPE = dict(num_heads=8, num_kv_heads=2, head_dim=4, qkv_bias=True)


logits = jax.jit(lambda model, tokens: model(tokens).logits)


@pytest.mark.parametrize('repeats', [1, 2, 4])
def test_any_part_of_any_parameter_is_read_as_it_is_in_the_whole(repeats):
  config = models.TransformerConfig(
      vocab_size=6, width=8, num_layers=1, mlp_width=12, kv_repeats=repeats, **SHAPE
  )
  rng = np.random.default_rng(repeats)
  for parameter in hf.table(config):
    stored = [rng.normal(size=part.shape).astype(np.float32) for part in parameter.parts]
    value = hf_tensors.read(parameter, stored, np.float32)
    for part, tensor in zip(parameter.parts, stored):
      np.testing.assert_array_equal(hf_tensors.stored_value(value, part), tensor)
    for _ in range(20):
      index = tuple(
          slice(*sorted(rng.choice(size + 1, 2, replace=False))) for size in parameter.shape
      )
      np.testing.assert_array_equal(
          hf_tensors.read(parameter, stored, np.float32, index), value[index], str(parameter.path)
      )


def test_repeated_heads_compute_the_same():
  model = tiny.model(0, num_layers=2, num_heads=8, num_kv_heads=2)
  from specjax.models import placement

  config = model.module.config
  config = type(config)(**{**config.__dict__, 'kv_repeats': 4})
  params = placement.repeat_heads(model.params, config)
  repeated = models.LanguageModel(model.module.clone(config=config), params)
  tokens = jnp.arange(24).reshape(2, 12) % tiny.VOCAB
  assert params['layer_0']['attention']['qkv'].shape[:2] == (8, 3)
  wanted = logits(model, tokens)
  tolerated = tolerance.of_logits(
      model.module.config, size=tolerance.largest(wanted), positions=12
  )
  tolerance.assert_close(logits(repeated, tokens), wanted, tolerated)


def test_quantised_entries_are_off_by_half_a_level_and_zero_rows_stay():
  weight = jax.random.normal(jax.random.key(0), (3, 5, 64)).at[1, 2].set(0.0)
  quantized = quantization.quantize(weight)
  error = jnp.abs(quantization.dequantize(quantized) - weight)
  largest = jnp.abs(weight).max(-1, keepdims=True)
  assert quantized.values.dtype == jnp.int8
  assert (error <= largest / 254 * 1.001).all() and (error[1, 2] == 0).all()
  x = jax.random.normal(jax.random.key(1), (2, 64))
  for split in (False, True):
    rounded = quantization.dequantize(quantized)
    sizes = jnp.einsum('bx,...x->b...', jnp.abs(x), jnp.abs(rounded))
    tolerance.assert_close(
        layers.dense(x, quantized, split=split), layers.dense(x, rounded),
        tolerance.of_sum(64, size=tolerance.largest(sizes)),
    )


def test_a_quantised_model_is_the_model_of_its_rounded_weights(tmp_path):
  models.save_hf(tiny.model(0), tmp_path / 'model')
  quantised = models.load_hf(tmp_path / 'model', int8=True)
  is_leaf = lambda x: isinstance(x, quantization.Quantized)
  rounded = jax.tree.map(
      lambda x: quantization.dequantize(x) if is_leaf(x) else x, quantised.params, is_leaf=is_leaf
  )
  tokens = jnp.arange(24).reshape(2, 12) % tiny.VOCAB
  wanted = logits(quantised.replace(params=rounded), tokens)
  # A term of a sum is rounded when it is added, when it is multiplied, and here or there when its
  # weight is scaled: before the sum, or after it.
  tolerated = tolerance.of_logits(
      quantised.module.config, size=tolerance.largest(wanted), positions=12, per_term=3
  )
  tolerance.assert_close(logits(quantised, tokens), wanted, tolerated)
  assert quantised.params['layer_0']['mlp']['down'].values.dtype == jnp.int8
  assert quantised.params['embedding'].dtype == jnp.float32


def test_speculation_is_lossless_with_respect_to_the_quantised_target(tmp_path):
  import specjax

  model = tiny.model(0, num_layers=1)
  models.save_hf(model, tmp_path / 'model')
  target = models.load_hf(tmp_path / 'model', int8=True)
  drafter = specjax.drafters.model(model, num_speculative_tokens=3)
  options = dict(max_new_tokens=16, width=4, prefill_chunk=16, cache_length=48)
  plain = specjax.decode(target, tiny.PROMPTS[:1], **options)
  drafted = specjax.generate(target, tiny.PROMPTS[:1], drafter=drafter, **options)
  np.testing.assert_array_equal(drafted.tokens, plain.tokens)
  assert drafted.target_passes < plain.target_passes
