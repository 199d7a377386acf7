"""The law of plain decoding by its definition: no cache, no engine, no rule."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax import sampling as sampling_lib
from specjax import types

# A law of outputs: the probability of each sequence of new tokens.
Law = dict[tuple[int, ...], float]


def map_rows(sampling: types.Sampling, function: Callable[[Any], Any]) -> types.Sampling:
  """`sampling` with `function` applied to everything that has one entry per row."""
  rows = function(sampling.replace(constraint=None))
  return rows.replace(constraint=sampling.constraint)


def take(tree: Any, index: np.ndarray) -> Any:
  """Rows `index` of every leaf; leaves without rows as they are."""
  return jax.tree.map(lambda x: np.asarray(x)[index] if np.ndim(x) else x, tree)


@functools.partial(jax.jit, static_argnames='max_new_tokens')
def _next_log_probs(target, tokens, prompt_lengths, sampling, max_new_tokens):
  """Log-probabilities [R, n] of the new tokens of rows [R, S], each from scratch."""
  rows, size = tokens.shape
  vocab_size, steps = target.vocab_size, jnp.arange(max_new_tokens)
  index = prompt_lengths[:, None] - 1 + steps
  logits = jnp.take_along_axis(target(tokens).logits, index[..., None], axis=1)
  new = jnp.take_along_axis(tokens, index + 1, axis=1)
  # Every (row, step) is a row with a history of its own: nothing speculative is used.
  repeat = lambda x: jnp.repeat(x, max_new_tokens, axis=0)
  sampling = map_rows(sampling, lambda tree: jax.tree.map(repeat, tree))
  history = sampling_lib.init_history(
      repeat(tokens),
      repeat(prompt_lengths),
      vocab_size=vocab_size,
      constraint=sampling.constraint,
  )
  emitted = jnp.tile(steps < steps[:, None], (rows, 1))
  history = sampling_lib.update_history(
      history, repeat(new), emitted, constraint=sampling.constraint
  )
  nothing = jnp.zeros((rows * max_new_tokens, 1, 0), jnp.int32)
  controlled = sampling_lib.control(
      logits.reshape(-1, 1, vocab_size),
      sampling=sampling,
      history=history,
      path=nothing,
      path_valid=nothing.astype(bool),
  )
  law = sampling_lib.law(controlled, sampling).reshape(rows, max_new_tokens, vocab_size)
  return jnp.take_along_axis(law, new[..., None], axis=2)[..., 0]


def plain_law(
    target: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: types.Sampling | None = None,
    stop_tokens: Sequence[int] = (),
) -> list[Law]:
  """The joint law of plain decoding, by its definition: no cache, no engine, no rule.

  Args:
    target: as for `output_law`, and so are the others.
    prompts: one per row.
    max_new_tokens: n.
    sampling: settings, one per row.
    stop_tokens: ids that end a row.

  Returns:
    One law per row: products of the next token's probabilities, in float64.
  """
  if sampling is None:
    sampling = sampling_lib.make(batch_size=len(prompts))
  outputs = np.asarray(list(np.ndindex(*[target.vocab_size] * max_new_tokens)), np.int32)
  lengths = np.asarray([len(prompt) for prompt in prompts])
  tokens = np.zeros((len(prompts), len(outputs), lengths.max() + max_new_tokens), np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, :, : len(prompt)] = prompt
    tokens[row, :, len(prompt) : len(prompt) + max_new_tokens] = outputs
  rows = np.repeat(np.arange(len(prompts)), len(outputs))
  log_probs = _next_log_probs(
      target,
      tokens.reshape(len(rows), -1),
      jnp.asarray(lengths[rows], jnp.int32),
      map_rows(sampling, lambda tree: take(tree, rows)),
      max_new_tokens,
  )
  probs = np.exp(np.asarray(log_probs, np.float64))
  laws = [{} for _ in prompts]
  for row, output, factors in zip(rows, np.tile(outputs, (len(prompts), 1)), probs):
    stops = np.flatnonzero(np.isin(output, stop_tokens))
    end = stops[0] + 1 if stops.size else max_new_tokens
    # What cannot be emitted has no probability, even where nothing can follow it (NaN).
    possible = (factors[:end] != 0).all()
    laws[row][tuple(output[:end].tolist())] = float(np.prod(factors[:end])) if possible else 0.0
  return laws
