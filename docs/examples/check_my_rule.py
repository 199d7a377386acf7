"""Sums the law of the output under the brief rule exactly, and shows that a fault is caught.

    python docs/examples/check_my_rule.py
"""

import dataclasses

import my_rule

from specjax import drafters
from specjax import sampling
from specjax import testing
from specjax import verify
from specjax.verify import chains

# Two models of three tokens: row i holds the logits of the token after token i.
TARGET = testing.table_model([[0.0, 1.0, -1.0], [1.0, 0.0, 0.5], [0.5, -0.5, 0.0]])
DRAFT = testing.table_model([[0.5, 0.5, -1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5]])
PROMPT = [0, 1, 0]
# One row for each: as it is, cooler and cut off, greedy.
SAMPLING = sampling.make(batch_size=3, temperature=[1.0, 0.7, 0.0], top_k=[0, 2, 0])
# Drafts that are drawn from a law, and drafts that are chosen.
DRAFTERS = {
    'draft model': drafters.model(DRAFT, num_speculative_tokens=2),
    'prompt lookup': drafters.ngram(num_speculative_tokens=2),
}


@dataclasses.dataclass(frozen=True)
class Forgetful(my_rule.Brief):
  """Wrong on purpose: draws from the residual where nothing was refused."""

  def rest(self, progress, is_bonus):
    return chains.ChainRule.rest(self, progress, is_bonus)


def error(rule, drafter):
  """The largest error of the probability of any four tokens, over all rows."""
  prompts = [PROMPT] * len(SAMPLING.temperature)
  options = dict(max_new_tokens=4, sampling=SAMPLING)
  laws = testing.output_law(TARGET, prompts, drafter=drafter, rule=rule, **options)
  wanted = testing.plain_law(TARGET, prompts, **options)
  return max(map(testing.max_difference, laws, wanted))


def accepted(rule):
  """The exact mean number of tokens of the draft model that a first round accepts."""
  drafter = DRAFTERS['draft model']
  return testing.expected_accepted(TARGET, [PROMPT], rule=rule, drafter=drafter)[0]


if __name__ == '__main__':
  for name, drafter in DRAFTERS.items():
    print(f'brief, {name}: largest error {error(my_rule.Brief(most=1), drafter):.1e}')
    print(f'forgetful, {name}: largest error {error(Forgetful(most=1), drafter):.3f}')
  rules = {'rejection': verify.rejection(), 'brief, most=1': my_rule.Brief(most=1)}
  for name, rule in rules.items():
    print(f'{name}: {accepted(rule):.3f} of 2 drafted tokens accepted')
