"""specjax beside transformers and llama.cpp: same weights, dtype, threads, K and prompts.

    python -m benchmarks.peers --config=configs/benchmark_peers.py --workdir=runs/benchmark_peers

One engine runs at a time; engines take turns in rounds, and the fastest round of each prompt
counts.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
from typing import Any

import rich.console

from benchmarks.peers import hugging_face
from benchmarks.peers import llama_cpp
from benchmarks.peers import own
from benchmarks.peers import rows as rows_lib
from benchmarks.peers import runs
from benchmarks.peers import settings as settings_lib
from experiments import display
from experiments import workdir as workdir_lib
from specjax.analysis import timing


def run(
    config, workdir: str, *, console: rich.console.Console | None = None
) -> list[dict[str, Any]]:
  """Runs every engine that is there; returns the rows, which are in the workdir too.

  Raises:
    ValueError: if the config cannot be run, or an engine fails.
    FileNotFoundError: if a pair or an interpreter is missing.
  """
  console = rich.console.Console() if console is None else console
  settings = settings_lib.from_config(config)
  results = workdir_lib.open_workdir(workdir, config)
  rows = []
  with restricted(settings.threads), console.status('…') as status:
    for task in settings_lib.tasks(settings):
      for dtype in settings.dtypes:
        rows += _measure(settings, task, dtype, status.update)
  for row in rows:
    results.record(row)
  for title, group in rows_lib.groups(rows):
    console.print(display.table([rows_lib.summary(row) for row in group], title=title), '')
  lines = [*rows_lib.account(rows), *settings_lib.absent(settings), *rows_lib.differences(rows)]
  for line in [*lines, f'Written to {results.path}.']:
    console.print(line, highlight=False, soft_wrap=True)
  return rows


@contextlib.contextmanager
def restricted(threads: int) -> Iterator[None]:
  """Keeps this process and what it starts on `threads` cores, where there are more.

  XLA makes its threads when it first computes: what has computed before keeps them.
  """
  if not hasattr(os, 'sched_setaffinity'):  # not on macOS
    yield
    return
  cores = os.sched_getaffinity(0)
  if len(cores) < threads:
    raise ValueError(
        f'config.peers.threads is {threads}, but this process may use {len(cores)} cores only.'
    )
  os.sched_setaffinity(0, sorted(cores)[:threads])
  try:
    yield
  finally:
    os.sched_setaffinity(0, cores)


def _measure(
    settings: settings_lib.Settings, task: runs.Task, dtype: str, show: Callable[[str], None]
) -> list[dict[str, Any]]:
  """The rows of a task in one dtype; `show` is told what is being done."""
  show(f'{task.name}, {dtype}: loading')
  engines = [own.Engine(task, dtype)]
  if settings.python:
    engines.append(hugging_face.Engine(task, dtype, python=settings.python))
  # A tokenizer.json alone is not converted: llama.cpp knows tokenizers by name. That of a published
  # model it may know, or its script says that it does not.
  is_known = task.target == settings.model or (task.target / 'tokenizer.model').is_file()
  if settings.llama_cpp and is_known:
    engines.append(llama_cpp.Engine(
        task, dtype, build=settings.llama_cpp, python=settings.python,
        cache_type=settings.llama_cpp_cache[dtype],
        flash_attention=settings.llama_cpp_flash_attention,
    ))
  rounds: dict[str, list[runs.Run]] = {engine.name: [] for engine in engines}
  for number, _, engine in timing.turns(engines, repetitions=settings.rounds):
    show(f'{task.name}, {dtype}: {engine.name}, round {number + 1} of {settings.rounds}')
    rounds[engine.name] += engine.run()
  return rows_lib.rows(task, dtype, [
      rows_lib.Measured(engine.name, engine.versions, tuple(runs.fastest(rounds[engine.name])))
      for engine in engines
  ])
