"""The brief rule: as the rejection rule, but at most `most` drafted tokens of a round stay."""

import dataclasses

import jax.numpy as jnp
from specjax.verify import chains


@dataclasses.dataclass(frozen=True)
class Brief(chains.ChainRule):
  name: str = 'brief'
  most: int = 2

  def prob(self, numbers):  # of a token's coin: min(1, p / q)
    possible = numbers.valid & (numbers.target > -jnp.inf)
    ratio = jnp.exp(jnp.minimum(numbers.target - numbers.draft, 0.0))
    return jnp.where(possible, ratio, 0.0)

  def step(self, progress, numbers, flip, number):  # a token stays if all before it do
    if number > self.most:
      return progress
    stays = jnp.where(numbers.valid & flip, progress.stays, 0)
    return progress.replace(count=progress.count + stays, stays=stays)

  def rest(self, progress, is_bonus):
    """After a refusal max(p - q, 0), else p: the rule stopped whatever the next draft was."""
    is_free = is_bonus | (progress.stays > 0)
    return jnp.ones_like(progress.scale), jnp.where(is_free, 0.0, 1.0)
