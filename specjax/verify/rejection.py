"""The rejection rule of speculative sampling, token by token."""

import dataclasses

import jax.numpy as jnp

from specjax.verify import chains


@dataclasses.dataclass(frozen=True)
class Rejection(chains.ChainRule):
  """See `rejection`; fields and methods as in `specjax.verify.chains.ChainRule`."""

  name: str = 'rejection'

  def prob(self, numbers):
    """min(1, p / q) of a drafted token."""
    # What the target excludes is refused before the quotient, which could be 0 / 0.
    possible = numbers.valid & (numbers.target > -jnp.inf)
    ratio = jnp.exp(jnp.minimum(numbers.target - numbers.draft, 0.0))
    return jnp.where(possible, ratio, 0.0)

  def step(self, progress, numbers, flip, number):
    """A token stays if its coin succeeds and all tokens before it stay."""
    del number
    stays = jnp.where(numbers.valid & flip, progress.stays, 0)
    return progress.replace(count=progress.count + stays, stays=stays)


def rejection() -> Rejection:
  """Accepts a drafted token with probability min(1, p / q), p the target's and q the draft's.

  At the first rejection the next token is drawn from the residual, proportional to
  max(p - q, 0); if nothing is rejected a bonus token is drawn from the target's law after
  the last drafted token (Leviathan et al. 2022, arXiv 2211.17192, algorithm 1; Chen et al.
  2023, arXiv 2302.01318, algorithm 2). Acceptance is 1 - TV(p, q) per token.

  Returns:
    A rule for chains that were drawn (kind SAMPLED) or chosen (ONE_HOT: q = 1).
  """
  return Rejection()
