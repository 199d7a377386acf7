"""Whether an arm's output is what plain decoding gives.

Greedy and coupled outputs are compared token for token with plain decoding at the same width and
batch. For a chain at batch 1 logits are then bitwise the same. The wide products of a batch may
sum a row in another order where it stands elsewhere among them, and so may trees, whose keys do
not lie contiguously: there a difference is held to the gap rule (`specjax.analysis.identity`).
Rules that draw other tokens from the same law are tested against that law
(`specjax.analysis.sampled_law`).
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.runs import records
from experiments.runs import runner as runner_lib
from specjax import randomness
from specjax import sampling as sampling_lib
from specjax.analysis import identity
from specjax.analysis import sampled_law
from specjax.output import GenerateOutput

# A sweep makes a hundred such tests: far enough out that none fails by chance.
SMALLEST_P_VALUE = 1e-6


class NotLosslessError(Exception):
  """An arm's output is not what plain decoding gives."""

  def __init__(self, message: str, check: 'Check'):
    """`check` is what the arm's row says, where a study goes on in spite of it."""
    super().__init__(message)
    self.check = check


@dataclasses.dataclass(frozen=True)
class Check:
  """The result of a comparison.

  Attributes:
    kind: 'identical' (token for token), 'rounding' (identical but for differences that
      rounding explains, by the gap rule), 'same law', 'lossy' for rules that are, or
      'differs'.
    compared: tokens that were compared or tested.
    flips: rows that differ; but for 'differs', within the gap rule.
    p_value: of the test against the law, or None.
    z_scores: of that test.
    largest_gap: of a flip, in logits (with their noise), or None without any.
    gap_bound: what rounding explains, likewise.
  """

  kind: str
  compared: int
  flips: int = 0
  p_value: float | None = None
  z_scores: dict[str, float] = dataclasses.field(default_factory=dict)
  largest_gap: float | None = None
  gap_bound: float | None = None

  @property
  def identical_to_plain(self) -> bool | None:
    """As in `metrics.jsonl`."""
    return None if self.kind in ('same law', 'lossy') else self.kind == 'identical'

  @property
  def fields(self) -> dict[str, Any]:
    """Of `specjax.analysis.records.record`."""
    compared = self.identical_to_plain is not None
    return dict(
        identical_to_plain=self.identical_to_plain,
        lossless=self.kind,
        flips=self.flips if compared else None,
    )


@dataclasses.dataclass(frozen=True)
class Case:
  """An arm at work, as it is checked.

  Attributes:
    runner: that runs it.
    batches: of its prompts.
    methods: one per batch: with its drafter.
    plain_key: digest of what plain decoding depends on, but for rule and width.
    session: keeps what plain decoding gives.
  """

  runner: runner_lib.Runner
  batches: Sequence[runner_lib.Batch]
  methods: Sequence[records.Method]
  plain_key: str
  session: runner_lib.Session

  @property
  def method(self) -> records.Method:
    return self.methods[0]

  def run(self, **more) -> list[GenerateOutput]:
    """Every batch."""
    return [
        self.runner(method, batch, **more) for method, batch in zip(self.methods, self.batches)
    ]

  def references(self, **more) -> list[GenerateOutput]:
    """Plain decoding of every batch with the method's own rule, at its width."""
    plain = dataclasses.replace(self.method, drafter=None)
    width = self.runner.width_of(self.method)
    return self.session.references(
        (self.plain_key, plain.rule, width, tuple(more.items())),
        lambda: [self.runner(plain, batch, width=width, **more) for batch in self.batches],
    )


def check(case: Case, outputs: Sequence[GenerateOutput], *, law: bool) -> Check:
  """Checks the outputs of an arm.

  Args:
    case: the arm.
    outputs: its runs, one per batch.
    law: whether tokens of rules that draw others than plain decoding are tested against the
      target's law.

  Returns:
    The result.

  Raises:
    NotLosslessError: if a lossless rule's output is not what plain decoding gives.
  """
  if case.method.samples:
    return _check_law(case, outputs, law)
  compared = sum(output.num_new_tokens for output in outputs)
  pairs = _pairs(case.references(), outputs)
  flips = _count_differing(pairs)
  if not flips:
    return Check('identical', compared)
  differs = Check('differs', compared, flips)
  if case.method.drafter.is_chain and case.runner.sizes.batch_size == 1:
    raise NotLosslessError(
        f'{flips} of {len(pairs)} rows differ from plain decoding at the same width, where '
        'logits are bitwise the same.',
        differs,
    )
  # The gap rule needs log-probabilities, which these runs did without.
  references, again = case.references(logprobs='raw'), case.run(logprobs='raw')
  if any((one.tokens != other.tokens).any() for one, other in zip(outputs, again)):
    raise NotLosslessError(
        f'{flips} of {len(pairs)} rows differ from plain decoding, and the same run with '
        'log-probabilities gives other tokens: nothing explains the difference.',
        differs,
    )
  pairs = _pairs(references, again)
  report = identity.gap_rule(
      [wanted for wanted, _ in pairs],
      [tokens for _, tokens in pairs],
      [
          each
          for batch, output in zip(case.batches, references)
          for each in scores(case, output, case.runner.seeds(batch))
      ],
      largest_difference=_largest_difference(case, references, again),
  )
  gaps = dict(largest_gap=float(np.nanmax(report.gaps)), gap_bound=float(report.bound))
  if not report.holds:
    raise NotLosslessError(
        f'{flips} of {len(pairs)} rows differ from plain decoding, one by a gap of '
        f'{gaps["largest_gap"]:.3g} where rounding explains {report.bound:.3g}.',
        dataclasses.replace(differs, **gaps),
    )
  return Check('rounding', compared, flips, **gaps)


def _check_law(case: Case, outputs: Sequence[GenerateOutput], law: bool) -> Check:
  """Of a rule that draws other tokens than plain decoding does."""
  rule = case.method.rule
  kind = 'same law' if rule.lossless else 'lossy'
  if not law:
    return Check(kind, 0)
  test = sampled_law.law_test(
      case.runner.target,
      outputs,
      [case.method.sampling(len(output.lengths)) for output in outputs],
      width=case.runner.width_of(case.method),
      cache_length=case.runner.cache_length,
  )
  if rule.lossless and test.p_value < SMALLEST_P_VALUE:
    raise NotLosslessError(
        f'{test.num_tokens} sampled tokens do not follow the law of the target: p = '
        f'{test.p_value:.2g}, {test.impossible} impossible tokens, z = '
        f'{ {name: round(z, 1) for name, z in test.z_scores.items()} }.',
        Check('differs', test.num_tokens, p_value=test.p_value, z_scores=test.z_scores),
    )
  return Check(kind, test.num_tokens, p_value=test.p_value, z_scores=test.z_scores)


def _pairs(references, outputs) -> list[tuple[np.ndarray, np.ndarray]]:
  """New tokens of every row by plain decoding and by the arm."""
  return [
      (reference.new_tokens(row), output.new_tokens(row))
      for reference, output in zip(references, outputs)
      for row in range(len(output.lengths))
  ]


def count_differing(
    references: Sequence[GenerateOutput], outputs: Sequence[GenerateOutput]
) -> int:
  """Rows whose new tokens differ between two lists of runs."""
  return _count_differing(_pairs(references, outputs))


def _count_differing(pairs) -> int:
  return sum(not np.array_equal(wanted, tokens) for wanted, tokens in pairs)


def scores(case: Case, output: GenerateOutput, seeds: Any) -> list[np.ndarray]:
  """What plain decoding took the argmax of at each new token of each row, [n, V]."""
  logits = _logits(case, output)
  if case.method.rule.mode == 'coupled':
    positions = jnp.broadcast_to(1 + jnp.arange(logits.shape[1]), logits.shape[:2])
    keys = randomness.row_keys(np.asarray(seeds))
    noise = randomness.gumbel_noise(keys, positions, logits.shape[-1])
    sampling = case.method.sampling(len(output.lengths))
    logits = np.asarray(sampling_lib.scaled(jnp.asarray(logits), sampling) + noise)
  return [
      logits[row, start - 1 : end - 1]
      for row, (start, end) in enumerate(zip(output.prompt_lengths, output.lengths))
  ]


def _logits(case: Case, output: GenerateOutput, width: int | None = None) -> np.ndarray:
  """Logits [B, S, V] of plain passes over an output."""
  return identity.logits_at_width(
      case.runner.target,
      output.tokens,
      width=width or case.runner.width_of(case.method),
      cache_length=case.runner.cache_length,
  )


def _largest_difference(case: Case, references, outputs) -> float:
  """The largest logit difference between the two modes.

  Of all logits between passes of one token and of the tree's width, over the same text; and
  of the emitted tokens' log-probabilities between the two runs, up to their first difference.
  """
  one = _logits(case, references[0], 1)
  largest = float(np.abs(one - _logits(case, references[0])).max())
  for reference, output in zip(references, outputs):
    for row, start in enumerate(output.prompt_lengths):
      place = identity.first_difference(reference.new_tokens(row), output.new_tokens(row))
      end = start + place if place >= 0 else min(reference.lengths[row], output.lengths[row])
      here = slice(int(start), int(end))
      pair = reference.logprobs[row, here] - output.logprobs[row, here]
      largest = max(largest, float(np.abs(pair).max(initial=0.0)))
  return largest
