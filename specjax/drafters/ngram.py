"""Prompt lookup: what followed the last tokens when they came before, on the device.

Saxena 2023, "Prompt lookup decoding"; the match runs over prompt and output inside the loop.
"""

from flax import struct
import jax
import jax.numpy as jnp

from specjax import types
from specjax.drafters import base

Array = jax.Array


@struct.dataclass
class NgramDrafter(base.Chain, base.Stateless):
  """Proposes the continuation of the longest, then latest, earlier match.

  Attributes:
    num_nodes: static, K.
    max_ngram: static, the longest suffix that is matched.
    min_ngram: static, the shortest match that is used.
  """

  num_nodes: int = struct.field(pytree_node=False)
  max_ngram: int = struct.field(pytree_node=False)
  min_ngram: int = struct.field(pytree_node=False)

  def propose(self, context: types.Context, state):
    """As `specjax.types.Drafter.propose`."""
    end, matched = longest_match(context.tokens, context.lengths, self.max_ngram)
    # A match that ends `period` tokens ago and reaches the present repeats itself.
    period = context.lengths - 1 - end
    step = jnp.arange(self.num_nodes) % jnp.maximum(period, 1)[:, None]
    tokens = jnp.take_along_axis(context.tokens, end[:, None] + 1 + step, axis=1)
    is_match = matched >= self.min_ngram
    return base.chosen(tokens, is_match[:, None]), state, context


def longest_match(tokens: Array, lengths: Array, max_ngram: int) -> tuple[Array, Array]:
  """The earlier position whose preceding tokens agree longest with the row's end.

  Args:
    tokens: [B, S] int32.
    lengths: [B] int32.
    max_ngram: n, the longest agreement that counts.

  Returns:
    The index [B] int32 at which the match ends, 0 <= index < lengths - 1, and its length
    [B] int32, 0 where nothing agrees. Among equally long matches the latest is taken. For
    the row `a b c a b` the match ends at index 1 and is 2 long.
  """
  size = tokens.shape[1]
  index = jnp.arange(size)
  padded = jnp.pad(tokens, ((0, 0), (max_ngram - 1, 0)), constant_values=-1)
  agrees = jnp.ones(tokens.shape, bool)
  matched = jnp.zeros(tokens.shape, jnp.int32)
  for back in range(max_ngram):
    wanted = jnp.take_along_axis(tokens, jnp.maximum(lengths - 1 - back, 0)[:, None], axis=1)
    agrees &= padded[:, max_ngram - 1 - back : max_ngram - 1 - back + size] == wanted
    agrees &= (lengths - 1 - back >= 0)[:, None]
    matched += agrees
  matched = jnp.where(index < lengths[:, None] - 1, matched, 0)
  best = jnp.argmax(matched * size + index, axis=-1).astype(jnp.int32)
  length = jnp.take_along_axis(matched, best[:, None], axis=1)[:, 0]
  return jnp.where(length > 0, best, 0), length


def ngram(
    *, num_speculative_tokens: int = 4, max_ngram: int = 3, min_ngram: int = 1
) -> NgramDrafter:
  """A drafter that looks the continuation up in prompt and output.

  Args:
    num_speculative_tokens: K >= 1.
    max_ngram: the longest suffix that is looked up.
    min_ngram: the shortest match that is used, 1 … `max_ngram`.

  Returns:
    The drafter.

  Raises:
    ValueError: if K < 1 or the n-gram bounds are not 1 <= min_ngram <= max_ngram.
  """
  base.check_num_speculative_tokens(num_speculative_tokens)
  if not 1 <= min_ngram <= max_ngram:
    raise ValueError(
        f'n-gram bounds must be 1 <= min_ngram <= max_ngram, got {min_ngram} and {max_ngram}.'
    )
  return NgramDrafter(
      num_nodes=num_speculative_tokens, max_ngram=max_ngram, min_ngram=min_ngram
  )
