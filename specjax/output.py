"""The result of a run."""

import dataclasses
from typing import Any

import numpy as np

from specjax import notebook
from specjax import stats as stats_lib


@dataclasses.dataclass(frozen=True, repr=False)
class GenerateOutput:
  """The result of a run.

  Attributes:
    tokens: [B, S] int32 numpy, prompt and output; 0 beyond a row's length.
    prompt_lengths: [B] int32.
    lengths: [B] int32, prompt and output together.
    finish_reasons: one per row: 'stop' (a stop token, which is kept, or a stop string),
      'length', or 'running' in an output of a stream that goes on.
    logprobs: [B, S] float32, of each emitted token at its position in `tokens`, or None.
    logprobs_of: 'raw' (the target's own law) or 'controlled' (after the sampling controls),
      or None.
    stats: counts per row (`specjax.stats.Stats`, as numpy arrays), of the tokens above alone:
      rounds after a stop string do not count, nor do tokens that a stop or a limit cuts off.
    target_passes: the most rounds of any row, prefill not counted.
    seconds: of the loop, compilation excluded where the run was warmed up; rounds after a stop
      string are included.
    prefill_seconds: of the prefill.
    trace: the rounds (`specjax.stats.Trace`, numpy) or None; zeros where a row had no round.
    drafter_state: the drafter's state after the run, which may have seen tokens after a stop
      string; None before the run is over.
    texts: each row's output text, cut before a stop string; None without a tokenizer. Of a row
      that is still running, the end that may change is held back: an incomplete character, and
      the possible beginning of a stop string. So each text of a stream begins with the one before.
    tokenizer: the request's, or None.
  """

  tokens: np.ndarray
  prompt_lengths: np.ndarray
  lengths: np.ndarray
  finish_reasons: tuple[str, ...]
  logprobs: np.ndarray | None
  logprobs_of: str | None
  stats: stats_lib.Stats
  target_passes: int
  seconds: float
  prefill_seconds: float
  trace: stats_lib.Trace | None
  drafter_state: Any
  texts: tuple[str, ...] | None
  tokenizer: Any = None

  def new_tokens(self, row: int = 0) -> np.ndarray:
    """The tokens [n] int32 that a row emitted, the stop token included."""
    return self.tokens[row, self.prompt_lengths[row] : self.lengths[row]]

  @property
  def num_new_tokens(self) -> int:
    """Emitted tokens of all rows."""
    return int((self.lengths - self.prompt_lengths).sum())

  @property
  def tokens_per_second(self) -> float:
    """Emitted tokens of all rows over the seconds of the loop."""
    return self.num_new_tokens / max(self.seconds, 1e-12)

  @property
  def mean_acceptance_length(self) -> float:
    """Emitted tokens per round and row, the next token included: at most D + 1."""
    return self.num_new_tokens / max(int(self.stats.rounds.sum()), 1)

  @property
  def draft_acceptance_rate(self) -> float | None:
    """Accepted over proposed draft tokens, counted as in `Stats`; None if none was proposed."""
    proposed = int(self.stats.proposed.sum())
    return int(self.stats.accepted.sum()) / proposed if proposed else None

  @property
  def acceptance_rate_per_position(self) -> list[float | None]:
    """At each depth, rounds that accepted a token at it over rounds that proposed one."""
    proposed, accepted = self.stats.proposed_at.sum(0), self.stats.accepted_at.sum(0)
    return [int(a) / int(p) if p else None for a, p in zip(accepted, proposed)]

  def __repr__(self) -> str:
    return notebook.output_text(self)

  def _repr_html_(self) -> str:
    return notebook.output_html(self)
