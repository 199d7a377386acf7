"""Trains a target, distils a draft from one, or trains heads on one, and saves the result.

    python -m experiments.train --config=configs/zoo_target.py --workdir=runs/zoo_target
    python -m experiments.train --config=configs/train_eagle3_zoo.py --workdir=runs/zoo_eagle3

Stop it at any time and start it again with the same command: it goes on from its newest
checkpoint to the same losses. The workdir holds `corpus/`, `checkpoints/`, `config.json`,
`metrics.jsonl` (the loss curve) and, at the end, `model/` with `training.json`. Heads may
read stored features of the target (`features/`, whose size is said first).
"""

import functools
import pathlib

import rich.console

from experiments import build
from experiments import cli
from experiments import workdir as workdir_lib
from experiments.runs import training


def run(config, workdir: str, *, console: rich.console.Console | None = None) -> pathlib.Path:
  """Trains as `config` describes; returns the folder of the finished model.

  Raises:
    ValueError: if the config does not fit together, or not the run that `workdir` holds.
    FileNotFoundError: if the target or a tokenizer is missing.
    FloatingPointError: if the loss is not finite any more.
  """
  console = rich.console.Console() if console is None else console
  results = workdir_lib.open_workdir(
      workdir, config, resume=True, models=functools.partial(build.digests, config)
  )
  return training.run(build.training(config), results, console)


if __name__ == '__main__':
  cli.main(run)
