"""Where the rows of a training run go while it runs, besides `metrics.jsonl`: one writer for all.

TensorBoard's event files are always written. `config.tracking` names what else: `wandb` (Weights &
Biases) or `trackio`, which have the same interface and must be installed; both with commas. Only
the first process writes.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import importlib
import importlib.util
from typing import Any

from experiments import workdir as workdir_lib
from experiments.report import tensorboard

Row = Mapping[str, Any]

SERVICES = ('wandb', 'trackio')
_PROJECT = 'specjax'


def check(names: str) -> tuple[str, ...]:
  """The services of `config.tracking`.

  Raises:
    ValueError: for one that is not known or not installed.
  """
  chosen = tuple(name.strip() for name in names.split(',') if name.strip())
  for name in chosen:
    if name not in SERVICES:
      raise ValueError(
          f'config.tracking takes {" and ".join(SERVICES)}, with a comma between them; got '
          f'{name!r}.'
      )
    if importlib.util.find_spec(name) is None:
      raise ValueError(
          f'config.tracking={names!r}: {name} is not installed. Run `pip install {name}`, or leave '
          'it out; TensorBoard\'s files are written without it.'
      )
  return chosen


@contextlib.contextmanager
def tracker(workdir: workdir_lib.Workdir, *, name: str, services: Sequence[str]) -> Iterator:
  """Opens everything that follows a run, and closes it at the end.

  Args:
    workdir: of the run; rows that are there already go into TensorBoard's files.
    name: of the run.
    services: of `check`.

  Yields:
    A function that takes each row as it comes, of `metrics.jsonl`.
  """
  if not workdir.writes:
    yield lambda row: None
    return
  metrics = workdir.path / workdir_lib.METRICS
  live = tensorboard.Live(
      workdir.path, workdir_lib.read_rows(workdir.path) if metrics.exists() else []
  )
  runs = []
  for each in services:
    module = importlib.import_module(each)
    module.init(project=_PROJECT, name=name, config=workdir.config)
    runs.append(module)

  def add(row: Row) -> None:
    live.add(row)
    numbers = {f'{kind}/{tag}': value for kind, tag, _, value in tensorboard.points([row])}
    for run in runs:
      run.log(numbers, step=row['step'])

  try:
    yield add
  finally:
    live.close()
    # A report that was made meanwhile has taken the place of what was being written.
    if metrics.exists():
      tensorboard.write(workdir.path, workdir_lib.read_rows(workdir.path))
    for run in runs:
      run.finish()
