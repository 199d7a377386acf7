"""Recursive rejection: siblings are tried one by one, each against what the last one left."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import types
from specjax.types import Array
from specjax.verify import rows as rows_lib
from specjax.verify import siblings


class _Walk(NamedTuple):
  """The loop's state.

  Attributes:
    node: [B] int32, accepted last; 0 is the root.
    child: [B] int32, of `node`, tried next; 0 where there is none and the sequence is done.
    scale: [B] float32; share: [B] float32: what the target still asks for after `node`, see
      `siblings`.
    whole: [B] float32, what is left of the draft's law after `node` for `child`.
    tried: [B, N] bool.
    path: [B, N] int32.
    num_accepted: [B] int32.
    accept_probs: [B, N] float32.
    source: of random choices.
  """

  node: Array
  child: Array
  scale: Array
  share: Array
  whole: Array
  tried: Array
  path: Array
  num_accepted: Array
  accept_probs: Array
  source: Any


@dataclasses.dataclass(frozen=True)
class Recursive(siblings.TreeRule):
  """See `recursive`; fields and methods as in `specjax.verify.Rule`."""

  name: str = 'recursive'

  def decide(self, rows, *, positions, source):
    """As `specjax.verify.Rule.decide`."""
    del positions
    scan = rows.scan()
    proposal = siblings.valid_nodes(rows.proposal, scan)
    nothing = jnp.zeros_like(proposal.tokens)
    node = jnp.zeros(nothing.shape[:1], jnp.int32)
    walk = _Walk(
        node=node,
        child=node,
        scale=jnp.ones(node.shape, jnp.float32),
        share=jnp.zeros(node.shape, jnp.float32),
        whole=jnp.ones(node.shape, jnp.float32),
        tried=nothing.astype(bool),
        path=nothing,
        num_accepted=node,
        accept_probs=nothing.astype(jnp.float32),
        source=source,
    )
    if proposal.num_nodes:
      walk = walk._replace(child=siblings.next_child(proposal, node, walk.tried))
      walk = jax.lax.while_loop(
          lambda walk: jnp.any(walk.child > 0),
          lambda walk: self._try(walk, rows, proposal, scan),
          walk,
      )
    draw = siblings.draw_at(
        proposal, node=walk.node, scale=walk.scale, share=walk.share, refused=walk.tried
    )
    return siblings.finish(
        rows, proposal, scan, draw=draw, path=walk.path, num_accepted=walk.num_accepted,
        accept_probs=walk.accept_probs, source=walk.source,
    )

  def _try(
      self, walk: _Walk, rows: rows_lib.Rows, proposal: types.Proposal, scan: rows_lib.Scan
  ) -> _Walk:
    """Tries one child of every sequence that has one left."""
    child, has_draft = walk.child, proposal.kind != types.ONE_HOT
    numbers = siblings.child_numbers(proposal, scan, child, walk.tried)
    wanted = numbers.wanted(walk.scale, walk.share, has_draft)
    prob = siblings.accept_prob(wanted, numbers.draft / walk.whole)
    flips, source = walk.source.flip(prob, purpose=randomness.ACCEPT, node=child)
    accepted, rejected = flips & (child > 0), ~flips & (child > 0)
    tried = siblings.mark(walk.tried, child)
    scale, share = self.residual(walk.scale, walk.share, walk.whole)
    ones = jnp.ones_like(scale)
    if has_draft:
      draw = siblings.draw_at(
          proposal, node=walk.node, scale=scale, share=share, refused=tried
      )
      with jax.named_scope(siblings.OFTEN):
        mass, left = jax.lax.cond(
            jnp.any(rejected),
            lambda: siblings.masses(rows, scan, draw, proposal.kind),
            lambda: (ones, ones),
        )
    else:
      share, mass, left = walk.share, 1.0 - wanted, ones  # of a law, whose mass is 1
    # Nothing left: only rounding leads here, and the target's law is then drawn from.
    mass = jnp.where(mass > 0, mass, 1.0)
    scale = jnp.where(rejected, scale / mass, walk.scale)
    share = jnp.where(rejected, share / mass, walk.share)
    node = jnp.where(accepted, child, walk.node)
    depth = jnp.where(accepted, walk.num_accepted + 1, 0)
    # A sequence without a child left stays without one: its node and what was tried stay too.
    return _Walk(
        node=node,
        child=siblings.next_child(proposal, node, tried),
        scale=jnp.where(accepted, 1.0, scale),
        share=jnp.where(accepted, 0.0, share),
        whole=jnp.where(accepted, 1.0, jnp.where(rejected, left, walk.whole)),
        tried=tried,
        path=siblings.set_node(walk.path, depth, child),
        num_accepted=jnp.maximum(walk.num_accepted, depth),
        accept_probs=siblings.set_node(walk.accept_probs, child, prob),
        source=source,
    )

  def residual(self, scale: Array, share: Array, whole: Array) -> tuple[Array, Array]:
    """Scale and share, [B], once a child is refused, before they are normalised: p - q.

    Args:
      scale: [B], before.
      share: [B], before.
      whole: [B], what was left of the draft's law when the child was drawn.
    """
    return scale, share + 1.0 / whole


def recursive() -> Recursive:
  """Tries the children of the last accepted node in turn, and goes on below the first kept.

  A child x drawn from q is kept with probability min(1, p(x) / q(x)); if it is not, p
  becomes the residual, max(p - q, 0) normalised, for the next one. Independent siblings
  (SAMPLED) share q (SpecInfer, Miao et al. 2023, arXiv 2305.09781, algorithm 2); those drawn
  without replacement were drawn from q without their earlier siblings, normalised (Jeon et
  al. 2024, arXiv 2402.14160, recursive rejection sampling); chosen ones (ONE_HOT) have q = 1,
  so that x is kept with probability p(x) and then struck out (EAGLE's trees, Li et al. 2024,
  arXiv 2401.15077). If no child is kept, the next token is drawn from the last residual;
  after a leaf, from the target's law. The first branch stays as long as under the rejection
  rule, so that the tree is never shorter in expectation.

  Returns:
    A rule for trees and chains of kind SAMPLED, WITHOUT_REPLACEMENT or ONE_HOT.
  """
  return Recursive()
