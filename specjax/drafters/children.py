"""The children of tree nodes: which tokens, and by which law they count as drawn."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specjax import randomness
from specjax import sampling as sampling_lib
from specjax import types

Array = jax.Array

RANK, WITH_REPLACEMENT, WITHOUT_REPLACEMENT = 'rank', 'with_replacement', 'without_replacement'
SIBLINGS = (RANK, WITH_REPLACEMENT, WITHOUT_REPLACEMENT)


class Children(NamedTuple):
  """The children of a level's rows.

  Attributes:
    tokens: [B, W, k] int32.
    scores: [B, W, k] float32, log-probability of each given its parent; -inf is no child.
    law: [B, W, V] float32, or None.
    sampler: advanced.
  """

  tokens: Array
  scores: Array
  law: Array | None
  sampler: Any


def of_rows(
    sampler, logits: Array, path: Array, positions: Array, counts: np.ndarray, first: int, how: str
) -> Children:
  """Children of W rows.

  Args:
    sampler: the context's.
    logits: [B, W, V] raw.
    path: [B, W, d] int32, tokens from the root's child on to the row itself.
    positions: [B] int32, the absolute position that the children take.
    counts: [W] numpy, how many of the k children each row has.
    first: the node number of the first child; only where they are drawn.
    how: a kind of sibling, or `COUPLED`.
  """
  count = int(counts.max())
  controlled, is_empty, top = sampler.control(
      logits, path=path, path_valid=jnp.ones(path.shape, bool)
  )
  # Where a drafter knows of no continuation there are no children.
  is_empty = is_empty[..., None]
  if how == RANK:
    if sampler.mode == 'sample':
      temperature = sampler.sampling.temperature[:, None, None]
      controlled = controlled / jnp.where(temperature > 0, temperature, 1.0)
    scores, tokens = jax.lax.top_k(jax.nn.log_softmax(controlled), count)
    return Children(tokens, jnp.where(is_empty, -jnp.inf, scores), None, sampler)
  if how == types.COUPLED:
    values = sampling_lib.scaled(controlled, sampler.sampling, top=top)
    noise = sampler.source.gumbel(positions, values.shape[-1])
    scores, tokens = jax.lax.top_k(jax.nn.log_softmax(values + noise[:, None]), count)
    law = None
    if sampler.keep_law:
      law = sampling_lib.law(controlled, sampler.sampling, top=top)
    children = Children(tokens, scores, law, sampler)
  else:
    law = sampling_lib.law(controlled, sampler.sampling, top=top)
    children = _draw(sampler, law, counts, first, with_replacement=how == WITH_REPLACEMENT)
  return children._replace(
      scores=jnp.where(is_empty, -jnp.inf, children.scores),
      law=None if law is None else jnp.where(is_empty, -jnp.inf, law),
  )


def _draw(sampler, law: Array, counts, first: int, *, with_replacement: bool) -> Children:
  """Draws the children of all rows, the first of every row first; arguments as above."""
  batch, num_rows, vocab_size = law.shape
  starts = first + np.cumsum(counts) - counts
  tokens = jnp.zeros((batch, num_rows, int(counts.max())), jnp.int32)
  scores = jnp.full(tokens.shape, -jnp.inf)
  source, left = sampler.source, law
  for rank in range(tokens.shape[2]):
    rows = np.flatnonzero(counts > rank)
    remaining = left[:, rows]
    # A law of two tokens has no third sibling. That depends on the law alone, not on what
    # was drawn; something is drawn all the same, and is not valid.
    is_empty = jnp.max(remaining, axis=-1) == -jnp.inf
    remaining = jnp.where(is_empty[..., None], law[:, rows], remaining)
    nodes = starts[rows] + rank
    drawn, source = source.draw(remaining, purpose=randomness.DRAFT, node=nodes)
    score = jnp.take_along_axis(law[:, rows], drawn[..., None], axis=-1)[..., 0]
    tokens = tokens.at[:, rows, rank].set(drawn)
    scores = scores.at[:, rows, rank].set(jnp.where(is_empty, -jnp.inf, score))
    if not with_replacement:
      is_drawn = jnp.arange(vocab_size) == drawn[..., None]
      left = left.at[:, rows].set(jnp.where(is_drawn, -jnp.inf, left[:, rows]))
  return Children(tokens, scores, law, sampler.replace(source=source))


def kind_of(how: str, most_children: int) -> str:
  """The kind of draft law; a draw without siblings is an independent one."""
  if how == WITHOUT_REPLACEMENT:
    return types.WITHOUT_REPLACEMENT if most_children > 1 else types.SAMPLED
  return {RANK: types.ONE_HOT, WITH_REPLACEMENT: types.SAMPLED}.get(how, how)
