"""Sums the law of the output with the bigram drafter exactly, and shows that a fault is caught.

    python docs/examples/check_my_drafter.py
"""

from flax import struct
import jax.numpy as jnp
import my_drafter

from specjax import sampling
from specjax import testing
from specjax import verify

# A target of three tokens: row i holds the logits of the token after token i.
TARGET = testing.table_model([[0.0, 1.0, -1.0], [1.0, 0.0, 0.5], [0.5, -0.5, 0.0]])
PROMPT = [0, 1, 0]
# One row for each: as it is, cooler and cut off, greedy, with a penalty.
SAMPLING = sampling.make(
    batch_size=4,
    temperature=[1.0, 0.7, 0.0, 1.0],
    top_k=[0, 2, 0, 0],
    frequency_penalty=[0.0, 0.0, 0.0, 0.5],
)
RULES = (verify.rejection(), verify.block())


@struct.dataclass
class Choosy(my_drafter.Bigram):
  """Wrong on purpose: drops a token because of what was drawn."""

  def propose(self, context, state):
    proposal, state, context = super().propose(context, state)
    is_likely = jnp.exp(proposal.log_probs()) > 0.4
    return proposal.replace(valid=is_likely), state, context


def error(drafter, rule):
  """The largest error of the probability of any four tokens, over all rows."""
  prompts = [PROMPT] * len(SAMPLING.temperature)
  options = dict(max_new_tokens=4, sampling=SAMPLING)
  laws = testing.output_law(TARGET, prompts, drafter=drafter, rule=rule, **options)
  wanted = testing.plain_law(TARGET, prompts, **options)
  return max(map(testing.max_difference, laws, wanted))


if __name__ == '__main__':
  drafter = my_drafter.make(3, num_speculative_tokens=2)
  for rule in RULES:
    print(f'bigram, {rule.name}: largest error {error(drafter, rule):.1e}')
  faulty = Choosy(num_nodes=2, vocab_size=3, smooth=0.1)
  for rule in RULES:
    print(f'choosy, {rule.name}: largest error {error(faulty, rule):.3f}')
