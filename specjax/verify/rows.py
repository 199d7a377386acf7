"""What a rule asks of one round's rows: numbers of the drafted tokens, masses, and draws.

A rule never sees how large the vocabulary is. It asks for numbers, one or a few per node, and
an implementation of `Rows` computes them: from laws in memory (`specjax.verify.whole`), or from
logits, tile by tile, on one device or many (`specjax.kernels.accept`).
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from specjax import types

Array = jax.Array


@struct.dataclass
class Scan:
  """What one pass over the rows gives.

  Attributes:
    target: [B, N] float32, log-probability of each drafted token under the target's law at its
      parent.
    draft: [B, N] float32, under the law that it was drawn from; 0 for chosen tokens. Not finite
      where a token was not drawn from that law: it is not valid then.
    prefix: [B, N] float32, of a chain that was asked for its surplus: `prefix_probs`; else None.
    surplus: [B, N - 1] float32, likewise: the sum over tokens of max(prefix_i target - draft, 0) at
      row i, for i = 1 … N - 1.
  """

  target: Array
  draft: Array
  prefix: Array | None = None
  surplus: Array | None = None


@struct.dataclass
class Draw:
  """An unnormalised law at one row of each sequence: max(scale * target - share * draft, 0).

  The draft's law is the one that the children of `node` were drawn from.

  Attributes:
    node: [B] int32, the row of the target; 0 is the root.
    scale: [B] float32.
    share: [B] float32; 0 takes nothing of the draft, which may then have no law (NaN).
    without: [B, C] int32, tokens that are struck out; -1 for none.
  """

  node: Array
  scale: Array
  share: Array
  without: Array

  def or_target(self, is_empty: Array) -> 'Draw':
    """The target's own law where `is_empty` [B]."""
    return self.replace(
        scale=jnp.where(is_empty, 1.0, self.scale),
        share=jnp.where(is_empty, 0.0, self.share),
        without=jnp.where(is_empty[:, None], -1, self.without),
    )


class Rows:
  """The rows of one round, for all sequences of a batch; the base of every implementation.

  Attributes:
    proposal: what was drafted. Its `law` may be None where the implementation holds the draft's
      laws itself. Siblings share one row of the draft's law.
  """

  proposal: types.Proposal

  def scan(self, *, chain_surplus: bool = False) -> Scan:
    """Numbers of all drafted tokens.

    Args:
      chain_surplus: static; whether `prefix` and `surplus` are wanted, of a chain.
    """
    raise NotImplementedError

  def choose(self, source: Any = None, positions: Array | None = None):
    """The target's own choice at every row.

    Args:
      source: where coupled noise comes from.
      positions: [B, N + 1] int32, the absolute position that a token drawn from the row takes:
        the choice is the argmax of log-probability plus the noise of this position. None: the
        argmax of the logits.

    Returns:
      Tokens [B, N + 1] int32, the smaller one of equals, and their log-probabilities under the
      target's law [B, N + 1] float32, or None where the implementation does not have them.
    """
    raise NotImplementedError

  def mass(self, draw: Draw) -> Array:
    """The sum of a draw's weights over the vocabulary, [B] float32."""
    raise NotImplementedError

  def draft_mass(self, draw: Draw, scan: Scan) -> Array:
    """What is left of the draft's law, [B] float32, without the tokens that a draw strikes out.

    Here from scalars: one minus what the struck nodes had, which is off by rounding of one; where
    whole rows are at hand, the rest is summed.

    Args:
      draw: `without` holds tokens of different children of `node`.
      scan: of the rows.
    """
    is_child = self.proposal.parents == draw.node[:, None]
    is_struck = jnp.any(self.proposal.tokens[:, :, None] == draw.without[:, None, :], axis=-1)
    struck = jnp.where(is_child & is_struck, jnp.exp(scan.draft), 0.0)
    return jnp.maximum(1.0 - jnp.sum(struck, axis=1), 0.0)

  def draw(self, draw: Draw, source: Any) -> tuple[Array, Array | None, Any]:
    """Draws a token; from the target's own law where the draw's weights are all 0.

    That fallback is exact, because it never matters: weights are empty only where the laws agree,
    so that nothing is rejected and nothing is drawn. Rounding alone leads there.

    Args:
      draw: what is drawn from.
      source: consumed.

    Returns:
      Tokens [B] int32, their log-probabilities under the target's law [B] (or None, as for
      `choose`), and the source to use next.
    """
    raise NotImplementedError

  def law(self, nodes: Array | None = None) -> Array:
    """The target's laws at `nodes` [B, n], all rows where None: [B, n, V] log-probabilities.

    Raises:
      ValueError: if the implementation never has a whole row.
    """
    raise ValueError(
        'This rule reads whole rows of the target (`Rows.law`), which '
        f'{type(self).__name__} does not have: run the rule on laws in memory.'
    )

  def fused_chain(self, rule: Any, source: Any) -> tuple[types.Verification, Any] | None:
    """A chain decided as a whole, by a kernel that calls the rule's `step`; None without one."""
    del rule, source

  def fused_follow(self, source: Any, positions: Array | None) -> types.Verification | None:
    """`follow.decide` of a chain by a kernel; None if there is none."""
    del source, positions


def draw_weights(
    target: Array, draft: Array | None, *, scale: Array, share: Array, without: Array, ids: Array
) -> Array:
  """max(scale * target - share * draft, 0) without struck tokens: a draw's weights, [P, X].

  Args:
    target: [P, X] float32, probabilities of some tokens under the target's law.
    draft: [P, X] float32, under the draft's; None where tokens were chosen.
    scale: [P] float32, as in `Draw`, and so are `share` [P] and `without` [P, C].
    ids: [X] or [P, X] int32, the tokens.
  """
  weights = scale[:, None] * target
  if draft is not None:
    share = share[:, None]
    # Where none of it is taken, the draft may have no law at all (NaN).
    weights = jnp.where(share > 0, jnp.maximum(weights - share * draft, 0.0), weights)
  return strike(weights, without, ids)


def strike(weights: Array, without: Array, ids: Array) -> Array:
  """`weights` [P, X] of the tokens `ids`, 0 at the tokens `without` [P, C]."""
  for column in range(without.shape[1]):
    weights = jnp.where(ids == without[:, column : column + 1], 0.0, weights)
  return weights


def child_of(proposal: types.Proposal, node: Array) -> Array:
  """The index [B] in 0 … N - 1 of the first child of `node` [B]; 0 where it has none."""
  is_child = proposal.parents == node[:, None]
  numbers = jnp.arange(proposal.num_nodes, dtype=jnp.int32)
  first = jnp.min(jnp.where(is_child, numbers, proposal.num_nodes), axis=1)
  return jnp.where(first < proposal.num_nodes, first, 0)


def prefix_ratio(target: Array, draft: Array) -> Array:
  """target / draft of a token from its log-probabilities, for `prefix_step`. Elementwise."""
  # What the target excludes is refused before the quotient, which could be 0 / 0; and no
  # quotient is infinite, for p_(i-1) may be 0.
  return jnp.where(target > -jnp.inf, jnp.exp(jnp.minimum(target - draft, 80.0)), 0.0)


def prefix_step(prob: Array | float, ratio: Array) -> Array:
  """p_i = min(p_(i-1) target / draft, 1) of the block rule (Sun et al. 2024). Elementwise."""
  return jnp.minimum(prob * ratio, 1.0)


def prefix_probs(target: Array, draft: Array) -> Array:
  """All p_i, p_0 = 1 left out, from the tokens' log-probabilities under both laws, [B, N]."""
  ratios, probs, prob = prefix_ratio(target, draft), [], 1.0
  for node in range(target.shape[1]):
    prob = prefix_step(prob, ratios[:, node])
    probs.append(prob)
  return jnp.stack(probs, axis=1)


def one_hot_surplus(prefix: Array, target: Array) -> Array:
  """The surplus where tokens were chosen: all of the target's law but the token. Elementwise.

  Args:
    prefix: p_i, before the token.
    target: the token's log-probability.
  """
  return prefix * -jnp.expm1(target)
