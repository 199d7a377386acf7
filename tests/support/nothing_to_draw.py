"""Drafts, grammars and drafters of one's own where there is nothing to draw from; rules by row.

The draft knows tokens 0 and 1 of three. Constraints and biases leave it nothing to draw from
at the first, a middle and the last node, or at all of them, depending on what was drawn before.
"""

from typing import Any

from flax import struct
import jax.numpy as jnp
import numpy as np

from specjax import sampling as sampling_lib
from specjax import testing
from specjax.drafters import vocabulary
from specjax.sampling import constraints

VOCAB = 3
PROMPT = (0, 1, 0)
INF = np.inf
TARGET = testing.table_model(seed=1)
SMALL = testing.table_model(vocab_size=2, seed=9)
DRAFT = vocabulary.with_tables(SMALL, output_ids=[0, 1, -1], input_ids=[0, 1, 0])
# The same program, and another token that it does not know.
OTHER_DRAFT = vocabulary.with_tables(SMALL, output_ids=[0, -1, 1], input_ids=[0, 0, 1])
# What may follow: 0, then the unknown token; 1, another known one, then the unknown one; or the
# unknown token twice; and then anything, and so on from the start.
GRAMMAR = constraints.TokenAutomaton.create([
    [1, 2, 3], [-1, -1, 4], [1, 1, -1], [-1, -1, 4], [0, 0, 0]
])
FREE = constraints.TokenAutomaton.create(np.zeros((5, VOCAB), int))
# Two settings for each: among them a bias that leaves the unknown token alone, and one that
# leaves it and a known one.
CASES = {
    'grammar': (GRAMMAR, dict(temperature=(1.0, 0.6), logit_bias=[(0.0, 0.0, 0.0)] * 2)),
    'bias': (FREE, dict(
        temperature=(1.0, 0.6), logit_bias=[(-INF, -INF, 0.0), (-INF, 0.4, 0.0)]
    )),
    'never 2': (FREE, dict(
        temperature=(1.0, 0.6), logit_bias=[(0.0, 0.0, -INF), (0.4, 0.0, -INF)]
    )),
    'free': (FREE, dict(temperature=(1.0, 0.6), logit_bias=[(0.0, 0.0, 0.0)] * 2)),
}
# What a drafter does with nodes that it cannot draw: as shipped; says that they are valid, with
# NaN or -inf for their law. And one that draws them, for it knows nothing of the bias.
SHIPPED, SAYS_NAN, SAYS_EMPTY, UNRULY = range(4)


def broken_after_two(value: float):
  """The target, but that it says `value` of every token after token 2."""
  table = np.array(TARGET.params['table'])
  table[:, 2] = value
  return testing.table_model(table)


def settings(
    case: str, *, repeats: int = 1, manner: int = SHIPPED, num_rules: int = 1, constraint=None
):
  """Rows: all rules under the first settings of a case, then under the second, repeated."""
  hook, columns = CASES[case]
  columns = {
      name: np.repeat(values, repeats * num_rules, axis=0) for name, values in columns.items()
  }
  # A top-k that keeps the whole vocabulary names a row's rule, and its drafter's manner.
  top_k = VOCAB + manner * num_rules + np.arange(num_rules)
  return sampling_lib.make(
      batch_size=2 * repeats * num_rules, top_k=np.tile(top_k, 2 * repeats),
      constraint=hook if constraint is None else constraint, **columns,
  )


@struct.dataclass
class Mannered:
  """A drafter of one's own around a shipped one; a row names its manner beside its rule."""

  inner: Any
  num_rules: int = struct.field(pytree_node=False, default=1)

  def __getattr__(self, name: str):
    return getattr(object.__getattribute__(self, 'inner'), name)

  def propose(self, context, state):
    sampler = context.sampler
    manner = ((sampler.sampling.top_k - VOCAB) // self.num_rules)[:, None]
    bias = jnp.where(manner == UNRULY, 0.0, sampler.sampling.logit_bias)
    own = sampler.replace(sampling=sampler.sampling.replace(logit_bias=bias))
    proposal, state, after = self.inner.propose(context.replace(sampler=own), state)
    after = after.replace(sampler=sampler.replace(source=after.sampler.source))
    if proposal.law is not None:
      is_empty = jnp.max(proposal.law, axis=-1, keepdims=True) == -INF
      nothing = jnp.where(manner == SAYS_NAN, jnp.nan, -INF)[..., None]
      says_all = (manner == SAYS_NAN) | (manner == SAYS_EMPTY)
      proposal = proposal.replace(
          law=jnp.where(is_empty, nothing, proposal.law), valid=proposal.valid | says_all
      )
    return proposal, state, after
