"""The rejection rule of speculative sampling, token by token."""

import dataclasses

import jax.numpy as jnp

from specjax import randomness
from specjax.verify import acceptance


@dataclasses.dataclass(frozen=True)
class Rejection:
  """See `rejection`; fields and call as in `specjax.verify.Rule`."""

  name: str = 'rejection'
  lossless: bool = True
  mode: str = 'sample'
  handles_trees: bool = False

  def __call__(self, *, target_law, proposal, positions, source):
    del positions
    acceptance.check_kind(proposal, rule=self.name)
    probs = self.accept_probs(target_law, proposal)
    accepted = jnp.zeros_like(proposal.valid)
    if proposal.num_nodes:
      accepted, source = source.flip(probs, purpose=randomness.ACCEPT)
    num_accepted = acceptance.prefix_length(accepted & proposal.valid)
    is_bonus = num_accepted == acceptance.prefix_length(proposal.valid)
    next_token, source = acceptance.draw_next(
        target_law, proposal, num_accepted=num_accepted, is_bonus=is_bonus, source=source
    )
    verification = acceptance.chain_verification(
        num_accepted=num_accepted,
        next_token=next_token,
        is_bonus=is_bonus,
        accept_probs=probs,
    )
    return verification, source

  def accept_probs(self, target_law, proposal):
    """min(1, p / q) of every drafted token, [B, N] float32; 0 where not valid."""
    if not proposal.num_nodes:
      return jnp.zeros(proposal.tokens.shape, jnp.float32)
    target = acceptance.target_log_probs(target_law, proposal)
    return token_probs(target, acceptance.draft_log_probs(proposal), proposal.valid)


def token_probs(target, draft, valid):
  """min(1, p / q) from log-probabilities of tokens, all [B, N]; 0 where not valid."""
  # What the target excludes is refused before the quotient, which could be 0 / 0.
  possible = valid & (target > -jnp.inf)
  return jnp.where(possible, jnp.exp(jnp.minimum(target - draft, 0.0)), 0.0)


def rejection() -> Rejection:
  """Accepts a drafted token with probability min(1, p / q), p the target's and q the draft's.

  At the first rejection the next token is drawn from the residual, proportional to
  max(p - q, 0); if nothing is rejected a bonus token is drawn from the target's law behind
  the last drafted token (Leviathan et al. 2022, arXiv 2211.17192, algorithm 1; Chen et al.
  2023, arXiv 2302.01318, algorithm 2). Acceptance is 1 - TV(p, q) a token.

  Returns:
    A rule for chains that were drawn (kind SAMPLED) or chosen (ONE_HOT: q = 1).
  """
  return Rejection()
