"""The check that comes before an arm's numbers: is its output what plain decoding gives?

Greedy and coupled outputs are compared token for token with plain decoding at the same width
and batch. For a chain at batch 1 logits are then bitwise the same. The wide products of a
batch may sum a row in another order where it stands elsewhere among them, and so may trees,
whose keys do not lie contiguously: there a difference is held to the gap rule
(`specjax.analysis.identity`). Rules that draw other tokens from the same law
are tested against that law (`specjax.analysis.sampled_law`).
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import build
from experiments import methods as methods_lib
from specjax import randomness
from specjax import sampling as sampling_lib
from specjax.analysis import identity
from specjax.analysis import sampled_law
from specjax.output import GenerateOutput

# A sweep makes a hundred such tests: far enough out that none fails by chance.
SMALLEST_P_VALUE = 1e-6


class NotLosslessError(Exception):
  """An arm's output is not what plain decoding gives."""


@dataclasses.dataclass(frozen=True)
class Check:
  """What was found.

  Attributes:
    kind: 'identical' (token for token), 'rounding' (identical but for differences that
      rounding explains, by the gap rule), 'same law', 'lossy' for rules that say so, or
      'differs' where a benchmark goes on in spite of it.
    compared: tokens that were compared or tested.
    flips: rows that differ; but for 'differs', within the gap rule.
    p_value: of the test against the law, or None.
    z_scores: of that test.
  """

  kind: str
  compared: int
  flips: int = 0
  p_value: float | None = None
  z_scores: dict[str, float] = dataclasses.field(default_factory=dict)

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


def check(
    method: methods_lib.Method,
    runner: methods_lib.Runner,
    outputs: Sequence[GenerateOutput],
    references: Sequence[GenerateOutput] | None,
    seeds: Sequence[Sequence[int]],
) -> Check:
  """Checks the outputs of a method.

  Args:
    method: with its drafter.
    runner: that ran it.
    outputs: its runs.
    references: plain decoding of the same rows at the method's width, with the method's own
      rule; None for rules that draw other tokens. Trees and batches need log-probabilities
      ('raw') in both.
    seeds: of the rows of each run.

  Returns:
    What was found.

  Raises:
    NotLosslessError: if a lossless rule's output is not what plain decoding gives.
  """
  compared = sum(output.num_new_tokens for output in outputs)
  if references is None:
    samplings = [build.sampling(method.settings, len(output.lengths)) for output in outputs]
    found = sampled_law.law_test(
        runner.target,
        outputs,
        samplings,
        width=runner.width_of(method),
        cache_length=runner.cache_length,
    )
    kind = 'same law' if method.rule.lossless else 'lossy'
    if method.rule.lossless and found.p_value < SMALLEST_P_VALUE:
      raise NotLosslessError(
          f'{found.num_tokens} sampled tokens do not follow the law of the target: p = '
          f'{found.p_value:.2g}, {found.impossible} impossible tokens, z = '
          f'{ {name: round(z, 1) for name, z in found.z_scores.items()} }.'
      )
    return Check(kind, found.num_tokens, p_value=found.p_value, z_scores=found.z_scores)
  pairs = [
      (reference.new_tokens(row), output.new_tokens(row))
      for reference, output in zip(references, outputs)
      for row in range(len(output.lengths))
  ]
  flips = sum(not np.array_equal(wanted, got) for wanted, got in pairs)
  if not flips:
    return Check('identical', compared)
  if outputs[0].logprobs is None:
    raise NotLosslessError(
        f'{flips} of {len(pairs)} rows differ from plain decoding at the same width, where '
        'logits are bitwise the same.'
    )
  report = identity.gap_rule(
      [wanted for wanted, _ in pairs],
      [got for _, got in pairs],
      [
          each
          for output, numbers in zip(references, seeds)
          for each in _scores(method, runner, output, numbers)
      ],
      largest_difference=_largest_difference(method, runner, references, outputs),
  )
  if not report.holds:
    gap = np.nanmax(report.gaps)
    raise NotLosslessError(
        f'{flips} of {len(pairs)} rows differ from plain decoding, one by a gap of {gap:.3g} '
        f'where rounding explains {report.bound:.3g}.'
    )
  return Check('rounding', compared, flips=flips)


def check_timed(
    runner: methods_lib.Runner,
    methods: Sequence[methods_lib.Method],
    prompts: methods_lib.Prompts,
    outputs: Mapping[str, Sequence[GenerateOutput]],
) -> dict[str, Check]:
  """Compares what a benchmark timed, one run a prompt, with plain decoding.

  Rules that draw other tokens from the same law are not tested, and a method that is not
  lossless is said to differ: what it cost was measured all the same.

  Args:
    runner: that ran the methods.
    methods: any; plain ones are passed over.
    prompts: token lists.
    outputs: by method key.

  Returns:
    By method key.
  """
  found: dict[str, Check] = {}
  references: dict[Any, list[GenerateOutput]] = {}

  def run(method, **more):
    return [runner(method, [prompt], row, **more) for row, prompt in enumerate(prompts)]

  def plain(method, logprobs):
    width = runner.width_of(method)
    key = method.rule.name, method.temperature, width, logprobs
    if key not in references:
      wanted = dataclasses.replace(method, drafter=None)
      references[key] = run(wanted, width=width, logprobs=logprobs)
    return references[key]

  for each in methods:
    if each.drafter is None:
      continue
    if each.rule.mode == 'sample' and each.temperature:
      found[each.key] = Check('same law' if each.rule.lossless else 'lossy', 0)
      continue
    made, wanted = outputs[each.key], plain(each, None)
    seeds = [runner.options(each, 1, row)['seeds'] for row in range(len(prompts))]
    differing = sum(
        not np.array_equal(one.new_tokens(), other.new_tokens()) for one, other in zip(made, wanted)
    )
    if differing and not each.drafter.is_chain:
      # The gap rule needs log-probabilities, which timed runs do without.
      made, wanted = run(each, logprobs='raw'), plain(each, 'raw')
    try:
      checked = check(each, runner, made, wanted, seeds)
    except NotLosslessError:
      checked = None
    if checked is None or differing and not checked.flips:
      checked = Check('differs', sum(one.num_new_tokens for one in made), differing)
    found[each.key] = checked
  return found


def _scores(method, runner, output: GenerateOutput, seeds) -> list[np.ndarray]:
  """What plain decoding took the argmax of at each new token of each row, [n, V]."""
  logits = _logits(method, runner, output)
  if method.rule.mode == 'coupled':
    positions = jnp.broadcast_to(1 + jnp.arange(logits.shape[1]), logits.shape[:2])
    keys = randomness.row_keys(np.asarray(seeds))
    noise = randomness.gumbel_noise(keys, positions, logits.shape[-1])
    sampling = build.sampling(method.settings, len(output.lengths))
    logits = np.asarray(sampling_lib.scaled(jnp.asarray(logits), sampling) + noise)
  return [
      logits[row, start - 1 : end - 1]
      for row, (start, end) in enumerate(zip(output.prompt_lengths, output.lengths))
  ]


def _logits(method, runner, output: GenerateOutput, width: int | None = None) -> np.ndarray:
  """Logits [B, S, V] of plain passes over an output."""
  return identity.logits_at_width(
      runner.target,
      output.tokens,
      width=width or runner.width_of(method),
      cache_length=runner.cache_length,
  )


def _largest_difference(method, runner, references, outputs) -> float:
  """The largest logit difference that was seen between the two modes.

  Of all logits between passes of one token and of the tree's width, over the same text; and
  of the emitted tokens' log-probabilities between the two runs, up to their first difference.
  """
  one = _logits(method, runner, references[0], 1)
  largest = float(np.abs(one - _logits(method, runner, references[0])).max())
  for reference, output in zip(references, outputs):
    for row, start in enumerate(output.prompt_lengths):
      place = identity.first_difference(reference.new_tokens(row), output.new_tokens(row))
      end = start + place if place >= 0 else min(reference.lengths[row], output.lengths[row])
      here = slice(int(start), int(end))
      pair = reference.logprobs[row, here] - output.logprobs[row, here]
      largest = max(largest, float(np.abs(pair).max(initial=0.0)))
  return largest
