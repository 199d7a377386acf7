"""The exact law of what the engine emits, summed over every outcome of its random choices.

What is enumerated is `specjax.engine.speculative_round` itself, with the shipped drafter
and rule: only the source of random choices is replaced (`specjax.testing.replay`), and the
rows of the batch are the branches. Choices are independent there; that the engine's own
numbers are, must be tested by sampling (`specjax.testing.chi_square`).
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax import engine
from specjax import generation
from specjax import types
from specjax.testing import replay
from specjax.testing.plain import Law
from specjax.testing.plain import map_rows
from specjax.testing.plain import take
from specjax.verify import rule as rule_lib

# Rows of one call of a round: as many branches as these are expanded at once.
_ROWS_A_CALL = 8192


@dataclasses.dataclass(frozen=True)
class RoundLaw:
  """All branches of one round of each of B rows; X branches per row.

  Attributes:
    weights: [B, X] float64 numpy, the probability of each branch; sums to one over X.
    state: the engine's state after it, leaves [B * X, ...].
    verification: what the rule decided, leaves [B * X, ...].
  """

  weights: np.ndarray
  state: engine.DecodeState
  verification: types.Verification


class _Remember:
  """A rule that keeps the decision and the source of the trace it was called in."""

  def __init__(self, rule: Any):
    self.rule = rule_lib.as_rule(rule)
    self.verification = self.source = None

  def __getattr__(self, name: str) -> Any:
    return getattr(self.rule, name)

  def decide(self, rows, **kwargs):
    self.verification, self.source = self.rule.decide(rows, **kwargs)
    return self.verification, self.source


def _find_slots(setup: engine.Setup, state: engine.DecodeState) -> tuple[replay.Slots, ...]:
  """The choices that one round makes, found by tracing it."""
  leaves, structure = jax.tree.flatten((setup, state))
  shapes = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves]
  return _traced_slots(structure, tuple(shapes))


@functools.lru_cache(maxsize=64)
def _traced_slots(structure, shapes) -> tuple[replay.Slots, ...]:
  probe = None

  def trace(*leaves):
    nonlocal probe
    setup, state = jax.tree.unflatten(structure, leaves)
    probe = replay.ProbeSource(choices=[], num_nodes=setup.drafter.num_nodes)
    setup = setup.replace(source_fn=lambda keys, lengths: probe)
    return engine.speculative_round(setup, state)

  jax.eval_shape(trace, *shapes)
  return probe.slots()


# Compiled once and run a few times: what counts is the time to compile.
@functools.partial(
    jax.jit,
    static_argnames='slots',
    compiler_options={'xla_backend_optimization_level': 0},
)
def _expand(setup: engine.Setup, state: engine.DecodeState, slots: tuple[replay.Slots, ...]):
  """One round of every branch of every row: state, decision, and the choices' source."""
  choices = replay.all_choices(slots)
  branches = choices.shape[0]
  repeat = lambda tree: jax.tree.map(
      lambda x: jnp.repeat(x, branches, axis=0) if x.ndim else x, tree
  )
  choices = jnp.tile(choices, (state.lengths.shape[0], 1))
  rule = _Remember(setup.rule)
  setup = setup.replace(
      sampling=map_rows(setup.sampling, repeat),
      source_fn=lambda keys, lengths: replay.ReplaySource.create(choices, slots),
      rule=rule,
  )
  state = engine.speculative_round(setup, repeat(state))
  return state, rule.verification, rule.source


def _with_rows(setup: engine.Setup, rows: np.ndarray) -> engine.Setup:
  """`setup` with the settings of these rows."""
  return setup.replace(sampling=map_rows(setup.sampling, lambda tree: take(tree, rows)))


def enumerate_round(
    setup: engine.Setup,
    state: engine.DecodeState,
    slots: tuple[replay.Slots, ...] | None = None,
) -> RoundLaw:
  """Replays one round with every outcome of its draws and flips.

  Args:
    setup: the engine's, with one row of settings a row of the state. Leaves of the drafter
      itself must not have one entry per row.
    state: B rows.
    slots: the choices that a round makes, if they are known already.

  Returns:
    A `RoundLaw`.

  Raises:
    ValueError: if two draws of a round have the same purpose and node: with the engine's
      numbers they would not be independent.
  """
  slots = _find_slots(setup, state) if slots is None else slots
  state, verification, source = _expand(setup, state, slots)
  if source.uses.size and int(source.uses.max()) > 1:
    column = int(np.asarray(source.uses).max(axis=0).argmax())
    name = next(s for s in slots if s.first <= column < s.first + s.count)
    raise ValueError(
        f'A round asks twice for the choice with purpose {name.purpose} and node '
        f'{column - name.first + 1}; give every draw of a round a node of its own.'
    )
  probs = np.asarray(source.probs, np.float64)
  # What cannot happen has no weight, even where a later choice has no law (NaN).
  weights = np.where((probs == 0).any(axis=1), 0.0, np.prod(probs, axis=1))
  rows = setup.sampling.temperature.shape[0]
  return RoundLaw(weights.reshape(rows, -1), state, verification)


def output_law(
    target: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    rule: Any,
    drafter: Any = None,
    sampling: types.Sampling | None = None,
    stop_tokens: Sequence[int] = (),
) -> list[Law]:
  """The joint law of everything that the engine emits, over as many rounds as it takes.

  Rounds are expanded branch by branch. Branches of probability 0 are dropped; those that
  agree in their tokens and in how many of them the last round accepted are merged, which is
  exact if the drafter's state is a function of the tokens (as that of a draft model is).

  Args:
    target: the target, of a small vocabulary; see `specjax.testing.table_model`.
    prompts: one per row; equal prompts with different settings are different rows.
    max_new_tokens: n, the length of outputs that do not stop before.
    rule: a rule of `specjax.verify`, or one of your own; not the coupled one.
    drafter: None decodes plainly.
    sampling: settings, one per row.
    stop_tokens: ids that end a row.

  Returns:
    One law per row.

  Raises:
    ValueError: as `specjax.generate` and `enumerate_round`.
    FloatingPointError: if probabilities are NaN or do not sum to one.
  """
  setup, state, prompt_lengths = _prepare(
      target,
      prompts,
      drafter=drafter,
      rule=rule,
      sampling=sampling,
      max_new_tokens=max_new_tokens,
      stop_tokens=stop_tokens,
  )
  slots = _find_slots(setup, state)
  laws = [{} for _ in prompts]
  frontier, start = {}, np.arange(len(prompts))
  _merge(frontier, state, rows=start, accepted=0 * start, mass=np.ones(len(prompts)))
  # Shorter rows first: when a row's turn comes, all branches that lead to it are in.
  for emitted in range(max_new_tokens):
    ready = [key for key in frontier if len(key[1]) == prompt_lengths[key[0]] + emitted]
    for rows, weights, part in _chunks([frontier.pop(key) for key in ready], slots):
      outcome = enumerate_round(_with_rows(setup, rows), part, slots)
      branches = outcome.weights.shape[1]
      mass = (outcome.weights * weights[:, None]).reshape(-1)
      if not np.isfinite(mass).all():
        raise FloatingPointError('A branch has a probability that is not a number.')
      accepted = np.asarray(outcome.verification.num_accepted)
      rows = np.repeat(rows, branches)
      _merge(frontier, outcome.state, rows=rows, accepted=accepted, mass=mass)
    for key in [key for key, (*_, part) in frontier.items() if part.done[0]]:
      row, tokens, _ = key
      law, output = laws[row], tokens[prompt_lengths[row] :]
      law[output] = law.get(output, 0.0) + frontier.pop(key)[1]
  for law in laws:
    if not abs(sum(law.values()) - 1.0) < 1e-4:
      raise FloatingPointError(f'Probabilities sum to {sum(law.values())}, not to 1.')
  return laws


def _prepare(target: Any, prompts: Sequence[Sequence[int]], **options):
  """Setup, state and prompt lengths; sizes are rounded up, so that programs are shared."""
  longest = max(map(len, prompts), default=0) + options['max_new_tokens']
  size = -(-longest // 8) * 8
  request = generation.Request(cache_length=size, prefill_chunk=size, **options)
  return generation.prepare(target, prompts, request)[:3]


def _merge(
    frontier: dict,
    state: engine.DecodeState,
    *,
    rows: np.ndarray,
    accepted: np.ndarray,
    mass: np.ndarray,
):
  """Adds branches to `frontier`: (row, tokens, accepted) -> (row, mass, state of one row).

  What a round accepted decides how its caches were rolled back, hence the third key.
  """
  index = np.flatnonzero(mass > 0)
  tokens, lengths = np.asarray(state.tokens)[index], np.asarray(state.lengths)[index]
  rows, accepted, mass = rows[index], accepted[index], mass[index]
  visible = np.arange(tokens.shape[1]) < lengths[:, None]
  keys = np.stack([rows, accepted, lengths], axis=1)
  keys = np.concatenate([keys, np.where(visible, tokens, -1)], axis=1)
  _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
  sums = np.bincount(inverse.reshape(-1), weights=mass)
  kept = take(state, index[first])
  for at, source in enumerate(first):
    output = tuple(tokens[source, : lengths[source]].tolist())
    key = (int(rows[source]), output, int(accepted[source]))
    row, before, part = frontier.get(key, (key[0], 0.0, None))
    part = take(kept, [at]) if part is None else part
    frontier[key] = (row, before + sums[at], part)


def _chunks(branches: list, slots: tuple[replay.Slots, ...]):
  """Batches of one size of (rows, weights, state); the last one is filled up with weight 0."""
  size = _ROWS_A_CALL // int(np.prod([s.domain**s.count for s in slots]))
  size = min(max(size, 1), 128)
  for start in range(0, len(branches), size):
    part = branches[start : start + size]
    part = part + [(part[0][0], 0.0, part[0][2])] * (size - len(part))
    rows, weights, states = zip(*part)
    join = lambda *x: np.concatenate(x) if np.ndim(x[0]) else x[0]
    yield np.asarray(rows), np.asarray(weights), jax.tree.map(join, *states)


def expected_accepted(
    target: Any,
    prompts: Sequence[Sequence[int]],
    *,
    rule: Any,
    drafter: Any,
    sampling: types.Sampling | None = None,
) -> np.ndarray:
  """The exact mean number of draft tokens accepted in the first round, [B] float64.

  Args:
    target: as for `output_law`, and so are the others.
    prompts: one per row.
    rule: the rule.
    drafter: the drafter.
    sampling: settings, one per row.
  """
  setup, state, _ = _prepare(
      target,
      prompts,
      drafter=drafter,
      rule=rule,
      sampling=sampling,
      max_new_tokens=drafter.depth + 1,
  )
  slots, means = _find_slots(setup, state), []
  branches = [(row, 1.0, take(state, [row])) for row in range(len(prompts))]
  for rows, _, part in _chunks(branches, slots):
    outcome = enumerate_round(_with_rows(setup, rows), part, slots)
    accepted = np.asarray(outcome.verification.num_accepted, np.float64)
    means.append((outcome.weights * accepted.reshape(outcome.weights.shape)).sum(axis=1))
  return np.concatenate(means)[: len(prompts)]
