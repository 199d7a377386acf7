"""What the rules for sampled trees share: who is tried next, and what it was drawn from.

A rule walks over nodes one at a time, every row of the batch on its own; a node number of 0
says that a row has none to go to.
"""

import jax.numpy as jnp

from specjax import randomness
from specjax import types
from specjax.types import Array


def check_kind(proposal: types.Proposal, *, rule: str, kinds: tuple[str, ...]) -> None:
  """Raises ValueError for draft laws that a rule for sampled trees cannot use."""
  if not proposal.num_nodes:
    return
  if proposal.kind not in kinds:
    raise ValueError(
        f'verify.{rule}() verifies drafts of kind {", ".join(kinds)}, and this one is of kind '
        f'{proposal.kind}. Coupled drafts take verify.coupled(); '
        "verify.recursive() and verify.traversal() take the others; a tree drafter's siblings= "
        'says how it draws.'
    )
  if proposal.kind != types.ONE_HOT and proposal.law is None:
    raise ValueError(
        f'verify.{rule}() needs the law that the draft tokens were drawn from, but '
        '`proposal.law` is None: keep the laws, or mark chosen tokens as kind ONE_HOT.'
    )


def of_node(values: Array, node: Array) -> Array:
  """Entries [B] of values [B, N] of nodes 1 … N at `node` [B]; at 0, that of node 1."""
  return jnp.take_along_axis(values, jnp.maximum(node - 1, 0)[:, None], axis=1)[:, 0]


def row_of(values: Array, index: Array) -> Array:
  """Rows `index` [B] of values [B, n, V], [B, V]."""
  return jnp.take_along_axis(values, index[:, None, None], axis=1)[:, 0]


def at_token(values: Array, token: Array) -> Array:
  """Entries `token` [B] of values [B, V], [B]."""
  return jnp.take_along_axis(values, token[:, None], axis=1)[:, 0]


def next_child(proposal: types.Proposal, parent: Array, tried: Array) -> Array:
  """The first valid child of `parent` [B] that is not `tried` [B, N], [B]; 0 if there is none."""
  nodes = jnp.arange(1, proposal.num_nodes + 1, dtype=jnp.int32)
  is_next = proposal.valid & ~tried & (proposal.parents == parent[:, None])
  beyond = proposal.num_nodes + 1
  first = jnp.min(jnp.where(is_next, nodes, beyond), axis=1)
  return jnp.where(first < beyond, first, 0)


def mark(flags: Array, node: Array) -> Array:
  """`flags` [B, N] of nodes 1 … N with that of `node` [B] set; 0 sets none."""
  nodes = jnp.arange(1, flags.shape[1] + 1)
  return flags | (nodes == node[:, None])


def set_node(values: Array, node: Array, new: Array) -> Array:
  """`values` [B, N] of nodes 1 … N with `new` [B] at `node` [B]; 0 sets none."""
  nodes = jnp.arange(1, values.shape[1] + 1)
  return jnp.where(nodes == node[:, None], new[:, None], values)


def draft_probs(proposal: types.Proposal, node: Array, tried: Array, vocab_size: int) -> Array:
  """The law [B, V] that `node` [B] was drawn from, given its siblings that were tried before.

  Probabilities; one-hot for a chosen token; without the tokens of those siblings, and
  normalised again, for a draw without replacement.
  """
  token = of_node(proposal.tokens, node)
  if proposal.kind == types.ONE_HOT:
    return (jnp.arange(vocab_size) == token[:, None]).astype(jnp.float32)
  law = jnp.exp(row_of(proposal.law, of_node(proposal.rows, node)))
  if proposal.kind == types.SAMPLED:
    return law
  parent = of_node(proposal.parents, node)
  nodes = jnp.arange(1, proposal.num_nodes + 1)
  earlier = tried & (proposal.parents == parent[:, None]) & (nodes != node[:, None])
  batch = jnp.arange(token.shape[0])[:, None]
  drawn = jnp.where(earlier, proposal.tokens, vocab_size)
  law = law.at[batch, drawn].set(0.0, mode='drop')
  total = jnp.sum(law, axis=-1, keepdims=True)
  # An exhausted law has no valid sibling left, so that what it becomes does not matter.
  return law / jnp.where(total > 0, total, 1.0)


def draft_prob(proposal: types.Proposal, node: Array, tried: Array, vocab_size: int) -> Array:
  """`draft_probs` at the token of `node` [B], [B]; without a pass over the vocabulary if it can."""
  token = of_node(proposal.tokens, node)
  if proposal.kind == types.ONE_HOT:
    return jnp.ones(token.shape, jnp.float32)
  if proposal.kind == types.SAMPLED:
    batch = jnp.arange(token.shape[0])
    return jnp.exp(proposal.law[batch, of_node(proposal.rows, node), token])
  return at_token(draft_probs(proposal, node, tried, vocab_size), token)


def accept_prob(target: Array, draft: Array) -> Array:
  """min(1, target / draft) of a token's probabilities, [B] each; 0 where the target has 0."""
  # What the target excludes is refused before the quotient, which could be 0 / 0.
  ratio = jnp.where(target < draft, target / jnp.where(draft > 0, draft, 1.0), 1.0)
  return jnp.where(target > 0, ratio, 0.0)


def normalised(weights: Array, otherwise: Array) -> Array:
  """`weights` [B, V] over their sum; `otherwise` where that is 0.

  A residual is empty only where nothing is ever rejected; only rounding leads there.
  """
  total = jnp.sum(weights, axis=-1, keepdims=True)
  return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), otherwise)


def finish(
    proposal: types.Proposal,
    *,
    node: Array,
    law: Array,
    path: Array,
    num_accepted: Array,
    accept_probs: Array,
    source: types.Source,
) -> tuple[types.Verification, types.Source]:
  """Draws the next token behind the last accepted node.

  Args:
    proposal: the tree.
    node: [B] int32, the node; 0 is the root.
    law: [B, V] float32 probabilities of what follows it.
    path: [B, N] int32, nodes on the way; what lies beyond `num_accepted` is not looked at.
    num_accepted: [B] int32.
    accept_probs: [B, N] float32.
    source: consumed.

  Returns:
    The decision and the source to use next.
  """
  has_child = jnp.any(proposal.valid & (proposal.parents == node[:, None]), axis=1)
  next_token, source = source.draw(jnp.log(law), purpose=randomness.NEXT, node=node)
  inside = jnp.arange(path.shape[1]) < num_accepted[:, None]
  verification = types.Verification(
      num_accepted=num_accepted,
      path=jnp.where(inside, path, 0),
      next_token=next_token,
      is_bonus=~has_child,
      accept_probs=accept_probs,
  )
  return verification, source
