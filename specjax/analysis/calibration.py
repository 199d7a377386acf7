"""Measures what a round costs on this machine, and predicts speed-ups from it.

What is timed, all in one process and in the real, compiled loops, at one cache length and
batch, without compilation and prefill:

- a *plain step*: plain decoding, at each dtype and width that may be the fastest;
- a *target pass* over m tokens: nothing but the target and its cache in a `while_loop`;
- a *round with the synthetic drafter*, which drafts for free: less the pass of its width it
  is the overhead, that is sampling, verification and commit;
- a *round with a real drafter*: less the former it is what drafting costs.

The work of a round does not depend on how much of it is accepted, so acceptance does not
enter here. Programs are timed in turns, in an order that changes from one repetition to the
next, and medians are kept: a machine that slows down slows all of them down. Everything is
divided by the plain step, the loop around it included, so that `specjax.analysis.theory`
predicts what a stopwatch shows.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax import drafters as drafters_lib
from specjax import engine
from specjax import generation
from specjax import kv_cache
from specjax import verify
from specjax.analysis import records
from specjax.analysis import theory
from specjax.drafters.model import fast_width
from specjax.models import LanguageModel

MODEL = 'model'  # the name under which a draft model's costs are kept


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A way of plain decoding: dtype, tokens a pass reads, seconds a step."""

  dtype: str
  width: int
  seconds: float


@dataclasses.dataclass(frozen=True)
class RuleCosts:
  """What rounds under one rule cost, in seconds.

  Attributes:
    rule: its name.
    plain: a step of plain decoding at its fastest: greedy, or with the fastest sampler.
    overhead: (K, a round less its target pass and its drafting), K ascending.
    drafting: by drafter, (K, all draft steps of a round), K ascending.
  """

  rule: str
  plain: float
  overhead: tuple[tuple[int, float], ...]
  drafting: dict[str, tuple[tuple[int, float], ...]]


@dataclasses.dataclass(frozen=True)
class RoundCost:
  """The terms of the formula, in units of a plain step with the same rule.

  Attributes:
    draft_cost: c, of one draft step.
    pass_cost: r(K + 1).
    overhead: o.
  """

  draft_cost: float
  pass_cost: float
  overhead: float


@dataclasses.dataclass(frozen=True)
class Calibration:
  """What was measured; everything else follows from it.

  Attributes:
    dtype: the fastest for plain decoding, in which all below was measured.
    width: tokens that a pass of plain decoding reads, the fastest.
    candidates: what was compared for that; empty where nothing was.
    widths: [n], tokens of the passes timed, ascending.
    pass_seconds: [n], of a target pass.
    rules: costs by rule.
    batch_size: B.
    cache_length: S.
    rounds: timed in one go.
    repetitions: how often.
    noise: largest (slowest - fastest) / median over repetitions of any program.
    versions: of the packages.
    hardware: what it ran on.
  """

  dtype: str
  width: int
  candidates: tuple[Candidate, ...]
  widths: tuple[int, ...]
  pass_seconds: tuple[float, ...]
  rules: tuple[RuleCosts, ...]
  batch_size: int
  cache_length: int
  rounds: int
  repetitions: int
  noise: float
  versions: dict[str, str]
  hardware: dict[str, Any]

  @property
  def max_num_speculative_tokens(self) -> int:
    """The largest K that was run."""
    return self.widths[-1] - 1

  def rule(self, name: str) -> RuleCosts:
    """Costs under a rule.

    Raises:
      ValueError: if it was not calibrated.
    """
    for costs in self.rules:
      if costs.rule == name:
        return costs
    known = ', '.join(costs.rule for costs in self.rules)
    raise ValueError(f'The rule {name!r} was not calibrated; there are: {known}.')

  def cost(
      self, rule: str, num_speculative_tokens: int, *, drafter: str | None = MODEL
  ) -> RoundCost:
    """The terms c, r(K + 1) and o; between lengths that were run, linear interpolation.

    Args:
      rule: name of the rule.
      num_speculative_tokens: K, up to the largest that was measured.
      drafter: as in `calibrate`; None drafts for free.

    Returns:
      The `RoundCost`.

    Raises:
      ValueError: for a rule, drafter or K that was not calibrated.
    """
    k, costs = num_speculative_tokens, self.rule(rule)
    if not 1 <= k <= self.max_num_speculative_tokens:
      raise ValueError(f'K must be 1 … {self.max_num_speculative_tokens} as calibrated, got {k}.')
    if drafter is not None and drafter not in costs.drafting:
      raise ValueError(
          f'The drafter {drafter!r} was not calibrated; there are: {sorted(costs.drafting)}.'
      )
    # K = 0 is plain decoding: nothing drafted, and what its step adds to its pass.
    plain_overhead = costs.plain - np.interp(self.width, self.widths, self.pass_seconds)
    overhead = np.interp(k, *zip((0, plain_overhead), *costs.overhead))
    drafting = 0.0
    if drafter is not None:
      lengths, seconds = zip((0, 0.0), *costs.drafting[drafter])
      # Beyond the longest that was run, every token costs what it cost on average there.
      drafting = np.interp(k, lengths, seconds) * max(k / lengths[-1], 1.0)
    return RoundCost(
        draft_cost=float(drafting / k / costs.plain),
        pass_cost=float(np.interp(k + 1, self.widths, self.pass_seconds) / costs.plain),
        overhead=float(overhead / costs.plain),
    )

  def predict(
      self,
      rule: str,
      num_speculative_tokens: int,
      acceptance: theory.Acceptance,
      *,
      drafter: str | None = MODEL,
      num_drafted: float | None = None,
  ) -> theory.Prediction:
    """Predicted speed-up over plain decoding with the same rule, dtype and batch.

    Args:
      rule: name of the rule.
      num_speculative_tokens: K.
      acceptance: α or conditional rates a position, measured on other prompts.
      drafter: as in `cost`.
      num_drafted: mean draft steps a round where K adapts; None means K.

    Returns:
      The terms and, as `speedup`, what they come to.
    """
    cost = self.cost(rule, num_speculative_tokens, drafter=drafter)
    return theory.Prediction(
        tokens_per_round=theory.expected_tokens(acceptance, num_speculative_tokens),
        num_drafted=num_speculative_tokens if num_drafted is None else num_drafted,
        draft_cost=cost.draft_cost,
        pass_cost=cost.pass_cost,
        overhead=cost.overhead,
    )

  def best_length(
      self, rule: str, acceptance: theory.Acceptance, *, drafter: str | None = MODEL
  ) -> theory.BestLength:
    """The fastest K among 0 … the largest for which costs and acceptance are known."""
    largest = self.max_num_speculative_tokens
    if np.ndim(acceptance):
      largest = min(largest, len(acceptance))
    speedups = [1.0]
    for k in range(1, largest + 1):
      speedups.append(self.predict(rule, k, acceptance, drafter=drafter).speedup)
    best = int(np.argmax(speedups))
    return theory.BestLength(best, speedups[best], tuple(speedups))


def from_json(values: Mapping[str, Any]) -> Calibration:
  """The `Calibration` of its JSON form (`dataclasses.asdict`)."""
  values = dict(values)
  values['candidates'] = tuple(Candidate(**entry) for entry in values['candidates'])
  values['rules'] = tuple(
      RuleCosts(
          rule=entry['rule'],
          plain=entry['plain'],
          overhead=tuple(map(tuple, entry['overhead'])),
          drafting={name: tuple(map(tuple, points)) for name, points in entry['drafting'].items()},
      )
      for entry in values['rules']
  )
  for name in ('widths', 'pass_seconds'):
    values[name] = tuple(values[name])
  return Calibration(**values)


def calibrate(
    target: LanguageModel,
    draft: LanguageModel | None = None,
    *,
    prompts: Sequence[Sequence[int]],
    max_num_speculative_tokens: int = 8,
    widths: Sequence[int] | None = None,
    cache_length: int = 512,
    prefill_chunk: int = 128,
    dtypes: Sequence[Any] = (),
    rules: Sequence[Any] = (verify.greedy(),),
    drafters: Mapping[str, Callable[[int], Any]] | None = None,
    cases: Sequence[tuple[str, str, int]] | None = None,
    sampling: Any = None,
    rounds: int = 32,
    repetitions: int = 7,
    progress: Callable[[str], None] | None = None,
) -> Calibration:
  """Measures the cost of rounds on this machine; about a compilation for each program.

  Args:
    target: the target.
    draft: a draft model, timed under the name 'model'; None leaves it out.
    prompts: one a row, for the shape of the work only; read once.
    max_num_speculative_tokens: the largest K that will be asked about.
    widths: tokens of the target passes that are timed besides those that the rounds need;
      None takes 2, 3, 5, 8, 12, …
    cache_length: S, as in the runs that are predicted; costs depend on it.
    prefill_chunk: likewise.
    dtypes: to choose the fastest from, each at one and two tokens a pass; empty keeps the
      target's own dtype and its fast width.
    rules: rules whose rounds are run.
    drafters: more drafters by name, each made from K.
    cases: (rule name, drafter name, K) of the rounds that are run; None runs every drafter
      under every rule at the largest K. Costs at other K are interpolated.
    sampling: as in `specjax.generate`.
    rounds: timed in one go; fewer where the cache holds no more.
    repetitions: of each program.
    progress: called with a line about each step.

  Returns:
    The `Calibration`.

  Raises:
    ValueError: if K < 1, the cache is too short for one round after the prompts, or a case
      names what there is not.
  """
  say = progress or (lambda line: None)
  _check(prompts, max_num_speculative_tokens, cache_length, repetitions)
  room = cache_length - max(len(prompt) for prompt in prompts)
  rounds = min(rounds, room // (max_num_speculative_tokens + 1))
  request = generation.Request(
      sampling=sampling,
      max_new_tokens=room,
      cache_length=cache_length,
      prefill_chunk=prefill_chunk,
  )
  timer = _Timer(rounds, repetitions, say)

  candidates: tuple[Candidate, ...] = ()
  dtype, width = _dtype_of(target), fast_width(target)
  if dtypes:
    candidates = _candidates(target, prompts, request, dtypes, timer)
    fastest = min(candidates, key=lambda candidate: candidate.seconds)
    dtype, width = fastest.dtype, fastest.width
    target = cast(target, dtype)
    draft = None if draft is None else cast(draft, dtype)

  largest = max_num_speculative_tokens
  makers = dict(drafters or {})
  if draft is not None:
    makers[MODEL] = lambda k: drafters_lib.model(draft, num_speculative_tokens=k)
  if cases is None:
    cases = [(rule.name, name, largest) for rule in rules for name in makers]
  rounds_of = _check_cases(cases, rules, makers, largest)
  widths = _widths(largest) if widths is None else widths
  needed = {k + 1 for lengths in rounds_of.values() for k in lengths}
  widths = tuple(sorted({*widths, width, largest + 1, *needed}))
  programs = _programs(target, prompts, request, width, widths, rules, makers, rounds_of)
  seconds = timer.time(programs)
  return Calibration(
      dtype=dtype,
      width=width,
      candidates=candidates,
      widths=widths,
      pass_seconds=tuple(seconds['pass', m] for m in widths),
      rules=tuple(_rule_costs(rule, rounds_of[rule.name], seconds) for rule in rules),
      batch_size=len(prompts),
      cache_length=cache_length,
      rounds=rounds,
      repetitions=repetitions,
      noise=timer.noise,
      versions=records.versions(),
      hardware=records.hardware(),
  )


def cast(model: LanguageModel, dtype: Any) -> LanguageModel:
  """The model with weights and activations of another dtype."""
  dtype = jnp.dtype(dtype)
  params = jax.tree.map(lambda weights: weights.astype(dtype), model.params)
  return LanguageModel(model.module.clone(dtype=dtype, param_dtype=dtype), params)


def plain_rule(rule: Any) -> Any:
  """The rule under which plain decoding is fastest, with the law of `rule`.

  Without drafts a rule only samples, and one uniform is cheaper than Gumbel noise.
  """
  return verify.greedy() if rule.mode == 'greedy' else verify.rejection()


def _check(prompts, largest: int, cache_length: int, repetitions: int) -> None:
  if not prompts:
    raise ValueError('Calibration needs at least one prompt.')
  if largest < 1 or repetitions < 1:
    raise ValueError(
        'max_num_speculative_tokens and repetitions must be at least 1, got '
        f'{largest} and {repetitions}.'
    )
  longest = max(len(prompt) for prompt in prompts)
  if longest + largest + 1 > cache_length:
    raise ValueError(
        f'The longest prompt has {longest} tokens: a round of {largest + 1} needs a '
        f'cache_length of at least {longest + largest + 1}, got {cache_length}.'
    )


def _check_cases(cases, rules, makers, largest: int) -> dict[str, dict[int, set[str]]]:
  """The drafters to run, by rule and K; without drafters, the largest K."""
  found = {rule.name: {} for rule in rules}
  for rule, drafter, k in cases:
    if rule not in found or drafter not in makers or not 1 <= k <= largest:
      raise ValueError(
          f'Cannot calibrate {(rule, drafter, k)}: the rules are {sorted(found)}, the drafters '
          f'{sorted(makers)}, K is 1 … {largest}.'
      )
    found[rule].setdefault(k, set()).add(drafter)
  return {rule: lengths or {largest: set()} for rule, lengths in found.items()}


def _dtype_of(target: LanguageModel) -> str:
  return str(jnp.dtype(getattr(target.module, 'dtype', jnp.float32)))


def _widths(largest: int) -> list[int]:
  """2, 3, 5, 8, 12, 18, … up to K + 1."""
  widths, step = [], 2
  while step <= largest + 1:
    widths.append(step)
    step = step * 3 // 2 + step % 2
  return widths


def _candidates(target, prompts, request, dtypes, timer) -> tuple[Candidate, ...]:
  """Times plain greedy decoding at every dtype, one and two tokens a pass."""
  programs = {}
  for dtype in dtypes:
    model = cast(target, dtype)
    setup, state, _, _ = generation.prepare(model, prompts, request)
    for width in (1, 2):
      made = _with_drafter(setup.replace(width=width), state, setup.drafter, request)
      programs[_dtype_of(model), width] = _loop(*made)
  seconds = timer.time(programs)
  return tuple(Candidate(*key, value) for key, value in seconds.items())


def _programs(target, prompts, request, width, widths, rules, makers, rounds_of):
  """Everything to time, by key."""
  setup, state, _, _ = generation.prepare(target, prompts, request)
  programs = {('pass', m): _bare(setup, state, m, request) for m in widths}
  vocab_size = target.vocab_size
  for rule in rules:
    plain = setup.replace(rule=plain_rule(rule), width=width)
    plain, started = _with_drafter(plain, state, plain.drafter, request)
    programs['plain', plain.rule.name] = _loop(plain, started)
    # What the target says itself, for the synthetic drafter to propose: all of it, or (as a
    # check, for the two must cost the same) none.
    room = jnp.int32(request.max_new_tokens)
    reference = engine.run(plain, jax.tree.map(jnp.copy, started), room).tokens
    ruled = plain.replace(rule=rule)
    for k, names in rounds_of[rule.name].items():
      for name, acceptance in (('all', 1.0), ('none', 0.0)):
        drafter = drafters_lib.synthetic(
            reference, acceptance=acceptance, vocab_size=vocab_size, num_speculative_tokens=k
        )
        programs[rule.name, name, k] = _loop(*_with_drafter(ruled, state, drafter, request))
      for name in sorted(names):
        made = _with_drafter(ruled, state, makers[name](k), request)
        programs[rule.name, name, k] = _loop(*made)
  return programs


def _rule_costs(rule, lengths: dict[int, set[str]], seconds) -> RuleCosts:
  name = rule.name
  overhead, drafting = [], {}
  for k in sorted(lengths):
    free = (seconds[name, 'all', k] + seconds[name, 'none', k]) / 2
    overhead.append((k, free - seconds['pass', k + 1]))
    for drafter in lengths[k]:
      drafting.setdefault(drafter, []).append((k, seconds[name, drafter, k] - free))
  return RuleCosts(
      rule=name,
      plain=seconds['plain', plain_rule(rule).name],
      overhead=tuple(overhead),
      drafting={drafter: tuple(drafting[drafter]) for drafter in sorted(drafting)},
  )


def _with_drafter(setup, state, drafter, request):
  """Setup and state of plain decoding, with a drafter and with caches for its width.

  The caches are empty: what they hold does not change what a round costs.
  """
  batch, size = state.tokens.shape
  width = max(drafter.num_nodes + 1, setup.width)
  depth, layers = drafter.depth, drafter.feature_layers
  zeros = lambda *shape: jnp.zeros((batch, *shape), jnp.int32)
  features = 0
  if layers:
    read = lambda: setup.target(state.tokens[:, :1], feature_layers=layers).features
    features = jax.eval_shape(read).shape[-1]
  sizes = cache_sizes(batch, size, width=width, prefill_chunk=request.prefill_chunk)
  cache = setup.target.init_cache(**sizes)
  state = state.replace(
      target_cache=kv_cache.roll_back(cache, state.lengths - 1),
      drafter=drafter.init(**sizes),
      features=jnp.zeros((batch, depth + 1, features), state.features.dtype),
      features_valid=jnp.zeros((batch, depth + 1), bool),
      stats=engine.Stats(zeros(), zeros(), zeros(), zeros(depth), zeros(depth)),
  )
  return setup.replace(drafter=drafter, width=width), state


def cache_sizes(batch_size: int, length: int, *, width: int, prefill_chunk: int) -> dict[str, int]:
  """Arguments of `init_cache` with which the engine makes its caches."""
  append = max(prefill_chunk, width)
  slots = max(length + width, -(-length // prefill_chunk) * prefill_chunk)
  return dict(batch_size=batch_size, cache_length=max(slots - append, 1), max_append=append)


def _loop(setup: engine.Setup, state: engine.DecodeState) -> Callable[[int], float]:
  """Times rounds of the engine's loop; the state is left as it was."""

  def run(rounds: int) -> float:
    fresh = jax.block_until_ready(jax.tree.map(jnp.copy, state))
    started = time.perf_counter()
    done = jax.block_until_ready(engine.run(setup, fresh, jnp.int32(rounds)))
    seconds = time.perf_counter() - started
    if int(done.round) != rounds:
      raise RuntimeError(f'{int(done.round)} rounds instead of {rounds}: logits are NaN?')
    return seconds

  return run


def _bare(setup: engine.Setup, state: engine.DecodeState, width: int, request):
  """Times passes of the target alone."""
  tokens = state.tokens[:, :width]
  _, state = _with_drafter(setup.replace(width=width), state, setup.drafter, request)

  def run(rounds: int) -> float:
    cache = jax.block_until_ready(jax.tree.map(jnp.copy, state.target_cache))
    started = time.perf_counter()
    jax.block_until_ready(_passes(setup.target, cache, tokens, jnp.int32(rounds)))
    return time.perf_counter() - started

  return run


@functools.partial(jax.jit, donate_argnames='cache')
def _passes(target, cache: kv_cache.KVCache, tokens, rounds):
  """That many passes over `tokens` [B, m], each one position further."""

  def body(carry):
    step, cache, _ = carry
    out = target(tokens, cache=cache)
    # Logits are carried, so that no part of them is optimised away.
    return step + 1, kv_cache.roll_back(out.cache, cache.lengths + 1), out.logits

  logits = jnp.zeros((*tokens.shape, target.vocab_size), jnp.float32)
  return jax.lax.while_loop(lambda carry: carry[0] < rounds, body, (jnp.int32(0), cache, logits))


class _Timer:
  """Times programs in turns; remembers how much the times vary.

  Attributes:
    noise: largest (slowest - fastest) / median of any program so far.
  """

  def __init__(self, rounds: int, repetitions: int, say: Callable[[str], None]):
    self.noise = 0.0
    self._rounds, self._repetitions, self._say = rounds, repetitions, say

  def time(self, programs: Mapping[Any, Callable[[int], float]]) -> dict[Any, float]:
    """Median seconds a round of each program."""
    for number, (key, program) in enumerate(programs.items(), start=1):
      label = ' '.join(map(str, key))
      self._say(f'compiling {number}/{len(programs)}: {label}')
      for _ in range(2):  # compiled by the first run, warmed by the second
        program(self._rounds)
    samples = {key: [] for key in programs}
    order = np.random.default_rng(0)
    for repetition in range(self._repetitions):
      self._say(f'timing {repetition + 1}/{self._repetitions}')
      for index in order.permutation(len(programs)):
        key = list(programs)[index]
        samples[key].append(programs[key](self._rounds) / self._rounds)
    for times in samples.values():
      spread = (max(times) - min(times)) / np.median(times)
      self.noise = max(self.noise, float(spread))
    return {key: float(np.median(times)) for key, times in samples.items()}
