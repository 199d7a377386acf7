"""The block rule: a draft is verified as a whole, never shorter on average than by tokens."""

import dataclasses

import jax.numpy as jnp

from specjax import randomness
from specjax import types
from specjax.verify import acceptance


@dataclasses.dataclass(frozen=True)
class Block:
  """See `block`; fields and call as in `specjax.verify.Rule`."""

  name: str = 'block'
  lossless: bool = True
  mode: str = 'sample'
  handles_trees: bool = False

  def __call__(self, *, target_law, proposal, positions, source):
    del positions
    acceptance.check_kind(proposal, rule=self.name)
    num_valid = acceptance.prefix_length(proposal.valid)
    num_accepted, scale, probs = jnp.zeros_like(num_valid), None, proposal.valid * 0.0
    if proposal.num_nodes:
      prefix_probs = self.prefix_probs(target_law, proposal)
      stops = self.stop_probs(target_law, proposal, prefix_probs)
      flips, source = source.flip(stops, purpose=randomness.ACCEPT)
      # All flips count, also those behind a failed one: the longest prefix is taken.
      nodes = jnp.arange(1, proposal.num_nodes + 1)
      num_accepted = jnp.max(jnp.where(flips & proposal.valid, nodes, 0), axis=1)
      whole = jnp.pad(prefix_probs, ((0, 0), (1, 0)), constant_values=1.0)
      scale = jnp.take_along_axis(whole, num_accepted[:, None], axis=1)[:, 0]
      probs = conditional(stops)
    is_bonus = num_accepted == num_valid
    next_token, source = acceptance.draw_next(
        target_law,
        proposal,
        num_accepted=num_accepted,
        is_bonus=is_bonus,
        scale=scale,
        source=source,
    )
    verification = acceptance.chain_verification(
        num_accepted=num_accepted,
        next_token=next_token,
        is_bonus=is_bonus,
        accept_probs=probs,
    )
    return verification, source

  def prefix_probs(self, target_law, proposal):
    """p_i = min(p_(i-1) p / q, 1), p_0 = 1: the chance that i tokens or more stay, [B, N]."""
    target = acceptance.target_log_probs(target_law, proposal)
    return prefix_probs(target, acceptance.draft_log_probs(proposal))

  def stop_probs(self, target_law, proposal, probs):
    """h_i, the chance of stopping at i if not behind it, [B, N]; 0 where not valid.

    With S = sum over tokens of max(p_i target - draft, 0) at row i, h_i = S / (S + 1 - p_i),
    and h = p at the last valid node.
    """
    inner = probs[:, :-1]
    if proposal.kind == types.ONE_HOT:
      target = acceptance.target_log_probs(target_law, proposal)
      surplus = inner * -jnp.expm1(target[:, 1:])
    else:
      draft = jnp.take_along_axis(proposal.law, proposal.rows[:, 1:, None], axis=1)
      difference = inner[..., None] * jnp.exp(target_law[:, 1:-1]) - jnp.exp(draft)
      surplus = jnp.sum(jnp.maximum(difference, 0.0), axis=-1)
    return stop_probs(probs, surplus, proposal.valid)


def prefix_probs(target, draft):
  """p_i from the tokens' log-probabilities under target and draft, all [B, N]."""
  # What the target excludes is refused before the quotient, which could be 0 / 0; and no
  # quotient is infinite, for p_(i-1) may be 0.
  ratios = jnp.exp(jnp.minimum(target - draft, 80.0))
  ratios = jnp.where(target > -jnp.inf, ratios, 0.0)
  probs, prob = [], 1.0
  for node in range(ratios.shape[1]):
    prob = jnp.minimum(prob * ratios[:, node], 1.0)
    probs.append(prob)
  return jnp.stack(probs, axis=1)


def stop_probs(probs, surplus, valid):
  """h_i [B, N] from p_i [B, N] and S_i [B, N - 1]; 0 where not valid."""
  inner = probs[:, :-1]
  stops = jnp.where(~valid[:, 1:], inner, stop_prob(inner, surplus))
  stops = jnp.concatenate([stops, probs[:, -1:]], axis=1)
  return jnp.where(valid, stops, 0.0)


def stop_prob(prob, surplus):
  """h_i from p_i and S_i, elementwise, before the last valid node."""
  rest = surplus + 1.0 - prob
  # 0 / 0: p_i is 1 and the laws of the next token agree. Then p_(i+1) is 1 too, and so on
  # to a later node whose flip is certain, so that h_i decides nothing.
  return jnp.where(rest > 0, surplus / jnp.where(rest > 0, rest, 1.0), 1.0)


def conditional(stops):
  """The chance that node i stays if node i - 1 does, for this draft, [B, N].

  Node i stays unless flips i … N all fail, with probability a_i = 1 - prod (1 - h_j); the
  result is a_i / a_(i-1), with a_0 = 1, so that its running products are a_i.
  """
  fails = jnp.flip(jnp.cumprod(jnp.flip(1.0 - stops, axis=1), axis=1), axis=1)
  stays = 1.0 - fails
  before = jnp.pad(stays[:, :-1], ((0, 0), (1, 0)), constant_values=1.0)
  return jnp.where(before > 0, stays / jnp.where(before > 0, before, 1.0), 0.0)


def block() -> Block:
  """Accepts the longest prefix of the draft that the whole draft allows.

  Block verification (Sun et al. 2024, arXiv 2403.10444, algorithm 2): with p_0 = 1,

    p_i = min(p_(i-1) target(x_i) / draft(x_i), 1),
    h_i = S_i / (S_i + 1 - p_i),  S_i = sum_x max(p_i target(x) - draft(x), 0) at row i,
    h_N = p_N,

  a flip of probability h_i is made at every i, and the largest i whose flip succeeds is the
  number accepted, tau (0 if none does). The next token is drawn from max(p_tau target -
  draft, 0), normalised, or from the target's law if tau = N. Given the first i tokens, i or
  more stay with probability p_i; that holds for a block whose length depends on what was
  drafted before its end, so `valid` may be a prefix. The expected number accepted is never
  below the rejection rule's; for one-hot drafts and at temperature 0 they are equal.

  Returns:
    A rule for chains that were drawn (kind SAMPLED) or chosen (ONE_HOT).
  """
  return Block()
