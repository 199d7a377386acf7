"""One step in a process of its own; started by `experiments.validate.steps`."""

import dataclasses
import importlib
import os
import pathlib
import sys
import threading
import time
import traceback

from absl import app
from absl import flags

from experiments.validate import results as results_lib
from experiments.validate import switches as switches_lib

_STEP = flags.DEFINE_integer('step', 0, 'Its number.')
_MODULE = flags.DEFINE_string('module', None, 'Whose run(step) does it.', required=True)
_OUT = flags.DEFINE_string('out', None, 'Folder of the results.', required=True)
_SECONDS = flags.DEFINE_float('seconds', 600.0, 'How long it may take.')
_SMOKE = flags.DEFINE_bool('smoke', False, 'Tiny sizes, on any machine: numbers mean nothing.')
_CACHE = flags.DEFINE_string('cache', 'runs/validate_cache', 'Folder of compiled programs.')
_SWITCHES = {
    name: flags.DEFINE_enum(name, 'auto', ['auto', *values], f'See switches.{name.upper()}.')
    for name, values in switches_lib.VALUES.items()
}
# What is left for the last row and for the end of the process.
_RESERVE = 2.0


@dataclasses.dataclass(frozen=True)
class Context:
  """What a step is given.

  Attributes:
    results: where its rows go.
    clock: how long it may take.
    smoke: whether sizes are tiny.
    switches: what was asked for; None for what the first run decides.
    cache: folder of compiled programs, where decisions lie too.
  """

  results: results_lib.Results
  clock: results_lib.Clock
  smoke: bool
  switches: dict[str, str | None]
  cache: pathlib.Path

  def attempt(self, name: str, call, *args, **kwargs):
    """What `call` gives; None where it fails, which becomes a row and ends nothing else."""
    try:
      return call(*args, **kwargs)
    except Exception as error:
      traceback.print_exc()
      told = f'{type(error).__name__}: {str(error).strip()[:300]}'
      self.results.add(name, failed=told.replace('\n', ' '))
      return None


def has(*packages: str) -> list[str]:
  """Those of the packages that cannot be imported."""
  missing = []
  for package in packages:
    try:
      importlib.import_module(package)
    except ImportError:
      missing.append(package)
  return missing


def _end_with(parent: int) -> None:
  """Ends this process when its parent is gone: an accelerator must not stay taken."""
  while os.getppid() == parent:
    time.sleep(1.0)
  os._exit(1)


def main(argv):
  del argv
  threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
  cache = pathlib.Path(os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', _CACHE.value))
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
  step = Context(
      results=results_lib.Results(_OUT.value, _STEP.value),
      clock=results_lib.Clock(_SECONDS.value - _RESERVE),
      smoke=_SMOKE.value,
      switches={
          name: None if flag.value == 'auto' else flag.value for name, flag in _SWITCHES.items()
      },
      cache=cache,
  )
  module = importlib.import_module(_MODULE.value)
  rows = len(step.results.rows())
  step.attempt('the step', module.run, step)
  failed = [row for row in step.results.rows()[rows:] if 'failed' in row]
  sys.stdout.flush()
  sys.exit(1 if failed else 0)


if __name__ == '__main__':
  app.run(main)
