"""Best-first trees: of all paths the most probable ones (DDTree, 2604.12989, algorithm 1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from specjax import types

Array = jax.Array


class _Heap(NamedTuple):
  """Candidates, at most two more than there are nodes; [B, C] each.

  Attributes:
    scores: float32, joint log-probability; -inf where a candidate is none, or was taken.
    depths: int32, from 0 on: which law the token is of.
    ranks: int32, which of its tokens.
    parents: int32, node number; 0 is the root.
    bases: float32, the parent's joint log-probability.
  """

  scores: Array
  depths: Array
  ranks: Array
  parents: Array
  bases: Array


def proposal(
    tokens: Array, scores: Array, law: Array | None, *, num_nodes: int, kind: str
) -> types.Proposal:
  """The N nodes with the largest sums of scores along their paths.

  The best candidate becomes a node and brings two more: its next sibling, and its first child.

  Args:
    tokens: [B, D, k] int32, of every depth, in falling order of their scores.
    scores: [B, D, k] float32, at most 0; -inf is no token.
    law: [B, D, V] float32, which the tokens count as drawn from, or None.
    num_nodes: N.
    kind: of law, as in `specjax.types.Proposal`.
  """
  batch, depth, width = scores.shape
  rows = jnp.arange(batch)
  size = 2 * num_nodes + 1
  score_of = lambda level, rank: jnp.where(
      (level < depth) & (rank < width),
      scores[rows, jnp.minimum(level, depth - 1), jnp.minimum(rank, width - 1)],
      -jnp.inf,
  )
  zeros = jnp.zeros((batch, size), jnp.int32)
  empty = jnp.full((batch, size), -jnp.inf)
  heap = _Heap(empty.at[:, 0].set(scores[:, 0, 0]), zeros, zeros, zeros, jnp.zeros((batch, size)))
  nodes = jnp.zeros((batch, num_nodes), jnp.int32)
  # Token, parent, depth and whether there is such a node.
  found = (nodes, nodes, nodes, jnp.zeros((batch, num_nodes), bool))

  def take(node, carry):
    heap, found = carry
    best = jnp.argmax(heap.scores, axis=1)
    score, level, rank, parent, base = (each[rows, best] for each in heap)
    is_node = score > -jnp.inf
    values = (tokens[rows, level, rank], parent, level, is_node)
    found = tuple(buffer.at[:, node].set(value) for buffer, value in zip(found, values))
    sibling = (base + score_of(level, rank + 1), level, rank + 1, parent, base)
    child = (score + score_of(level + 1, 0 * rank), level + 1, 0 * rank, 0 * rank + node + 1, score)
    heap = heap._replace(scores=heap.scores.at[rows, best].set(-jnp.inf))
    for place, candidate in ((2 * node + 1, sibling), (2 * node + 2, child)):
      alive = (jnp.where(is_node, candidate[0], -jnp.inf), *candidate[1:])
      heap = _Heap(*(buffer.at[:, place].set(each) for buffer, each in zip(heap, alive)))
    return heap, found

  _, (chosen, parents, levels, valid) = jax.lax.fori_loop(0, num_nodes, take, (heap, found))
  return types.Proposal(
      tokens=chosen, parents=parents, valid=valid, law=law, rows=levels, kind=kind
  )
