"""specjax beside transformers and llama.cpp: same weights, dtype, threads, K and prompts.

`python -m benchmarks.peers --config=configs/benchmark_peers.py` comes here. One engine
runs at a time; engines take turns in rounds, and the fastest round of each prompt counts.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
from typing import Any

import rich.console

from benchmarks.peers import hugging_face
from benchmarks.peers import llama_cpp
from benchmarks.peers import own
from benchmarks.peers import prompts as prompts_lib
from benchmarks.peers import rows as rows_lib
from benchmarks.peers import runs
from experiments import display
from experiments import workdir as workdir_lib
from specjax import models
from specjax import zoo
from specjax.analysis import timing

Say = Callable[[str], None]


def run(
    config, workdir: str, *, console: rich.console.Console | None = None
) -> list[dict[str, Any]]:
  """Runs every engine that is there; returns the rows, which are in the workdir too.

  Raises:
    ValueError: if the config cannot be run, or an engine fails.
    FileNotFoundError: if a pair or an interpreter is missing.
  """
  console = rich.console.Console() if console is None else console
  check(config)
  results = workdir_lib.open_workdir(workdir, config)
  found = []
  with restricted(config.peers.threads), console.status('…') as status:
    say = lambda line: status.update(line)
    for task in tasks(config):
      for dtype in config.peers.dtypes:
        found += _measure(config, task, dtype, say)
  for row in found:
    results.record(row)
  for pair, dtype in dict.fromkeys((row['pair'], row['dtype']) for row in found):
    shown = [row for row in found if (row['pair'], row['dtype']) == (pair, dtype)]
    title = f'{pair}, {dtype}'
    console.print(display.table([rows_lib.summary(row) for row in shown], title=title), '')
  for line in [*rows_lib.account(found), *absent(config), *differences(found)]:
    console.print(line, highlight=False, soft_wrap=True)
  console.print(f'Written to {results.path}.', highlight=False, soft_wrap=True)
  return found


def check(config) -> None:
  """Refuses what cannot be run, before anything is computed."""
  peers = config.peers
  for name in ('threads', 'rounds', 'max_ngram'):
    if peers[name] < 1:
      raise ValueError(f'config.peers.{name} must be at least 1, got {peers[name]}.')
  if config.num_speculative_tokens < 1:
    raise ValueError(
        f'config.num_speculative_tokens must be at least 1, got {config.num_speculative_tokens}.'
    )
  unknown = set(peers.dtypes) - {'float32', 'bfloat16'}
  if unknown or not peers.dtypes:
    raise ValueError(f"config.peers.dtypes holds 'bfloat16' and 'float32', not {peers.dtypes}.")
  if not peers.pair and not peers.zoo:
    raise ValueError(
        'There is nothing to run: give --config.peers.pair=FOLDER (scripts/make_peer_pair.py '
        'makes it), or set config.peers.zoo.'
    )
  if peers.pair and not (pathlib.Path(peers.pair).expanduser() / 'prompts.jsonl').is_file():
    raise FileNotFoundError(
        f'{peers.pair} holds no prompts.jsonl: make the pair with '
        f'`python -m scripts.make_peer_pair --folder={peers.pair}`.'
    )
  if peers.python and not os.access(peers.python, os.X_OK):
    raise FileNotFoundError(f'config.peers.python={peers.python} is not a program.')
  if peers.llama_cpp:
    llama_cpp.check(pathlib.Path(peers.llama_cpp).expanduser())


@contextlib.contextmanager
def restricted(threads: int) -> Iterator[None]:
  """Keeps this process and what it starts on `threads` cores, where there are more.

  XLA makes its threads when it first computes: what computed before keeps them.
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


def tasks(config) -> list[runs.Task]:
  """The pairs, with their prompts."""
  found = []
  common = dict(
      num_speculative_tokens=config.num_speculative_tokens,
      max_new_tokens=config.max_new_tokens,
      max_ngram=config.peers.max_ngram,
      threads=config.peers.threads,
  )
  count = config.num_prompts or None
  if config.peers.pair:
    folder = pathlib.Path(config.peers.pair).expanduser()
    prompts = prompts_lib.read(folder / 'prompts.jsonl')[:count]
    found.append(
        runs.Task(
            name=folder.name,
            target=folder / 'target',
            draft=folder / 'draft',
            tokenizer=models.load_tokenizer(folder / 'target'),
            prompts=tuple(prompt.tokens for prompt in prompts),
            **common,
        )
    )
  if config.peers.zoo:
    folder = pathlib.Path(zoo.__file__).parent / config.peers.zoo
    prompts = zoo.load(config.peers.zoo).prompts(count or 4, length=config.prompt_tokens)
    found.append(
        runs.Task(
            name=f'zoo: {config.peers.zoo}',
            target=folder / 'target',
            draft=folder / 'draft',
            tokenizer=models.load_tokenizer(folder),
            prompts=tuple(tuple(prompt) for prompt in prompts),
            **common,
        )
    )
  return found


def _measure(config, task: runs.Task, dtype: str, say: Say) -> list[dict[str, Any]]:
  """The rows of a task in one dtype."""
  peers = config.peers
  label = f'{task.name}, {dtype}'
  say(f'{label}: loading')
  engines = [own.Engine(task, dtype)]
  if peers.python:
    engines.append(hugging_face.Engine(task, dtype, python=peers.python))
  # A tokenizer.json alone is not converted: llama.cpp knows tokenizers by name.
  if peers.llama_cpp and (task.target / 'tokenizer.model').is_file():
    engines.append(
        llama_cpp.Engine(
            task,
            dtype,
            build=pathlib.Path(peers.llama_cpp).expanduser(),
            python=peers.python,
            cache_type=peers.llama_cpp_cache[dtype],
            flash_attention=peers.llama_cpp_flash_attention,
        )
    )
  found: dict[str, list[runs.Run]] = {engine.name: [] for engine in engines}
  for number, _, engine in timing.turns(engines, repetitions=peers.rounds):
    say(f'{label}: {engine.name}, round {number + 1} of {peers.rounds}')
    found[engine.name] += engine.run()
  measured = [
      rows_lib.Measured(each.name, each.versions, tuple(runs.fastest(found[each.name])))
      for each in engines
  ]
  return rows_lib.rows(task, dtype, measured)


def absent(config) -> list[str]:
  """What was not run, and what it takes."""
  lines = []
  if not config.peers.python:
    lines.append(
        'transformers was not run: give an interpreter that has it, --config.peers.python=FILE '
        '(benchmarks/peers/run_transformers.py says how to make one).'
    )
  if not config.peers.llama_cpp:
    lines.append(
        'llama.cpp was not run: give a build of it, --config.peers.llama_cpp=FOLDER '
        '(scripts/make_peer_pair.py says how to make one).'
    )
  elif not config.peers.pair:
    lines.append('llama.cpp was not run: it needs a pair made by scripts/make_peer_pair.py.')
  return lines


def differences(found: list[dict[str, Any]]) -> list[str]:
  """Where engines did not do the same work."""
  lines = []
  for row in found:
    where = f'{row["pair"]}, {row["dtype"]}, {row["name"]}'
    if row['equal_passes'] is False:
      own_row = next(
          r for r in found
          if r['engine'] == 'specjax'
          and all(r[key] == row[key] for key in ('pair', 'dtype', 'drafter'))
      )
      lines.append(
          f'{where}: target passes {row["target_passes_by_prompt"]} where specjax takes '
          f'{own_row["target_passes_by_prompt"]}.'
      )
    same = row['same_text_as_specjax']
    if same is not None and same < row['prompts']:
      lines.append(f'{where}: the text of specjax in {same} of {row["prompts"]} prompts.')
  return lines
