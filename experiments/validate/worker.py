"""One step in a process of its own; started by `experiments.validate.steps`."""

import importlib
import os
import pathlib
import sys
import threading
import time

from absl import app
from absl import flags

from experiments.validate import context as context_lib
from experiments.validate import results as results_lib
from experiments.validate import switches as switches_lib

_STEP = flags.DEFINE_integer('step', 0, 'Its number.')
_MODULE = flags.DEFINE_string('module', None, 'Whose run(step) does it.', required=True)
_RESULTS = flags.DEFINE_string('results', None, 'Folder of the results.', required=True)
_PARENT = flags.DEFINE_integer('parent', 0, 'The process that started it.')
_SECONDS = flags.DEFINE_float('seconds', 600.0, 'How long it may take.')
_SMOKE = flags.DEFINE_bool('smoke', False, 'Tiny sizes, on any machine: numbers mean nothing.')
_CACHE = flags.DEFINE_string('cache', 'runs/validate_cache', 'Folder of compiled programs.')
_SWITCHES = {
    name: flags.DEFINE_enum(name, 'auto', ['auto', *values], 'See switches.VALUES.')
    for name, values in switches_lib.VALUES.items()
}
# What is left for the last row and for the end of the process.
_RESERVE = 2.0


def _end_with(parent: int) -> None:
  """Ends this process when its parent is gone: an accelerator must not stay taken."""
  while os.getppid() == parent:
    time.sleep(1.0)
  os._exit(1)


def main(argv):
  del argv
  threading.Thread(target=_end_with, args=(_PARENT.value,), daemon=True).start()
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', _CACHE.value)
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
  step = context_lib.Context(
      results=results_lib.Results(_RESULTS.value, _STEP.value),
      clock=results_lib.Clock(_SECONDS.value - _RESERVE),
      smoke=_SMOKE.value,
      switches={
          name: None if flag.value == 'auto' else flag.value for name, flag in _SWITCHES.items()
      },
      # What a rehearsal decides is for rehearsals.
      decisions=pathlib.Path(_CACHE.value, 'smoke' if _SMOKE.value else ''),
  )
  module = importlib.import_module(_MODULE.value)
  rows = len(step.results.rows())
  step.attempt('the step', module.run, step)
  failed = [row for row in step.results.rows()[rows:] if 'failed' in row]
  sys.stdout.flush()
  sys.exit(1 if failed else 0)


if __name__ == '__main__':
  app.run(main)
