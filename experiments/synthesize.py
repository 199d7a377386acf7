"""Lets an instruct model write its own training chats: a question it asks itself, and its answer.

    python -m experiments.synthesize --config=configs/synthesize.py --config.target.path=FOLDER \
        --workdir=runs/chats
    python -m experiments.train --config=configs/train_eagle3.py --config.target.path=FOLDER \
        --config.corpus.chats=runs/chats/chats.jsonl --workdir=runs/head

Stop it at any time and start it again with the same command: it goes on after its last whole
shard, to the same bytes. The workdir holds `shards/`, `metrics.jsonl` (a row per shard) and, at the
end, `chats.jsonl` with `README.md`, which says what was made and how.
"""

import functools
import pathlib

import rich.console

from experiments import build
from experiments import cli
from experiments import workdir as workdir_lib
from experiments.runs import synthesis


def run(config, workdir: str, *, console: rich.console.Console | None = None) -> pathlib.Path:
  """Writes chats as `config` describes; returns the file.

  Raises:
    ValueError: if the config does not fit together, the target has no chat template, or the
      workdir holds other chats.
    FileNotFoundError: if the target or a file is missing.
  """
  console = rich.console.Console() if console is None else console
  results = workdir_lib.open_workdir(
      workdir, config, resume=True, models=functools.partial(build.digests, config)
  )
  return synthesis.run(build.synthesis(config), results, console)


if __name__ == '__main__':
  cli.main(run)
