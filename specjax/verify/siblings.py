"""What the rules for sampled trees share: who is tried next, and what its law is worth.

A rule walks over nodes one at a time, each sequence of the batch on its own; a node number of 0
says that a sequence has none to go to. What the target still asks for at a row, after some of its
children were refused, is

  max(scale * target - share * draft, 0) without the refused tokens,

for the laws of all siblings are one law, normalised without the earlier ones or not. So two
numbers per sequence stand for a residual of any depth, and a refusal costs one pass over two
rows for its mass; chosen tokens (one-hot laws) cost none.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from specjax import types
from specjax.types import Array
from specjax.verify import chains
from specjax.verify import rows as rows_lib
from specjax.verify import rule as rule_lib

# A named scope, for who reads a compiled program: the conditional inside is true in most rounds.
OFTEN = 'often'


def of_node(values: Array, node: Array) -> Array:
  """Entries [B] of values [B, N] of nodes 1 … N at `node` [B]; at 0, that of node 1."""
  return jnp.take_along_axis(values, jnp.maximum(node - 1, 0)[:, None], axis=1)[:, 0]


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


@dataclasses.dataclass(frozen=True)
class TreeRule(rule_lib.RuleBase):
  """A lossless rule for sampled trees; subclasses add `decide`."""

  name: str = ''
  lossless: bool = True
  mode: str = 'sample'
  handles_trees: bool = True
  # Not a field: the kinds of draft law that it takes.
  kinds = (types.ONE_HOT, types.SAMPLED, types.WITHOUT_REPLACEMENT)

  def check(self, proposal: types.Proposal) -> None:
    """As `specjax.verify.Rule.check`."""
    rule_lib.check_tree(proposal, rule=self.name, kinds=self.kinds)


class Child(NamedTuple):
  """The numbers of one child per sequence, arrays [B].

  Attributes:
    token: int32.
    target: float32, its probability under the target's law at its parent.
    draft: float32, under the draft's law at its parent, from which the tokens of earlier siblings
      were not taken out; 1 for a chosen token.
    again: bool, whether a sibling with the same token was refused.
  """

  token: Array
  target: Array
  draft: Array
  again: Array

  def wanted(self, scale: Array, share: Array, has_draft: bool) -> Array:
    """What the target still asks of its token, [B]: nothing if it was refused already."""
    wanted = scale * self.target
    if has_draft:
      wanted = jnp.maximum(wanted - share * self.draft, 0.0)
    return jnp.where(self.again, 0.0, wanted)


def valid_nodes(proposal: types.Proposal, scan: rows_lib.Scan) -> types.Proposal:
  """The proposal without nodes that were not drawn from the law that they name."""
  return proposal.replace(valid=proposal.valid & chains.is_drawn(scan.draft))


def child_numbers(
    proposal: types.Proposal, scan: rows_lib.Scan, child: Array, refused: Array
) -> Child:
  """The `Child` at `child` [B], whose siblings among `refused` [B, N] were refused before it."""
  at = lambda values: of_node(values, child)
  token, draft = at(proposal.tokens), jnp.exp(at(scan.draft))
  refused &= proposal.parents == at(proposal.parents)[:, None]
  again = jnp.any(refused & (proposal.tokens == token[:, None]), axis=1)
  return Child(token, jnp.exp(at(scan.target)), draft, again)


def masses(
    rows: rows_lib.Rows, scan: rows_lib.Scan, draw: rows_lib.Draw, kind: str
) -> tuple[Array, Array]:
  """The mass of a draw, and what is left of the draft's law for the next sibling, [B] each.

  The latter is 1 unless siblings are drawn without replacement.
  """
  mass = rows.mass(draw)
  left = jnp.ones_like(mass)
  if kind == types.WITHOUT_REPLACEMENT:
    left = rows.draft_mass(draw, scan)
  # An exhausted law has no valid sibling left, so that what it becomes does not matter.
  return mass, jnp.where(left > 0, left, 1.0)


def draw_at(
    proposal: types.Proposal, *, node: Array, scale: Array, share: Array, refused: Array
) -> rows_lib.Draw:
  """What is left at `node` [B] after those of its children that are `refused` [B, N]."""
  without = jnp.full((*node.shape, 1), -1, jnp.int32)
  if proposal.num_nodes:
    is_refused = refused & (proposal.parents == node[:, None])
    without = jnp.where(is_refused, proposal.tokens, -1)
  return rows_lib.Draw(node=node, scale=scale, share=share, without=without)


def accept_prob(target: Array, draft: Array) -> Array:
  """min(1, target / draft) of a token's probabilities, [B] each; 0 where the target has 0."""
  # What the target excludes is refused before the quotient, which could be 0 / 0.
  ratio = jnp.where(target < draft, target / jnp.where(draft > 0, draft, 1.0), 1.0)
  return jnp.where(target > 0, ratio, 0.0)


def finish(
    rows: rows_lib.Rows,
    proposal: types.Proposal,
    scan: rows_lib.Scan,
    *,
    draw: rows_lib.Draw,
    path: Array,
    num_accepted: Array,
    accept_probs: Array,
    source: Any,
) -> tuple[types.Verification, Any]:
  """Draws the next token after the last accepted node.

  Args:
    rows: the rows of the round.
    proposal: the tree, with its valid nodes.
    scan: of the rows.
    draw: what is drawn from, at the last accepted node.
    path: as for `decision`, and so are the others.
    num_accepted: [B] int32.
    accept_probs: [B, N] float32.
    source: consumed.

  Returns:
    The decision and the source to use next.
  """
  next_token, last, source = rows.draw(draw, source)
  verification = decision(
      proposal, node=draw.node, next_token=next_token, path=path, num_accepted=num_accepted,
      accept_probs=accept_probs,
  )
  if last is not None:
    drafted = scan.target
    if proposal.num_nodes:
      accepted = jnp.maximum(verification.path - 1, 0)
      drafted = jnp.take_along_axis(scan.target, accepted, axis=1)
    log_probs = chains.emitted_log_probs(num_accepted, drafted, last)
    verification = verification.replace(log_probs=log_probs)
  return verification, source


def decision(
    proposal: types.Proposal,
    *,
    node: Array,
    next_token: Array,
    path: Array,
    num_accepted: Array,
    accept_probs: Array,
) -> types.Verification:
  """The record of a walk that ended at `node` [B], without log-probabilities.

  Args:
    proposal: the tree, with its valid nodes.
    node: [B] int32, accepted last; 0 is the root.
    next_token: [B] int32, the token that follows it.
    path: [B, N] int32, nodes on the way; entries beyond `num_accepted` are not looked at.
    num_accepted: [B] int32.
    accept_probs: [B, N] float32.
  """
  has_child = jnp.any(proposal.valid & (proposal.parents == node[:, None]), axis=1)
  inside = jnp.arange(path.shape[1]) < num_accepted[:, None]
  return types.Verification(
      num_accepted=num_accepted,
      path=jnp.where(inside, path, 0),
      next_token=next_token,
      is_bonus=~has_child,
      accept_probs=accept_probs,
  )
