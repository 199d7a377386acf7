"""specjax as one of the engines."""

import functools

import jax.numpy as jnp

import specjax
from benchmarks.peers import runs
from specjax import drafters
from specjax import models
from specjax import verify

_CHUNK = 32  # tokens per prefill pass; the cache's length is a multiple of it


class Engine:
  """Runs specjax's methods on a task."""

  name = 'specjax'
  versions: dict[str, str] = {}  # beyond those of every row

  def __init__(self, task: runs.Task, dtype: str):
    self._task = task
    load = functools.partial(models.load_hf, dtype=jnp.dtype(dtype))
    target, k = load(task.target), task.num_speculative_tokens
    self._drafters = {
        runs.PLAIN: None,
        runs.LOOKUP: drafters.ngram(num_speculative_tokens=k, max_ngram=task.max_ngram),
    }
    if task.draft is not None:
      draft = drafters.model(load(task.draft), num_speculative_tokens=k)
      self._drafters = {name: self._drafters.get(name, draft) for name in task.methods}
    # The cache is as short as it can be, for attention reads every slot; the other engines read
    # those in use.
    longest = max(len(prompt) for prompt in task.prompts)
    self._generate = functools.partial(
        specjax.generate, target, rule=verify.greedy(), max_new_tokens=task.max_new_tokens,
        cache_length=-(-(longest + task.max_new_tokens) // _CHUNK) * _CHUNK, prefill_chunk=_CHUNK,
    )

  def run(self) -> list[runs.Run]:
    """One round: every method and prompt."""
    prompts, result = self._task.prompts, []
    for method, drafter in self._drafters.items():
      self._generate([prompts[0]], drafter=drafter)  # compiles, and touches the weights
      for number, prompt in enumerate(prompts):
        output = self._generate([prompt], drafter=drafter)
        proposed = int(output.stats.proposed.sum())
        result.append(runs.Run(
            method=method,
            prompt=number,
            text=self._task.to_bytes(output.new_tokens()),
            target_passes=output.target_passes,
            timed_tokens=output.num_new_tokens,
            seconds=output.seconds,
            prefill_seconds=output.prefill_seconds,
            proposed=proposed or None,
            accepted=int(output.stats.accepted.sum()) if proposed else None,
        ))
    return result
