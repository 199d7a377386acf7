"""The programs that a calibration times: the real, compiled loops, and bare target passes."""

from collections.abc import Callable, Mapping
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax import drafters as drafters_lib
from specjax import engine
from specjax import generation
from specjax import tree as tree_lib
from specjax import types
from specjax import verify
from specjax.analysis import timing
from specjax.cache import kv_cache
from specjax.drafters import vocabulary
from specjax.stats import Stats


def plain_rule(rule: Any) -> Any:
  """The rule under which plain decoding is fastest, with the law of `rule`.

  Without drafts a rule only samples, and one uniform is cheaper than Gumbel noise.
  """
  return verify.greedy() if rule.mode == 'greedy' else verify.rejection()


def parents_of_equal_cost(drafter: Any) -> tuple[int, ...]:
  """Parents of a static tree that costs what the drafter's tree does.

  They are the drafter's own where its tree is static. Of a tree whose shape changes from round to
  round, the nodes are spread evenly over the levels.
  """
  if isinstance(drafter.shape, tree_lib.StaticTree):
    return drafter.shape.parents
  return tree_lib.evenly(drafter.num_nodes, drafter.depth).parents


def rounds_and_passes(target, prompts, request, width, widths, rules, makers, rounds_of, trees):
  """All programs to time, by key."""
  setup, state, _, _ = generation.prepare(target, prompts, request)
  every = sorted({*widths, *(drafter.num_nodes + 1 for drafter in trees.values())})
  programs = {('pass', m): bare(setup, state, m, request) for m in every}
  vocab_size = target.vocab_size
  for rule in rules:
    plain = setup.replace(rule=plain_rule(rule), width=width)
    plain, started = with_drafter(plain, state, plain.drafter, request)
    programs['plain', plain.rule.name] = loop(plain, started)
    # The target's own tokens. The synthetic drafter proposes all of them or, as a check, none:
    # the two must cost the same.
    room = np.int32(request.max_new_tokens)
    reference = engine.run(plain, jax.tree.map(jnp.copy, started), room).tokens
    ruled = plain.replace(rule=rule)
    synthetic = functools.partial(
        _synthetic_rounds, ruled, state, reference, vocab_size, request
    )
    for k, names in rounds_of[rule.name].items():
      programs |= synthetic(k, num_speculative_tokens=k)
      for name in sorted(names):
        made = with_drafter(ruled, state, makers[name](k), request)
        programs[rule.name, name, k] = loop(*made)
    for (of_rule, name), drafter in trees.items():
      if of_rule == rule.name:
        parents = parents_of_equal_cost(drafter)
        programs |= synthetic(parents, parents=parents)
        programs[rule.name, name, 'tree'] = loop(*with_drafter(ruled, state, drafter, request))
  return programs


def rule_of_chosen(rule: Any) -> Any:
  """The rule to time with drafts that cost nothing, which are chosen: the rule itself.

  For one that takes drawn tokens alone it is the recursive rule, which asks for as many numbers.
  """
  kinds = getattr(rule, 'kinds', None)
  return rule if kinds is None or types.ONE_HOT in kinds else verify.recursive()


def _synthetic_rounds(setup, state, reference, vocab_size: int, request, key, **shape):
  """Rounds whose drafts cost nothing, with all of them accepted and with none."""
  programs, of_rule = {}, setup.rule.name
  setup = setup.replace(rule=rule_of_chosen(setup.rule))
  for name, acceptance in (('all', 1.0), ('none', 0.0)):
    drafter = drafters_lib.synthetic(
        reference, acceptance=acceptance, vocab_size=vocab_size, **shape
    )
    made = with_drafter(setup, state, drafter, request)
    programs[of_rule, name, key] = loop(*made)
  return programs


def with_drafter(setup, state, drafter, request):
  """Setup and state of plain decoding, changed to a drafter and to caches for its width.

  The caches are empty, for their contents do not change the cost of a round.
  """
  batch, size = state.tokens.shape
  drafter = vocabulary.fit(drafter, setup.target.vocab_size)
  width = max(drafter.num_nodes + 1, setup.width)
  depth, layers = drafter.depth, drafter.feature_layers
  features = 0
  if layers:
    read = lambda: setup.target(state.tokens[:, :1], feature_layers=layers).features
    features = jax.eval_shape(read).shape[-1]
  sizes = generation.cache_sizes(
      batch, size, width=width, prefill_chunk=request.prefill_chunk
  )
  cache = setup.target.init_cache(**sizes)
  state = state.replace(
      target_cache=kv_cache.roll_back(cache, state.lengths - 1),
      drafter=drafter.init(**sizes),
      features=jnp.zeros((batch, depth + 1, features), state.features.dtype),
      features_valid=jnp.zeros((batch, depth + 1), bool),
      stats=Stats.zeros(batch, depth),
  )
  # The rule that `generate` would run: on accelerators and for large vocabularies, the op.
  rule = generation.rule_that_runs(
      setup.rule, target=setup.target, drafter=drafter, batch_size=batch
  )
  return setup.replace(drafter=drafter, width=width, rule=rule), state


def loop(
    setup: engine.Setup, state: engine.DecodeState, run_rounds: Callable[..., Any] = engine.run
) -> Callable[[int], float]:
  """A program that runs rounds of the engine's loop and returns the seconds.

  The state is copied first, for the loop consumes it.

  `run_rounds` may be `engine.run` compiled for this setup in another way.
  """

  def run(rounds: int) -> float:
    fresh = jax.block_until_ready(jax.tree.map(jnp.copy, state))
    started = time.perf_counter()
    done = jax.block_until_ready(run_rounds(setup, fresh, np.int32(rounds)))
    seconds = time.perf_counter() - started
    if int(done.round) != rounds:
      raise RuntimeError(f'{int(done.round)} rounds instead of {rounds}: logits are NaN?')
    return seconds

  return run


def bare(
    setup: engine.Setup,
    state: engine.DecodeState,
    width: int,
    request,
    compiler_options: Mapping[str, Any] | None = None,
):
  """A program that runs passes of the target alone, compiled with the options if there are any."""
  tokens = state.tokens[:, :width]
  _, state = with_drafter(setup.replace(width=width), state, setup.drafter, request)
  passes = _passes
  if compiler_options:
    lowered = _passes.lower(setup.target, state.target_cache, tokens, jnp.int32(1))
    passes = lowered.compile(compiler_options=dict(compiler_options))

  def run(rounds: int) -> float:
    cache = jax.block_until_ready(jax.tree.map(jnp.copy, state.target_cache))
    started = time.perf_counter()
    jax.block_until_ready(passes(setup.target, cache, tokens, jnp.int32(rounds)))
    return time.perf_counter() - started

  return run


@functools.partial(jax.jit, donate_argnames='cache')
def _passes(target, cache: kv_cache.KVCache, tokens, rounds):
  """Runs `rounds` passes over `tokens` [B, m], each one position further than the last."""

  def body(carry):
    step, cache, _ = carry
    out = target(tokens, cache=cache)
    # Logits are carried, so that no part of them is optimized away.
    return step + 1, kv_cache.roll_back(out.cache, cache.lengths + 1), out.logits

  logits = jnp.zeros((*tokens.shape, target.vocab_size), jnp.float32)
  return jax.lax.while_loop(lambda carry: carry[0] < rounds, body, (jnp.int32(0), cache, logits))


def time_rounds(
    programs: Mapping[Any, Callable[[int], float]],
    *,
    rounds: int,
    repetitions: int,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[Any, float], float]:
  """Times programs in turns (`specjax.analysis.timing`).

  Args:
    programs: by key (a tuple); each runs a number of rounds and returns the seconds.
    rounds: timed in one go.
    repetitions: of each program.
    progress: called with a line before every step.

  Returns:
    Median seconds per round by key, and the largest (slowest - fastest) / median of any program.
  """
  times = timing.in_turns(
      lambda key, case: (programs[key](rounds) / rounds, None),
      list(programs),
      repetitions=repetitions,
      progress=progress,
      label=lambda key: ' '.join(map(str, key)),
  )
  return {key: median for key, (median,) in times.medians().items()}, times.noise
