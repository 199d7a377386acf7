"""Rows of `metrics.jsonl`: a method's results, its settings, and the machine that it ran on."""

from collections.abc import Sequence
import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np

from specjax.analysis import statistics
from specjax.analysis import theory
from specjax.output import GenerateOutput

_PACKAGES = ('specjax', 'jax', 'jaxlib', 'flax', 'numpy')


@dataclasses.dataclass(frozen=True)
class Record:
  """One row: a method over all of its prompts. The fields are named as in the file.

  Attributes:
    name: of the method.
    rule: name of the verification rule.
    drafter: kind of drafter; 'none' for plain decoding.
    temperature: of sampling; 0 is greedy.
    num_speculative_tokens: K; 0 for plain decoding.
    dtype: of weights and activations.
    width: tokens per target pass.
    batch_size: rows that ran together, at most.
    prompts: the number of prompts.
    new_tokens: emitted for all of them.
    target_passes: decode rounds, prefill not counted.
    seconds: of decoding only; compilation and prefill are excluded.
    prefill_seconds: of the prefill.
    tokens_per_second: `new_tokens / seconds`.
    speedup: tokens per second over those of plain decoding in the same process, or None.
    speedup_low: lower end of its interval over prompts, or None, as where there is one prompt.
    speedup_high: its upper end, or None.
    predicted_speedup: from costs and acceptance measured elsewhere, or None.
    prediction: the terms of that prediction, or None.
    mean_acceptance_length: tokens per round, bonus token included: 1 … K + 1.
    draft_acceptance_rate: accepted over proposed draft tokens; None without any.
    acceptance_rate_per_position: [D]; at each depth, rounds that accepted a token at it over
      rounds that proposed one; None where nothing was proposed.
    accepted_lengths: [D + 1], share of the rounds that accepted exactly 0, 1, … D tokens.
    identical_to_plain: whether every output is token for token that of plain decoding; None
      where equality is not defined (rejection and block above temperature 0).
    lossless: the result of the comparison: 'identical', 'rounding' (identical but for argmax
      flips that rounding explains), 'same law', 'lossy' or 'differs'; None where nothing was
      compared.
    flips: prompts whose output departs from plain decoding, at such a flip unless it 'differs';
      None where nothing was compared.
    differing: prompts whose greedy output is not that of plain decoding as it was timed, at a
      width of its own: in bfloat16 other widths round otherwise; None where nothing was timed.
    versions: of the packages.
    hardware: of the machine.
  """

  name: str
  rule: str
  drafter: str
  temperature: float
  num_speculative_tokens: int
  dtype: str
  width: int
  batch_size: int
  prompts: int
  new_tokens: int
  target_passes: int
  seconds: float
  prefill_seconds: float
  tokens_per_second: float
  speedup: float | None
  speedup_low: float | None
  speedup_high: float | None
  predicted_speedup: float | None
  prediction: theory.Prediction | None
  mean_acceptance_length: float
  draft_acceptance_rate: float | None
  acceptance_rate_per_position: tuple[float | None, ...]
  accepted_lengths: tuple[float, ...]
  identical_to_plain: bool | None
  lossless: str | None
  flips: int | None
  differing: int | None
  versions: dict[str, str]
  hardware: dict[str, Any]


def record(
    outputs: Sequence[GenerateOutput],
    *,
    name: str,
    rule: str,
    drafter: str,
    temperature: float,
    num_speculative_tokens: int,
    dtype: str,
    width: int,
    seconds: Sequence[float] | None = None,
    plain: tuple[Sequence[float], Sequence[int]] | None = None,
    prediction: theory.Prediction | None = None,
    identical_to_plain: bool | None = None,
    lossless: str | None = None,
    flips: int | None = None,
    differing: int | None = None,
) -> Record:
  """The row of a method from its runs.

  Args:
    outputs: one run per prompt, or per batch of prompts.
    name: of the method; also `rule`, `drafter`, `temperature`, `num_speculative_tokens`,
      `dtype`, `width`, `prediction`, `identical_to_plain`, `lossless`, `flips` and `differing`, as
      in `Record`.
    seconds: of each run, where it was timed more than once; None takes the runs' own.
    plain: seconds and new tokens of plain decoding, one entry per run; None leaves the speed-up
      out.

  Returns:
    The row, every rate a ratio of sums.

  Raises:
    ValueError: without runs.
  """
  if not outputs:
    raise ValueError('A row of metrics needs at least one run.')
  seconds = [output.seconds for output in outputs] if seconds is None else list(seconds)
  tokens = [output.num_new_tokens for output in outputs]
  speedup = None
  if plain is not None:
    speedup = statistics.paired_speedup(
        plain_seconds=plain[0], plain_tokens=plain[1], seconds=seconds, tokens=tokens
    )
  stats = merge_stats(outputs)
  rate = int(stats.accepted.sum()) / max(int(stats.proposed.sum()), 1)
  proposed_at, accepted_at = stats.proposed_at.sum(0), stats.accepted_at.sum(0)
  rounds = max(int(stats.rounds.sum()), 1)
  at_least = np.concatenate([[rounds], accepted_at, [0]])
  return Record(
      name=name,
      rule=rule,
      drafter=drafter,
      temperature=float(temperature),
      num_speculative_tokens=num_speculative_tokens,
      dtype=dtype,
      width=width,
      batch_size=max(len(output.lengths) for output in outputs),
      prompts=sum(len(output.lengths) for output in outputs),
      new_tokens=sum(tokens),
      target_passes=sum(output.target_passes for output in outputs),
      seconds=sum(seconds),
      prefill_seconds=sum(output.prefill_seconds for output in outputs),
      tokens_per_second=sum(tokens) / max(sum(seconds), 1e-12),
      speedup=None if speedup is None else speedup.value,
      speedup_low=None if speedup is None else speedup.low,
      speedup_high=None if speedup is None else speedup.high,
      predicted_speedup=None if prediction is None else prediction.speedup,
      prediction=prediction,
      mean_acceptance_length=sum(tokens) / rounds,
      draft_acceptance_rate=rate if stats.proposed.sum() else None,
      acceptance_rate_per_position=tuple(
          int(a) / int(p) if p else None for a, p in zip(accepted_at, proposed_at)
      ),
      accepted_lengths=tuple(float(count) / rounds for count in at_least[:-1] - at_least[1:]),
      identical_to_plain=identical_to_plain,
      lossless=lossless,
      flips=flips,
      differing=differing,
      versions=versions(),
      hardware=hardware(),
  )


def merge_stats(outputs: Sequence[GenerateOutput]):
  """The counts (`specjax.stats.Stats`) of all runs, rows one after the other."""
  stats = [output.stats for output in outputs]
  return jax.tree.map(lambda *counts: np.concatenate(counts), *stats)


@functools.cache
def versions() -> dict[str, str]:
  """Versions of Python and of the packages that numbers depend on."""
  numbers = {'python': platform.python_version()}
  for package in _PACKAGES:
    try:
      numbers[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue  # run from a checkout that is not installed
  return numbers


@functools.cache
def hardware() -> dict[str, Any]:
  """The devices and the machine that this process computes on."""
  device = jax.devices()[0]
  return {
      'platform': device.platform,
      'device': _cpu_name() if device.platform == 'cpu' else device.device_kind,
      'devices': jax.device_count(),
      'cpu_cores': num_cores(),
      'machine': platform.machine(),
      'system': platform.system(),
  }


def num_cores() -> int | None:
  """Cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def _cpu_name() -> str:
  """The processor's own name, or its architecture where that is not known."""
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    for line in info.read_text(errors='replace').splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()
