"""A sweep of 24 arms on the tiny pair, as a program of its own: something to kill.

    python -m tests.support.sweep_of_24 WORKDIR
"""

import sys

import ml_collections
import rich.console

from configs import sweeps
from experiments import ablate
from experiments.build import targets
from experiments.sweep import param, prod
from tests.support import tiny_pair


def config() -> ml_collections.ConfigDict:
  """Two programs a rule and K: temperature and seed change no shape."""
  made = sweeps.get_config('rule,smoke')
  made.arms = prod(
      param('rule.name', 'rejection', 'block'),
      param('drafter.num_speculative_tokens', 1, 2),
      param('sampling.temperature', 0.3, 0.5, 0.8),
      param('seed', 0, 1),
  )
  made.dtype, made.num_prompts, made.cache_length, made.batch_size = 'float32', 4, 48, 2
  made.calibration.enabled = False
  return made


def run(workdir: str) -> list[dict]:
  """Runs what is missing of it."""
  targets.load = lambda settings: tiny_pair.loaded()
  return ablate.run(config(), workdir, console=rich.console.Console(width=120))


if __name__ == '__main__':
  run(*sys.argv[1:])
