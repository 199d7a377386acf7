"""What heads take from their target besides features: its final norm, head and embedding."""

import jax
import jax.numpy as jnp

from specjax.models import layers
from specjax.models import LanguageModel

Array = jax.Array


def final_norm(target: LanguageModel, stream: Array) -> Array:
  """The last residual stream [..., width] after the target's final norm."""
  cfg = target.module.config
  norm = layers.RMSNorm(cfg.norm_epsilon, cfg.norm_offset, target.module.param_dtype)
  return norm.apply({'params': target.params['final_norm']}, stream)


def head_kernel(target: LanguageModel) -> Array:
  """The output head [V, width]; the embedding where the two are tied."""
  return target.params['embedding' if target.module.config.tie_embeddings else 'head']


def logits(target: LanguageModel, stream: Array) -> Array:
  """The target's logits [..., V] float32 of its last residual stream [..., width]."""
  normed = layers.dense(final_norm(target, stream), head_kernel(target), jnp.float32)
  return layers.soft_cap(normed, target.module.config.logit_soft_cap)


def embed(target: LanguageModel, tokens: Array) -> Array:
  """The target's embeddings [..., width] of tokens [...], in its compute dtype."""
  cfg = target.module.config
  embedded = target.params['embedding'][tokens].astype(target.module.dtype)
  if cfg.embedding_scale != 1.0:
    embedded = embedded * jnp.asarray(cfg.embedding_scale, embedded.dtype)
  return embedded


def check_fits(config, target: LanguageModel) -> None:
  """Refuses a head that was not made for a target of this shape.

  Raises:
    ValueError: naming what differs.
  """
  cfg = target.module.config
  for name, mine, its in (
      ('width', config.target_width, cfg.width),
      ('vocabulary', config.target_vocab_size, cfg.vocab_size),
  ):
    if mine != its:
      raise ValueError(
          f'The head is for a target of {name} {mine}, this target has {its}. Use the head '
          'that was made for it.'
      )
  if max(config.feature_layers) > cfg.num_layers:
    raise ValueError(
        f'The head reads layers {config.feature_layers}, the target has {cfg.num_layers}.'
    )
