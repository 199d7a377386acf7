"""What speed-up to expect of a method: which costs are measured for it, and what follows.

A chain is timed at its K, a tree as it is. A combination is not timed: its parts are. It looks up
in every round, and in every round the learned part reads what was committed, its first step; the
others it takes where nothing was found, and how often that is, is counted with its acceptance.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import ml_collections
import numpy as np

from experiments import build
from specjax.analysis import calibration as calibration_lib
from specjax.analysis import costs
from specjax.analysis import theory
from specjax.drafters.combined import CombinedState

ConfigDict = ml_collections.ConfigDict


def is_predicted(settings: ConfigDict) -> bool:
  """Whether the cost of a method's rounds can be known before it runs."""
  kind = settings.drafter.kind
  combines_tree = kind == 'combined' and settings.drafter.learned.endswith('_tree')
  return kind not in ('none', 'synthetic') and not combines_tree


def is_tree(settings: ConfigDict) -> bool:
  """Whether a method drafts a tree, which has a shape and no K."""
  return settings.drafter.kind.endswith('_tree')


def name_of(settings: ConfigDict) -> str:
  """Under which a method's costs are kept: its kind of drafter, with the shape of a tree."""
  kind = settings.drafter.kind
  if kind == 'combined':
    # What is timed is its learned part, which reads more a round than it would alone.
    return f'{settings.drafter.learned} behind {settings.drafter.free}'
  if is_tree(settings):
    return ' '.join(filter(None, (kind, settings.drafter.tree, settings.drafter.siblings)))
  return kind


def case_of(settings: ConfigDict) -> tuple[str, str, int]:
  """Rule, name and K of a method; K is 0 where it is a tree or left open."""
  length = 0 if is_tree(settings) else settings.drafter.num_speculative_tokens
  return build.rule(settings).name, name_of(settings), length


def calibrate(
    methods: Sequence[ConfigDict],
    loaded: build.Loaded,
    *,
    max_num_speculative_tokens: int = 1,
    **options: Any,
) -> calibration_lib.Calibration:
  """Measures what the rounds of some methods cost.

  Args:
    methods: their settings; all of them `is_predicted`. Of methods of one name that differ in
      more than K the last one is measured.
    loaded: the target and what comes with it.
    max_num_speculative_tokens: the least K to measure up to; an open K is measured there.
    **options: for `specjax.analysis.calibrate`.

  Returns:
    The calibration.
  """
  chains = []
  for each in methods:
    if each.drafter.kind == 'combined':
      # A free drafter that stands alone is measured as it is, whatever a combination says.
      chains.insert(0, _free_part(each))
    if not is_tree(each):
      chains.append(each)
  lengths = [each.drafter.num_speculative_tokens for each in chains]
  largest = max([max_num_speculative_tokens, *lengths])
  makers, cases = {}, set()
  for each in chains:
    rule, name, length = case_of(each)
    makers[name] = functools.partial(_of_length, each, loaded)
    cases.add((rule, name, length or largest))
  model = next((each for each in reversed(chains) if each.drafter.kind == costs.MODEL), None)
  makers.pop(costs.MODEL, None)
  rules = {rule.name: rule for rule in map(build.rule, methods)}
  return calibration_lib.calibrate(
      loaded.target,
      None if model is None else build.draft(model, loaded),
      max_num_speculative_tokens=largest,
      rules=list(rules.values()),
      drafters=makers,
      cases=sorted(cases),
      trees={case_of(each)[:2]: build.drafter(each, loaded) for each in methods if is_tree(each)},
      **options,
  )


def predict(
    calibration: calibration_lib.Calibration,
    settings: ConfigDict,
    rates: Sequence[float],
    *,
    num_drafted: float,
    free_share: float = 0.0,
) -> theory.Prediction:
  """The predicted speed-up of a method over plain decoding.

  Args:
    calibration: of `calibrate`.
    settings: of the method, with its K.
    rates: conditional acceptance rates, one per depth.
    num_drafted: mean draft steps per round of a draft model that may stop early.
    free_share: of a combination, the share of rounds that its free part drafted.
  """
  rule, name, length = case_of(settings)
  if is_tree(settings):
    return calibration.predict_tree(rule, name, rates)
  if settings.drafter.kind != 'combined':
    return calibration.predict(rule, length, rates, drafter=name, num_drafted=num_drafted)
  prediction = calibration.predict(rule, length, rates, drafter=name)
  free = calibration.cost(rule, length, drafter=settings.drafter.free).draft_cost
  taken = 1 - free_share + free_share / length
  return dataclasses.replace(prediction, draft_cost=free + taken * prediction.draft_cost)


def best_length(
    calibration: calibration_lib.Calibration, settings: ConfigDict, rates: Sequence[float]
) -> int:
  """The fastest K >= 1 of a chain; of a combination, that of its learned part."""
  rule, name, _ = case_of(settings)
  best = calibration.best_length(rule, rates, drafter=name)
  return max(best.num_speculative_tokens, 1)


def steps_of(settings: ConfigDict, proposed_at: np.ndarray, num_rounds: int) -> float:
  """Mean draft steps per round, of a chain.

  Args:
    settings: of the method.
    proposed_at: [D], rounds that drafted at least d + 1 tokens (`Stats.drafted_at`).
    num_rounds: all rounds.
  """
  if settings.drafter.kind != costs.MODEL:
    return float(len(proposed_at))
  # A draft model reads once to draft its first token, and once more for every token that it
  # goes on from, kept or not; the last one of K is not read.
  return 1 + int(proposed_at[:-1].sum()) / num_rounds


def free_rounds(state: Any) -> int:
  """In how many rounds of a run the free part of a combination drafted; 0 of any other."""
  if not isinstance(state, CombinedState):
    return 0
  return int(np.sum(state.num_free_rounds))


def _free_part(settings: ConfigDict) -> ConfigDict:
  """Of a combination, as a method of its own."""
  part = ConfigDict(settings.to_dict())
  part.drafter.kind = settings.drafter.free
  return part


def _of_length(settings: ConfigDict, loaded: build.Loaded, num_speculative_tokens: int):
  """A method's drafter with another K; of a combination, its learned part."""
  settings = ConfigDict(settings.to_dict())
  settings.drafter.num_speculative_tokens = num_speculative_tokens
  made = build.drafter(settings, loaded)
  return made.learned if settings.drafter.kind == 'combined' else made
