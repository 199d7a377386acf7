"""The decisions inside the TPU kernels: eight sequences, one a sublane, token after token.

The rule's own `prob` and `step` (`specjax.verify.chains`) run on [8, 1] columns, so that nothing
but the kernels themselves has to be started for a decision: every small operation of XLA's costs
a TPU about 2,100 cycles, as much as a thirtieth of a pass over all rows.
"""

from typing import Any

from flax import struct
import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from specjax.kernels.accept.tpu_rows import ROWS
from specjax.verify import chains as chains_lib
from specjax.verify import rows as rows_lib

Array = jax.Array

# Lanes of the scalars that `scan` leaves of a drafted token.
TARGET, DRAFT, PREFIX, SURPLUS = range(4)


@struct.dataclass
class Chains:
  """What the chains of eight sequences are decided from.

  Attributes:
    size: K.
    scalars: [R, 128] in VMEM, one row per token, at the lanes above.
    start: the row of the first of these sequences' tokens.
    flips: [8, K] float32.
    valid: [8, K] int32, or None for all.
    given: [8, K] float32, the tokens' log-probabilities under the draft's law where they are
      not in `scalars`; else None.
    one_hot: static, whether tokens were chosen.
  """

  size: int = struct.field(pytree_node=False)
  scalars: Any = struct.field(pytree_node=False)
  start: Any
  flips: Array
  valid: Array | None
  given: Array | None
  one_hot: bool = struct.field(pytree_node=False)

  def token(self, number: int) -> tuple[Array, ...]:
    """[8, 1] each: target, draft, prefix and surplus of a token."""
    row = at_stride(self.scalars, self.start, number, self.size)
    target, draft, prefix, surplus = (
        row[:, lane : lane + 1] for lane in (TARGET, DRAFT, PREFIX, SURPLUS)
    )
    if self.given is not None:
      draft = self.given[:, number : number + 1]
    return target, draft, prefix, surplus

  def numbers(
      self, number: int, valid: list[Array], *, has_surplus: bool
  ) -> chains_lib.Numbers:
    """[8, 1] each: the numbers of a token, from 0 on."""
    target, draft, prefix, _ = self.token(number)
    is_last = number + 1 == self.size
    surplus, next_valid = jnp.zeros((ROWS, 1), jnp.float32), jnp.zeros((ROWS, 1), jnp.int32)
    if has_surplus and not is_last:
      # What the scan leaves at a token is of the row before it.
      following = self.token(number + 1)
      surplus = following[3]
      if self.one_hot:
        surplus = rows_lib.one_hot_surplus(prefix, following[0])
    if not is_last:
      next_valid = valid[number + 1]
    return chains_lib.Numbers(
        valid=valid[number] > 0, next_valid=next_valid > 0, target=target, draft=draft,
        prefix=prefix, surplus=surplus,
    )

  def valid_tokens(self) -> list[Array]:
    """[8, 1] int32 of each token, 1 for those of the prefix that is valid and drawn."""
    so_far, valid = jnp.ones((ROWS, 1), jnp.int32), []
    for number in range(self.size):
      if self.valid is not None:
        so_far = jnp.where(self.valid[:, number : number + 1] > 0, so_far, 0)
      if not self.one_hot:
        so_far = jnp.where(chains_lib.is_drawn(self.token(number)[1]), so_far, 0)
      valid.append(so_far)
    return valid


def at_stride(ref, start, number: int, stride: int) -> Array:
  """Row `number` of each of eight sequences that have `stride` rows each, from `start` on."""
  if stride == 1:
    return ref[pl.ds(start + number, ROWS), :]
  return ref[pl.ds(start + number, ROWS, stride=stride), :]


def decide(rule: Any, chains: Chains, valid: list[Array]) -> tuple[Array, Array]:
  """How many tokens stay, and the scale of the target's law: [8, 1] int32, float32.

  Args:
    rule: static, a `specjax.verify.chains.ChainRule`: its own `prob` and `step` run here.
    chains: the chains.
    valid: `chains.valid_tokens()`.
  """
  progress = chains_lib.Progress.start((ROWS, 1))
  for number in range(chains.size):
    numbers = chains.numbers(number, valid, has_surplus=rule.chain_surplus)
    flip = chains.flips[:, number : number + 1] < rule.prob(numbers)
    progress = rule.step(progress, numbers, flip, number + 1)
  return progress.count, progress.scale


def follow(tokens, log_probs, start, drafted: Array, valid: Array | None) -> tuple[Array, ...]:
  """Greedy and coupled: a token stays if the target chose it too.

  Args:
    tokens: [R, 128] int32 in VMEM, the target's choices, K + 1 rows per sequence, equal along
      lanes; log_probs: [R, 128], theirs.
    start: the row of the first of these sequences.
    drafted: [8, K] int32.
    valid: [8, K] int32, or None for all.

  Returns:
    How many stay and the next token, [8, 1] int32, and log-probabilities of what is emitted
    [8, K + 1] float32, 0 beyond.
  """
  size = drafted.shape[1]
  zeros = jnp.zeros((ROWS, 1), jnp.int32)
  lane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, size + 1), 1)
  count, token, stays = zeros, zeros, zeros + 1
  emitted = jnp.zeros((ROWS, size + 1), jnp.float32)
  for number in range(size + 1):
    chosen = at_stride(tokens, start, number, size + 1)[:, :1]
    log_prob = at_stride(log_probs, start, number, size + 1)[:, :1]
    token = jnp.where(stays > 0, chosen, token)
    emitted = jnp.where((lane == number) & (stays > 0), log_prob, emitted)
    if number < size:
      is_same = drafted[:, number : number + 1] == chosen
      if valid is not None:
        is_same &= valid[:, number : number + 1] > 0
      stays = jnp.where(is_same, stays, 0)
      count += stays
  return count, token, emitted


def at_lane(values: Array, lane: Array) -> Array:
  """[8, 1]: the entry of `values` [8, n] at `lane` [8, 1]; 0 where there is none."""
  lanes = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
  # Not a sum with -inf elsewhere: one entry per row, the others 0.
  return jnp.sum(jnp.where(lanes == lane, values, jnp.zeros_like(values)), axis=1, keepdims=True)


def emitted(chains: Chains, count: Array, last: Array) -> Array:
  """Log-probabilities [8, K + 1] of what is emitted, `last` [8, 1] that of the next token."""
  lane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, chains.size + 1), 1)
  values = jnp.where(lane == count, last, 0.0)
  for number in range(chains.size):
    values = jnp.where((lane == number) & (number < count), chains.token(number)[0], values)
  return values
