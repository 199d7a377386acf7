"""Several rules in one program of an enumeration."""

import dataclasses

import jax
import jax.numpy as jnp

from specjax import sampling as sampling_lib


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
  takes_logits: bool = True

  def __call__(self, *, logits, sampling, **kwargs):
    law = sampling_lib.law(logits, sampling)
    which = (sampling.top_k - self.vocab_size) % len(self.rules)

    def decide(rule):
      if getattr(rule, 'takes_logits', False):
        return rule(logits=logits, sampling=sampling, **kwargs)
      return rule(target_law=law, **kwargs)

    def choose(*results):
      picked = results[0]
      for index, result in enumerate(results):
        own = (which == index).reshape(-1, *[1] * (result.ndim - 1))
        picked = jnp.where(own, result, picked)
      return picked

    return jax.tree.map(choose, *map(decide, self.rules))
