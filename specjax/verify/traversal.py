"""Traversal verification: from the leaves to the root, whole paths at a time."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import types
from specjax.types import Array
from specjax.verify import siblings


class _Walk(NamedTuple):
  """The loop's state.

  Attributes:
    node: [B] int32, where the row is; 0 is the root.
    depth: [B] int32, of `node`.
    done: [B] bool, whether `node` was accepted.
    law: [B, N + 1, V] float32 probabilities, what the target still asks for at every row.
    probs: [B, N + 1] float32, the chance that a node or one below it stays.
    tried: [B, N] bool, nodes that were entered.
    path: [B, N] int32, the way to `node`.
    accept_probs: [B, N] float32.
    source: of random choices.
  """

  node: Array
  depth: Array
  done: Array
  law: Array
  probs: Array
  tried: Array
  path: Array
  accept_probs: Array
  source: Any


@dataclasses.dataclass(frozen=True)
class Traversal:
  """See `traversal`; fields and call as in `specjax.verify.Rule`."""

  name: str = 'traversal'
  lossless: bool = True
  mode: str = 'sample'
  handles_trees: bool = True

  def __call__(self, *, target_law, proposal, positions, source):
    del positions
    kinds = (types.ONE_HOT, types.SAMPLED, types.WITHOUT_REPLACEMENT)
    siblings.check_kind(proposal, rule=self.name, kinds=kinds)
    nothing = jnp.zeros_like(proposal.tokens)
    node = jnp.zeros_like(nothing, shape=nothing.shape[:1])
    probs = jnp.zeros((node.shape[0], proposal.num_nodes + 1), jnp.float32)
    walk = _Walk(
        node=node,
        depth=node,
        done=jnp.full(node.shape, not proposal.num_nodes),
        law=jnp.exp(target_law),
        probs=probs.at[:, 0].set(1.0),
        tried=nothing.astype(bool),
        path=nothing,
        accept_probs=nothing.astype(jnp.float32),
        source=source,
    )
    if proposal.num_nodes:
      walk = jax.lax.while_loop(
          lambda walk: ~jnp.all(walk.done), lambda walk: self._step(walk, proposal), walk
      )
    return siblings.finish(
        proposal,
        node=walk.node,
        law=siblings.row_of(walk.law, walk.node),
        path=walk.path,
        num_accepted=walk.depth,
        accept_probs=walk.accept_probs,
        source=walk.source,
    )

  def _step(self, walk: _Walk, proposal: types.Proposal) -> _Walk:
    """Every row goes down to a child, or decides about its node and goes up if that fails."""
    child = jnp.where(walk.done, 0, siblings.next_child(proposal, walk.node, walk.tried))
    decides = ~walk.done & (child == 0)
    entry = self._entry_prob(walk, proposal, child)
    # The root stays for sure; the flip of a row that decides nothing is not looked at.
    flipped = jnp.where(decides, walk.node, 0)
    prob = jnp.take_along_axis(walk.probs, walk.node[:, None], axis=1)[:, 0]
    flips, source = walk.source.flip(prob, purpose=randomness.ACCEPT, node=flipped)
    accepted = decides & (flips | (walk.node == 0))
    rejected = decides & ~accepted

    parent = siblings.of_node(proposal.parents, walk.node)
    law, prob = jax.lax.cond(
        jnp.any(rejected),
        lambda _: self._leave(walk, proposal, parent),
        lambda _: (walk.law[:, 0], walk.probs[:, 0]),
        None,
    )
    batch = jnp.arange(child.shape[0])
    beyond = proposal.num_nodes + 1
    above = jnp.where(rejected, parent, beyond)
    probs = walk.probs.at[batch, above].set(prob, mode='drop')
    probs = probs.at[batch, jnp.where(child > 0, child, beyond)].set(entry, mode='drop')
    node = jnp.where(child > 0, child, jnp.where(rejected, parent, walk.node))
    depth = walk.depth + (child > 0) - rejected
    return _Walk(
        node=node,
        depth=depth,
        done=walk.done | accepted,
        law=walk.law.at[batch, above].set(law, mode='drop'),
        probs=probs,
        tried=siblings.mark(walk.tried, child),
        path=siblings.set_node(walk.path, jnp.where(child > 0, depth, 0), child),
        accept_probs=siblings.set_node(walk.accept_probs, child, entry),
        source=source,
    )

  def _entry_prob(self, walk: _Walk, proposal, child: Array) -> Array:
    """min(1, p(parent) target(x) / draft(x)) of `child` [B], [B]."""
    token = siblings.of_node(proposal.tokens, child)
    batch = jnp.arange(token.shape[0])
    wanted = walk.probs[batch, walk.node] * walk.law[batch, walk.node, token]
    draft = siblings.draft_prob(proposal, child, walk.tried, walk.law.shape[-1])
    return siblings.accept_prob(wanted, draft)

  def _leave(self, walk: _Walk, proposal, parent: Array) -> tuple[Array, Array]:
    """What `parent` [B] asks for, [B, V], and its chance, [B], once `walk.node` is rejected."""
    law = siblings.row_of(walk.law, parent)
    draft = siblings.draft_probs(proposal, walk.node, walk.tried, law.shape[-1])
    prob = jnp.take_along_axis(walk.probs, parent[:, None], axis=1)[:, 0]
    return self.residual(law, draft, prob)

  def residual(self, law: Array, draft: Array, prob: Array) -> tuple[Array, Array]:
    """max(p law - draft, 0) normalised, [B, V], and S / (S + 1 - p), [B], S its sum."""
    weights = jnp.maximum(prob[:, None] * law - draft, 0.0)
    surplus = jnp.sum(weights, axis=-1)
    rest = surplus + 1.0 - prob
    # 0 / 0: p is 1 and the laws agree. Then the child was kept for sure, and this is not used.
    chance = jnp.where(rest > 0, surplus / jnp.where(rest > 0, rest, 1.0), 1.0)
    return siblings.normalised(weights, law), chance


def traversal() -> Traversal:
  """Decides about leaves first and goes up: a node stays if the path to it is worth it.

  Traversal verification (Weng et al. 2025, arXiv 2505.12398): with p(root) = 1, a node x has
  p(x) = min(p(parent) target(x) / draft(x), 1). The tree is walked depth first; a node whose
  children are all rejected, or that has none, is kept, with everything above it, with
  probability p. If it is not, its parent's p and target become

    S / (S + 1 - p)  and  max(p target - draft, 0) / S,  S = sum_x max(p target(x) - draft(x), 0)

  before its next child is looked at; the next token is drawn from what the target has become at
  the node that is kept. The draft's law loses the tokens of rejected siblings where they were
  drawn without replacement. On a chain this is the block rule; it is never shorter in
  expectation.

  Returns:
    A rule for trees and chains of kind SAMPLED, WITHOUT_REPLACEMENT or ONE_HOT.
  """
  return Traversal()
