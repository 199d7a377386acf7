"""specjax as one of the engines."""

from collections.abc import Sequence

import jax.numpy as jnp

import specjax
from benchmarks.peers import runs
from specjax import drafters
from specjax import models
from specjax import verify
from specjax.output import GenerateOutput

METHODS = (runs.PLAIN, runs.DRAFT, runs.LOOKUP)
_CHUNK = 32  # tokens of a prefill pass; the cache's length is a multiple of it


class Engine:
  """Runs specjax's methods of a task; compiles and warms up when made.

  Attributes:
    name: of the engine.
    versions: none beside those of every row.
  """

  name = 'specjax'
  versions: dict[str, str] = {}

  def __init__(self, task: runs.Task, dtype: str, methods: Sequence[str] = METHODS):
    self._task, self._methods = task, tuple(methods)
    kind = jnp.dtype(dtype)
    self._target = models.load_hf(task.target, dtype=kind)
    k = task.num_speculative_tokens
    self._drafters = {runs.PLAIN: None}
    if runs.DRAFT in methods:
      draft = models.load_hf(task.draft, dtype=kind)
      self._drafters[runs.DRAFT] = drafters.model(draft, num_speculative_tokens=k)
    if runs.LOOKUP in methods:
      self._drafters[runs.LOOKUP] = drafters.ngram(
          num_speculative_tokens=k, max_ngram=task.max_ngram, min_ngram=1
      )
    # As long as it must be and no longer, for attention reads every slot; the other engines
    # read what is filled.
    longest = max(len(prompt) for prompt in task.prompts)
    self._cache_length = -(-(longest + task.max_new_tokens) // _CHUNK) * _CHUNK

  def run(self) -> list[runs.Run]:
    """One round: every method and prompt."""
    found = []
    for method in self._methods:
      self._generate(method, self._task.prompts[0])  # compiled, and its weights touched
      for number, prompt in enumerate(self._task.prompts):
        output = self._generate(method, prompt)
        proposed = int(output.stats.proposed.sum())
        found.append(
            runs.Run(
                method=method,
                prompt=number,
                text=self._task.to_bytes(output.new_tokens()),
                target_passes=output.target_passes,
                timed_tokens=output.num_new_tokens,
                seconds=output.seconds,
                prefill_seconds=output.prefill_seconds,
                proposed=proposed or None,
                accepted=int(output.stats.accepted.sum()) if proposed else None,
            )
        )
    return found

  def _generate(self, method: str, prompt: Sequence[int]) -> GenerateOutput:
    return specjax.generate(
        self._target,
        [list(prompt)],
        drafter=self._drafters[method],
        rule=verify.greedy(),
        max_new_tokens=self._task.max_new_tokens,
        cache_length=self._cache_length,
        prefill_chunk=_CHUNK,
    )
