"""What speed-up to expect of an arm: which costs are measured for it, and what follows.

A chain is timed at its K, a drafter with a shape of its own as it is. A combination is not timed:
its parts are. It looks up in every round, and in every round the learned part reads what was
committed, its first step; the others it takes where nothing was found, and how often that is, is
counted with its acceptance.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from experiments.runs import records
from specjax.analysis import calibration as calibration_lib
from specjax.analysis import costs
from specjax.analysis import theory


@dataclasses.dataclass(frozen=True)
class Acceptance:
  """How drafts fared.

  Attributes:
    rates: conditional acceptance rates, one per depth.
    num_drafted: mean draft steps per round.
    free_share: of a combination, the share of rounds that its free part drafted.
  """

  rates: tuple[float, ...]
  num_drafted: float
  free_share: float = 0.0


def acceptance_of(
    recipe: records.Recipe,
    *,
    drafted_at: Any,
    decided_at: Any,
    num_rounds: int,
    num_free_rounds: int,
) -> Acceptance:
  """The acceptance in some runs, from their counts.

  Args:
    recipe: of the drafter.
    drafted_at: [rows, D], rounds that drafted at least d + 1 tokens (`Stats.drafted_at`).
    decided_at: [rows, D], rounds that decided for at least d + 1 of them.
    num_rounds: all rounds.
    num_free_rounds: rounds that the free part of a combination drafted.
  """
  drafted = np.sum(drafted_at, axis=0)
  steps = float(len(drafted))
  if recipe.kind == costs.MODEL:
    # A draft model reads once to draft its first token, and once more for every token that it
    # goes on from, kept or not; the last one of K is not read.
    steps = 1 + int(drafted[:-1].sum()) / num_rounds
  rates = theory.conditional_rates(np.sum(decided_at, axis=0), num_rounds)
  return Acceptance(tuple(rates), steps, num_free_rounds / num_rounds)


def is_predicted(recipe: records.Recipe) -> bool:
  """Whether the cost of a drafter's rounds can be known before it runs."""
  combines_tree = recipe.learned is not None and recipe.learned.num_speculative_tokens is None
  return not (recipe.needs_reference or combines_tree)


def has_shape(recipe: records.Recipe) -> bool:
  """Whether a drafter has a shape of its own and no K, as trees have."""
  return recipe.num_speculative_tokens is None


def cost_name(recipe: records.Recipe) -> str:
  """Under which name a drafter's costs are kept: its kind, the shape of a tree, and its head."""
  if recipe.learned is not None:
    # What is timed is its learned part, which reads more per round than it would alone.
    learned = ' '.join(filter(None, (recipe.learned.kind, recipe.learned.weights)))
    return f'{learned} after {recipe.free.kind}'
  return ' '.join(filter(None, (recipe.kind, recipe.shape, recipe.weights)))


def case_of(arm: records.Arm) -> tuple[str, str, int]:
  """Rule, cost name and K of an arm; K is 0 where it has none or leaves it open."""
  return arm.rule.name, cost_name(arm.recipe), arm.recipe.num_speculative_tokens or 0


def longest(recipe: records.Recipe, loaded: records.Loaded, most: int) -> int:
  """The largest K up to `most` that a chain can draft: no more than there are heads or slots."""
  bound = (recipe.learned or recipe).longest(loaded)
  return most if bound is None else min(most, bound)


def calibrate(
    arms: Sequence[records.Arm],
    loaded: records.Loaded,
    *,
    max_num_speculative_tokens: int = 1,
    **options: Any,
) -> calibration_lib.Calibration:
  """Measures what the rounds of some arms cost.

  Args:
    arms: all of them `is_predicted`. Of arms of one cost name that differ in more than K the last
      one is measured.
    loaded: the target and what comes with it.
    max_num_speculative_tokens: the least K to measure up to; an open K is measured there, or
      where the head ends.
    **options: for `specjax.analysis.calibrate`.

  Returns:
    The calibration.
  """
  rules = {arm.rule.name: arm.rule for arm in arms}
  chains = [(arm.rule.name, arm.recipe) for arm in arms if not has_shape(arm.recipe)]
  for rule, recipe in list(chains):
    if recipe.free is not None:
      # A free drafter that stands alone is measured as it is, whatever a combination says.
      chains.insert(0, (rule, recipe.free))
  lengths = [recipe.num_speculative_tokens for _, recipe in chains]
  largest = max([max_num_speculative_tokens, *lengths])
  makers, cases, model = {}, set(), None
  for rule, recipe in chains:
    if recipe.kind == costs.MODEL:
      model = recipe
    else:
      makers[cost_name(recipe)] = lambda k, recipe=recipe: _of_length(recipe, loaded, k)
    most = recipe.num_speculative_tokens or longest(recipe, loaded, largest)
    cases.add((rule, cost_name(recipe), most))
  return calibration_lib.calibrate(
      loaded.target,
      None if model is None else _of_length(model, loaded, 1).draft,
      max_num_speculative_tokens=largest,
      rules=list(rules.values()),
      drafters=makers,
      cases=sorted(cases),
      trees={
          case_of(arm)[:2]: arm.recipe.make(loaded) for arm in arms if has_shape(arm.recipe)
      },
      **options,
  )


def predict(
    calibration: calibration_lib.Calibration,
    arm: records.Arm,
    observed: Acceptance,
    *,
    num_speculative_tokens: int,
) -> theory.Prediction:
  """The predicted speed-up of an arm over plain decoding.

  Args:
    calibration: of `calibrate`.
    arm: the arm.
    observed: how its drafts fare.
    num_speculative_tokens: its K, which it may have left open.
  """
  rule, name, _ = case_of(arm)
  length = num_speculative_tokens
  if has_shape(arm.recipe):
    return calibration.predict_tree(rule, name, observed.rates)
  if arm.recipe.free is None:
    return calibration.predict(
        rule, length, observed.rates, drafter=name, num_drafted=observed.num_drafted
    )
  prediction = calibration.predict(rule, length, observed.rates, drafter=name)
  look_up = calibration.cost(rule, length, drafter=arm.recipe.free.kind).draft_cost
  steps = 1 - observed.free_share + observed.free_share / length
  return dataclasses.replace(prediction, draft_cost=look_up + steps * prediction.draft_cost)


def best_length(
    calibration: calibration_lib.Calibration, arm: records.Arm, observed: Acceptance
) -> int:
  """The fastest K >= 1 of a chain; of a combination, that of its learned part."""
  rule, name, _ = case_of(arm)
  best = calibration.best_length(rule, observed.rates, drafter=name)
  return max(best.num_speculative_tokens, 1)


def _of_length(recipe: records.Recipe, loaded: records.Loaded, num_speculative_tokens: int):
  """A drafter with another K; of a combination, its learned part."""
  drafter = recipe.make(loaded, num_speculative_tokens=num_speculative_tokens)
  return drafter.learned if recipe.learned is not None else drafter
