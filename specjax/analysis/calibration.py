"""Measures what a round costs on this machine, and predicts speed-ups from it.

What is timed, all in one process and in the real, compiled loops, at one cache length and
batch, without compilation and prefill:

- a *plain step*: plain decoding, at each dtype and width that may be the fastest;
- a *target pass* over m tokens: nothing but the target and its cache in a `while_loop`;
- a *round with the synthetic drafter*, which drafts for free: less the pass of its width it
  is the overhead, that is sampling, verification and commit;
- a *round with a real drafter*: less the former it is what drafting costs.

The work of a round does not depend on how much of it is accepted, so acceptance does not
enter here. Programs are timed in turns (`specjax.analysis.timing`). Everything is divided by the
plain step, the loop around it included, so that `specjax.analysis.theory` predicts what a
stopwatch shows.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from specjax import drafters as drafters_lib
from specjax import generation
from specjax import verify
from specjax.analysis import records
from specjax.analysis import timed_programs
from specjax.analysis.costs import MODEL, Calibration, Candidate, RuleCosts, TreeCosts
from specjax.drafters import vocabulary
from specjax.models import fast_width
from specjax.models import LanguageModel


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
    trees: Mapping[tuple[str, str], Any] | None = None,
    sampling: Any = None,
    rounds: int = 32,
    repetitions: int = 7,
    progress: Callable[[str], None] | None = None,
) -> Calibration:
  """Measures the cost of rounds on this machine; about a compilation for each program.

  Args:
    target: the target.
    draft: a draft model, timed under the name 'model'; None leaves it out.
    prompts: one per row; only the shape of the work depends on them.
    max_num_speculative_tokens: the largest K that will be asked about.
    widths: tokens of the target passes that are timed besides those that the rounds need;
      None takes 2, 3, 5, 8, 12, …
    cache_length: S, as in the runs that are predicted; costs depend on it.
    prefill_chunk: likewise.
    dtypes: to choose from: the one whose widest pass is fastest, and in it the faster of one
      and two tokens a plain pass; empty keeps the target's own dtype and its fast width.
    rules: rules whose rounds are run.
    drafters: more drafters by name, each made from K.
    cases: (rule name, drafter name, K) of the rounds that are run; None runs every drafter
      under every rule at the largest K. Costs at other K are interpolated.
    trees: drafters of one shape (trees, and whatever has no K) by rule and a name, for
      `Calibration.predict_tree`.
    sampling: as in `specjax.generate`.
    rounds: timed in one go; fewer where the cache holds no more.
    repetitions: of each program.
    progress: called with a line about each step.

  Returns:
    The `Calibration`.

  Raises:
    ValueError: if K < 1, the cache is too short for one round after the prompts, or a case or
      a tree names what there is not.
  """
  _check(prompts, max_num_speculative_tokens, cache_length, repetitions)
  trees = dict(trees or {})
  room = cache_length - max(len(prompt) for prompt in prompts)
  deepest = max([max_num_speculative_tokens, *(each.depth for each in trees.values())])
  rounds = min(rounds, room // (deepest + 1))
  request = generation.Request(
      sampling=sampling,
      max_new_tokens=room,
      cache_length=cache_length,
      prefill_chunk=prefill_chunk,
  )
  time_rounds = functools.partial(
      timed_programs.time_rounds, rounds=rounds, repetitions=repetitions, progress=progress
  )

  noise_of_candidates, candidates = 0.0, ()
  dtype, width = _dtype_of(target), fast_width(target, len(prompts))
  if dtypes:
    widest = max_num_speculative_tokens + 1
    candidates, noise_of_candidates = _candidates(
        target, prompts, request, dtypes, widest, time_rounds
    )
    # Rounds are made of wide passes. At one token another dtype may be a little faster.
    fastest = min(candidates, key=lambda each: (each.pass_seconds, each.seconds))
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
  if unknown := {rule for rule, _ in trees} - {rule.name for rule in rules}:
    raise ValueError(
        f'Trees are to be calibrated under {sorted(unknown)}; the rules are {sorted(rounds_of)}.'
    )
  trees = {key: vocabulary.fit(each, target.vocab_size) for key, each in trees.items()}
  widths = _widths(largest) if widths is None else widths
  needed = {k + 1 for lengths in rounds_of.values() for k in lengths}
  widths = tuple(sorted({*widths, width, largest + 1, *needed}))
  programs = timed_programs.rounds_and_passes(
      target, prompts, request, width, widths, rules, makers, rounds_of, trees
  )
  seconds, noise = time_rounds(programs)
  return Calibration(
      dtype=dtype,
      width=width,
      candidates=candidates,
      widths=widths,
      pass_seconds=tuple(seconds['pass', m] for m in widths),
      rules=tuple(_rule_costs(rule, rounds_of[rule.name], trees, seconds) for rule in rules),
      batch_size=len(prompts),
      cache_length=cache_length,
      rounds=rounds,
      repetitions=repetitions,
      noise=max(noise, noise_of_candidates),
      versions=records.versions(),
      hardware=records.hardware(),
  )


def cast(model: LanguageModel, dtype: Any) -> LanguageModel:
  """The model with weights and activations of another dtype."""
  dtype = jnp.dtype(dtype)
  params = jax.tree.map(lambda weights: weights.astype(dtype), model.params)
  return LanguageModel(model.module.clone(dtype=dtype, param_dtype=dtype), params)


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
  lengths_of = {rule.name: {} for rule in rules}
  for rule, drafter, k in cases:
    if rule not in lengths_of or drafter not in makers or not 1 <= k <= largest:
      raise ValueError(
          f'Cannot calibrate {(rule, drafter, k)}: the rules are {sorted(lengths_of)}, the '
          f'drafters {sorted(makers)}, K is 1 … {largest}.'
      )
    lengths_of[rule].setdefault(k, set()).add(drafter)
  return {rule: lengths or {largest: set()} for rule, lengths in lengths_of.items()}


def _dtype_of(target: LanguageModel) -> str:
  return str(jnp.dtype(getattr(target.module, 'dtype', jnp.float32)))


def _widths(largest: int) -> list[int]:
  """2, 3, 5, 8, 12, 18, … up to K + 1."""
  widths, step = [], 2
  while step <= largest + 1:
    widths.append(step)
    step = step * 3 // 2 + step % 2
  return widths


def _candidates(
    target, prompts, request, dtypes, widest: int, time_rounds
) -> tuple[tuple[Candidate, ...], float]:
  """Plain greedy decoding at every dtype, one and two tokens per pass, and a wide pass; noise."""
  programs = {}
  for dtype in dtypes:
    model = cast(target, dtype)
    setup, state, _, _ = generation.prepare(model, prompts, request)
    name = _dtype_of(model)
    programs['pass', name, widest] = timed_programs.bare(setup, state, widest, request)
    for width in (1, 2):
      made = timed_programs.with_drafter(setup.replace(width=width), state, setup.drafter, request)
      programs['plain', name, width] = timed_programs.loop(*made)
  seconds, noise = time_rounds(programs)
  candidates = tuple(
      Candidate(dtype, width, value, seconds['pass', dtype, widest])
      for (kind, dtype, width), value in seconds.items()
      if kind == 'plain'
  )
  return candidates, noise


def _rule_costs(rule, lengths: dict[int, set[str]], trees, seconds) -> RuleCosts:
  name = rule.name
  overhead, drafting = [], {}
  for k in sorted(lengths):
    free = (seconds[name, 'all', k] + seconds[name, 'none', k]) / 2
    overhead.append((k, free - seconds['pass', k + 1]))
    for drafter in lengths[k]:
      drafting.setdefault(drafter, []).append((k, seconds[name, drafter, k] - free))
  return RuleCosts(
      rule=name,
      plain=seconds['plain', timed_programs.plain_rule(rule).name],
      overhead=tuple(overhead),
      drafting={drafter: tuple(drafting[drafter]) for drafter in sorted(drafting)},
      trees={
          tree: _tree_costs(name, tree, drafter, seconds)
          for (of_rule, tree), drafter in trees.items()
          if of_rule == name
      },
  )


def _tree_costs(rule: str, name: str, drafter, seconds) -> TreeCosts:
  parents = timed_programs.parents_of_equal_cost(drafter)
  free = (seconds[rule, 'all', parents] + seconds[rule, 'none', parents]) / 2
  passed = seconds['pass', drafter.num_nodes + 1]
  return TreeCosts(
      num_nodes=drafter.num_nodes,
      depth=drafter.depth,
      pass_seconds=passed,
      overhead=free - passed,
      drafting=seconds[rule, name, 'tree'] - free,
  )
