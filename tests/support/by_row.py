"""Several rules in one program of an enumeration."""

import dataclasses

import jax
import jax.numpy as jnp

from specjax.verify import rule as rule_lib


@dataclasses.dataclass(frozen=True)
class ByRow:
  """Another rule for each row, so that one program enumerates them all.

  A row names its rule with a top-k that keeps the whole vocabulary of V: V for the first one, V + 1
  for the second, and V plus the number of rules for the first one again.
  """

  rules: tuple
  vocab_size: int
  name: str = 'by row'
  mode: str = 'sample'
  handles_trees: bool = True
  lossless: bool = True
  takes_infinite_logits: bool = True

  def check(self, proposal):
    for rule in self.rules:
      rule_lib.as_rule(rule).check(proposal)

  def rows(self, logits, *, sampling, proposal):
    which = (sampling.top_k - self.vocab_size) % len(self.rules)
    return which, [
        rule_lib.as_rule(rule).rows(logits, sampling=sampling, proposal=proposal)
        for rule in self.rules
    ]

  def decide(self, rows, **kwargs):
    which, rows = rows
    results = []
    for rule, own_rows in zip(self.rules, rows):
      verification, source = rule_lib.as_rule(rule).decide(own_rows, **kwargs)
      results.append((verification.replace(log_probs=None), source))

    def choose(*results):
      picked = results[0]
      for index, result in enumerate(results):
        own = (which == index).reshape(-1, *[1] * (result.ndim - 1))
        picked = jnp.where(own, result, picked)
      return picked

    return jax.tree.map(choose, *results)
