"""Runs the steps of a validation: `python -m experiments.validate --minutes=30`.

Needs JAX, Flax and what else the library needs; configs and tables (`ml_collections`, `rich`) only
for `benchmark_zoo`. `scripts/validate_hardware.sh` says what the steps are.
"""

import os
import sys

from absl import app
from absl import flags

from experiments.validate import steps as steps_lib
from experiments.validate import switches as switches_lib

_MINUTES = flags.DEFINE_float('minutes', 30.0, 'For all steps together.', lower_bound=0.1)
_STEPS = flags.DEFINE_string('steps', '', "Which: '1-3', '4-', '2,5'; all by default.")
_OUT = flags.DEFINE_string('out', 'runs/hardware', 'Folder of the results, added to.')
_SMOKE = flags.DEFINE_bool('smoke', False, 'Tiny sizes, on any machine: numbers mean nothing.')
_CACHE = flags.DEFINE_string('cache', 'runs/validate_cache', 'Folder of compiled programs.')
for _name, _values in switches_lib.VALUES.items():
  flags.DEFINE_enum(_name, 'auto', ['auto', *_values], 'A value, or what the first run decides.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}; only flags are taken.')
  try:
    steps = steps_lib.chosen(_STEPS.value)
  except ValueError as error:
    raise app.UsageError(str(error)) from error
  passed = [f'--cache={os.path.abspath(_CACHE.value)}', f'--smoke={str(_SMOKE.value).lower()}']
  passed += [f'--{name}={flags.FLAGS[name].value}' for name in switches_lib.VALUES]
  fine = steps_lib.run(steps, _OUT.value, minutes=_MINUTES.value, arguments=passed)
  with open(os.path.join(_OUT.value, 'summary.md'), encoding='utf-8-sig') as summary:
    print(summary.read())
  sys.exit(0 if fine else 1)


if __name__ == '__main__':
  app.run(main)
