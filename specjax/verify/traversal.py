"""Traversal verification: from the leaves to the root, whole paths at a time."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import types
from specjax.types import Array
from specjax.verify import rows as rows_lib
from specjax.verify import siblings
from specjax.verify.block import stop_prob


class _Walk(NamedTuple):
  """The loop's state.

  Attributes:
    node: [B] int32, where the sequence is; 0 is the root.
    depth: [B] int32, of `node`.
    done: [B] bool, whether `node` was accepted.
    scale: [B, N + 1] float32; share: [B, N + 1] float32: what the target still asks for at every
      row, see `siblings`.
    whole: [B, N + 1] float32, what is left of the draft's law at every row for its next child.
    probs: [B, N + 1] float32, the chance that a node or one below it stays.
    tried: [B, N] bool, nodes that were entered.
    path: [B, N] int32, the way to `node`.
    accept_probs: [B, N] float32.
    source: of random choices.
  """

  node: Array
  depth: Array
  done: Array
  scale: Array
  share: Array
  whole: Array
  probs: Array
  tried: Array
  path: Array
  accept_probs: Array
  source: Any


@dataclasses.dataclass(frozen=True)
class Traversal(siblings.TreeRule):
  """See `traversal`; fields and methods as in `specjax.verify.Rule`."""

  name: str = 'traversal'

  def decide(self, rows, *, positions, source):
    """As `specjax.verify.Rule.decide`."""
    del positions
    scan = rows.scan()
    proposal = siblings.valid_nodes(rows.proposal, scan)
    nothing = jnp.zeros_like(proposal.tokens)
    node = jnp.zeros(nothing.shape[:1], jnp.int32)
    every_row = jnp.zeros((node.shape[0], proposal.num_nodes + 1), jnp.float32)
    walk = _Walk(
        node=node,
        depth=node,
        done=jnp.full(node.shape, not proposal.num_nodes),
        scale=every_row + 1.0,
        share=every_row,
        whole=every_row + 1.0,
        probs=every_row.at[:, 0].set(1.0),
        tried=nothing.astype(bool),
        path=nothing,
        accept_probs=nothing.astype(jnp.float32),
        source=source,
    )
    if proposal.num_nodes:
      walk = jax.lax.while_loop(
          lambda walk: ~jnp.all(walk.done),
          lambda walk: self._step(walk, rows, proposal, scan),
          walk,
      )
    draw = siblings.draw_at(
        proposal, node=walk.node, scale=_at(walk.scale, walk.node),
        share=_at(walk.share, walk.node), refused=walk.tried,
    )
    return siblings.finish(
        rows, proposal, scan, draw=draw, path=walk.path, num_accepted=walk.depth,
        accept_probs=walk.accept_probs, source=walk.source,
    )

  def _step(
      self, walk: _Walk, rows: rows_lib.Rows, proposal: types.Proposal, scan: rows_lib.Scan
  ) -> _Walk:
    """Every sequence goes down to a child, or decides about its node and goes up if that fails."""
    child = jnp.where(walk.done, 0, siblings.next_child(proposal, walk.node, walk.tried))
    decides = ~walk.done & (child == 0)
    entry = self._entry_prob(walk, proposal, scan, child)
    # The root stays for sure; the flip of a sequence that decides nothing is not looked at.
    flipped = jnp.where(decides, walk.node, 0)
    prob = _at(walk.probs, walk.node)
    flips, source = walk.source.flip(prob, purpose=randomness.ACCEPT, node=flipped)
    accepted = decides & (flips | (walk.node == 0))
    rejected = decides & ~accepted

    parent = siblings.of_node(proposal.parents, walk.node)
    with jax.named_scope(siblings.OFTEN):
      scale, share, whole, prob = jax.lax.cond(
          jnp.any(rejected),
          lambda: self._leave(walk, rows, proposal, scan, parent),
          lambda: tuple(x[:, 0] for x in (walk.scale, walk.share, walk.whole, walk.probs)),
      )
    above = jnp.where(rejected, parent, -1)
    probs = _set(_set(walk.probs, above, prob), jnp.where(child > 0, child, -1), entry)
    depth = walk.depth + (child > 0) - rejected
    return _Walk(
        node=jnp.where(child > 0, child, jnp.where(rejected, parent, walk.node)),
        depth=depth,
        done=walk.done | accepted,
        scale=_set(walk.scale, above, scale),
        share=_set(walk.share, above, share),
        whole=_set(walk.whole, above, whole),
        probs=probs,
        tried=siblings.mark(walk.tried, child),
        path=siblings.set_node(walk.path, jnp.where(child > 0, depth, 0), child),
        accept_probs=siblings.set_node(walk.accept_probs, child, entry),
        source=source,
    )

  def _entry_prob(self, walk: _Walk, proposal, scan: rows_lib.Scan, child: Array) -> Array:
    """min(1, p(parent) target(x) / draft(x)) of `child` [B], [B]."""
    numbers = siblings.child_numbers(proposal, scan, child, walk.tried)
    wanted = numbers.wanted(
        _at(walk.scale, walk.node), _at(walk.share, walk.node), proposal.kind != types.ONE_HOT
    )
    return siblings.accept_prob(
        _at(walk.probs, walk.node) * wanted, numbers.draft / _at(walk.whole, walk.node)
    )

  def _leave(
      self, walk: _Walk, rows: rows_lib.Rows, proposal, scan: rows_lib.Scan, parent: Array
  ) -> tuple[Array, Array, Array, Array]:
    """Scale, share, whole and chance of `parent` [B], [B], once `walk.node` is rejected."""
    scale, share, whole, prob = (
        _at(x, parent) for x in (walk.scale, walk.share, walk.whole, walk.probs)
    )
    new_scale, new_share = self.residual(scale, share, prob, whole)
    if proposal.kind != types.ONE_HOT:
      draw = siblings.draw_at(
          proposal, node=parent, scale=new_scale, share=new_share, refused=walk.tried
      )
      surplus, left = siblings.masses(rows, scan, draw, proposal.kind)
    else:
      nodes = jnp.arange(1, proposal.num_nodes + 1)
      before = walk.tried & (nodes != walk.node[:, None])
      numbers = siblings.child_numbers(proposal, scan, walk.node, before)
      # Of a law, whose mass is 1.
      surplus = prob * (1.0 - numbers.wanted(scale, share, has_draft=False))
      new_share, left = share, whole
    some = jnp.where(surplus > 0, surplus, 1.0)
    keep = lambda new, old: jnp.where(surplus > 0, new / some, old)
    chance = self.chance(prob, surplus)
    return keep(new_scale, scale), keep(new_share, share), left, chance

  def residual(
      self, scale: Array, share: Array, prob: Array, whole: Array
  ) -> tuple[Array, Array]:
    """Scale and share, [B], once a child is rejected, before they are normalised.

    max(p max(s t - h q, 0) - q / w, 0) is max(p s t - (p h + 1 / w) q, 0).

    Args:
      scale: [B], s before.
      share: [B], h before.
      prob: [B], p of the parent.
      whole: [B], w, what was left of the draft's law when the child was drawn.
    """
    return prob * scale, prob * share + 1.0 / whole

  def chance(self, prob: Array, surplus: Array) -> Array:
    """The parent's p, [B], once a child is rejected: S / (S + 1 - p)."""
    return stop_prob(prob, surplus)


def _at(values: Array, node: Array) -> Array:
  """Entries [B] of `values` [B, N + 1] at rows `node` [B]."""
  return jnp.take_along_axis(values, node[:, None], axis=1)[:, 0]


def _set(values: Array, node: Array, new: Array) -> Array:
  """`values` [B, N + 1] with `new` [B] at rows `node` [B]; -1 sets none."""
  return jnp.where(jnp.arange(values.shape[1]) == node[:, None], new[:, None], values)


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
