"""The block rule: a draft is verified as a whole, never shorter on average than by tokens."""

import dataclasses

import jax.numpy as jnp

from specjax.verify import chains


@dataclasses.dataclass(frozen=True)
class Block(chains.ChainRule):
  """See `block`; fields and methods as in `specjax.verify.chains.ChainRule`."""

  name: str = 'block'
  chain_surplus = True

  def prob(self, numbers):
    """h_i, the chance of stopping at i if not after it; 0 where not valid."""
    stop = jnp.where(numbers.next_valid, stop_prob(numbers.prefix, numbers.surplus), numbers.prefix)
    return jnp.where(numbers.valid, stop, 0.0)

  def step(self, progress, numbers, flip, number):
    """All coins count, also those after one that failed: the longest prefix is taken."""
    succeeds = numbers.valid & flip
    return progress.replace(
        count=jnp.where(succeeds, number, progress.count),
        scale=jnp.where(succeeds, numbers.prefix, progress.scale),
    )

  def accept_probs(self, probs):
    """See `conditional`."""
    return conditional(probs)


def stop_prob(prefix, surplus):
  """h_i = S_i / (S_i + 1 - p_i), elementwise, before the last valid node."""
  rest = surplus + 1.0 - prefix
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
