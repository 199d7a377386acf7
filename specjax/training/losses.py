"""Losses of language models and of drafts distilled from a target."""

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def cross_entropy(logits: Array, tokens: Array) -> Array:
  """Mean negative log-likelihood in nats.

  Args:
    logits: [B, T, V] of the next token at each position.
    tokens: [B, T] int32, the tokens that came.

  Returns:
    A float32 scalar.
  """
  logits = logits.astype(jnp.float32)
  return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()


def forward_kl(target_logits: Array, draft_logits: Array) -> Array:
  """Mean KL(target || draft) in nats (Hinton et al. 2015, at temperature 1).

  Args:
    target_logits: [B, T, V].
    draft_logits: [B, T, V].

  Returns:
    A float32 scalar, 0 exactly when both laws agree everywhere.
  """
  target = jax.nn.log_softmax(target_logits.astype(jnp.float32))
  draft = jax.nn.log_softmax(draft_logits.astype(jnp.float32))
  return jnp.sum(jnp.exp(target) * (target - draft), axis=-1).mean()


def acceptance(target_logits: Array, draft_logits: Array) -> Array:
  """Mean probability that one drafted token is accepted: 1 - total variation.

  Leviathan et al. 2022, corollary 3.6, at temperature 1.

  Args:
    target_logits: [B, T, V].
    draft_logits: [B, T, V].

  Returns:
    A float32 scalar in [0, 1].
  """
  target = jax.nn.softmax(target_logits.astype(jnp.float32))
  draft = jax.nn.softmax(draft_logits.astype(jnp.float32))
  return jnp.minimum(target, draft).sum(-1).mean()
