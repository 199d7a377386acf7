"""Times programs in turns, so that what is compared ran seconds apart on a machine in one state.

The order of the turns is shuffled anew for every repetition, and medians are kept: a machine that
slows down for a while slows all of them down, and a single interruption counts for nothing.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import time
from typing import Any, Generic, TypeVar

import jax
import numpy as np

Key, Result = TypeVar('Key'), TypeVar('Result')


@dataclasses.dataclass(frozen=True)
class Times(Generic[Key, Result]):
  """What `in_turns` measured.

  Attributes:
    seconds: by key, [cases, repetitions] float64.
    results: by key, one result per case, of the first repetition.
  """

  seconds: dict[Key, np.ndarray]
  results: dict[Key, list[Result]]

  def medians(self) -> dict[Key, list[float]]:
    """By key, the median seconds [cases] over repetitions."""
    return {key: np.median(times, axis=1).tolist() for key, times in self.seconds.items()}

  @property
  def noise(self) -> float:
    """Largest (slowest - fastest) / median over the repetitions of any key and case."""
    spreads = [np.ptp(times, axis=1) / np.median(times, axis=1) for times in self.seconds.values()]
    return float(np.max(spreads, initial=0.0))


def turns(
    keys: Sequence[Key], *, repetitions: int, num_cases: int = 1
) -> Iterator[tuple[int, int, Key]]:
  """Repetition, case and key, with the keys in another order for every repetition and case.

  The order is the same in every run.
  """
  order = np.random.default_rng(0)
  for repetition in range(repetitions):
    for case in range(num_cases):
      for index in order.permutation(len(keys)):
        yield repetition, case, keys[index]


def in_turns(
    run: Callable[[Key, int], tuple[float, Result]],
    keys: Sequence[Key],
    *,
    repetitions: int,
    num_cases: int = 1,
    warm_ups: int = 2,
    progress: Callable[[str], None] | None = None,
    label: Callable[[Key], str] = str,
    case_name: str = 'case',
) -> Times[Key, Result]:
  """Times what has keys in turns, after each was compiled and warmed up.

  Args:
    run: runs a key on a case; returns the seconds and whatever is to be kept of it.
    keys: of what is timed.
    repetitions: of every key and case.
    num_cases: how many inputs each key is timed on, in order (0, 1, …).
    warm_ups: runs of each key on case 0 before anything is timed; the first one compiles.
    progress: called with a line before every step.
    label: what a progress line calls a key.
    case_name: what a progress line calls a case, where there are several.

  Returns:
    The `Times`.
  """
  say = progress or (lambda line: None)
  for number, key in enumerate(keys, start=1):
    say(f'compiling {number}/{len(keys)}: {label(key)}')
    for _ in range(warm_ups):
      run(key, 0)
  seconds = {key: np.zeros((num_cases, repetitions)) for key in keys}
  results = {key: [] for key in keys}
  step = None
  for repetition, case, key in turns(keys, repetitions=repetitions, num_cases=num_cases):
    if step != (repetition, case):
      step = repetition, case
      number = f', {case_name} {case + 1}/{num_cases}' if num_cases > 1 else ''
      say(f'timing {repetition + 1}/{repetitions}{number}')
    seconds[key][case, repetition], result = run(key, case)
    if not repetition:
      results[key].append(result)
  return Times(seconds, results)


def seconds_of(
    call: Callable[[], Any], wait: Callable[[Any], Any] = jax.block_until_ready
) -> float:
  """Seconds from a call until `wait` returns, which is given the call's result."""
  started = time.perf_counter()
  wait(call())
  return time.perf_counter() - started
