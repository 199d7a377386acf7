"""The host's side of generation: checks, buckets, prefill, the loop, and streaming.

`generate`, `decode` and `stream` run the same code: a state is prepared, the jitted loop
(`specjax.engine.run`) is called once or in chunks, and the output is read from the state.
"""

from collections.abc import Iterator, Sequence
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax import checks
from specjax import engine
from specjax import randomness
from specjax import sampling as sampling_lib
from specjax import sharding
from specjax import stats as stats_lib
from specjax.kernels.accept import op_rule
from specjax.models import LanguageModel, fast_width
from specjax.output import GenerateOutput
from specjax.reading import Reader
from specjax.request import Request
from specjax.types import Drafter, Sampling
from specjax.verify import Rule


@checks.names_arguments
def generate(
    target: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    drafter: Drafter | LanguageModel | None = None,
    rule: Rule | str | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int | Sequence[int] = 128,
    seeds: int | Sequence[int] = 0,
    stop_tokens: int | Sequence[int] | None = (),
    stop_strings: str | Sequence[str] | None = (),
    tokenizer: Any = None,
    logprobs: str | None = None,
    trace: bool = False,
    width: int | None = None,
    cache_length: int | None = None,
    prefill_chunk: int = 128,
    rounds_per_chunk: int | None = None,
) -> GenerateOutput:
  """Generates from a target, sped up by a drafter; lossless under every lossless rule.

  Args:
    target: a `specjax.models.LanguageModel`.
    prompts: one non-empty list of token ids per row; lengths may differ.
    drafter: one of `specjax.drafters`, or a draft (`specjax.models.LanguageModel`), which becomes
      `specjax.drafters.model(draft)`; None decodes plainly.
    rule: a rule of `specjax.verify`, or its name. None takes `specjax.verify.default`: greedy
      where every row's temperature is 0, else the block rule, or the recursive rule for trees.
    sampling: from `specjax.sampling.make`, one entry per row. None means temperature 1 under a
      rule that was given, and temperature 0 where there is none: greedy decoding.
    max_new_tokens: the most tokens that a row emits; one number, or one per row.
    seeds: one integer (row b takes seed + b) or one per row, modulo 2**32. A row's output depends
      on its own seed alone.
    stop_tokens: token ids that end a row, also inside an accepted block; kept in the output. A
      single id need not be in a list.
    stop_strings: one text or several that end a row; needs `tokenizer`. They are searched for
      in the text with its special tokens, so that `<|im_end|>` is matched whether it is shown or
      not. The text is cut before them, the tokens after the first one that completes one.
    tokenizer: for `stop_strings` and `GenerateOutput.texts`; has `decode(list of ids) -> str`,
      which may take `skip_special_tokens`.
    logprobs: 'raw' keeps the log-probabilities of the emitted tokens under the target's own law,
      'controlled' those after the sampling controls; None keeps none.
    trace: whether to keep a record of every round.
    width: tokens per target pass, N + 1 where that is more; None takes the narrowest width that
      is not slower than a wider one.
    cache_length: positions of the longest row; None takes what prompts and `max_new_tokens` need,
      rounded up to a bucket so that another length does not recompile.
    prefill_chunk: tokens per prefill pass.
    rounds_per_chunk: rounds that run on the device between two looks of the host; None runs to
      the end at once. The output is the same.

  Returns:
    A `GenerateOutput`.

  Raises:
    ValueError: for anything that cannot be run, before it is run (see `specjax.checks`).
    TypeError: for an unknown argument, naming the nearest one.
    FloatingPointError: if the target's logits are not numbers.
  """
  outputs = stream(
      target,
      prompts,
      drafter=drafter,
      rule=rule,
      sampling=sampling,
      max_new_tokens=max_new_tokens,
      seeds=seeds,
      stop_tokens=stop_tokens,
      stop_strings=stop_strings,
      tokenizer=tokenizer,
      logprobs=logprobs,
      trace=trace,
      width=width,
      cache_length=cache_length,
      prefill_chunk=prefill_chunk,
      rounds_per_chunk=rounds_per_chunk,
  )
  output = None
  for output in outputs:
    pass
  return output


@checks.names_arguments
def decode(
    target: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    drafter: None = None,
    rule: Rule | str | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int | Sequence[int] = 128,
    seeds: int | Sequence[int] = 0,
    stop_tokens: int | Sequence[int] | None = (),
    stop_strings: str | Sequence[str] | None = (),
    tokenizer: Any = None,
    logprobs: str | None = None,
    trace: bool = False,
    width: int | None = None,
    cache_length: int | None = None,
    prefill_chunk: int = 128,
    rounds_per_chunk: int | None = None,
) -> GenerateOutput:
  """Plain decoding: `generate` with no drafter, through the same prefill, cache and loop.

  The arguments are those of `generate`, with two remarks. `rule` picks the sampler: `greedy`,
  `rejection` (the fastest draw from the law, and so is any other rule that samples) or `coupled`
  (Gumbel noise, for equality with coupled speculation). `width` pads every pass to that many
  tokens: at the width of a speculative run the logits are bitwise the same.

  Returns:
    A `GenerateOutput`.

  Raises:
    ValueError: as for `generate`, and for a drafter.
    TypeError: as for `generate`.
    FloatingPointError: as for `generate`.
  """
  if drafter is not None:
    raise ValueError(
        'decode is plain decoding and takes no drafter: leave drafter out, or use '
        'specjax.generate to speculate.'
    )
  return generate(
      target,
      prompts,
      rule=rule,
      sampling=sampling,
      max_new_tokens=max_new_tokens,
      seeds=seeds,
      stop_tokens=stop_tokens,
      stop_strings=stop_strings,
      tokenizer=tokenizer,
      logprobs=logprobs,
      trace=trace,
      width=width,
      cache_length=cache_length,
      prefill_chunk=prefill_chunk,
      rounds_per_chunk=rounds_per_chunk,
  )


@checks.names_arguments
def stream(
    target: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    drafter: Drafter | LanguageModel | None = None,
    rule: Rule | str | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int | Sequence[int] = 128,
    seeds: int | Sequence[int] = 0,
    stop_tokens: int | Sequence[int] | None = (),
    stop_strings: str | Sequence[str] | None = (),
    tokenizer: Any = None,
    logprobs: str | None = None,
    trace: bool = False,
    width: int | None = None,
    cache_length: int | None = None,
    prefill_chunk: int = 128,
    rounds_per_chunk: int | None = 8,
) -> Iterator[GenerateOutput]:
  """As `generate`, but yields the output so far after every `rounds_per_chunk` rounds.

  The arguments are those of `generate`. The last output equals that of `generate`, for any
  `rounds_per_chunk`.

  Returns:
    An iterator of `GenerateOutput`, one per chunk.

  Raises:
    ValueError: as for `generate`, when it is called.
    TypeError: as for `generate`, when it is called.
    FloatingPointError: as for `generate`, when an output is asked for.
  """
  request = Request(
      drafter=drafter,
      rule=rule,
      sampling=sampling,
      max_new_tokens=max_new_tokens,
      seeds=seeds,
      stop_tokens=stop_tokens,
      stop_strings=stop_strings,
      tokenizer=tokenizer,
      logprobs=logprobs,
      trace=trace,
      width=width,
      cache_length=cache_length,
      prefill_chunk=prefill_chunk,
      rounds_per_chunk=rounds_per_chunk,
  )
  # Checked when it is called, not when its first output is asked for.
  return _stream(target, prompts, checks.request(target, prompts, request))


def _stream(target, prompts: Sequence[Sequence[int]], request: Request) -> Iterator[GenerateOutput]:
  """The outputs of a checked request."""
  setup, state, prompt_lengths, prefill_seconds = _prepare(target, prompts, request)
  reader = Reader(request, prompts, prompt_lengths, prefill_seconds)
  chunk = request.rounds_per_chunk
  if chunk is None:
    chunk = np.iinfo(np.int32).max // 2
  # Stop strings are looked for while the state remembers the rounds after them.
  most_rounds = chunk if state.recent is None else stats_lib.RECENT
  seconds, left, over = 0.0, chunk, False
  while not over:
    rounds = min(left, most_rounds)
    started = time.perf_counter()
    state = engine.run(setup, state, np.int32(rounds))
    over = bool(state.done.all())
    seconds += time.perf_counter() - started
    checks.usable(np.asarray(state.finish))
    ended = reader.look(state)
    over, left = over or bool(ended.all()), left - rounds
    if over or (not left and request.rounds_per_chunk is not None):
      yield reader.read(state, seconds)
    if not over and state.recent is not None:
      state = state.replace(done=state.done | ended)
    left = left or chunk


def prepare(
    target,
    prompts: Sequence[Sequence[int]],
    request: Request,
    *,
    prefix: engine.DecodeState | None = None,
):
  """Checks a request and runs its prefill.

  Args:
    target: the target.
    prompts: one non-empty token list per row.
    request: the options.
    prefix: the state of one row, prepared with the same options and a cache of the same length: of
      a prompt whose tokens, but for the last, all prompts begin with. They are not read again.

  Returns:
    The engine's setup, the state after prefill, the prompts' lengths [B] (numpy), and the
    seconds that the prefill took.

  Raises:
    ValueError: see `specjax.checks`.
  """
  return _prepare(target, prompts, checks.request(target, prompts, request), prefix)


def _prepare(
    target,
    prompts: Sequence[Sequence[int]],
    request: Request,
    prefix: engine.DecodeState | None = None,
):
  """As `prepare`, for a checked request."""
  drafter, limits, batch = request.drafter, request.max_new_tokens, len(prompts)
  lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
  longest = int((lengths + limits).max())
  size = bucket(longest) if request.cache_length is None else request.cache_length
  width = max(drafter.num_nodes + 1, request.width or fast_width(target, batch))
  tokens = np.zeros((batch, size), np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, : len(prompt)] = prompt
  rule = rule_that_runs(request.rule, target=target, drafter=drafter, batch_size=batch)
  setup = engine.Setup(
      target=target,
      drafter=drafter,
      sampling=request.sampling,
      stop_tokens=_pad_stops(request.stop_tokens),
      rule=rule,
      width=width,
      logprobs=request.logprobs,
  )
  setup = sharding.put(setup, setup.layout)
  started = time.perf_counter()
  state = _initial_state(setup, request, tokens, lengths, limits, prefix)
  jax.block_until_ready(state.target_cache)
  return setup, state, lengths, time.perf_counter() - started


def rule_that_runs(rule: Any, *, target: Any, drafter: Any, batch_size: int) -> Any:
  """The rule that the engine runs where `rule` is asked for (`accept.op_rule.by_default`)."""
  return op_rule.by_default(
      rule,
      vocab_size=target.vocab_size,
      is_chain=drafter.is_chain,
      layout=getattr(target, 'layout', None),
      batch_size=batch_size,
  )


def _initial_state(setup, request: Request, tokens, lengths, limits, prefix):
  """Prefills all but each prompt's last token, in chunks, from the end of the prefix on."""
  batch, size = tokens.shape
  drafter = setup.drafter
  chunk = request.prefill_chunk
  sizes = cache_sizes(batch, size, width=setup.width, prefill_chunk=chunk)
  cache = setup.target.init_cache(**sizes)
  drafter_state = sharding.put(drafter.init(**sizes), setup.layout)
  features, done = None, 0
  if prefix is not None:
    done = int(prefix.lengths[0]) - 1
    features = jnp.repeat(prefix.features[:, 0], batch, axis=0)
    cache, drafter_state = sharding.put(
        _of_one_row((cache, drafter_state), (prefix.target_cache, prefix.drafter)), setup.layout
    )
  padded = np.pad(tokens, ((0, 0), (0, chunk)))
  for start in range(done, max(int(lengths.max()) - 1, 0 if done else 1), chunk):
    num_new = np.clip(lengths - 1 - start, 0, chunk).astype(np.int32)
    cache, drafter_state, last = engine.prefill_chunk(
        setup, cache, drafter_state, padded[:, start : start + chunk], num_new
    )
    features = last if features is None else _newer(num_new > 0, last, features)
  state = first_state(
      setup,
      cache=cache,
      drafter_state=drafter_state,
      features=features,
      tokens=tokens,
      lengths=lengths,
      limits=limits,
      seeds=request.seeds,
  )
  if request.trace:
    state = state.replace(trace=stats_lib.empty_trace(batch, int(limits.max()), drafter))
  if request.stop_strings:
    state = state.replace(recent=stats_lib.empty_recent(batch, drafter.depth))
  return sharding.put(state, setup.layout)


@functools.partial(jax.jit, donate_argnums=0)
def _of_one_row(states, row):
  """The states of several rows, every row of which becomes that of `row`, a state of one."""
  return jax.tree.map(lambda state, one: jnp.broadcast_to(one, state.shape), states, row)


@jax.jit
def _newer(fresh, last, features):
  return jnp.where(fresh[:, None], last, features)


def first_state(
    setup: engine.Setup, *, cache, drafter_state, features, tokens, lengths, limits, seeds
) -> engine.DecodeState:
  """The state after prefill, before the first round.

  Args:
    setup: the run's setup.
    cache: the target's cache, which holds `lengths - 1` positions of each row.
    drafter_state: the drafter's, of the same positions.
    features: [B, F], of each prompt's last token but one.
    tokens: [B, S] int32, the prompts.
    lengths: [B] int32.
    limits: [B] int32, the most new tokens.
    seeds: one integer (row b takes seed + b) or one per row.
  """
  batch, size = tokens.shape
  depth, vocab_size = setup.drafter.depth, setup.target.vocab_size
  zeros = lambda *shape: jnp.zeros((batch, *shape), jnp.int32)
  if np.ndim(seeds) == 0:
    seeds = int(seeds) + np.arange(batch)
  features = jnp.pad(features[:, None], ((0, 0), (0, depth), (0, 0)))
  history = sampling_lib.init_history(
      jnp.asarray(tokens),
      jnp.asarray(lengths),
      vocab_size=vocab_size,
      constraint=setup.sampling.constraint,
  )
  return engine.DecodeState(
      tokens=jnp.asarray(tokens),
      lengths=jnp.asarray(lengths),
      limits=jnp.asarray(lengths + limits, jnp.int32),
      done=jnp.zeros((batch,), bool),
      finish=zeros(),
      keys=randomness.row_keys(np.asarray(seeds, np.int64).astype(np.uint32)),
      target_cache=cache,
      drafter=drafter_state,
      history=history,
      features=features,
      features_valid=(jnp.arange(depth + 1) == 0) & jnp.asarray(lengths > 1)[:, None],
      logprobs=None if setup.logprobs is None else jnp.zeros((batch, size), jnp.float32),
      stats=stats_lib.Stats.zeros(batch, depth),
      trace=None,
      round=jnp.int32(0),
  )


def cache_sizes(batch_size: int, length: int, *, width: int, prefill_chunk: int) -> dict[str, int]:
  """Arguments of `init_cache` for rows of up to `length` tokens.

  A cache needs slots for the rows, for a last round that ends beyond them, and for whole prefill
  chunks. It adds `max_append` to its length by itself; as attention reads every slot, that much is
  taken off the length here.
  """
  append = max(prefill_chunk, width)
  slots = max(length + width, -(-length // prefill_chunk) * prefill_chunk)
  return dict(batch_size=batch_size, cache_length=max(slots - append, 1), max_append=append)


def bucket(length: int) -> int:
  """The cache length for rows of `length`: 128 times 1, 1.5, 2, 3, 4, 6, 8, …"""
  size = 128
  while size < length:
    size = size * 3 // 2 if (size & (size - 1)) == 0 else size // 3 * 4
  return size


def _pad_stops(stop_tokens: Sequence[int]) -> jnp.ndarray:
  count = 8
  while count < len(stop_tokens):
    count *= 2
  return jnp.asarray([*stop_tokens, *[-1] * (count - len(stop_tokens))], jnp.int32)
