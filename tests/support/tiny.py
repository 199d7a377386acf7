"""Small random models that the tests of the engine share."""

import functools

import jax
import jax.numpy as jnp

from specjax.models import LanguageModel, Transformer, TransformerConfig

VOCAB = 64
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9], [5] * 14, [3, 4]]


@functools.cache
def model(
    seed: int = 0, num_layers: int = 3, width: int = 48, dtype: str = 'float32', **config
) -> LanguageModel:
  """A random Llama with weights large enough that its argmax is not always one token."""
  config = dict(
      vocab_size=VOCAB, num_heads=4, num_kv_heads=2, head_dim=16, mlp_width=96
  ) | config
  module = Transformer(
      TransformerConfig(num_layers=num_layers, width=width, **config),
      dtype=jnp.dtype(dtype),
      param_dtype=jnp.dtype(dtype),
  )
  params = module.init(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))['params']
  return LanguageModel(module, jax.tree.map(lambda x: x * 2, params))


def target() -> LanguageModel:
  """The target of the engine's tests."""
  return model(0)


def related_draft() -> LanguageModel:
  """A draft that agrees with the target about half of the time: its weights, disturbed."""
  base = model(0)
  leaves, tree = jax.tree.flatten(base.params)
  keys = jax.random.split(jax.random.key(7), len(leaves))
  noisy = [x + 0.12 * x.std() * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
  return LanguageModel(base.module, jax.tree.unflatten(tree, noisy))
