"""Runs one arm of a sweep: first its losslessness, then its times beside plain decoding.

Random numbers are common to all arms: prompt i of repetition s has seed + s P + i whatever the
arm, and the engine's keys follow from it. Plain decoding runs in turns with the arm, batch by
batch, so that a ratio is of runs seconds apart on a machine in the same state.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import arms as arms_lib
from experiments import build
from experiments import lossless
from experiments import methods as methods_lib
from experiments import prompts as prompts_lib
from experiments.runs import traces as run_traces
from specjax import generation
from specjax.analysis import records
from specjax.analysis import timing
from specjax.analysis import traces
from specjax.models import fast_width
from specjax.output import GenerateOutput


@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows that run together.

  Attributes:
    prompts: [B] token lists.
    first: number of the first row: repetition times P plus prompt.
  """

  prompts: tuple[tuple[int, ...], ...]
  first: int


class Models:
  """Targets and plain decoding, kept from one arm to the next."""

  def __init__(self):
    """Nothing is loaded yet."""
    self._loaded: dict[Any, build.Loaded] = {}
    self._references: dict[Any, list[GenerateOutput]] = {}

  def load(self, settings) -> build.Loaded:
    """The arm's target; only the latest one is kept."""
    key = (settings.target, settings.dtype, settings.int8, settings.mesh)
    key = arms_lib.digest(list(key))
    if key not in self._loaded:
      self._loaded.clear()
      self._references.clear()
      self._loaded[key] = build.load(settings)
    return self._loaded[key]

  def references(self, key: Any, make: Callable[[], list[GenerateOutput]]):
    """What `make` gives, made once for a key."""
    if key not in self._references:
      self._references[key] = make()
    return self._references[key]


def prompts_of(settings, loaded: build.Loaded) -> list[tuple[str, tuple[int, ...]]]:
  """Names and tokens of the arm's prompts.

  Raises:
    ValueError: if there are not as many.
  """
  count, length = settings.num_prompts, settings.prompt_tokens
  if loaded.pair is not None and not settings.prompt_file:
    found = loaded.pair.prompts(count, length=length)
    return [(f'held out/{i}', tuple(tokens)) for i, tokens in enumerate(found)]
  texts = prompts_lib.texts(
      file=settings.prompt_file, held_out=loaded.held_out, category=settings.prompt_category
  )
  texts = prompts_lib.by_turns(texts)
  encoded = prompts_lib.encode(texts, loaded.tokenizer, max_tokens=length, num_prompts=count)
  if len(encoded) < count:
    raise ValueError(
        f'config.num_prompts is {count}, but {settings.prompt_file} holds {len(encoded)}.'
    )
  return [(prompt.name, prompt.tokens) for prompt in encoded]


def check(settings) -> None:
  """Refuses what cannot be run, before any model is read."""
  build.check(settings)
  if settings.drafter.kind == 'none':
    raise ValueError('An arm speculates: plain decoding is measured beside each of them.')
  if min(settings.num_prompts, settings.num_seeds, settings.repetitions) < 1:
    raise ValueError('config.num_prompts, num_seeds and repetitions must be at least 1.')
  if settings.num_prompts % settings.batch_size:
    raise ValueError(
        f'config.num_prompts={settings.num_prompts} must be a multiple of config.batch_size='
        f'{settings.batch_size}: a smaller last batch would be compiled and timed apart.'
    )


def run(arm: arms_lib.Arm, models: Models, say: Callable[[str], None]) -> dict[str, Any]:
  """Runs an arm; returns its result as JSON values.

  Raises:
    NotLosslessError: if its output is not what plain decoding gives.
    ValueError: for settings that cannot be run.
  """
  settings = arm.settings
  check(settings)
  loaded = models.load(settings)
  prompts = prompts_of(settings, loaded)
  batches = _batches(settings, [tokens for _, tokens in prompts])
  runner = runner_of(settings, loaded, [tokens for _, tokens in prompts])
  method = _method(settings, loaded)
  (plain,) = methods_lib.plain_methods(settings, [method])

  def drafted(batch: Batch) -> methods_lib.Method:
    """The method; a synthetic drafter knows what plain decoding gives."""
    if method.kind != 'synthetic':
      return method
    wanted = dataclasses.replace(method, drafter=None)
    output = runner(wanted, batch.prompts, batch.first, width=runner.width_of(method))
    drafter = build.drafter(
        settings, loaded, reference=output.tokens, reference_lengths=output.lengths
    )
    return dataclasses.replace(method, drafter=drafter)

  say('checking')
  made = [drafted(batch) for batch in batches]
  more = dict(trace=True, logprobs=_kept_logprobs(settings, method))
  outputs = [
      runner(each, batch.prompts, batch.first, **more) for each, batch in zip(made, batches)
  ]
  references = None
  if method.rule.mode != 'sample' or not method.temperature:
    references = _references(settings, models, runner, method, batches)
  seeds = [runner.options(method, len(batch.prompts), batch.first)['seeds'] for batch in batches]
  checked = lossless.check(method, runner, outputs, references, seeds)

  say('timing')
  seconds, plain_tokens, differing = _time(settings, runner, plain, made, batches, outputs)
  record = records.record(
      outputs,
      name=arm.label,
      rule=method.rule.name,
      drafter=method.kind,
      temperature=method.temperature,
      num_speculative_tokens=method.num_speculative_tokens,
      dtype=str(jnp.dtype(runner.target.module.dtype)),
      width=runner.width_of(method),
      seconds=seconds['arm'],
      plain=(seconds['plain'], plain_tokens),
      **checked.fields,
  )
  return dict(
      status='done',
      record=dataclasses.asdict(record),
      check=dataclasses.asdict(checked),
      batch_size=settings.batch_size,
      seconds=seconds['arm'],
      plain_seconds=seconds['plain'],
      plain_tokens=plain_tokens,
      timed_differently=differing,
      prompts=[name for name, _ in prompts],
      prompt_tokens=max(len(tokens) for _, tokens in prompts),
      **_counts(outputs, method),
      trace=run_traces.entry(outputs[0], loaded.tokenizer, name=arm.label),
  )


def _batches(settings, prompts: Sequence[tuple[int, ...]]) -> list[Batch]:
  """All prompts, as often as seeds are asked for; greedy output depends on no seed."""
  size = settings.batch_size
  seeds = settings.num_seeds if settings.sampling.temperature else 1
  return [
      Batch(tuple(prompts[start : start + size]), seed * len(prompts) + start)
      for seed in range(seeds)
      for start in range(0, len(prompts), size)
  ]


def runner_of(settings, loaded: build.Loaded, prompts) -> methods_lib.Runner:
  """What runs the arm's methods, for prompts of these lengths."""
  longest = max(len(prompt) for prompt in prompts) + settings.max_new_tokens
  return methods_lib.Runner(
      target=loaded.target,
      width=settings.width or fast_width(loaded.target),
      max_new_tokens=settings.max_new_tokens,
      cache_length=settings.cache_length or generation.bucket(longest),
      prefill_chunk=settings.prefill_chunk,
      seed=settings.seed,
  )


def _method(settings, loaded: build.Loaded) -> methods_lib.Method:
  kind = settings.drafter.kind
  blank = dict(reference=np.zeros((1, 1), np.int32), reference_lengths=np.ones(1, np.int32))
  return methods_lib.Method(
      key=kind,
      name=kind,
      kind=kind,
      rule=build.rule(settings),
      temperature=settings.sampling.temperature,
      drafter=build.drafter(settings, loaded, **(blank if kind == 'synthetic' else {})),
      settings=settings,
  )


def _kept_logprobs(settings, method) -> str | None:
  """What the check needs where equality is not bit for bit (see `experiments.lossless`)."""
  return None if method.drafter.is_chain and settings.batch_size == 1 else 'raw'


def _references(settings, models, runner, method, batches) -> list[GenerateOutput]:
  """Plain decoding with the method's rule, at its width and batch."""
  plain = dataclasses.replace(method, drafter=None)
  width = runner.width_of(method)
  logprobs = _kept_logprobs(settings, method)
  make = lambda: [
      runner(plain, batch.prompts, batch.first, width=width, logprobs=logprobs)
      for batch in batches
  ]
  values = {k: v for k, v in settings.to_dict().items() if k not in ('arms', 'drafter', 'rule')}
  return models.references((arms_lib.digest(values), method.rule.name, width, logprobs), make)


def _time(settings, runner, plain, made, batches, outputs):
  """Times arm and plain decoding in turns.

  Returns:
    Seconds of every batch by 'arm' and 'plain' (medians over repetitions), the new tokens of
    plain decoding, and how many rows came out otherwise than when they were checked.
  """

  def run(name: str, index: int) -> tuple[float, tuple[int, np.ndarray]]:
    method, batch = made[index] if name == 'arm' else plain, batches[index]
    output = runner(method, batch.prompts, batch.first)
    # Not the output itself: its drafter's state is as large as a cache.
    return output.seconds, (output.num_new_tokens, output.tokens)

  times = timing.in_turns(
      run,
      ('arm', 'plain'),
      repetitions=settings.repetitions,
      num_cases=len(batches),
      warm_ups=1,
  )
  tokens = [count for count, _ in times.results['plain']]
  differing = sum(
      int((timed != checked.tokens).any(axis=1).sum())
      for (_, timed), checked in zip(times.results['arm'], outputs)
  )
  return times.medians(), tokens, differing


def _counts(outputs: Sequence[GenerateOutput], method: methods_lib.Method) -> dict[str, Any]:
  """Counts of every row, in the order of seeds and prompts, and along the text."""
  stats = records.merge_stats(outputs)
  found = dict(
      tokens=[int(n) for output in outputs for n in output.lengths - output.prompt_lengths],
      rounds=stats.rounds,
      # As drafted and decided: forecasts and expectations are made of them.
      proposed_at=stats.drafted_at,
      accepted_at=stats.decided_at,
      free_rounds=sum(output.drafter_state for output in outputs),
      expected={},
  )
  size = run_traces.STRETCH
  stretches = -(-int(max(found['tokens'])) // size)
  along = np.zeros((2, stretches), int)  # rounds that began there, tokens that they accepted
  for output in outputs:
    for row, starts in enumerate(output.trace.starts):
      real = np.flatnonzero(starts)
      at = np.minimum((starts[real] - output.prompt_lengths[row]) // size, stretches - 1)
      np.add.at(along[0], at, 1)
      np.add.at(along[1], at, output.trace.num_accepted[row, real])
  found['along'] = along
  if method.rule.mode == 'sample' and method.drafter.is_chain:
    for rule in ('rejection', 'block'):
      found['expected'][rule] = [
          float(rows.sum())
          for output in outputs
          for rows in traces.expected_accepted(output, rule)
      ]
  return found
