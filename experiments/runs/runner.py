"""Runs methods on a target, all with the same shapes, and keeps what arms share."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

import specjax
from experiments.runs import records
from specjax import generation
from specjax.drafters.combined import CombinedState
from specjax.models import fast_width
from specjax.output import GenerateOutput


@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows that run together.

  Attributes:
    prompts: [B] token lists.
    first: number of the first row: repetition times P plus prompt.
  """

  prompts: tuple[tuple[int, ...], ...]
  first: int


@dataclasses.dataclass(frozen=True)
class Runner:
  """Runs methods on one target, all with the same shapes.

  Attributes:
    target: the target.
    width: tokens that a pass of plain decoding reads.
    cache_length: S.
    sizes: the rest.
    stop_tokens: ids that end a row.
  """

  target: Any
  width: int
  cache_length: int
  sizes: records.Sizes
  stop_tokens: tuple[int, ...] = ()

  def __call__(self, method: records.Method, batch: Batch, **more) -> GenerateOutput:
    """One run over a batch.

    Of the drafter's state only the number of free rounds of a combination is kept.
    """
    output = specjax.generate(
        self.target, batch.prompts, **(self.options(method, batch) | more)
    )
    # Outputs are kept, and with them a draft's cache would be.
    return dataclasses.replace(output, drafter_state=_num_free_rounds(output.drafter_state))

  def options(self, method: records.Method, batch: Batch) -> dict[str, Any]:
    """What `specjax.generate` takes beside target and prompts."""
    return dict(
        drafter=method.drafter,
        rule=method.rule,
        sampling=method.sampling(len(batch.prompts)),
        max_new_tokens=self.sizes.max_new_tokens,
        stop_tokens=self.stop_tokens,
        seeds=self.seeds(batch),
        width=self.width_of(method),
        cache_length=self.cache_length,
        prefill_chunk=self.sizes.prefill_chunk,
    )

  def seeds(self, batch: Batch) -> np.ndarray:
    """Seeds [B] of a batch's rows."""
    return self.sizes.seed + batch.first + np.arange(len(batch.prompts))

  def width_of(self, method: records.Method) -> int:
    """Tokens that the method's target passes read."""
    return max(self.width, method.num_nodes + 1)

  @property
  def dtype(self) -> str:
    """Of the target's activations."""
    return str(jnp.dtype(self.target.module.dtype))


class Session:
  """Targets and what plain decoding gives, kept from one arm to the next."""

  def __init__(self):
    """Nothing is loaded yet."""
    self._loaded: dict[str, records.Loaded] = {}
    self._references: dict[Any, list[GenerateOutput]] = {}
    self._prompts: dict[Any, records.Prompts] = {}

  def load(self, target: records.Target) -> records.Loaded:
    """A target; only the latest one is kept."""
    if target.key not in self._loaded:
      self._loaded.clear()
      self._references.clear()
      self._prompts.clear()
      self._loaded[target.key] = target.load()
    return self._loaded[target.key]

  def prompts(self, arm: records.Arm) -> records.Prompts:
    """An arm's prompts; later turns of chats, which are answered first, are made once."""
    loaded = self.load(arm.target)
    if arm.prompts_key not in self._prompts:
      self._prompts[arm.prompts_key] = arm.prompts(loaded)
    return self._prompts[arm.prompts_key]

  def references(self, key: Any, make: Callable[[], list[GenerateOutput]]):
    """What `make` gives, made once for a key."""
    if key not in self._references:
      self._references[key] = make()
    return self._references[key]


def runner_of(
    arm: records.Arm, loaded: records.Loaded, prompts: records.Prompts
) -> Runner:
  """What runs an arm's methods on its prompts."""
  sizes = arm.sizes
  size = prompts.longest + sizes.max_new_tokens
  return Runner(
      target=loaded.target,
      width=sizes.width or fast_width(loaded.target, sizes.batch_size),
      cache_length=sizes.cache_length or generation.bucket(size),
      sizes=sizes,
      stop_tokens=loaded.stop_tokens if sizes.stops else (),
  )


def batches(arm: records.Arm, prompts: Sequence[records.Prompt]) -> list[Batch]:
  """All prompts, as often as seeds are asked for; greedy output depends on no seed."""
  size = arm.sizes.batch_size
  count = -(-len(prompts) // size) * size
  return [
      batch
      for seed in range(arm.num_seeds)
      for batch in filled(prompts, size, first=seed * count)
  ]


def filled(prompts: Sequence[records.Prompt], size: int, *, first: int) -> list[Batch]:
  """The prompts once, in batches of a size, their rows numbered from `first` on.

  A last batch that they do not fill takes the first ones again: one of another size would be
  compiled and timed apart.
  """
  return [
      Batch(tuple(prompts[i % len(prompts)][1] for i in range(start, start + size)), first + start)
      for start in range(0, len(prompts), size)
  ]


def _num_free_rounds(state: Any) -> int:
  """In how many rounds of a run the free part of a combination drafted; 0 of any other."""
  if not isinstance(state, CombinedState):
    return 0
  return int(np.sum(state.num_free_rounds))
