"""Generation of many prompts in a batch that stays full: rows that end make room for others.

Where answers have very different lengths, a batch that runs until its last row ends does most of
its work for rows that are over. Here the loop stops every few rounds, and places whose rows have
ended get the next prompts: these are prefilled in a small batch of their own, and its rows are
written into the running state. (What servers call continuous batching, Yu et al. 2022, "Orca".)

    for done in generate_each(target, prompts, batch_size=64, max_new_tokens=512):
      print(done.number, done.tokens)

What all prompts begin with, such as a system's text, is read once for all of them.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import itertools

import jax
import numpy as np

from specjax import checks
from specjax import engine
from specjax import generation
from specjax import sharding
from specjax.models import LanguageModel, fast_width
from specjax.reading import FINISH
from specjax.request import Request
from specjax.types import Drafter, Sampling
from specjax.verify import Rule

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Completion:
  """What became of a prompt.

  Attributes:
    number: of the prompt, from 0 on.
    tokens: [n] int32 numpy, emitted; a stop token is the last.
    finish_reason: 'stop' or 'length'.
    rounds: of the loop that it took.
  """

  number: int
  tokens: np.ndarray
  finish_reason: str
  rounds: int


@checks.names_arguments
def generate_each(
    target: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    drafter: Drafter | LanguageModel | None = None,
    rule: Rule | str | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int | Sequence[int] = 128,
    seeds: int | Sequence[int] = 0,
    stop_tokens: int | Sequence[int] | None = (),
    width: int | None = None,
    cache_length: int | None = None,
    prefill_chunk: int = 128,
    rounds_per_chunk: int = 16,
    refill: int | None = None,
) -> Iterator[Completion]:
  """Generates from every prompt, `batch_size` at a time, and yields each as it ends.

  The arguments are those of `specjax.generate` but for those below. A row is what `generate`
  gives for its prompt and seed, up to the rounding of passes over other numbers of rows: the same
  call gives the same tokens, and in the same order.

  Args:
    target: the target.
    prompts: one non-empty list of token ids each.
    batch_size: rows that are decoded together.
    drafter: as for `generate`.
    rule: as for `generate`.
    sampling: settings of one row, `specjax.sampling.make(batch_size=1, …)`, which all share.
    max_new_tokens: one number, or one per prompt.
    seeds: one integer (prompt i takes seed + i) or one per prompt.
    stop_tokens: as for `generate`.
    width: as for `generate`.
    cache_length: positions of the longest row; None takes what the longest of them needs.
    prefill_chunk: tokens per prefill pass.
    rounds_per_chunk: rounds between two looks at what has ended.
    refill: prompts that are prefilled together, once as many places are free; None takes an
      eighth of the batch.

  Yields:
    A `Completion` for every prompt, in the order in which they end.

  Raises:
    ValueError: as for `generate`, before the first pass; for settings of several rows, and for
      `refill` beyond the batch.
    TypeError: for an unknown argument, naming the nearest one.
    FloatingPointError: if the target's logits are not numbers.
  """
  batch_size = checks.whole('batch_size', batch_size, 1)
  refill = max(batch_size // 8, 1) if refill is None else checks.whole('refill', refill, 1)
  if refill > batch_size:
    raise ValueError(f'refill={refill} prompts have no room in a batch of {batch_size}.')
  if sampling is not None and len(sampling.temperature) != 1:
    raise ValueError(
        f'generate_each takes the settings of one row, for all; got {len(sampling.temperature)}. '
        'Make them with batch_size=1.'
    )
  request = Request(
      drafter=drafter,
      rule=rule,
      sampling=_repeated(sampling, len(prompts)),
      max_new_tokens=max_new_tokens,
      seeds=seeds,
      stop_tokens=stop_tokens,
      width=width,
      cache_length=cache_length,
      prefill_chunk=prefill_chunk,
      rounds_per_chunk=checks.whole('rounds_per_chunk', rounds_per_chunk, 1),
  )
  request = checks.request(target, prompts, request)
  if cache_length is None:
    longest = max(len(p) + int(n) for p, n in zip(prompts, request.max_new_tokens))
    request = dataclasses.replace(request, cache_length=generation.bucket(longest))
  if width is None:
    # Of the batch: the few rows that are prefilled for it must have caches of the same length.
    width = fast_width(target, min(batch_size, len(prompts)))
    request = dataclasses.replace(request, width=width)
  return _each(target, list(prompts), request, batch_size, refill)


def _each(target, prompts, request: Request, batch_size: int, refill: int) -> Iterator[Completion]:
  """The completions of a checked request of all prompts."""
  count = min(batch_size, len(prompts))
  prefix = _prefix(target, prompts, request)
  setup, state, starts = _prefilled(target, prompts, request, range(count), prefix)
  # Which prompt is in which place; -1 where none is.
  numbers = np.arange(count)
  following = count
  while (numbers >= 0).any():
    state = engine.run(setup, state, np.int32(request.rounds_per_chunk))
    done, finish = np.asarray(state.done), np.asarray(state.finish)
    checks.usable(finish)
    ended = np.flatnonzero(done & (numbers >= 0))
    if ended.size:
      tokens, lengths = np.asarray(state.tokens), np.asarray(state.lengths)
      rounds = np.asarray(state.stats.rounds)
    for place in ended:
      yield Completion(
          number=int(numbers[place]),
          tokens=tokens[place, starts[place] : lengths[place]].copy(),
          finish_reason=FINISH[int(finish[place])],
          rounds=int(rounds[place]),
      )
      numbers[place] = -1
    free = np.flatnonzero(numbers < 0)
    while following < len(prompts) and free.size >= min(refill, count):
      places, free = free[:refill], free[refill:]
      taken = np.arange(following, min(following + refill, len(prompts)))
      following += len(taken)
      # One program for all: a row that is missing is another one's copy, which goes nowhere.
      rows = np.resize(taken, refill)
      _, fresh, fresh_starts = _prefilled(target, prompts, request, rows, prefix)
      is_real = np.arange(refill) < len(taken)
      if refill == count:
        state = fresh.replace(done=fresh.done | ~is_real)
      else:
        where = np.where(is_real, np.resize(places, refill), count).astype(np.int32)
        state = sharding.put(_insert(state, fresh, where), setup.layout)
      here = places[: len(taken)]
      numbers[here], starts[here] = taken, fresh_starts[: len(taken)]


def _prefix(target, prompts, request: Request) -> engine.DecodeState | None:
  """The state after what all prompts begin with, of one row; None where it would spare no pass."""
  chunk, last = request.prefill_chunk, max(map(len, prompts)) - 1
  passes = lambda length: -(-(last - length) // chunk)
  # What the first and the last prompt in order begin with, all of them do. The last token of each
  # is read by its first round.
  first, other = min(prompts, key=list), max(prompts, key=list)
  alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, other))
  length = min(sum(1 for _ in alike), min(map(len, prompts)) - 1)
  sizes = generation.cache_sizes(1, request.cache_length, width=request.width, prefill_chunk=chunk)
  if length + passes(length) * chunk > sizes['cache_length'] + sizes['max_append']:
    # A last chunk must not reach beyond the cache: whole chunks end where they would without.
    length -= length % chunk
  if len(prompts) == 1 or passes(length) == passes(0):
    return None
  _, state, _ = _prefilled(target, [first[: length + 1]], request, [0], None)
  return state


def _prefilled(target, prompts, request: Request, rows, prefix: engine.DecodeState | None):
  """Setup, state and prompt lengths (numpy) of some of the prompts, after their prefill."""
  rows = np.asarray(rows)
  part = dataclasses.replace(
      request,
      sampling=_repeated(request.sampling, len(rows)),
      max_new_tokens=request.max_new_tokens[rows],
      seeds=request.seeds[rows],
  )
  setup, state, starts, _ = generation.prepare(
      target, [prompts[row] for row in rows], part, prefix=prefix
  )
  return setup, state, starts.copy()


def _repeated(sampling: Sampling | None, count: int) -> Sampling | None:
  """Settings of one row (the first, of several equal ones) for `count` rows."""
  if sampling is None:
    return None
  # Views: those that are as wide as the vocabulary are made for the rows that run together alone.
  repeat = lambda x: np.broadcast_to(np.asarray(x[:1]), (count, *x.shape[1:]))
  names = [field.name for field in dataclasses.fields(sampling) if field.name != 'constraint']
  first = {name: getattr(sampling, name) for name in names}
  return sampling.replace(
      **{name: x if x is None else repeat(x) for name, x in first.items()}
  )


@functools.partial(jax.jit, donate_argnums=0)
def _insert(state: engine.DecodeState, fresh: engine.DecodeState, places: Array):
  """The state [B] with the rows of another [R], R < B, in `places` [R]; those at B are dropped.

  The axis of an array's rows is the one along which the two states differ; one that is the same
  in both, such as the number of rounds, belongs to no row and stays.
  """
  size, count = state.lengths.shape[0], fresh.lengths.shape[0]

  def write(old: Array, new: Array) -> Array:
    axes = [axis for axis, (a, b) in enumerate(zip(old.shape, new.shape)) if a != b]
    if not axes:
      return old
    if len(axes) > 1 or (old.shape[axes[0]], new.shape[axes[0]]) != (size, count):
      raise ValueError(
          f'A state of {size} rows has an array {old.shape} where one of {count} rows has '
          f'{new.shape}: a drafter whose state has no axis of rows cannot be refilled. Use '
          'specjax.generate.'
      )
    index = (slice(None),) * axes[0] + (places,)
    return old.at[index].set(new, mode='drop')

  return jax.tree.map(write, state, fresh)
