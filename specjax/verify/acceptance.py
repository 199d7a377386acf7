"""What the verification rules share: the walk down a tree, residual laws, and the contract.

A rule is told by the target's law at every row (row r is node r, row 0 the root) how likely
each drafted token was, and decides how many of them stay and which token follows.
"""

from typing import Protocol

import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import sampling as sampling_lib
from specjax import types

Array = jax.Array


class Rule(Protocol):
  """A verification rule: hashable, so that it is static under `jit`.

  Attributes:
    name: as in reports.
    lossless: whether the law of the output is that of plain decoding.
    mode: how drafters and the engine sample: 'greedy' (argmax; rows are controlled logits),
      'sample' (draws of `Source.draw`) or 'coupled' (argmax of law plus shared noise).
    handles_trees: whether proposals may branch; other rules take chains only.
  """

  name: str
  lossless: bool
  mode: str
  handles_trees: bool

  def __call__(
      self,
      *,
      target_law: Array,
      proposal: types.Proposal,
      positions: Array,
      source: types.Source,
  ) -> tuple[types.Verification, types.Source]:
    """Decides one round.

    Args:
      target_law: [B, N + 1, V] float32, the target's law at every row (log-probabilities; but
        for a constant a row in mode 'coupled', where noise is added and the argmax taken, and
        in mode 'greedy' the controlled logits, whose argmax is all that is needed).
      proposal: what was drafted; N = 0 is plain decoding. `valid` is as the engine leaves it: a
        prefix in a chain, and what is below an invalid node is invalid. Laws of invalid nodes,
        and rows of `target_law` whose children are invalid, may hold NaN.
      positions: [B, N + 1] int32, the absolute position that a token drawn from the row takes.
      source: where random choices come from.

    Returns:
      The decision and the source to use next. Its `path` is [B, N]: entries beyond
      `num_accepted`, which never exceeds the depth, are 0.

    Raises:
      ValueError: at trace time, when the rule cannot use this kind of draft law.
    """


def largest(values: Array) -> Array:
  """Index of the largest entry of `values` [..., V] as int32; the first one of equals."""
  # Two plain reductions: a split vocabulary is reduced where it lies, never gathered.
  return sampling_lib.argmax(values)


def check_kind(proposal: types.Proposal, *, rule: str) -> None:
  """Raises ValueError for draft laws that a rule for independent chains cannot use."""
  if proposal.kind == types.COUPLED:
    raise ValueError(
        f'verify.{rule}() needs draft tokens that were chosen or drawn from a law of their own; '
        'these share their noise with the target (kind COUPLED): use verify.coupled().'
    )
  if proposal.kind == types.WITHOUT_REPLACEMENT:
    raise ValueError(
        f'verify.{rule}() verifies one drafted token a position; this proposal draws siblings '
        'without replacement: use verify.recursive() or verify.traversal(), which take trees, or '
        'draft a chain.'
    )
  if proposal.kind == types.SAMPLED and proposal.law is None and proposal.num_nodes:
    raise ValueError(
        f'verify.{rule}() needs the law that the draft tokens were drawn from, but '
        '`proposal.law` is None: keep the law that `context.sampler.draw` returns, or mark '
        'tokens that were chosen rather than drawn as kind ONE_HOT.'
    )


def follow(tokens: Array, proposal: types.Proposal) -> types.Verification:
  """Walks from the root to whichever child carries the token that the target chose.

  Args:
    tokens: [B, N + 1] int32, the target's choice at every row.
    proposal: chain or tree, of any kind. Of equal siblings the first one counts.

  Returns:
    The decision; the next token is the target's choice at the last accepted node.
  """
  num_nodes, parents = proposal.num_nodes, proposal.parents
  nodes = jnp.arange(1, num_nodes + 1, dtype=jnp.int32)
  matches = proposal.valid & (proposal.tokens == jnp.take_along_axis(tokens, parents, axis=1))
  same_parent = parents[:, :, None] == parents[:, None, :]
  earlier = nodes[:, None] > nodes
  matches &= ~jnp.any(same_parent & earlier & matches[:, None, :], axis=-1)
  reached = reached_nodes(matches, parents)
  # At most one child a node matches, so the nodes reached are one path, numbered downwards.
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


def reached_nodes(flags: Array, parents: Array) -> Array:
  """[B, N] bool, the nodes whose flags [B, N] are set, and those of all of their ancestors."""
  # Pointer doubling with the root in front: log2(N) steps instead of one a level.
  reached = jnp.pad(flags, ((0, 0), (1, 0)), constant_values=True)
  ancestors = jnp.pad(parents, ((0, 0), (1, 0)))
  for _ in range(max(0, flags.shape[1] - 1).bit_length()):
    reached &= jnp.take_along_axis(reached, ancestors, axis=1)
    ancestors = jnp.take_along_axis(ancestors, ancestors, axis=1)
  return reached[:, 1:]


def prefix_length(flags: Array) -> Array:
  """How many of `flags` [B, n] bool are True before the first False, [B] int32."""
  size = flags.shape[1]
  return jnp.min(jnp.where(flags, size, jnp.arange(size)), axis=1, initial=size)


def target_log_probs(target_law: Array, proposal: types.Proposal) -> Array:
  """Log-probabilities [B, N] of a chain's tokens under the target's law [B, N + 1, V]."""
  return jnp.take_along_axis(target_law[:, :-1], proposal.tokens[..., None], axis=2)[..., 0]


def draft_log_probs(proposal: types.Proposal) -> Array:
  """Log-probabilities [B, N] of the tokens under the draft's laws; 0 for one-hot laws."""
  if proposal.kind == types.ONE_HOT:
    return jnp.zeros(proposal.tokens.shape, jnp.float32)
  batch = jnp.arange(proposal.tokens.shape[0])[:, None]
  return proposal.law[batch, proposal.rows, proposal.tokens]


def row(target_law: Array, index: Array) -> Array:
  """Row `index` [B] of `target_law` [B, N + 1, V], [B, V]."""
  return jnp.take_along_axis(target_law, index[:, None, None], axis=1)[:, 0]


def draw_next(
    target_law: Array,
    proposal: types.Proposal,
    *,
    num_accepted: Array,
    is_bonus: Array,
    scale: Array | None = None,
    source: types.Source,
) -> tuple[Array, types.Source]:
  """Draws what follows an accepted prefix of a chain: bonus, or recovered from the residual.

  The residual is proportional to max(scale * target - draft, 0); it is formed at the one row
  where it is needed, and not normalised, for a draw need not be. If it is empty, the target's
  law is drawn from instead. That is exact, because it never matters: with scale 1 an empty
  residual means that both laws are equal, so that nothing is rejected here, and with a scale
  below 1 the block rule's chance to stop here is the residual's mass, 0. Only rounding leads
  here, with a probability of rounding's size.

  Args:
    target_law: [B, N + 1, V] float32 log-probabilities.
    proposal: a chain.
    num_accepted: [B] int32, the row to draw at.
    is_bonus: [B] bool, True draws from the target's law.
    scale: [B] float32 in [0, 1], or None for 1.
    source: consumed.

  Returns:
    Tokens [B] int32 and the source to use next.
  """
  law = row(target_law, num_accepted)
  if proposal.num_nodes:
    node = jnp.minimum(num_accepted, proposal.num_nodes - 1)[:, None]
    if proposal.kind == types.ONE_HOT:
      # The scaled target never exceeds 1, so that the residual is the target without the token.
      token = jnp.take_along_axis(proposal.tokens, node, axis=1)
      residual = jnp.where(jnp.arange(law.shape[-1]) == token, -jnp.inf, law)
    else:
      drawn_from = jnp.take_along_axis(proposal.rows, node, axis=1)
      draft = jnp.take_along_axis(proposal.law, drawn_from[..., None], axis=1)[:, 0]
      weight = 1.0 if scale is None else scale[:, None]
      residual = jnp.log(jnp.maximum(weight * jnp.exp(law) - jnp.exp(draft), 0.0))
    is_empty = jnp.max(residual, axis=-1) == -jnp.inf
    law = jnp.where((is_bonus | is_empty)[:, None], law, residual)
  return source.draw(law, purpose=randomness.NEXT, node=num_accepted)


def chain_verification(
    *, num_accepted: Array, next_token: Array, is_bonus: Array, accept_probs: Array
) -> types.Verification:
  """The record of an accepted prefix of a chain; fields as in `specjax.types.Verification`."""
  nodes = jnp.arange(1, accept_probs.shape[1] + 1)
  return types.Verification(
      num_accepted=num_accepted.astype(jnp.int32),
      path=jnp.where(nodes <= num_accepted[:, None], nodes, 0).astype(jnp.int32),
      next_token=next_token,
      is_bonus=is_bonus,
      accept_probs=accept_probs,
  )
