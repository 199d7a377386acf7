"""What rounds cost on a machine, as `specjax.analysis.calibrate` found it, and what follows."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from specjax.analysis import theory

MODEL = 'model'  # the name under which a draft model's costs are kept


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A way of plain decoding: dtype, tokens a pass reads, seconds per step.

  `pass_seconds` are those of the widest pass in that dtype, which rounds are made of.
  """

  dtype: str
  width: int
  seconds: float
  pass_seconds: float


@dataclasses.dataclass(frozen=True)
class TreeCosts:
  """What a round of one tree costs, in seconds.

  Attributes:
    num_nodes: N.
    depth: D, levels of drafting.
    pass_seconds: of a target pass over N + 1 tokens.
    overhead: a round that drafts for free, less that pass: the tree's mask, sampling,
      verification, and moving the accepted path to its place.
    drafting: all draft steps of a round.
  """

  num_nodes: int
  depth: int
  pass_seconds: float
  overhead: float
  drafting: float


@dataclasses.dataclass(frozen=True)
class RuleCosts:
  """What rounds under one rule cost, in seconds.

  Attributes:
    rule: its name.
    plain: a step of plain decoding at its fastest: greedy, or with the fastest sampler.
    overhead: (K, a round less its target pass and its drafting), K ascending.
    drafting: by drafter, (K, all draft steps of a round), K ascending.
    trees: by name, of the drafters of one shape.
  """

  rule: str
  plain: float
  overhead: tuple[tuple[int, float], ...]
  drafting: dict[str, tuple[tuple[int, float], ...]]
  trees: dict[str, TreeCosts] = dataclasses.field(default_factory=dict)


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
    dtype: the one whose wide passes are fastest, in which all below was measured.
    width: tokens that a pass of plain decoding reads, the fastest in that dtype.
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
      acceptance: α or conditional rates per position, measured on other prompts.
      drafter: as in `cost`.
      num_drafted: mean draft steps per round where K adapts; None means K.

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

  def tree_cost(self, rule: str, name: str) -> RoundCost:
    """The terms of a tree, a draft step being one of its levels.

    Args:
      rule: name of the rule.
      name: of the tree, as in `calibrate`.

    Raises:
      ValueError: if the rule or the tree was not calibrated.
    """
    costs = self.rule(rule)
    if name not in costs.trees:
      raise ValueError(
          f'The tree {name!r} was not calibrated under {rule!r}; there are: '
          f'{sorted(costs.trees)}.'
      )
    tree = costs.trees[name]
    return RoundCost(
        draft_cost=tree.drafting / tree.depth / costs.plain,
        pass_cost=tree.pass_seconds / costs.plain,
        overhead=tree.overhead / costs.plain,
    )

  def predict_tree(
      self, rule: str, name: str, acceptance: theory.Acceptance
  ) -> theory.Prediction:
    """Predicted speed-up of a tree over plain decoding with the same rule.

    Args:
      rule: as in `tree_cost`; also `name`.
      name: of the tree.
      acceptance: conditional rates per depth, measured on other prompts, or one α.

    Returns:
      The terms and, as `speedup`, what they come to.
    """
    cost = self.tree_cost(rule, name)
    depth = self.rule(rule).trees[name].depth
    return theory.Prediction(
        tokens_per_round=theory.expected_tokens(acceptance, depth),
        num_drafted=depth,
        **dataclasses.asdict(cost),
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
          trees={name: TreeCosts(**tree) for name, tree in entry.get('trees', {}).items()},
      )
      for entry in values['rules']
  )
  for name in ('widths', 'pass_seconds'):
    values[name] = tuple(values[name])
  return Calibration(**values)
