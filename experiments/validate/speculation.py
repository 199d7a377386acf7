"""Step 4: speculation on the 8B model beside its forecast, r(m), and the loop's overhead o."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.validate import context as context_lib
from experiments.validate import model as model_lib
from experiments.validate import plain as plain_lib
from experiments.validate import profile as profile_lib
from experiments.validate import switches as switches_lib
from specjax import drafters
from specjax import tree
from specjax.analysis import theory

DRAFT = 'Llama-3.2-1B'
ACCEPTANCE = 0.8
_SEEDS = 8


class _Costs:
  """Seconds of passes and of the plain step, each measured once; o of chains by K."""

  def __init__(self, bench: model_lib.Bench):
    self.bench, self._passes = bench, {}
    self.plain, _ = bench.seconds()
    self.overheads: dict[int, float] = {}

  def passed(self, width: int) -> float:
    if width not in self._passes:
      self._passes[width] = self.bench.pass_seconds(width)
    return self._passes[width]


def run(step: context_lib.Context) -> None:
  """K = 4 first, synthetic and drafted; then other K, trees, and wider passes."""
  values = switches_lib.decided(step.decisions, step.switches)
  config = model_lib.preset(plain_lib.TARGET, smoke=step.smoke)
  target = model_lib.random_model(config, attention=switches_lib.attention(values), says_zero=True)
  draft = model_lib.random_model(model_lib.preset(DRAFT, smoke=step.smoke), seed=1)
  sizes = dict(context=16, room=96) if step.smoke else dict(context=1024, room=1024)
  bench = model_lib.Bench(
      target, 1, **sizes, accept=values['accept'],
      options=switches_lib.compiler_options(values, jax.default_backend()),
      rounds=4 if step.smoke else 32, repetitions=2 if step.smoke else 5,
  )
  costs = _Costs(bench)
  step.results.add('plain step, B=1', measured=1e3 * costs.plain, unit='ms')
  lengths, trees = ((2,), ((4, 2),)) if step.smoke else ((4, 8, 16), ((16, 4), (64, 8)))
  widths = (1, 3) if step.smoke else (1, 2, 3, 5, 9, 17, 33, 64)
  work = [(f'K={lengths[0]}', _synthetic, tuple(range(lengths[0])))]
  work.append(_drafted_item(lengths[0], draft))
  work.append((f'a round at K={lengths[0]}', _profile, lengths[0]))
  work += [(f'K={k}', _synthetic, tuple(range(k))) for k in lengths[1:]]
  for nodes, depth in trees:
    shape = tree.evenly(nodes, depth).parents
    work.append((f'tree of {nodes} nodes', _synthetic, shape))
  work += [(f'r({m})', _width, m) for m in widths]
  work += [_drafted_item(k, draft) for k in lengths[1:]]
  done = 0
  for name, measure, *arguments in step.clock.allows(work):
    done += 1
    step.attempt(name, measure, step, costs, name, *arguments)
  if done < len(work):
    left = ', '.join(item[0] for item in work[done:])
    step.results.skip('the rest of the step', f'did not fit the time: {left}')


def _drafted_item(k: int, draft):
  return f'1B draft, K={k}', _drafted, k, draft


def _synthetic(step, costs: _Costs, name: str, parents: tuple[int, ...]) -> None:
  """A round that drafts for nothing: o; then speculation at the set acceptance."""
  bench = costs.bench
  make = lambda acceptance, seed=0: drafters.synthetic(
      jnp.zeros((1, bench.context + bench.room), jnp.int32), acceptance=acceptance,
      vocab_size=bench.target.vocab_size, parents=parents, seed=seed,
  )
  accepted, loop = bench.seconds(make(1.0))
  refused, _ = bench.seconds(make(0.0), loop)
  free, passed = (accepted + refused) / 2, costs.passed(len(parents) + 1)
  overhead = (free - passed) / costs.plain
  if parents == tuple(range(len(parents))):
    costs.overheads[len(parents)] = overhead
  step.results.add(
      f'{name}: o', measured=overhead, unit='plain steps', goal='overhead', share=overhead,
      accepted_ms=1e3 * accepted, refused_ms=1e3 * refused, pass_ms=1e3 * passed,
  )
  tokens, rounds, seconds = 0, 0, 0.0
  for seed in range(2 if step.smoke else _SEEDS):
    drafter = make(ACCEPTANCE, seed)
    counts = emitted(bench, drafter, loop)
    tokens, rounds, seconds = tokens + counts[0], rounds + counts[1], seconds + counts[2]
  measured = tokens / seconds * costs.plain
  terms = dict(
      num_drafted=drafter.depth, draft_cost=0.0, pass_cost=passed / costs.plain, overhead=overhead
  )
  predicted = theory.speedup(tokens / rounds, **terms)
  step.results.add(
      f'{name}: speed-up at acceptance {ACCEPTANCE}', measured=measured, predicted=predicted,
      unit='times plain', goal='speculation', share=measured / predicted,
      tokens_a_round=tokens / rounds,
      expected=theory.expected_tokens(ACCEPTANCE, drafter.depth),
      without_overhead=theory.speedup(tokens / rounds, **terms | dict(overhead=0.0)),
      round_ms=1e3 * seconds / rounds,
  )


def emitted(bench, drafter, loop) -> tuple[int, int, float]:
  """Tokens, rounds and seconds of a run that fills the room; its last round may be cut."""
  setup, state = bench.started(drafter)
  rounds = bench.room // (drafter.depth + 1) - 1
  state = jax.block_until_ready(jax.tree.map(jnp.copy, state))
  started = time.perf_counter()
  done = jax.block_until_ready(loop(setup, state, np.int32(rounds)))
  seconds = time.perf_counter() - started
  return int(done.lengths[0]) - bench.context, int(done.round), seconds


def _profile(step, costs: _Costs, name: str, k: int) -> None:
  """Where a round's time goes; sampling and acceptance are one scope."""
  drafter = drafters.synthetic(
      jnp.zeros((1, costs.bench.context + costs.bench.room), jnp.int32), acceptance=ACCEPTANCE,
      vocab_size=costs.bench.target.vocab_size, num_speculative_tokens=k,
  )
  seconds, _ = costs.bench.seconds(drafter)
  parts = profile_lib.keep(step, name, costs.bench, seconds, drafter)
  share = parts['sampling'] / seconds
  step.results.add(
      f'{name}: acceptance', measured=share, unit='of a round', goal='acceptance', share=share
  )


def _drafted(step, costs: _Costs, name: str, k: int, draft) -> None:
  """A round with a draft model against K of its own passes, the target's pass, and o."""
  bench = costs.bench
  alone = model_lib.Bench(
      draft, 1, bench.context, bench.room, accept=bench.accept, options=bench.options,
      rounds=bench.rounds, repetitions=bench.repetitions,
  ).pass_seconds(bench.width)
  seconds, _ = bench.seconds(drafters.model(draft, num_speculative_tokens=k))
  predicted = k * alone + costs.passed(k + 1) + costs.overheads.get(k, 0.0) * costs.plain
  expected = theory.expected_tokens(ACCEPTANCE, k)
  step.results.add(
      f'{name}: a round', measured=1e3 * seconds, predicted=1e3 * predicted, unit='ms',
      goal='speculation', share=predicted / seconds, draft_pass_ms=1e3 * alone,
      speed_up_if_accepted=expected * costs.plain / seconds,
  )


def _width(step, costs: _Costs, name: str, width: int) -> None:
  ratio = costs.passed(width) / costs.passed(costs.bench.width)
  step.results.add(name, measured=ratio, predicted=1.0, unit='passes of plain decoding')
