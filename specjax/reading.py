"""Reads the state of a run back to the host: texts, stop strings, and the output so far."""

from collections.abc import Sequence

import jax
import numpy as np

from specjax import engine
from specjax import stats as stats_lib
from specjax.output import GenerateOutput
from specjax.request import Request
from specjax.stopping import StopStrings

# What users see of the state's codes; a row that has none of these is running.
FINISH = {
    stats_lib.RUNNING: 'running',
    stats_lib.STOP_TOKEN: 'stop',
    stats_lib.LENGTH: 'length',
}


class Reader:
  """Reads the output from a state; rows end at their stop strings, wherever the state is."""

  def __init__(
      self,
      request: Request,
      prompts: Sequence[Sequence[int]],
      prompt_lengths: np.ndarray,
      prefill_seconds: float,
  ):
    self._request = request
    self._starts = prompt_lengths
    self._prefill_seconds = prefill_seconds
    self._texts = [''] * len(prompts)
    self._stops = None
    if request.tokenizer is not None:
      self._stops = StopStrings(request.stop_strings, request.tokenizer, prompts)
    # Of rows that a stop string ended: their lengths, and the counts that lie beyond these.
    self._ends: dict[int, int] = {}
    self._beyond: stats_lib.Stats | None = None

  def look(self, state: engine.DecodeState) -> np.ndarray:
    """Reads the new tokens' text; returns whether each row [B] is over, by a stop string too."""
    done = np.array(state.done)
    if self._stops is None:
      return done
    tokens, lengths = np.asarray(state.tokens), np.asarray(state.lengths)
    ends = lengths.copy()
    for row, (start, end) in enumerate(zip(self._starts, lengths)):
      if row in self._ends:
        continue
      count, self._texts[row], is_stopped = self._stops.update(
          row, tokens[row, start:end], over=bool(done[row])
      )
      if is_stopped:
        self._ends[row] = ends[row] = start + count
    if (ends < lengths).any():
      beyond = stats_lib.beyond(jax.tree.map(np.asarray, state.recent), ends)
      if self._beyond is not None:
        beyond = jax.tree.map(np.add, self._beyond, beyond)
      self._beyond = beyond
    done[list(self._ends)] = True
    return done

  def read(self, state: engine.DecodeState, seconds: float) -> GenerateOutput:
    """The output so far, as of the last look."""
    request = self._request
    to_numpy = lambda x: jax.tree.map(np.array, x)
    tokens, lengths = np.array(state.tokens), np.array(state.lengths)
    reasons = [FINISH.get(int(code), 'running') for code in np.asarray(state.finish)]
    for row, end in self._ends.items():
      lengths[row], reasons[row] = end, 'stop'
    logprobs = None if state.logprobs is None else np.array(state.logprobs)
    beyond = np.arange(tokens.shape[1]) >= lengths[:, None]
    tokens[beyond] = 0
    if logprobs is not None:
      logprobs[beyond] = 0.0
    stats = to_numpy(state.stats)
    if self._beyond is not None:
      stats = jax.tree.map(np.subtract, stats, self._beyond)
    return GenerateOutput(
        tokens=tokens,
        prompt_lengths=self._starts,
        lengths=lengths,
        finish_reasons=tuple(reasons),
        logprobs=logprobs,
        logprobs_of=request.logprobs,
        stats=stats,
        target_passes=int(stats.rounds.max()),
        seconds=seconds,
        prefill_seconds=self._prefill_seconds,
        trace=None if state.trace is None else _kept_trace(to_numpy(state.trace), lengths),
        drafter_state=None if 'running' in reasons else state.drafter,
        texts=None if self._stops is None else tuple(self._texts),
        tokenizer=request.tokenizer,
    )


def _kept_trace(trace: stats_lib.Trace, lengths: np.ndarray) -> stats_lib.Trace:
  """The rounds that begin within the output; zeros elsewhere, where rows were already over."""
  kept = (trace.starts > 0) & (trace.starts < lengths[:, None])
  zero = lambda x: np.where(kept.reshape(kept.shape + (1,) * (x.ndim - 2)), x, np.zeros_like(x))
  return jax.tree.map(zero, trace)
