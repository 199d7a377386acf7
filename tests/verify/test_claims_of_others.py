"""Rules and schedules of others that are said to be lossless, planted: the enumeration sees them.

Each is the shipped code with the one difference, on the example that shows it best; without the
difference it is right.
"""

import dataclasses

from flax import struct
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import sampling as sampling_lib
from specjax import testing
from specjax import verify
from tests.support.by_row import ByRow
from tests.support.nothing_to_draw import VOCAB

pytestmark = pytest.mark.usefixtures('compiled_fast')


def coin(first: float):
  """A model of two tokens that knows nothing of what came before; a third is never said."""
  return testing.table_model([[np.log(first), np.log(1 - first), -np.inf]] * VOCAB)


def by_rule(rules):
  """One row for each rule, for `output_law` and `expected_accepted`."""
  sampling = sampling_lib.make(batch_size=len(rules), top_k=VOCAB + np.arange(len(rules)))
  return dict(prompts=[(0,)] * len(rules), rule=ByRow(tuple(rules), VOCAB), sampling=sampling)


@dataclasses.dataclass(frozen=True)
class Hierarchical(type(verify.block())):
  """The block rule with the last position accepted by the ratio of whole prefixes, not capped.

  That is what the code published with arXiv 2601.05724 (hierarchical speculative decoding) does
  for a single draft: what a prefix is wanted more than it was drafted makes up for a last token
  that was drafted more than it is wanted, though the surplus is given out elsewhere, too.
  """

  capped: bool = False

  def prob(self, numbers):
    stops = super().prob(numbers)
    ratios = jnp.exp(jnp.cumsum(numbers.target - numbers.draft, axis=1))
    if self.capped:
      return stops
    return stops.at[:, -1].set(jnp.minimum(ratios[:, -1], 1.0))


def test_the_last_position_by_an_uncapped_ratio():
  """It accepts more than can be, 4/3 tokens where the optimum is 11/9, and its law is off."""
  target, drafter = coin(1 / 3), drafters.model(coin(2 / 3), num_speculative_tokens=2)
  options = by_rule([verify.block(), Hierarchical(capped=True), Hierarchical()])
  accepted = testing.expected_accepted(target, drafter=drafter, **options)
  np.testing.assert_allclose(accepted, [11 / 9, 11 / 9, 4 / 3], atol=1e-6)
  laws = testing.output_law(target, drafter=drafter, max_new_tokens=2, **options)
  right, = testing.plain_law(target, [(0,)], max_new_tokens=2)
  errors = [testing.max_difference(law, right) for law in laws]
  np.testing.assert_allclose(errors, [0, 0, 1 / 9], atol=1e-6)


@struct.dataclass
class Scheduled(drafters.ModelDrafter):
  """Has a token verified where it pays, which is looked up after the token was drawn.

  The counterexample of appendix A of DSpark, arXiv 2607.05147: token 0 is surely accepted, so it
  is verified; token 1 may be rejected, so it is not, and the target draws instead.
  """

  sees_token: bool | jnp.ndarray = True

  def propose(self, context, state):
    proposal, state, context = super().propose(context, state)
    pays = self.sees_token & (proposal.tokens == 0)
    return proposal.replace(valid=proposal.valid & pays), state, context


def test_a_verify_length_chosen_after_seeing_the_token():
  laws = {}
  for sees_token in (True, False):
    drafter = Scheduled(
        draft=coin(0.5), min_confidence=jnp.float32(0), num_nodes=1,
        sees_token=jnp.asarray(sees_token),
    )
    laws[sees_token] = testing.output_law(
        coin(0.7), drafter=drafter, max_new_tokens=1,
        **by_rule([verify.rejection(), verify.block()]),
    )
  for wrong, right in zip(laws[True], laws[False]):
    assert (wrong[0,], wrong[1,]) == pytest.approx((0.85, 0.15), abs=1e-6)
    assert (right[0,], right[1,]) == pytest.approx((0.7, 0.3), abs=1e-6)
