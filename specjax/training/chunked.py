"""Divergences over a large vocabulary, a part of it at a time.

With 128k tokens the logits [B, T, V] of a target and a draft take gigabytes in float32. Here
they are made from hidden states and output heads in parts of the vocabulary, forwards and
again backwards, so that no array is larger than [B, T, V / num_chunks].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from specjax.heads import target as target_lib
from specjax.models import LanguageModel
from specjax.models import layers
from specjax.training import losses

Array = jax.Array


class Side(NamedTuple):
  """A law before its logits are made.

  Attributes:
    hidden: [..., width], what the output head multiplies.
    kernel: [V, width], the output head.
    soft_cap: bound on logits, or None.
  """

  hidden: Array
  kernel: Array
  soft_cap: float | None = None


class Comparison(NamedTuple):
  """What `compare` returns; each is [...] float32 but `agrees`.

  Attributes:
    divergence: of the draft from the target.
    acceptance: 1 - total variation.
    agrees: [...] bool, whether the most likely tokens are the same.
  """

  divergence: Array
  acceptance: Array
  agrees: Array


def side_of(model: LanguageModel, stream: Array, tokens: Array | None = None) -> Side:
  """The law of a language model from its last residual stream [..., width].

  Args:
    model: the model.
    stream: [..., width], before the final norm.
    tokens: [V'] int32, the part of the vocabulary that the law is renormalised to; None is
      all of it.
  """
  kernel = target_lib.head_kernel(model)
  if tokens is not None:
    kernel = kernel[tokens]
  cap = model.module.config.logit_soft_cap
  return Side(target_lib.final_norm(model, stream), kernel, cap)


def cross_entropy(side: Side, tokens: Array, *, num_chunks: int) -> Array:
  """Negative log-likelihood in nats of `tokens` [...] at every position, [...] float32.

  Args:
    side: the law.
    tokens: [...] int32, the tokens that came.
    num_chunks: as for `compare`.

  Raises:
    ValueError: for parts of unequal size.
  """
  parts = _parts(side.kernel, num_chunks)
  if num_chunks == 1:
    logits = _logits(side, side.kernel)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens)

  @jax.checkpoint
  def add(carry, kernel):
    return _extend(carry, _logits(side, kernel), 0), None

  (top, total, _), _ = jax.lax.scan(add, _nothing(side), parts)
  product = side.hidden.astype(jnp.float32) * side.kernel[tokens].astype(jnp.float32)
  chosen = layers.soft_cap(product.sum(-1), side.soft_cap)
  return top + jnp.log(total) - chosen


def compare(target: Side, draft: Side, *, kind: str, num_chunks: int) -> Comparison:
  """Compares two laws at every position, without their logits ever being whole.

  Two passes: the first finds both normalisers, the second sums the divergence's terms. With
  one chunk the logits are made as they are, which is faster where they are small.

  Args:
    target: the target; no gradient flows into it.
    draft: the draft, over the same vocabulary.
    kind: of `specjax.training.losses.TERMS`.
    num_chunks: parts of the vocabulary; must divide its size.

  Returns:
    A `Comparison`, equal to that of whole logits but for rounding.

  Raises:
    ValueError: for an unknown kind, another vocabulary, or parts of unequal size.
  """
  losses.check_kind(kind)
  vocab_size = target.kernel.shape[0]
  if draft.kernel.shape[0] != vocab_size:
    raise ValueError(
        f'Target and draft must share a vocabulary, got {vocab_size} and '
        f'{draft.kernel.shape[0]} tokens.'
    )
  target = jax.tree.map(jax.lax.stop_gradient, target)
  sides = target, draft
  parts = tuple(_parts(side.kernel, num_chunks) for side in sides)
  if num_chunks == 1:
    return _compare_whole(*(_logits(side, side.kernel) for side in sides), kind)
  offsets = jnp.arange(num_chunks, dtype=jnp.int32) * parts[0].shape[1]
  logits = lambda kernels: [_logits(*each) for each in zip(sides, kernels)]

  @jax.checkpoint
  def first(carry, part):
    offset, *kernels = part
    return tuple(_extend(c, x, offset) for c, x in zip(carry, logits(kernels))), None

  start = _nothing(target)
  seen, _ = jax.lax.scan(first, (start, start), (offsets, *parts))
  norms = tuple(top + jnp.log(total) for top, total, _ in seen)

  @jax.checkpoint
  def second(carry, kernels):
    laws = [x - norm[..., None] for x, norm in zip(logits(kernels), norms)]
    overlap = jnp.exp(jnp.minimum(*jax.lax.stop_gradient(laws))).sum(-1)
    return (carry[0] + losses.TERMS[kind](*laws).sum(-1), carry[1] + overlap), None

  zeros = jnp.zeros(target.hidden.shape[:-1])
  (total, overlap), _ = jax.lax.scan(second, (zeros, zeros), parts)
  return Comparison(losses.finish(kind, total), overlap, seen[0][2] == seen[1][2])


def _compare_whole(goal: Array, logits: Array, kind: str) -> Comparison:
  fixed = jax.lax.stop_gradient(logits)
  return Comparison(
      divergence=losses.divergence(goal, logits, kind=kind),
      acceptance=1.0 - losses.divergence(goal, fixed, kind='total_variation'),
      agrees=goal.argmax(-1) == fixed.argmax(-1),
  )


def _parts(kernel: Array, num_chunks: int) -> Array:
  """[n, V / n, width]."""
  vocab_size = kernel.shape[0]
  if num_chunks < 1 or vocab_size % num_chunks:
    raise ValueError(
        f'num_chunks={num_chunks} does not divide the vocabulary of {vocab_size} tokens; '
        'choose a divisor.'
    )
  return kernel.reshape(num_chunks, vocab_size // num_chunks, kernel.shape[-1])


def _logits(side: Side, kernel: Array) -> Array:
  """Logits [..., V / n] float32 of a part of the vocabulary."""
  return layers.soft_cap(layers.dense(side.hidden, kernel, jnp.float32), side.soft_cap)


def _nothing(side: Side):
  """What `_extend` begins with: no logit seen."""
  shape = side.hidden.shape[:-1]
  return jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros(shape, jnp.int32)


def _extend(carry, logits: Array, offset: Array):
  """Largest logit, sum of exponentials beside it, and where it is, with a part more."""
  top, total, where = carry
  here = jax.lax.stop_gradient(logits.max(-1))
  new_top = jnp.maximum(top, here)
  total = total * jnp.exp(top - new_top) + jnp.exp(logits - new_top[..., None]).sum(-1)
  where = jnp.where(here > top, offset + logits.argmax(-1).astype(jnp.int32), where)
  return new_top, total, where
