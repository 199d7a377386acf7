"""Checks at the public boundary: what was expected, what came, what to change."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from specjax import engine
from specjax import stopping


def request(
    *,
    prompts: Sequence[Sequence[int]],
    target: Any,
    drafter: Any,
    rule: Any,
    sampling: Any,
    max_new_tokens: int | Sequence[int],
    cache_length: int | None,
    logprobs: str | None,
    stop_strings: str | Sequence[str],
    tokenizer: Any,
) -> np.ndarray:
  """Refuses what cannot be run, before any compute.

  Returns:
    The limits [B] int32 on new tokens.

  Raises:
    ValueError: empty prompts or token ids outside the vocabulary; a prompt and its new
      tokens longer than the cache, or than the target was made for; vocabularies of target
      and drafter that differ; a rule that cannot verify the drafter's tree; settings for
      another batch size; an unknown kind of log-probabilities; stop strings without a
      tokenizer.
  """
  _prompts(prompts, target.vocab_size)
  batch = len(prompts)
  limits = np.asarray(max_new_tokens, np.int64)
  if limits.ndim and limits.shape != (batch,):
    raise ValueError(
        f'max_new_tokens must be one number or one a row ({batch} rows), got {limits.shape}.'
    )
  limits = np.broadcast_to(limits, (batch,)).astype(np.int32)
  if (limits < 1).any():
    raise ValueError(f'max_new_tokens must be at least 1, got {int(limits.min())}.')
  if cache_length is not None:
    for row, (prompt, limit) in enumerate(zip(prompts, limits)):
      if len(prompt) + limit > cache_length:
        raise ValueError(
            f'Prompt {row} has {len(prompt)} tokens, and {limit} new ones need a cache of '
            f'{len(prompt) + limit} positions; cache_length is {cache_length}. Shorten the '
            'prompt, lower max_new_tokens or raise cache_length.'
        )
  for row, (prompt, limit) in enumerate(zip(prompts, limits)):
    positions(target, len(prompt), int(limit), name=f'Prompt {row}')
  if drafter.vocab_size is not None and drafter.vocab_size != target.vocab_size:
    raise ValueError(
        f'The drafter has a vocabulary of {drafter.vocab_size} tokens, the target of '
        f'{target.vocab_size}. Both must be the same: use a draft trained with the '
        "target's tokenizer."
    )
  if not drafter.is_chain and not rule.handles_trees:
    raise ValueError(
        f'The {rule.name} rule verifies chains only, and the drafter proposes a tree. Use '
        'the greedy, recursive, traversal or coupled rule, or a chain.'
    )
  if sampling.temperature.shape != (batch,):
    raise ValueError(
        f'The sampling settings are for {sampling.temperature.shape[0]} rows, the batch has '
        f'{batch}. Use specjax.sampling.make(batch_size={batch}, ...).'
    )
  if logprobs not in (None, 'raw', 'controlled'):
    raise ValueError(f"logprobs must be None, 'raw' or 'controlled', got {logprobs!r}.")
  strings = stopping.as_strings(stop_strings)
  if strings and tokenizer is None:
    raise ValueError('stop_strings need a tokenizer; give tokenizer=, or use stop_tokens.')
  if any(not string for string in strings):
    raise ValueError('A stop string is empty; every output would end at once.')
  return limits


def positions(target: Any, num_prompt_tokens: int, max_new_tokens: int, *, name: str) -> None:
  """Refuses a prompt that its new tokens would carry beyond the target's longest sequence.

  Args:
    target: a `specjax.models.LanguageModel`; one whose module's config has no `max_positions`
      takes any length.
    num_prompt_tokens: tokens of the prompt.
    max_new_tokens: new tokens at most.
    name: how the error calls the prompt.

  Raises:
    ValueError: with both lengths and the limit.
  """
  config = getattr(getattr(target, 'module', None), 'config', None)
  longest = getattr(config, 'max_positions', None)
  if longest is not None and num_prompt_tokens + max_new_tokens > longest:
    raise ValueError(
        f'{name} has {num_prompt_tokens} tokens; with {max_new_tokens} new ones that is more than '
        f'the {longest} positions that the target was made for. Shorten the prompt (on the command '
        'line: --config.prompt_tokens), or lower max_new_tokens.'
    )


def _prompts(prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
  if not len(prompts):
    raise ValueError('The list of prompts is empty; give at least one prompt.')
  for row, prompt in enumerate(prompts):
    ids = np.asarray(prompt)
    if ids.ndim != 1 or not ids.size:
      raise ValueError(
          f'Prompt {row} is empty or not a flat list of token ids. Decoding starts from at '
          'least one token; begin with the end-of-text or beginning-of-text token.'
      )
    if not np.issubdtype(ids.dtype, np.integer):
      raise ValueError(
          f'Prompt {row} holds {ids.dtype} values, not token ids; encode text with the '
          "model's tokenizer first."
      )
    if ids.min() < 0 or ids.max() >= vocab_size:
      raise ValueError(
          f'Prompt {row} has token ids from {ids.min()} to {ids.max()}; the target knows 0 '
          f'to {vocab_size - 1}. Was it encoded with another tokenizer?'
      )


def usable(finish: np.ndarray) -> None:
  """Raises where the target's logits let nothing be sampled.

  Args:
    finish: [B] int32, `specjax.engine`'s codes.

  Raises:
    FloatingPointError: naming the rows, where logits were NaN.
    ValueError: naming the rows, where constraint and bias allow no token.
  """
  rows = np.flatnonzero(finish == engine.NOT_A_NUMBER)
  if rows.size:
    raise FloatingPointError(
        f"The target's logits were infinite or NaN in row(s) {rows.tolist()}. Nothing of these "
        'rows is returned. Check the weights (a truncated or overflowed file?) or use float32 or '
        'bfloat16 instead of float16.'
    )
  rows = np.flatnonzero(finish == engine.NOTHING_ALLOWED)
  if rows.size:
    raise ValueError(
        f'The constraint or the logit bias allows no token at all in row(s) {rows.tolist()}. '
        'Every state that can be reached must allow at least one.'
    )
