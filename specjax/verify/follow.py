"""Greedy and coupled: the target chooses at every row, and the path of its choices is walked."""

from typing import Any

import jax
import jax.numpy as jnp

from specjax import tree
from specjax import types
from specjax.verify import rows as rows_lib

Array = jax.Array


def decide(
    rows: rows_lib.Rows, *, source: Any = None, positions: Array | None = None
) -> types.Verification:
  """Walks from the root to whichever child carries the token that the target chose.

  Args:
    rows: the rows of the round, of a chain or a tree of any kind.
    source: as for `Rows.choose`.
    positions: as for `Rows.choose`.

  Returns:
    The decision; the next token is the target's choice at the last accepted node.
  """
  fused = rows.fused_follow(source, positions)
  if fused is not None:
    return fused
  tokens, log_probs = rows.choose(source, positions)
  verification = follow(tokens, rows.proposal)
  if log_probs is None:
    return verification
  path = jnp.pad(verification.path, ((0, 0), (1, 0)))
  is_emitted = jnp.arange(path.shape[1]) <= verification.num_accepted[:, None]
  emitted = jnp.take_along_axis(log_probs, path, axis=1)
  return verification.replace(log_probs=jnp.where(is_emitted, emitted, 0.0))


def follow(tokens: Array, proposal: types.Proposal) -> types.Verification:
  """The walk of `decide`, given the target's choice [B, N + 1] int32 at every row.

  Of equal siblings the first one counts.
  """
  num_nodes, parents = proposal.num_nodes, proposal.parents
  nodes = jnp.arange(1, num_nodes + 1, dtype=jnp.int32)
  matches = proposal.valid & (proposal.tokens == jnp.take_along_axis(tokens, parents, axis=1))
  same_parent = parents[:, :, None] == parents[:, None, :]
  earlier = nodes[:, None] > nodes
  matches &= ~jnp.any(same_parent & earlier & matches[:, None, :], axis=-1)
  reached = tree.reached_nodes(matches, parents)
  # At most one child of each node matches, so the nodes reached are one path, numbered downwards.
  # Nodes 1, 3, 4 of 5 have ranks 1 1 2 3 3 and give the path 1 3 4 0 0.
  rank = jnp.sum(reached[:, None, :] & (nodes <= nodes[:, None]), axis=-1)
  here = reached[:, None, :] & (rank[:, None, :] == nodes[:, None])
  last = jnp.max(jnp.where(reached, nodes, 0), axis=1, initial=0)
  has_child = jnp.any(proposal.valid & (parents == last[:, None]), axis=1)
  return types.Verification(
      num_accepted=jnp.sum(reached, axis=1, dtype=jnp.int32),
      path=jnp.sum(jnp.where(here, nodes, 0), axis=-1, dtype=jnp.int32),
      next_token=jnp.take_along_axis(tokens, last[:, None], axis=1)[:, 0],
      is_bonus=~has_child,
      accept_probs=matches.astype(jnp.float32),
  )
