"""The methods of a benchmark: built from a config, run in turns, held against plain decoding."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import ml_collections
import numpy as np

import specjax
from experiments import build
from experiments import forecasts
from specjax import verify
from specjax.analysis import records
from specjax.analysis import theory
from specjax.analysis import timed_programs
from specjax.analysis import timing
from specjax.output import GenerateOutput

Prompts = Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Method:
  """A way of decoding.

  Attributes:
    key: its name in the config; 'plain…' for plain decoding.
    name: for tables.
    kind: of drafter; 'none' for plain decoding.
    rule: the verification rule; for plain decoding, its sampler.
    temperature: 0 is greedy.
    drafter: or None.
    settings: its part of the config, from which sampling is made.
  """

  key: str
  name: str
  kind: str
  rule: Any
  temperature: float
  drafter: Any
  settings: ml_collections.ConfigDict

  @property
  def num_speculative_tokens(self) -> int:
    return self.drafter.num_nodes if self.drafter is not None else 0

  @property
  def rule_name(self) -> str:
    """For tables: plain decoding verifies nothing."""
    if self.drafter is not None:
      return self.rule.name
    return 'sampling' if self.temperature else 'greedy'


@dataclasses.dataclass(frozen=True)
class Runner:
  """Runs methods on one target, all with the same shapes.

  Attributes:
    target: the target.
    width: tokens that a pass of plain decoding reads.
    max_new_tokens: of each prompt.
    cache_length: S.
    prefill_chunk: tokens of a prefill pass.
    seed: of the first prompt; prompt i has seed + i.
  """

  target: Any
  width: int
  max_new_tokens: int
  cache_length: int
  prefill_chunk: int
  seed: int

  def __call__(self, method: Method, prompts: Prompts, first: int = 0, **more) -> GenerateOutput:
    """One run over a batch of prompts, the first of which has number `first`.

    Of the drafter's state only `forecasts.free_rounds` is kept.
    """
    output = specjax.generate(
        self.target, prompts, **(self.options(method, len(prompts), first) | more)
    )
    # Outputs are kept, and with them a draft's cache would be.
    count = forecasts.free_rounds(output.drafter_state)
    return dataclasses.replace(output, drafter_state=count)

  def options(self, method: Method, batch_size: int, first: int = 0) -> dict[str, Any]:
    """What `specjax.generate` takes beside target and prompts."""
    return dict(
        drafter=method.drafter,
        rule=method.rule,
        sampling=build.sampling(method.settings, batch_size),
        max_new_tokens=self.max_new_tokens,
        seeds=self.seed + first + np.arange(batch_size),
        width=self.width_of(method),
        cache_length=self.cache_length,
        prefill_chunk=self.prefill_chunk,
    )

  def width_of(self, method: Method) -> int:
    """Tokens that the method's target passes read."""
    return max(self.width, method.num_speculative_tokens + 1)


@dataclasses.dataclass(frozen=True)
class Timed:
  """What came of timing.

  Attributes:
    outputs: by method key, one run a prompt.
    seconds: by method key, [P] medians over repetitions.
  """

  outputs: dict[str, list[GenerateOutput]]
  seconds: dict[str, list[float]]


def method(config, key: str, loaded: build.Loaded, *, num_speculative_tokens: int = 0) -> Method:
  """The method `config.methods[key]`.

  Args:
    config: the benchmark's config; the method changes fields of it.
    key: of the method.
    loaded: the target and what comes with it.
    num_speculative_tokens: K where the config leaves it open (0).

  Raises:
    ValueError: for what `experiments.build` refuses.
  """
  settings = method_settings(config, key)
  if not settings.drafter.num_speculative_tokens:
    settings.drafter.num_speculative_tokens = num_speculative_tokens
  build.check(settings)
  return Method(
      key=key,
      name=config.methods[key].name,
      kind=settings.drafter.kind,
      rule=build.rule(settings),
      temperature=settings.sampling.temperature,
      drafter=build.drafter(settings, loaded),
      settings=settings,
  )


def method_settings(config, key: str) -> ml_collections.ConfigDict:
  """The config with a method's own drafter, rule and temperature.

  Raises:
    ValueError: if there is no such method, or it sets a field that does not exist.
  """
  build.choice('order', key, tuple(config.methods))
  chosen = config.methods[key]
  settings = ml_collections.ConfigDict(config.to_dict()).lock()
  try:
    settings.drafter.update(chosen.drafter.to_dict())
  except (AttributeError, KeyError) as error:
    raise ValueError(f'config.methods.{key}.drafter: {error}') from error
  settings.rule.name = chosen.rule
  settings.sampling.temperature = float(chosen.temperature)
  return settings


def plain_methods(config, methods: Sequence[Method]) -> list[Method]:
  """Plain decoding at every temperature that occurs, with the fastest sampler."""
  found = {}
  for each in methods:
    rule = timed_programs.plain_rule(each.rule)
    key = f'plain_{each.temperature:g}'
    settings = ml_collections.ConfigDict(config.to_dict())
    settings.sampling.temperature = each.temperature
    found[each.temperature] = Method(
        key, 'plain decode', 'none', rule, each.temperature, None, settings
    )
  return [found[temperature] for temperature in sorted(found)]


def time(
    runner: Runner,
    methods: Sequence[Method],
    prompts: Prompts,
    *,
    repetitions: int,
    say: Callable[[str], None],
) -> Timed:
  """Times all methods in turns, prompt by prompt (see `specjax.analysis.timing`)."""
  by_key = {each.key: each for each in methods}

  def run(key: str, row: int) -> tuple[float, GenerateOutput]:
    output = runner(by_key[key], [prompts[row]], first=row)
    return output.seconds, output

  times = timing.in_turns(
      run,
      list(by_key),
      repetitions=repetitions,
      num_cases=len(prompts),
      progress=say,
      label=lambda key: f'{by_key[key].name}, {by_key[key].rule_name}',
      case_name='prompt',
  )
  return Timed(times.results, times.medians())


@dataclasses.dataclass(frozen=True)
class Acceptance:
  """How a method's drafts fared on prompts that are not timed.

  Attributes:
    rates: conditional acceptance rates, one per position.
    num_drafted: mean draft steps per round.
    free_share: of a combination, the share of rounds that its free part drafted.
  """

  rates: tuple[float, ...]
  num_drafted: float
  free_share: float = 0.0


def acceptance(
    runner: Runner, method: Method, prompts: Prompts, *, batch_size: int, first: int
) -> Acceptance:
  """Runs a method on other prompts, in batches, for its counts alone."""
  outputs = []
  for start in range(0, len(prompts), batch_size):
    # A last batch of another size would be compiled anew.
    rows = [prompts[(start + i) % len(prompts)] for i in range(batch_size)]
    outputs.append(runner(method, rows, first=first + start))
  stats = records.merge_stats(outputs)
  rounds = int(stats.rounds.sum())
  return Acceptance(
      rates=tuple(theory.conditional_rates(stats.decided_at.sum(0), rounds)),
      num_drafted=forecasts.steps_of(method.settings, stats.drafted_at.sum(0), rounds),
      free_share=sum(output.drafter_state for output in outputs) / rounds,
  )


def plain_of(method: Method, methods: Sequence[Method]) -> Method:
  """The plain decoding that a method is measured against."""
  rule = verify.greedy() if method.rule.mode == 'greedy' else verify.rejection()
  return next(
      each
      for each in methods
      if each.drafter is None and each.temperature == method.temperature and each.rule == rule
  )
