"""Whether two outputs are the same, and if not, whether rounding explains it.

Passes of different widths, batches or meshes may order floating-point sums differently. Where
equality is not bit for bit, the *gap rule* holds the two to account: at the first difference
of a prompt, the scores (logits, or log-probabilities plus noise) of the two choices may
differ by at most twice the largest logit difference measured between the two modes; a
larger gap cannot come from rounding.
"""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class GapReport:
  """Where outputs part, and why.

  Attributes:
    first_differences: [P], index of the first different new token of each prompt, -1 where
      there is none.
    gaps: [P], score of the reference's choice less that of the other one there; NaN where
      there is no difference.
    largest_difference: of logits between the two modes.
    num_positions: new tokens compared, up to the first difference of each prompt.
  """

  first_differences: tuple[int, ...]
  gaps: tuple[float, ...]
  largest_difference: float
  num_positions: int

  @property
  def bound(self) -> float:
    """The largest gap that rounding explains."""
    return 2.0 * self.largest_difference

  @property
  def num_flips(self) -> int:
    """Prompts whose outputs part."""
    return sum(index >= 0 for index in self.first_differences)

  @property
  def identical(self) -> bool:
    return self.num_flips == 0

  @property
  def holds(self) -> bool:
    """Whether every difference is explained by rounding."""
    return all(not gap > self.bound for gap in self.gaps if not np.isnan(gap))


def first_difference(tokens: Sequence[int], other: Sequence[int]) -> int:
  """Index of the first difference of two token lists, -1 where there is none.

  A list that is a proper prefix of the other one differs where it ends.

  >>> first_difference([5, 6, 7], [5, 9, 7])
  1
  """
  tokens, other = np.asarray(tokens), np.asarray(other)
  size = min(tokens.size, other.size)
  differs = np.flatnonzero(tokens[:size] != other[:size])
  if differs.size:
    return int(differs[0])
  return -1 if tokens.size == other.size else size


def gap_rule(
    outputs: Sequence[Sequence[int]],
    others: Sequence[Sequence[int]],
    scores: Sequence[np.ndarray],
    *,
    largest_difference: float,
) -> GapReport:
  """Applies the gap rule to the new tokens of each prompt.

  Args:
    outputs: P token lists, the reference's choices.
    others: P token lists.
    scores: P arrays [n, V] float32: what the reference took the argmax of at each new token.
    largest_difference: the largest difference of a logit between the two modes, e.g. of
      `largest_logit_difference`.

  Returns:
    The `GapReport`.

  Raises:
    ValueError: for different numbers of prompts, or outputs that end at different lengths
      without a difference before, which rounding cannot explain.
  """
  if not len(outputs) == len(others) == len(scores):
    raise ValueError(
        f'One entry per prompt is needed; got {len(outputs)} outputs, {len(others)} others and '
        f'{len(scores)} scores.'
    )
  places, gaps, positions = [], [], 0
  for row, (tokens, other, score) in enumerate(zip(outputs, others, scores)):
    place = first_difference(tokens, other)
    places.append(place)
    if place < 0:
      gaps.append(float('nan'))
      positions += len(tokens)
      continue
    if place >= min(len(tokens), len(other)):
      raise ValueError(
          f'Prompt {row}: one output ends after {place} tokens, the other goes on without a '
          'difference before. Compare runs with the same length limit and stops.'
      )
    gaps.append(float(score[place, tokens[place]] - score[place, other[place]]))
    positions += place + 1
  return GapReport(tuple(places), tuple(gaps), float(largest_difference), positions)


def logits_at_width(
    target, tokens: np.ndarray, *, width: int, cache_length: int | None = None
) -> np.ndarray:
  """Logits [B, S, V] float32 of a target that reads `tokens` in passes of `width`.

  Args:
    target: a `specjax.models.LanguageModel`.
    tokens: [B, S] int32.
    width: tokens a pass reads; the last pass is padded.
    cache_length: positions of the cache; None means S. The order of sums in attention may
      depend on it: give that of the run which is looked at.

  Returns:
    The logits, as the engine's passes of this width compute them.
  """
  tokens = np.asarray(tokens, np.int32)
  batch, size = tokens.shape
  cache = target.init_cache(
      batch_size=batch, cache_length=cache_length or size, max_append=max(width, 1)
  )
  padded = np.pad(tokens, ((0, 0), (0, -size % width)))
  parts = []
  for start in range(0, size, width):
    num_new = np.full((batch,), min(width, size - start), np.int32)
    logits, cache = _read(target, padded[:, start : start + width], cache, num_new)
    parts.append(np.asarray(logits[:, : min(width, size - start)]))
  return np.concatenate(parts, axis=1)


@functools.partial(jax.jit, donate_argnames='cache')
def _read(target, tokens, cache, num_new):
  out = target(tokens, cache=cache, num_new=num_new)
  return out.logits.astype(jnp.float32), out.cache


def count_flips(logits: np.ndarray, others: np.ndarray) -> tuple[int, float]:
  """How many argmaxes [B, S] of two logits [B, S, V] differ, and their largest difference."""
  flips = int((np.argmax(logits, axis=-1) != np.argmax(others, axis=-1)).sum())
  return flips, float(np.abs(logits - others).max())
