"""Divergences over a large vocabulary, a part of it at a time.

With 128k tokens the logits [B, T, V] of a target and a draft take gigabytes in float32. Here
they are made from hidden states and output heads in parts of the vocabulary, forwards and
again backwards, so that no array is larger than [B, T, V / num_chunks].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

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


def compare(target: Side, draft: Side, *, kind: str, num_chunks: int) -> Comparison:
  """Compares two laws at every position without their logits ever being whole.

  Two passes: the first finds both normalisers, the second sums the divergence's terms.

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
  if num_chunks < 1 or vocab_size % num_chunks:
    raise ValueError(
        f'num_chunks={num_chunks} does not divide the vocabulary of {vocab_size} tokens; '
        'choose a divisor.'
    )
  target = jax.tree.map(jax.lax.stop_gradient, target)
  size = vocab_size // num_chunks
  parts = tuple(
      side.kernel.reshape(num_chunks, size, side.kernel.shape[-1]) for side in (target, draft)
  )
  offsets = jnp.arange(num_chunks, dtype=jnp.int32) * size
  logits = functools.partial(_logits, (target, draft))

  @jax.checkpoint
  def first(carry, part):
    offset, *kernels = part
    return tuple(_extend(c, x, offset) for c, x in zip(carry, logits(kernels))), None

  shape = target.hidden.shape[:-1]
  start = (jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros(shape, jnp.int32))
  seen, _ = jax.lax.scan(first, (start, start), (offsets, *parts))
  norms = tuple(top + jnp.log(total) for top, total, _ in seen)

  @jax.checkpoint
  def second(carry, kernels):
    laws = [x - norm[..., None] for x, norm in zip(logits(kernels), norms)]
    overlap = jnp.exp(jnp.minimum(*jax.lax.stop_gradient(laws))).sum(-1)
    return (carry[0] + losses.TERMS[kind](*laws).sum(-1), carry[1] + overlap), None

  zeros = jnp.zeros(shape)
  (total, overlap), _ = jax.lax.scan(second, (zeros, zeros), parts)
  return Comparison(losses.finish(kind, total), overlap, seen[0][2] == seen[1][2])


def _logits(sides: tuple[Side, Side], kernels) -> list[Array]:
  """Both sides' logits [..., V / n] float32 of a part of the vocabulary."""
  return [
      layers.soft_cap(layers.dense(side.hidden, kernel, jnp.float32), side.soft_cap)
      for side, kernel in zip(sides, kernels)
  ]


def _extend(carry, logits: Array, offset: Array):
  """Largest logit, sum of exponentials beside it, and where it is, with a part more."""
  top, total, where = carry
  here = jax.lax.stop_gradient(logits.max(-1))
  new_top = jnp.maximum(top, here)
  total = total * jnp.exp(top - new_top) + jnp.exp(logits - new_top[..., None]).sum(-1)
  where = jnp.where(here > top, offset + logits.argmax(-1).astype(jnp.int32), where)
  return new_top, total, where
