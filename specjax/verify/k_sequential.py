"""SpecTr's k-sequential rule: independent siblings share one, lower threshold."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import types
from specjax.types import Array
from specjax.verify import rows as rows_lib
from specjax.verify import siblings

# Halvings of the interval [1, k] in which the threshold lies.
_STEPS = 26


class _Walk(NamedTuple):
  """The loop's state.

  Attributes:
    node: [B] int32, accepted last; 0 is the root.
    child: [B] int32, of `node`, tried next; 0 where there is none and the row is done.
    law: [B, V] float32 probabilities, what the target asks for after `node`.
    factor: [B] float32, rho of the group of siblings that is being tried.
    left: [B] int32, how many of the group were not tried yet, `child` included.
    size: [B] int32, of the group.
    height: [B] int32, how far the first branch must go on below its members.
    tried: [B, N] bool.
    path: [B, N] int32.
    num_accepted: [B] int32.
    accept_probs: [B, N] float32.
    source: of random choices.
  """

  node: Array
  child: Array
  law: Array
  factor: Array
  left: Array
  size: Array
  height: Array
  tried: Array
  path: Array
  num_accepted: Array
  accept_probs: Array
  source: Any


@dataclasses.dataclass(frozen=True)
class KSequential(siblings.TreeRule):
  """See `k_sequential`; fields and methods as in `specjax.verify.Rule`.

  Its threshold is found by bisection over whole laws, so that it takes rows that have them.
  """

  name: str = 'k_sequential'
  kinds = (types.SAMPLED,)

  def decide(self, rows, *, positions, source):
    """As `specjax.verify.Rule.decide`."""
    del positions
    scan = rows.scan()
    proposal = siblings.valid_nodes(rows.proposal, scan)
    nothing = jnp.zeros_like(proposal.tokens)
    node = jnp.zeros_like(nothing, shape=nothing.shape[:1])
    walk = _Walk(
        node=node,
        child=node,
        law=jnp.exp(rows.law(node[:, None])[:, 0]),
        factor=jnp.ones(node.shape, jnp.float32),
        left=node,
        size=node,
        height=node,
        tried=nothing.astype(bool),
        path=nothing,
        num_accepted=node,
        accept_probs=nothing.astype(jnp.float32),
        source=source,
    )
    if proposal.num_nodes:
      heights = first_branch_heights(proposal.parents)
      walk = self._next_child(walk, proposal, heights)
      walk = jax.lax.while_loop(
          lambda walk: jnp.any(walk.child > 0),
          lambda walk: self._try(walk, rows, proposal, heights),
          walk,
      )
    token, source = walk.source.draw(
        jnp.log(walk.law), purpose=randomness.NEXT, node=walk.node
    )
    return siblings.decision(
        proposal, node=walk.node, next_token=token, path=walk.path,
        num_accepted=walk.num_accepted, accept_probs=walk.accept_probs,
    ), source

  def _try(self, walk: _Walk, rows: rows_lib.Rows, proposal, heights: Array) -> _Walk:
    """Tries one child of every sequence that has one left."""
    child, law = walk.child, walk.law
    token = siblings.of_node(proposal.tokens, child)
    draft = _draft_law(proposal, child)
    wanted = _at_token(law, token) / walk.factor
    prob = siblings.accept_prob(wanted, _at_token(draft, token))
    flips, source = walk.source.flip(prob, purpose=randomness.ACCEPT, node=child)
    accepted = flips & (child > 0)
    left = jnp.where(child > 0, walk.left - 1, walk.left)
    # The residual is that of the whole group: it is due when its last member is rejected.
    rejected = ~flips & (child > 0) & (left == 0)
    residual = self.residual(law, draft, walk.factor, walk.size)
    law = jnp.where(rejected[:, None], _normalised(residual, law), law)
    law = jnp.where(accepted[:, None], jnp.exp(rows.law(child[:, None])[:, 0]), law)
    depth = jnp.where(accepted, walk.num_accepted + 1, 0)
    walk = walk._replace(
        node=jnp.where(accepted, child, walk.node),
        law=law,
        left=jnp.where(accepted, 0, left),
        tried=siblings.mark(walk.tried, child),
        path=siblings.set_node(walk.path, depth, child),
        num_accepted=jnp.maximum(walk.num_accepted, depth),
        accept_probs=siblings.set_node(walk.accept_probs, child, prob),
        source=source,
    )
    return self._next_child(walk, proposal, heights)

  def _next_child(self, walk: _Walk, proposal: types.Proposal, heights: Array) -> _Walk:
    """Goes on in the group, or begins the next one with its threshold."""
    first = siblings.next_child(proposal, walk.node, walk.tried)
    begins = (walk.left == 0) & (first > 0)
    # A shorter subtree is no substitute for the first branch: it waits for the next group.
    height = jnp.where(begins, siblings.of_node(heights, first), walk.height)
    untried = proposal.valid & ~walk.tried & (proposal.parents == walk.node[:, None])
    member = untried & (heights >= height[:, None])
    count = member.sum(axis=1, dtype=jnp.int32)
    size = jnp.where(begins, count, walk.size)

    ones = jnp.ones(first.shape, jnp.float32)
    with jax.named_scope(siblings.OFTEN):
      factor = jax.lax.cond(
          jnp.any(begins & (size > 1)),
          lambda: self.factor(walk.law, _draft_law(proposal, first), size),
          lambda: ones,
      )
    nodes = jnp.arange(1, proposal.num_nodes + 1, dtype=jnp.int32)
    # Within a group the members come first, whatever lies between them.
    in_group = jnp.min(jnp.where(member, nodes, proposal.num_nodes + 1), axis=1)
    return walk._replace(
        child=jnp.where(first > 0, in_group, 0),
        factor=jnp.where(begins, factor, walk.factor),
        left=jnp.where(begins, count, walk.left),
        size=size,
        height=height,
    )

  def factor(self, law: Array, draft: Array, size: Array) -> Array:
    """The least rho in [1, k] with 1 - (1 - beta)^k <= rho beta, [B] float32.

    beta(rho) = sum over tokens of min(q, p / rho). Found by halving, from above: the rule is
    exact for every rho from there on.
    """
    count = size.astype(jnp.float32)

    def halve(_, bounds):
      low, high = bounds
      middle = 0.5 * (low + high)
      some, every = _masses(law, draft, middle, size)
      enough = every <= middle * some
      return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    return jax.lax.fori_loop(0, _STEPS, halve, (jnp.ones_like(count), count))[1]

  def residual(self, law: Array, draft: Array, factor: Array, size: Array) -> Array:
    """max(p - min(q, p / rho) (1 - (1 - beta)^k) / beta, 0), [B, V], not normalised."""
    some, every = _masses(law, draft, factor, size)
    times = every / jnp.where(some > 0, some, 1.0)
    kept = jnp.minimum(draft, law / factor[:, None])
    return jnp.maximum(law - kept * times[:, None], 0.0)


def _masses(law: Array, draft: Array, factor: Array, size: Array) -> tuple[Array, Array]:
  """beta, the chance that one sibling is kept, and that of one among k, each [B]."""
  one = jnp.sum(jnp.minimum(draft, law / factor[:, None]), axis=-1)
  one = jnp.minimum(one, 1.0)
  # 1 - (1 - beta)^k, without the difference of two numbers near 1.
  exponent = size.astype(jnp.float32) * jnp.log1p(-one)
  return one, jnp.where(size == 1, one, -jnp.expm1(exponent))


def _draft_law(proposal: types.Proposal, node: Array) -> Array:
  """The law [B, V] that `node` [B] was drawn from, probabilities."""
  row = siblings.of_node(proposal.rows, node)
  return jnp.exp(jnp.take_along_axis(proposal.law, row[:, None, None], axis=1)[:, 0])


def _at_token(values: Array, token: Array) -> Array:
  """Entries `token` [B] of values [B, V], [B]."""
  return jnp.take_along_axis(values, token[:, None], axis=1)[:, 0]


def _normalised(weights: Array, otherwise: Array) -> Array:
  """`weights` [B, V] over their sum; `otherwise` where that is 0.

  A residual is empty only where nothing is ever rejected; only rounding leads there.
  """
  total = jnp.sum(weights, axis=-1, keepdims=True)
  return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), otherwise)


def first_branch_heights(parents: Array) -> Array:
  """How far the first branch goes on below every node, [B, N] int32; 0 for a leaf.

  For parents (0, 0, 1, 1, 3) the heights are 2, 0, 1, 0, 0. They follow from the shape alone,
  which is set before anything is drawn.
  """
  num_nodes = parents.shape[1]
  nodes = jnp.arange(1, num_nodes + 1, dtype=jnp.int32)
  is_child = parents[:, None, :] == nodes[:, None]
  beyond = num_nodes + 1
  child = jnp.min(jnp.where(is_child, nodes, beyond), axis=-1)
  # Pointer doubling; the last entry stands for "no child".
  hop = jnp.pad(child, ((0, 0), (0, 1)), constant_values=beyond)
  heights = (hop < beyond).astype(jnp.int32)
  for _ in range(max(0, num_nodes - 1).bit_length()):
    heights += jnp.take_along_axis(heights, hop - 1, axis=1)
    hop = jnp.take_along_axis(hop, hop - 1, axis=1)
  return heights[:, :-1]


def k_sequential() -> KSequential:
  """Tries independent siblings in turn with one threshold for all of them.

  Each of k siblings, drawn independently from q, is kept with probability
  min(1, p(x) / (rho q(x))); if none is, the next token is drawn from
  p - min(q, p / rho) (1 - (1 - beta)^k) / beta, normalised, beta = sum_x min(q, p / rho) (K-SEQ,
  SpecTr, Sun et al. 2023, arXiv 2310.15141, section 5 and algorithm 3). rho in [1, k] is the
  least for which this is a law: then one of them is kept with probability rho beta, which is
  at least 1 - TV(p, q).

  rho > 1 keeps the first sibling less often than rejection does. Only siblings below which the
  first branch goes on at least as far as below the first one are therefore put in its group;
  those left over form groups of their own, tried against the residual. So the tree is never
  shorter in expectation than the chain that is its first branch.

  Returns:
    A rule for trees and chains of kind SAMPLED.
  """
  return KSequential()
