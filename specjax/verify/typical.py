"""Typical acceptance: a LOSSY rule, faster and of another law than the target's."""

import dataclasses

import jax.numpy as jnp

from specjax import randomness
from specjax import tree
from specjax import types
from specjax.verify import chains
from specjax.verify import rule


@dataclasses.dataclass(frozen=True)
class Typical(rule.RuleBase):
  """See `typical`; fields and methods as in `specjax.verify.Rule`."""

  epsilon: float = 0.09
  delta: float = 0.3
  name: str = 'typical (lossy)'
  lossless: bool = False
  mode: str = 'sample'
  handles_trees: bool = False

  def decide(self, rows, *, positions, source):
    """As `specjax.verify.Rule.decide`."""
    del positions
    # It reads whole rows, and nothing of the draft's laws: drafts of any kind will do.
    valid, law = rows.proposal.valid, rows.law()
    accepted = jnp.zeros_like(valid)
    if valid.shape[1]:
      accepted = valid & (jnp.exp(rows.target_log_probs()) > self.thresholds(law[:, :-1]))
    num_accepted = tree.prefix_length(accepted)
    next_token, source = source.draw(
        rows.law(num_accepted[:, None])[:, 0], purpose=randomness.NEXT, node=num_accepted
    )
    return types.Verification(
        num_accepted=num_accepted,
        path=chains.chain_path(num_accepted, valid.shape[1]),
        next_token=next_token,
        is_bonus=num_accepted == tree.prefix_length(valid),
        accept_probs=accepted.astype(jnp.float32),
    ), source

  def thresholds(self, law):
    """min(epsilon, delta exp(-entropy)) of laws [B, n, V], [B, n]."""
    entropy = -jnp.sum(jnp.where(law > -jnp.inf, jnp.exp(law) * law, 0.0), axis=-1)
    return jnp.minimum(self.epsilon, self.delta * jnp.exp(-entropy))


def typical(*, epsilon: float = 0.09, delta: float = 0.3) -> Typical:
  """LOSSY: accepts drafted tokens that are not too improbable under the target.

  A token stays if p(x) > min(epsilon, delta exp(-H(p))), p the target's law and H its
  entropy; the next token is drawn from the target's law after the last one (Medusa, Cai et
  al. 2024, arXiv 2401.10774, section 2.3.1). The draft's law is not used, so the output is
  not distributed as the target's: `specjax.testing.output_law` measures by how much on a
  model of your choice. At temperature 0 it equals the greedy rule.

  Args:
    epsilon: the hard threshold, in (0, 1); Medusa's code uses 0.09.
    delta: the entropy-dependent one, > 0; Medusa's code uses 0.3.

  Returns:
    A rule for chains of any kind, with `lossless` False.

  Raises:
    ValueError: if epsilon or delta is out of range.
  """
  if not 0.0 < epsilon < 1.0:
    raise ValueError(f'typical: epsilon must be in (0, 1), got {epsilon}.')
  if not delta > 0.0:
    raise ValueError(f'typical: delta must be above 0, got {delta}.')
  return Typical(epsilon=float(epsilon), delta=float(delta))
