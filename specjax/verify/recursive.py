"""Recursive rejection: siblings are tried one by one, each against what the last one left."""

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
    node: [B] int32, accepted last; 0 is the root.
    child: [B] int32, of `node`, tried next; 0 where there is none and the row is done.
    law: [B, V] float32 probabilities, what the target still asks for behind `node`.
    tried: [B, N] bool.
    path: [B, N] int32.
    num_accepted: [B] int32.
    accept_probs: [B, N] float32.
    source: of random choices.
  """

  node: Array
  child: Array
  law: Array
  tried: Array
  path: Array
  num_accepted: Array
  accept_probs: Array
  source: Any


@dataclasses.dataclass(frozen=True)
class Recursive:
  """See `recursive`; fields and call as in `specjax.verify.Rule`."""

  name: str = 'recursive'
  lossless: bool = True
  mode: str = 'sample'
  handles_trees: bool = True

  def __call__(self, *, target_law, proposal, positions, source):
    del positions
    kinds = (types.ONE_HOT, types.SAMPLED, types.WITHOUT_REPLACEMENT)
    siblings.check_kind(proposal, rule=self.name, kinds=kinds)
    nothing = jnp.zeros_like(proposal.tokens)
    node = jnp.zeros_like(nothing, shape=nothing.shape[:1])
    walk = _Walk(
        node=node,
        child=node,
        law=jnp.exp(target_law[:, 0]),
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
          lambda walk: self._try(walk, target_law, proposal),
          walk,
      )
    fields = walk._asdict()
    del fields['child'], fields['tried']
    return siblings.finish(proposal, **fields)

  def _try(self, walk: _Walk, target_law: Array, proposal: types.Proposal) -> _Walk:
    """Tries one child of every row that has one left."""
    child, law = walk.child, walk.law
    token = siblings.of_node(proposal.tokens, child)
    draft = siblings.draft_probs(proposal, child, walk.tried, law.shape[-1])
    prob = siblings.accept_prob(*(siblings.at_token(x, token) for x in (law, draft)))
    flips, source = walk.source.flip(prob, purpose=randomness.ACCEPT, node=child)
    accepted = flips & (child > 0)
    rejected = ~flips & (child > 0)
    tried = siblings.mark(walk.tried, child)
    node = jnp.where(accepted, child, walk.node)
    residual = siblings.normalised(self.residual(law, draft), law)
    law = jnp.where(rejected[:, None], residual, law)
    law = jnp.where(accepted[:, None], jnp.exp(siblings.row_of(target_law, child)), law)
    depth = jnp.where(accepted, walk.num_accepted + 1, 0)
    # A row without a child left stays without one: its node and what was tried stay too.
    return _Walk(
        node=node,
        child=siblings.next_child(proposal, node, tried),
        law=law,
        tried=tried,
        path=siblings.set_node(walk.path, depth, child),
        num_accepted=jnp.maximum(walk.num_accepted, depth),
        accept_probs=siblings.set_node(walk.accept_probs, child, prob),
        source=source,
    )

  def residual(self, law: Array, draft: Array) -> Array:
    """max(law - draft, 0), [B, V], not normalised."""
    return jnp.maximum(law - draft, 0.0)


def recursive() -> Recursive:
  """Tries the children of the last accepted node in turn, and goes on below the first kept.

  A child x drawn from q is kept with probability min(1, p(x) / q(x)); if it is not, p
  becomes the residual, max(p - q, 0) normalised, for the next one. Independent siblings
  (SAMPLED) share q (SpecInfer, Miao et al. 2023, arXiv 2305.09781, algorithm 2); those drawn
  without replacement were drawn from q without their earlier siblings, normalised (Jeon et
  al. 2024, arXiv 2402.14160, recursive rejection sampling); chosen ones (ONE_HOT) have q = 1,
  so that x is kept with probability p(x) and then struck out (EAGLE's trees, Li et al. 2024,
  arXiv 2401.15077). If no child is kept, the next token is drawn from the last residual;
  behind a leaf, from the target's law. The first branch stays as long as under the rejection
  rule, so that the tree is never shorter in expectation.

  Returns:
    A rule for trees and chains of kind SAMPLED, WITHOUT_REPLACEMENT or ONE_HOT.
  """
  return Recursive()
