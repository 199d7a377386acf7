"""The steps of a validation: each a process of its own, within its share of the minutes.

A process by itself can be ended when its time is over or when it hangs, and a kernel that brings
down its process leaves the other steps as they are. What a step finds it writes itself
(`experiments.validate.results`), so nothing is lost with it.
"""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
import subprocess
import sys
import time

from experiments.validate import results as results_lib


@dataclasses.dataclass(frozen=True)
class Step:
  """One step.

  Attributes:
    number: from 1 on.
    name: what it finds out.
    module: whose `run(step)` does it, given an `experiments.validate.context.Context`.
    share: of the minutes; what an earlier step leaves over goes to the next one.
  """

  number: int
  name: str
  module: str
  share: float


# The most telling first, for a machine may be taken away at any time.
STEPS = (
    Step(1, 'devices, versions, bandwidth', 'experiments.validate.machine', 0.06),
    Step(2, 'acceptance', 'experiments.validate.acceptance', 0.14),
    Step(3, 'plain decoding of an 8B model', 'experiments.validate.plain', 0.32),
    Step(4, 'speculation on it', 'experiments.validate.speculation', 0.30),
    Step(5, 'the shipped pair', 'experiments.validate.zoo_pair', 0.18),
)


def chosen(text: str, steps: Sequence[Step] = STEPS) -> tuple[Step, ...]:
  """The steps that a text names: '', '2', '1-3', '4-', '-2', or several with commas.

  Raises:
    ValueError: for anything else, or a step that there is not.
  """
  first, last = steps[0].number, steps[-1].number
  numbers = set()
  for part in text.split(',') if text else ['-']:
    start, dash, end = part.partition('-')
    try:
      low = int(start or first)
      numbers |= set(range(low, (int(end or last) if dash else low) + 1))
    except ValueError:
      numbers.add(-1)
  if not numbers or not numbers <= {step.number for step in steps}:
    raise ValueError(
        f"Steps must be like '2', '1-3' or '4-', of {first} to {last}; got {text!r}."
    )
  return tuple(step for step in steps if step.number in numbers)


def run(
    steps: Sequence[Step],
    folder: str | os.PathLike,
    *,
    minutes: float,
    arguments: Sequence[str] = (),
) -> bool:
  """Runs steps one after the other.

  Args:
    steps: in order.
    folder: of the results; rows of an earlier call there are kept and added to.
    minutes: for all of them together.
    arguments: passed on to each process.

  Returns:
    Whether every step came to its end.
  """
  results = results_lib.Results(folder)
  told = f'{" ".join(sys.argv)} ({minutes:g} minutes)'
  numbers = ', '.join(str(step.number) for step in steps)
  results.add(f'run of steps {numbers}', says=told)
  started, used, total = time.monotonic(), 0.0, sum(step.share for step in steps)
  fine = True
  for step in steps:
    used += step.share
    seconds = started + 60 * minutes * used / total - time.monotonic()
    print(f'== step {step.number}: {step.name} (at most {seconds:.0f} s)', flush=True)
    failed = _run_one(step, pathlib.Path(folder), seconds, arguments)
    results.trim_log()
    fine = fine and not failed
    if failed:
      results_lib.Results(folder, step.number).add('the step', failed=failed)
  return fine


def _run_one(step: Step, folder: pathlib.Path, seconds: float, arguments) -> str:
  """What went wrong, or ''."""
  command = [
      sys.executable, '-m', 'experiments.validate.worker', f'--step={step.number}',
      f'--module={step.module}', f'--results={folder}', f'--seconds={seconds}',
      f'--parent={os.getpid()}', *arguments,
  ]
  with open(folder / results_lib.LOG, 'ab') as log:
    log.write(f'== step {step.number}: {step.name}\n'.encode())
    log.flush()
    process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
    try:
      code = process.wait(max(seconds, 1.0))
    except subprocess.TimeoutExpired:
      return f'its share of the time, {seconds:.0f} s, was over'
    finally:
      process.kill()
      process.wait()
  return f'its process ended with code {code}, see {results_lib.LOG}' if code else ''
