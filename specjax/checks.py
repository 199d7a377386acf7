"""Checks of a user's arguments; errors say what was expected, what came, and what to change."""

from collections.abc import Callable, Sequence
import dataclasses
import difflib
import functools
import inspect
import operator
import reprlib
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

from specjax import drafters
from specjax import sampling as sampling_lib
from specjax import stats
from specjax import stopping
from specjax import types
from specjax import verify
from specjax.drafters import vocabulary
from specjax.models import LanguageModel
from specjax.request import Request

P, R = ParamSpec('P'), TypeVar('R')
_LARGEST = np.iinfo(np.int32).max
_MODES = ('greedy', 'sample', 'coupled')
_DRAFTER = (
    'num_nodes', 'depth', 'is_chain', 'feature_layers', 'vocab_size', 'init', 'prefill',
    'propose', 'update',
)
_SETTINGS = (
    'temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty', 'presence_penalty',
    'frequency_penalty',
)


def names_arguments(function: Callable[P, R]) -> Callable[P, R]:
  """Makes a function refuse an unknown argument by the name of the nearest one that it takes.

  Python itself suggests a name from 3.13 on; it never lists them. The signature stays that of
  the function, for `help` and for editors.

  Args:
    function: one whose arguments all have names in its signature.

  Returns:
    The function, which raises TypeError with the unknown argument, the nearest known one and
    all of them.
  """
  known = list(inspect.signature(function).parameters)

  @functools.wraps(function)
  def checked(*args: P.args, **kwargs: P.kwargs) -> R:
    for name in kwargs:
      if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f'; did you mean {nearest[0]!r}?' if nearest else '.'
        raise TypeError(
            f'Unexpected argument {name!r}{hint} The arguments of {function.__name__} are '
            f'{", ".join(known)}.'
        )
    return function(*args, **kwargs)

  return checked


def request(target: Any, prompts: Sequence[Sequence[int]], given: Request) -> Request:
  """A request with every default replaced by its value, or a refusal before any compute.

  Args:
    target: the target.
    prompts: one non-empty token list per row.
    given: its options.

  Returns:
    The request: `drafter`, `rule` and `sampling` are there and fit target and batch,
    `max_new_tokens` [B] int32 and `seeds` [B] uint32 have one entry per row, `stop_tokens` is a
    tuple. Checking it again changes nothing.

  Raises:
    ValueError: for a target, drafter, rule or tokenizer that is not one; empty prompts or token
      ids outside the vocabulary; a prompt and its new tokens longer than the cache, or than the
      target was made for; vocabularies of target and drafter that differ by more than padding; a
      rule that cannot verify the drafter's tree; settings, limits or seeds for another batch
      size; numbers that are not whole or too small; stop tokens outside the vocabulary; an
      unknown kind of log-probabilities; stop strings without a tokenizer.
  """
  for name in ('vocab_size', 'init_cache'):
    if not hasattr(target, name):
      raise ValueError(
          f'target must be a specjax.models.LanguageModel; got {_kind(target)}. A pair of the zoo '
          'has one as its .target.'
      )
  _prompts(prompts, target.vocab_size)
  batch = len(prompts)
  drafter = _drafter(given.drafter, target.vocab_size)
  sampling = _sampling(given, batch, target.vocab_size)
  rule = _rule(given.rule, sampling, drafter)
  limits = _limits(target, prompts, given.max_new_tokens, given.cache_length)
  if given.logprobs not in (None, 'raw', 'controlled'):
    raise ValueError(f"logprobs must be None, 'raw' or 'controlled', got {given.logprobs!r}.")
  if given.tokenizer is not None and not callable(getattr(given.tokenizer, 'decode', None)):
    raise ValueError(
        f'tokenizer must have decode(list of ids) -> str; got {_kind(given.tokenizer)}.'
    )
  stop_strings = stopping.as_strings(given.stop_strings)
  if not all(isinstance(string, str) for string in stop_strings):
    raise ValueError(f'stop_strings must be one text or several; got {_kind(given.stop_strings)}.')
  if stop_strings and given.tokenizer is None:
    raise ValueError('stop_strings need a tokenizer; give tokenizer=, or use stop_tokens.')
  if any(not string for string in stop_strings):
    raise ValueError('A stop string is empty; every output would end at once.')
  for name, least in (('rounds_per_chunk', 1), ('width', 0), ('cache_length', 1)):
    if getattr(given, name) is not None:
      whole(name, getattr(given, name), least)
  return dataclasses.replace(
      given,
      drafter=drafter,
      rule=rule,
      sampling=sampling,
      max_new_tokens=limits,
      seeds=_seeds(given.seeds, batch),
      stop_tokens=_stop_tokens(given.stop_tokens, target.vocab_size),
      stop_strings=stop_strings,
      prefill_chunk=whole('prefill_chunk', given.prefill_chunk, 1),
  )


def _kind(value: Any) -> str:
  """What an error calls a value: the value itself where it is short, else its type."""
  if inspect.isfunction(value) or inspect.isclass(value):
    return f'{value.__name__} itself, which was not called'
  shown = str | int | float | list | tuple | dict | set | np.ndarray
  return reprlib.repr(value) if isinstance(value, shown) else type(value).__name__


def whole(name: str, value: Any, least: int) -> int:
  """A whole number of at least `least`."""
  try:
    number = operator.index(value)
  except TypeError:
    raise ValueError(f'{name} must be a whole number, got {_kind(value)}.') from None
  if number < least:
    raise ValueError(f'{name} must be at least {least}, got {number}.')
  if number > _LARGEST:
    raise ValueError(f'{name} must be at most {_LARGEST}, got {number}.')
  return number


def _wholes(name: str, value: Any, expected: str) -> int | list[int]:
  """One whole number, or those of a flat list."""
  try:
    return operator.index(value)
  except TypeError:
    pass
  try:
    return [operator.index(each) for each in value]
  except TypeError:
    raise ValueError(f'{name} must be {expected}; got {_kind(value)}.') from None


def _one_per_row(name: str, value: Any, batch: int) -> int | list[int]:
  """One whole number, or as many as there are rows."""
  expected = f'one whole number or one per row ({batch} rows)'
  numbers = _wholes(name, value, expected)
  if isinstance(numbers, list) and len(numbers) != batch:
    raise ValueError(f'{name} must be {expected}; got {len(numbers)} of them.')
  return numbers


def _limits(target, prompts, max_new_tokens: Any, cache_length: int | None) -> np.ndarray:
  """The limits [B] int32 on new tokens."""
  limits = _one_per_row('max_new_tokens', max_new_tokens, len(prompts))
  limits = [limits] * len(prompts) if isinstance(limits, int) else limits
  limits = [whole('max_new_tokens', limit, 1) for limit in limits]
  if cache_length is not None:
    whole('cache_length', cache_length, 1)
    for row, (prompt, limit) in enumerate(zip(prompts, limits)):
      if len(prompt) + limit > cache_length:
        raise ValueError(
            f'Prompt {row} has {len(prompt)} tokens, and {limit} new ones need a cache of '
            f'{len(prompt) + limit} positions; cache_length is {cache_length}. Shorten the '
            'prompt, lower max_new_tokens or raise cache_length.'
        )
  for row, (prompt, limit) in enumerate(zip(prompts, limits)):
    positions(target, len(prompt), limit, name=f'Prompt {row}')
  return np.asarray(limits, np.int32)


def _seeds(seeds: Any, batch: int) -> np.ndarray:
  """Seeds [B] uint32, modulo 2**32."""
  numbers = _one_per_row('seeds', seeds, batch)
  numbers = [numbers + row for row in range(batch)] if isinstance(numbers, int) else numbers
  return np.asarray([number % 2**32 for number in numbers], np.uint32)


def _stop_tokens(stop_tokens: Any, vocab_size: int) -> tuple[int, ...]:
  """Stop tokens as a tuple; a single id need not be in a list, and None means none."""
  if stop_tokens is None:
    return ()
  ids = _wholes('stop_tokens', stop_tokens, 'one token id or a flat list of them')
  ids = [ids] if isinstance(ids, int) else ids
  for token in ids:
    if not 0 <= token < vocab_size:
      raise ValueError(
          f'stop_tokens has {token}; the target knows 0 to {vocab_size - 1}. Was it meant for '
          'another tokenizer?'
      )
  return tuple(ids)


def _drafter(drafter: Any, vocab_size: int) -> Any:
  """The drafter, fitted to the target's vocabulary; None becomes plain decoding."""
  if drafter is None:
    return drafters.plain()
  if isinstance(drafter, LanguageModel):
    drafter = drafters.model(drafter)
  missing = [name for name in _DRAFTER if not hasattr(drafter, name)]
  if missing or inspect.isclass(drafter):
    raise ValueError(
        'drafter must be one of specjax.drafters, such as drafters.ngram() or drafters.model(…), '
        'a draft as a LanguageModel, or a drafter of your own as specjax.types.Drafter describes '
        f'it; got {_kind(drafter)}. A head becomes one by drafters.eagle, medusa or early_exit.'
    )
  return vocabulary.fit(drafter, vocab_size)


def _sampling(given: Request, batch: int, vocab_size: int) -> types.Sampling:
  """The sampling settings, which must be for this batch and vocabulary."""
  sampling = given.sampling
  if sampling is None:
    # Without a rule nothing asks for samples either: greedy is temperature 0.
    temperature = 0.0 if given.rule is None else 1.0
    return sampling_lib.make(batch_size=batch, temperature=temperature)
  if not isinstance(sampling, types.Sampling):
    raise ValueError(
        f'sampling must come from specjax.sampling.make(batch_size={batch}, ...); got '
        f'{_kind(sampling)}.'
    )
  for name in _SETTINGS:
    shape = np.shape(getattr(sampling, name))
    if shape != (batch,):
      raise ValueError(
          f'The sampling settings are for {shape[0] if shape else "no"} rows ({name}), the batch '
          f'has {batch}. Use specjax.sampling.make(batch_size={batch}, ...).'
      )
  bias = sampling.logit_bias
  if bias is not None and np.shape(bias) != (batch, vocab_size):
    raise ValueError(
        f'logit_bias is for [batch, vocabulary] {np.shape(bias)}, and the request for '
        f'{(batch, vocab_size)}: give it one entry for each token of the target.'
    )
  if sampling.constraint is not None:
    allowed = jax.eval_shape(lambda c: c.allowed(c.initial(batch)), sampling.constraint).shape
    if allowed != (batch, vocab_size):
      raise ValueError(
          f'The constraint allows tokens of [batch, vocabulary] {allowed}, and the request is for '
          f'{(batch, vocab_size)}: make it for the vocabulary of the target.'
      )
  return sampling


def _rule(rule: Any, sampling: types.Sampling, drafter: Any) -> Any:
  """The rule, given as it is, by its name or not at all; it must handle the drafter's proposals."""
  if rule is None:
    if isinstance(sampling.temperature, jax.core.Tracer):
      raise ValueError('rule must be given where the temperature is traced: it decides which.')
    return verify.default(temperature=sampling.temperature, is_chain=drafter.is_chain)
  if isinstance(rule, str):
    rule = verify.named(rule)
  is_rule = all(hasattr(rule, name) for name in ('name', 'mode', 'handles_trees'))
  decides = callable(rule) or hasattr(rule, 'decide')
  if not is_rule or not decides or inspect.isclass(rule) or rule.mode not in _MODES:
    raise ValueError(
        'rule must be one of specjax.verify, such as verify.block(), its name '
        f'({", ".join(map(repr, verify.NAMES))}), or one of your own as '
        f'specjax.verify.Rule describes it; got {_kind(rule)}.'
    )
  if not drafter.is_chain and not rule.handles_trees:
    raise ValueError(
        f'The {rule.name} rule verifies chains only, and the drafter proposes a tree. Use '
        'the greedy, recursive, traversal or coupled rule, or a chain.'
    )
  return rule


def positions(target: Any, num_prompt_tokens: int, max_new_tokens: int, *, name: str) -> None:
  """Refuses a prompt that its new tokens would carry beyond the target's longest sequence.

  Args:
    target: a `specjax.models.LanguageModel`. If the config of its module has no `max_positions`,
      any length is accepted.
    num_prompt_tokens: tokens of the prompt.
    max_new_tokens: the most new tokens.
    name: of the prompt, for the error.

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
  if isinstance(prompts, str) or not hasattr(prompts, '__len__'):
    raise ValueError(
        f'prompts must be a list of token lists, one per row; got {_kind(prompts)}. Encode text '
        "with the model's tokenizer first."
    )
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
    finish: [B] int32, the codes of `specjax.stats`.

  Raises:
    FloatingPointError: naming the rows, where logits were NaN.
    ValueError: naming the rows, where constraint and bias allow no token.
  """
  rows = np.flatnonzero(finish == stats.NOT_A_NUMBER)
  if rows.size:
    raise FloatingPointError(
        f"The target's logits were infinite or NaN in row(s) {rows.tolist()}. Nothing of these "
        'rows is returned. Check the weights (a truncated or overflowed file?) or use float32 or '
        'bfloat16 instead of float16.'
    )
  rows = np.flatnonzero(finish == stats.NOTHING_ALLOWED)
  if rows.size:
    raise ValueError(
        f'The constraint or the logit bias allows no token at all in row(s) {rows.tolist()}. '
        'Every state that can be reached must allow at least one.'
    )
