"""Rules and schedules of others that are said to be lossless, planted: the enumeration sees them.

Each is the shipped code with the one difference, on the example that shows it best, and the
shipped code on the same example is right.
"""

import dataclasses

from flax import struct
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import randomness
from specjax import testing
from specjax import verify
from specjax.verify import acceptance

pytestmark = pytest.mark.usefixtures('compiled_fast')


def coin(first: float):
  """A model of two tokens that knows nothing of what came before."""
  return testing.table_model([[np.log(first), np.log(1 - first)]] * 2)


def errors(target, drafter, rule, max_new_tokens: int):
  """The largest error of the output's law, and the law."""
  law, = testing.output_law(
      target, [(0,)], drafter=drafter, rule=rule, max_new_tokens=max_new_tokens
  )
  right, = testing.plain_law(target, [(0,)], max_new_tokens=max_new_tokens)
  return testing.max_difference(law, right), law


@dataclasses.dataclass(frozen=True)
class Hierarchical(type(verify.block())):
  """The block rule with the last position accepted by the ratio of whole prefixes, not capped.

  That is what the code published with arXiv 2601.05724 (hierarchical speculative decoding) does
  for a single draft: a prefix that the target wants more than the draft gave it, and whose
  surplus has been spent at the position before, pays for the last token a second time.
  """

  capped: bool = False

  def __call__(self, *, target_law, proposal, positions, source):
    ratios = acceptance.target_log_probs(target_law, proposal)
    ratios = jnp.exp(jnp.cumsum(ratios - acceptance.draft_log_probs(proposal), axis=1))
    probs = self.prefix_probs(target_law, proposal)
    stops = self.stop_probs(target_law, proposal, probs)
    if not self.capped:
      stops = stops.at[:, -1].set(jnp.minimum(ratios[:, -1], 1.0))
    flips, source = source.flip(stops, purpose=randomness.ACCEPT)
    nodes = jnp.arange(1, proposal.num_nodes + 1)
    num_accepted = jnp.max(jnp.where(flips, nodes, 0), axis=1)
    whole = jnp.pad(probs, ((0, 0), (1, 0)), constant_values=1.0)
    is_bonus = num_accepted == proposal.num_nodes
    next_token, source = acceptance.draw_next(
        target_law,
        proposal,
        num_accepted=num_accepted,
        is_bonus=is_bonus,
        scale=jnp.take_along_axis(whole, num_accepted[:, None], axis=1)[:, 0],
        source=source,
    )
    return acceptance.chain_verification(
        num_accepted=num_accepted, next_token=next_token, is_bonus=is_bonus, accept_probs=stops
    ), source


def test_the_last_position_by_an_uncapped_ratio():
  """It accepts more than can be: 4/3 tokens, where the optimum is 11/9, and the law is off."""
  target, drafter = coin(1 / 3), drafters.model(coin(2 / 3), num_speculative_tokens=2)
  for rule, tokens, wrong_by in (
      (verify.block(), 11 / 9, 0.0),
      (Hierarchical(capped=True), 11 / 9, 0.0),
      (Hierarchical(), 4 / 3, 1 / 9),
  ):
    accepted, = testing.expected_accepted(target, [(0,)], drafter=drafter, rule=rule)
    assert accepted == pytest.approx(tokens, abs=1e-6), rule
    assert errors(target, drafter, rule, 2)[0] == pytest.approx(wrong_by, abs=1e-6), rule


@struct.dataclass
class Scheduled(drafters.ModelDrafter):
  """Has a token verified where it pays, which is looked up after the token was drawn.

  The counterexample of appendix A of DSpark, arXiv 2607.05147: token 0 is surely accepted, so it
  is verified; token 1 may be rejected, so it is not, and the target draws instead.
  """

  sees_token: bool = struct.field(pytree_node=False, default=True)

  def propose(self, context, state):
    proposal, state, context = super().propose(context, state)
    pays = proposal.tokens == 0 if self.sees_token else jnp.zeros_like(proposal.valid)
    return proposal.replace(valid=proposal.valid & pays), state, context


@pytest.mark.parametrize('rule', [verify.rejection(), verify.block()], ids=lambda rule: rule.name)
def test_a_verify_length_chosen_after_seeing_the_token(rule):
  target = coin(0.7)
  schedule = lambda sees: Scheduled(
      draft=coin(0.5), min_confidence=jnp.float32(0), num_nodes=1, sees_token=sees
  )
  error, law = errors(target, schedule(True), rule, 1)
  assert law[0,] == pytest.approx(0.85, abs=1e-6) and law[1,] == pytest.approx(0.15, abs=1e-6)
  assert error == pytest.approx(0.15, abs=1e-6)
  error, law = errors(target, schedule(False), rule, 1)
  assert error < 1e-6 and law[0,] == pytest.approx(0.7, abs=1e-6)
