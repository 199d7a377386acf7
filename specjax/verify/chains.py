"""Rules for chains: an elementwise `step` per drafted token, and the one driver that runs it.

A rule for chains says with which probability each token's coin succeeds (`prob`), and what its
outcome means (`step`), both from the numbers of that token alone. They are elementwise, so that
the driver here calls them on [B, N] and [B] arrays, and a TPU kernel on its [8, 1] columns.
"""

import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import tree
from specjax import types
from specjax.verify import rows as rows_lib
from specjax.verify import rule as rule_lib

Array = jax.Array


@struct.dataclass
class Numbers:
  """The numbers of drafted tokens, arrays of one shape.

  Attributes:
    valid: bool, whether this token may be accepted.
    next_valid: bool, whether the next one may; False after the last.
    target: float32, log-probability under the target's law.
    draft: float32, under the law that it was drawn from.
    prefix: float32, p_i of the block rule; 0 for rules that do not ask for it.
    surplus: float32, S_i of the block rule, 0 after the last token; likewise.
  """

  valid: Array
  next_valid: Array
  target: Array
  draft: Array
  prefix: Array | float = 0.0
  surplus: Array | float = 0.0


@struct.dataclass
class Progress:
  """What is known after some tokens of a chain, arrays of one shape.

  Attributes:
    count: int32, how many tokens stay.
    scale: float32 in [0, 1], of the target's law where the next token is drawn, if the chain ends
      here: max(scale * target - draft, 0).
    stays: int32, 1 as long as no token was refused. (Kernels carry no booleans.)
  """

  count: Array
  scale: Array
  stays: Array

  @classmethod
  def start(cls, shape: tuple[int, ...]) -> 'Progress':
    """Before the first token."""
    ones = jnp.ones(shape, jnp.int32)
    return cls(jnp.zeros(shape, jnp.int32), jnp.ones(shape, jnp.float32), ones)


@dataclasses.dataclass(frozen=True)
class ChainRule(rule_lib.RuleBase):
  """A lossless rule that samples and takes chains; subclasses add `prob` and `step`."""

  name: str = ''
  lossless: bool = True
  mode: str = 'sample'
  handles_trees: bool = False
  # Not a field: whether `Numbers` need `prefix` and `surplus`.
  chain_surplus = False

  def prob(self, numbers: Numbers) -> Array:
    """The probability that a token's coin succeeds; 0 where it is not valid. Elementwise."""
    raise NotImplementedError

  def step(self, progress: Progress, numbers: Numbers, flip: Array, number: int) -> Progress:
    """What the coin of a token means. Elementwise.

    Args:
      progress: after the tokens before.
      numbers: of this token.
      flip: bool, whether its coin succeeded.
      number: static, of the token, from 1 on.
    """
    raise NotImplementedError

  def accept_probs(self, probs: Array) -> Array:
    """The chance [B, N] that each token stays if the one before does, from the coins' `probs`."""
    return probs

  def rest(self, progress: Progress, is_bonus: Array) -> tuple[Array, Array]:
    """Scale and share of the law that the next token is drawn from. Elementwise.

    With a share above 0 a token that was chosen, not drawn (`ONE_HOT`), is struck out of that law
    whatever the scale: a rule must accept such a token with its whole probability.
    """
    return jnp.where(is_bonus, 1.0, progress.scale), jnp.where(is_bonus, 0.0, 1.0)

  def check(self, proposal: types.Proposal) -> None:
    """As `specjax.verify.Rule.check`."""
    rule_lib.check_chain(proposal, rule=self.name)

  def decide(self, rows: rows_lib.Rows, *, positions, source):
    """As `specjax.verify.Rule.decide`."""
    del positions
    return decide(self, rows, source)


def decide(rule: ChainRule, rows: rows_lib.Rows, source: Any) -> tuple[types.Verification, Any]:
  """Runs a rule on a chain: one scan, all coins, one draw.

  Args:
    rule: the rule.
    rows: the rows of the round.
    source: consumed.

  Returns:
    The decision, and the source to use next.
  """
  fused = rows.fused_chain(rule, source)
  if fused is not None:
    return fused
  proposal = rows.proposal
  batch, size = proposal.tokens.shape
  scan = rows.scan(chain_surplus=rule.chain_surplus)
  num_valid = valid_length(proposal.valid, scan.draft)
  progress, probs = Progress.start((batch,)), jnp.zeros((batch, size), jnp.float32)
  if size:
    numbers = numbers_of(scan, num_valid)
    probs = rule.prob(numbers)
    flips, source = source.flip(probs, purpose=randomness.ACCEPT)
    for index in range(size):
      here = jax.tree.map(lambda x, index=index: x[:, index], numbers)
      progress = rule.step(progress, here, flips[:, index], index + 1)
    probs = rule.accept_probs(probs)
  # Made once: fused into what runs over the vocabulary, the steps would be made for every entry.
  progress = jax.lax.optimization_barrier(progress)
  is_bonus = progress.count == num_valid
  token, last, source = rows.draw(_draw(rule, progress, is_bonus, proposal), source)
  return types.Verification(
      num_accepted=progress.count,
      path=chain_path(progress.count, size),
      next_token=token,
      is_bonus=is_bonus,
      accept_probs=probs,
      log_probs=None if last is None else emitted_log_probs(progress.count, scan.target, last),
  ), source


def _draw(rule: ChainRule, progress: Progress, is_bonus: Array, proposal: types.Proposal):
  """What the next token is drawn from."""
  scale, share = rule.rest(progress, is_bonus)
  without = jnp.full((*is_bonus.shape, 1), -1, jnp.int32)
  if proposal.kind == types.ONE_HOT and proposal.num_nodes:
    # The scaled target never exceeds 1, so that the residual is the target without the token.
    node = jnp.minimum(progress.count, proposal.num_nodes - 1)[:, None]
    token = jnp.take_along_axis(proposal.tokens, node, axis=1)
    without = jnp.where(share[:, None] > 0, token, -1)
  return rows_lib.Draw(node=progress.count, scale=scale, share=share, without=without)


def numbers_of(scan: rows_lib.Scan, num_valid: Array) -> Numbers:
  """The numbers [B, N] of all tokens of a chain, the first `num_valid` [B] of which are valid."""
  zeros = jnp.zeros(scan.target.shape, jnp.float32)
  has_surplus = scan.prefix is not None
  nodes = jnp.arange(1, zeros.shape[1] + 1)
  return Numbers(
      valid=nodes <= num_valid[:, None],
      next_valid=nodes < num_valid[:, None],
      target=scan.target,
      draft=scan.draft,
      prefix=scan.prefix if has_surplus else zeros,
      surplus=jnp.pad(scan.surplus, ((0, 0), (0, 1))) if has_surplus else zeros,
  )


def is_drawn(draft: Array) -> Array:
  """Whether tokens were drawn from the draft's law, by their log-probabilities under it.

  Of a law that is empty or NaN nothing is drawn: such a token is not valid, whatever the
  drafter says. Elementwise; kernels call it too.
  """
  return draft > -jnp.inf


def valid_length(valid: Array, draft: Array) -> Array:
  """How many tokens of a chain are valid, [B] int32: the prefix that was drawn (`is_drawn`).

  Args:
    valid: [B, N] bool, as the drafter has it.
    draft: [B, N] float32, the tokens' log-probabilities under the laws that they were drawn from.
  """
  return tree.prefix_length(valid & is_drawn(draft))


def chain_path(num_accepted: Array, size: int) -> Array:
  """[B, N] int32: 1, 2, … as far as a chain of N tokens was accepted; 0 beyond."""
  nodes = jnp.arange(1, size + 1, dtype=jnp.int32)
  return jnp.where(nodes <= num_accepted[:, None], nodes, 0)


def emitted_log_probs(num_accepted: Array, drafted: Array, last: Array) -> Array:
  """Log-probabilities [B, N + 1] of what is emitted, 0 beyond.

  Args:
    num_accepted: [B] int32.
    drafted: [B, N] float32, of the tokens along the path.
    last: [B] float32, of the next token.
  """
  index, end = jnp.arange(drafted.shape[1] + 1), num_accepted[:, None]
  values = jnp.pad(drafted, ((0, 0), (0, 1)))
  return jnp.where(index < end, values, jnp.where(index == end, last[:, None], 0.0))
