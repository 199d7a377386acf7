"""Reads the trace of a run: what each round proposed, and where every token came from.

An `output` is a `specjax.GenerateOutput`, whose display in a notebook is made with these functions.
"""

import dataclasses
from typing import Any

import numpy as np

from specjax.detokenize import pieces as pieces

# Where an emitted token came from.
ACCEPTED = 'accepted'  # drafted, and kept
RECOVERED = 'recovered'  # the target's, in place of a rejected draft
BONUS = 'bonus'  # the target's, after a fully accepted draft
PLAIN = 'plain'  # the target's, where nothing was drafted


@dataclasses.dataclass(frozen=True)
class Node:
  """A drafted token.

  Attributes:
    number: of the node, counted from 1.
    token: its id.
    parent: node number, 0 is the root of the round.
    accepted: whether it was accepted, and emitted.
    accept_prob: the probability that the rule accepts it once its parent is accepted.
    target_prob: its probability under the target's law.
    draft_prob: its probability under the law that it was drawn from; 1 where it was not drawn.
  """

  number: int
  token: int
  parent: int
  accepted: bool
  accept_prob: float
  target_prob: float
  draft_prob: float


@dataclasses.dataclass(frozen=True)
class Round:
  """One round of one row.

  Attributes:
    start: the row's length before the round.
    nodes: valid nodes, in order; where a stop or a limit cuts the round, only those at the depths
      that were emitted, as `specjax.stats.Stats` counts them.
    emitted: ids of the tokens that were emitted, after stops and limits.
    sources: where each of them came from.
  """

  start: int
  nodes: tuple[Node, ...]
  emitted: tuple[int, ...]
  sources: tuple[str, ...]


def rounds(output: Any, row: int = 0) -> list[Round]:
  """The rounds of a row, in order; together they emit its new tokens.

  Raises:
    ValueError: if the run kept no trace.
  """
  trace = output.trace
  if trace is None:
    raise ValueError('The run kept no trace: generate with trace=True.')
  result, end = [], int(output.lengths[row])
  for index in np.flatnonzero(trace.starts[row]):
    start = int(trace.starts[row, index])
    count = int(trace.num_accepted[row, index])
    # A stop or a limit may cut what the rule decided.
    size = max(min(count + 1, end - start), 0)
    path = trace.path[row, index, : min(count, size)]
    valid = trace.valid[row, index]
    if size <= count:
      valid = valid & (_depths(trace.parents[row, index], path.size) <= size)
    nodes = tuple(
        Node(
            number=int(n) + 1,
            token=int(trace.tokens[row, index, n]),
            parent=int(trace.parents[row, index, n]),
            accepted=n + 1 in path,
            accept_prob=float(trace.accept_probs[row, index, n]),
            target_prob=float(trace.target_probs[row, index, n]),
            draft_prob=float(trace.draft_probs[row, index, n]),
        )
        for n in np.flatnonzero(valid)
    )
    last = BONUS if trace.is_bonus[row, index] else RECOVERED
    last = last if nodes else PLAIN
    emitted = tuple(int(token) for token in output.tokens[row, start : start + size])
    result.append(Round(start, nodes, emitted, ((ACCEPTED,) * count + (last,))[:size]))
  return result


def _depths(parents: np.ndarray, most: int) -> np.ndarray:
  """Depths [N] of the nodes with these parents [N], counted from 1 and cut at `most` + 1."""
  depths, above = np.ones_like(parents), parents
  for _ in range(most):
    depths = depths + (above > 0)
    above = np.where(above > 0, parents[above - 1], 0)
  return depths


def sources(output: Any, row: int = 0) -> list[str]:
  """Where each new token of a row came from."""
  return [source for each in rounds(output, row) for source in each.sources]


def expected_accepted(output: Any, rule: str) -> list[np.ndarray]:
  """Tokens that a rule accepts in expectation over its own coins, for the drafts of a trace.

  The drafts and both laws of every round are in the trace, so that the expected number of
  accepted tokens is known exactly, for the rule that ran and for the other one on the same
  drafts: with r_i = target / draft of drafted token i, at least i tokens are accepted with
  probability

    rejection:  prod_(j <= i) min(1, r_j)            (Leviathan et al. 2022, Chen et al. 2023)
    block:      p_i = min(p_(i-1) r_i, 1), p_0 = 1   (Sun et al. 2024; mean over later drafts)

  Args:
    output: a traced run of a chain, drawn or one-hot.
    rule: 'rejection' or 'block'.

  Returns:
    For each row [R] float64, the expected number of accepted tokens of each of its rounds.

  Raises:
    ValueError: without a trace, for another rule, or for a tree.
  """
  trace = output.trace
  if trace is None or rule not in ('rejection', 'block'):
    raise ValueError(
        "expected_accepted needs a trace and rule='rejection' or 'block'; got "
        f'{"no trace" if trace is None else "a trace"} and {rule!r}.'
    )
  nodes = trace.parents.shape[-1]
  expected = []
  for row, starts in enumerate(trace.starts):
    real = np.flatnonzero(starts)
    if (trace.parents[row, real] != np.arange(nodes)).any():
      raise ValueError('expected_accepted is for chains; this trace holds trees.')
    target = trace.target_probs[row, real].astype(np.float64)
    draft = trace.draft_probs[row, real].astype(np.float64)
    ratios = np.where(trace.valid[row, real], target / np.where(draft > 0, draft, 1.0), 0.0)
    stays, total = np.ones(len(real)), np.zeros(len(real))
    for ratio in ratios.T:
      stays = stays * np.minimum(ratio, 1.0) if rule == 'rejection' else np.minimum(
          stays * ratio, 1.0
      )
      total += stays
    expected.append(total)
  return expected
