"""What has been said so far, and the penalties for saying it again.

Every row of the target's logits, speculative ones included, sees the same history as plain
decoding would at its place: prompt, output, and the tokens drafted on the way to it. The
part that all rows of a sequence share is applied elementwise; then the D tokens of each
row's path are looked up again and corrected. Counts for each row [B, R, V] are never made.
"""

import jax
import jax.numpy as jnp

from specjax import types
from specjax.sampling import constraints

Array = jax.Array


def init_history(
    tokens: Array,
    prompt_lengths: Array,
    *,
    vocab_size: int,
    constraint: types.Constraint | None = None,
) -> types.History:
  """The history before the first output token.

  Args:
    tokens: [B, S] int32, prompts.
    prompt_lengths: [B] int32; what stands after a prompt is ignored.
    vocab_size: V.
    constraint: an allowed-token hook or None.

  Returns:
    A history with `in_prompt` set, counts zero and the hook's first state.
  """
  batch_size = tokens.shape[0]
  real = jnp.arange(tokens.shape[1]) < prompt_lengths[:, None]
  rows = jnp.arange(batch_size)[:, None]
  in_prompt = jnp.zeros([batch_size, vocab_size], bool)
  return types.History(
      in_prompt=in_prompt.at[rows, jnp.where(real, tokens, vocab_size)].set(True, mode='drop'),
      output_counts=jnp.zeros([batch_size, vocab_size], jnp.int32),
      constraint=None if constraint is None else constraint.initial(batch_size),
  )


def update_history(
    history: types.History,
    tokens: Array,
    valid: Array,
    constraint: types.Constraint | None = None,
) -> types.History:
  """The history after a round's tokens.

  Args:
    history: the history.
    tokens: [B, n] int32, emitted tokens in order.
    valid: [B, n] bool; the others are ignored.
    constraint: the hook that `init_history` was given, or None.

  Returns:
    The history with counts and the hook's state advanced.
  """
  vocab_size = history.output_counts.shape[1]
  rows = jnp.arange(tokens.shape[0])[:, None]
  where = jnp.where(valid, tokens, vocab_size)
  state = history.constraint
  if constraint is not None:
    state = constraints.advance(constraint, state, tokens, valid)
  return history.replace(
      output_counts=history.output_counts.at[rows, where].add(1, mode='drop'),
      constraint=state,
  )


def penalize(
    logits: Array,
    *,
    sampling: types.Sampling,
    history: types.History,
    path: Array,
    path_valid: Array,
) -> Array:
  """Repetition, then frequency and presence penalties; nothing runs when no row has any.

  The repetition penalty divides logits above zero and multiplies the others, for every
  token of prompt and output (Keskar et al. 2019, equation 4, as `transformers` has it).
  From a token emitted c > 0 times `frequency_penalty * c` and `presence_penalty` are
  subtracted (OpenAI's definition; the prompt does not count).

  Args:
    logits: [B, R, V] float32.
    sampling: the settings.
    history: up to and with the root.
    path: [B, R, D] int32, tokens drafted on the way to each row.
    path_valid: [B, R, D] bool.

  Returns:
    [B, R, V] float32. Each value is that of plain decoding, to the bit.
  """
  used = (
      (sampling.repetition_penalty != 1)
      | (sampling.presence_penalty != 0)
      | (sampling.frequency_penalty != 0)
  )

  def apply(values: Array) -> Array:
    counts = history.output_counts[:, None]
    seen = history.in_prompt[:, None] | (counts > 0)
    penalized = _formula(values, seen, counts, sampling)
    if not path.shape[-1]:
      return penalized
    return _correct(penalized, values, sampling, history, path, path_valid)

  return jax.lax.cond(jnp.any(used), apply, lambda values: values, logits)


def _correct(penalized, raw, sampling, history, path, path_valid) -> Array:
  """Sets the tokens of each row's path anew from their raw values.

  A path 7 7 3 over a history with one 7 gives counts 3 3 1; the two entries for token 7
  write the same value, so that their order does not matter.
  """
  batch_size, num_rows, depth = path.shape
  tokens = jnp.where(path_valid, path, 0)
  same = (tokens[..., :, None] == tokens[..., None, :]) & path_valid[..., None, :]
  before = jnp.take_along_axis(history.output_counts, tokens.reshape(batch_size, -1), axis=1)
  counts = before.reshape(path.shape) + jnp.sum(same, axis=-1, dtype=jnp.int32)
  values = jnp.take_along_axis(raw, tokens, axis=-1)
  values = _formula(values, True, counts, sampling)
  batch = jnp.arange(batch_size)[:, None, None]
  rows = jnp.arange(num_rows)[None, :, None]
  index = jnp.where(path_valid, path, raw.shape[-1])
  return penalized.at[batch, rows, index].set(values, mode='drop')


def _formula(values: Array, seen: Array | bool, counts: Array, sampling) -> Array:
  """The penalties of values [B, R, n]; `seen` and `counts` broadcast to them."""
  repetition = sampling.repetition_penalty[:, None, None]
  frequency = sampling.frequency_penalty[:, None, None]
  presence = sampling.presence_penalty[:, None, None]
  repeated = jnp.where(values > 0, values / repetition, values * repetition)
  values = jnp.where(seen, repeated, values)
  # Behind the barriers no compiler contracts a product and a difference to one rounding in
  # the shared part and to two in the correction: plain decoding must be met to the bit.
  values = jax.lax.optimization_barrier(values)
  product = jax.lax.optimization_barrier(frequency * counts)
  return values - product - jnp.where(counts > 0, presence, 0.0)
