"""A run's `metrics.jsonl` as event files, which TensorBoard reads.

    python -m experiments.report --workdir=DIR && tensorboard --logdir=DIR/tensorboard

A training run writes them while it goes on. Training becomes a run for each kind of row (`train`,
`held_out`) with a curve for each number over steps; a sweep a run for each line of its plots,
over the field that it goes along; methods a run each, over K.
"""

from collections.abc import Mapping, Sequence
import pathlib
import re
import shutil
from typing import Any

import tensorboardX

from experiments import sweep as sweep_lib
from specjax import atomic

FOLDER = 'tensorboard'
_FLUSH_SECONDS = 5

# What is worth a curve of a method or an arm.
_NUMBERS = (
    'mean_acceptance_length', 'expected_tokens_per_round', 'draft_acceptance_rate',
    'tokens_per_second', 'speedup', 'predicted_speedup', 'gain',
)  # fmt: skip

Row = Mapping[str, Any]
Point = tuple[str, str, int, float]  # run, tag, step, value


def write(folder: pathlib.Path, rows: Sequence[Row], *, x: str = '') -> pathlib.Path:
  """Writes the event files of rows, in the place of those that are there; none without a point.

  Args:
    folder: the run's workdir.
    rows: of `metrics.jsonl`.
    x: the field that a sweep goes along, or ''.

  Returns:
    The folder for `tensorboard --logdir`.
  """
  place = folder / FOLDER
  curves = points(rows, x=x)
  if not curves:
    shutil.rmtree(place, ignore_errors=True)
    return place
  writers: dict[str, tensorboardX.SummaryWriter] = {}
  with atomic.replacing(place) as (temporary,):
    temporary.mkdir()
    for run, tag, step, value in curves:
      if run not in writers:
        writers[run] = tensorboardX.SummaryWriter(str(temporary / run))
      writers[run].add_scalar(tag, value, step)
    for writer in writers.values():
      writer.close()
    shutil.rmtree(place, ignore_errors=True)
  return place


class Live:
  """Event files that grow while a run goes on, from what it has written before on."""

  def __init__(self, folder: pathlib.Path, rows: Sequence[Row]):
    self._place = write(folder, rows)
    self._writers: dict[str, tensorboardX.SummaryWriter] = {}

  def add(self, row: Row) -> None:
    """Adds the points of a row; TensorBoard sees them within seconds."""
    for run, tag, step, value in points([row]):
      if run not in self._writers:
        place = str(self._place / run)
        # Files are named by the second: one of `write` may be as old.
        self._writers[run] = tensorboardX.SummaryWriter(
            place, flush_secs=_FLUSH_SECONDS, filename_suffix='.live'
        )
      self._writers[run].add_scalar(tag, value, step)

  def close(self) -> None:
    """Writes what is left."""
    for writer in self._writers.values():
      writer.close()


def points(rows: Sequence[Row], *, x: str = '') -> list[Point]:
  """All points of the curves of rows."""
  curves: list[Point] = []
  values = list(dict.fromkeys(row['fields'][x] for row in rows if x in row.get('fields', {})))
  for row in rows:
    if 'step' in row:
      run, step = _file_name(str(row.get('kind', 'train'))), int(row['step'])
      numbers = {k: v for k, v in row.items() if k not in ('name', 'kind', 'step')}
    elif 'tokens_per_second' in row:
      run, step = _place(row, x, values)
      numbers = {name: row.get(name) for name in _NUMBERS}
    else:
      continue
    curves += [
        (run, tag, step, float(value))
        for tag, value in numbers.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
  return curves


def _place(row: Row, x: str, values: Sequence[Any]) -> tuple[str, int]:
  """The run of a method or an arm, and where in it: TensorBoard's steps are integers."""
  if x not in row.get('fields', {}):
    name = f'{row["name"]} {row["rule"]} T={row["temperature"]:g}'
    return _file_name(name), row['num_speculative_tokens']
  rest = sweep_lib.label([pair for pair in row['fields'].items() if pair[0] != x])
  value = row['fields'][x]
  return _file_name(rest or 'sweep'), value if isinstance(value, int) else values.index(value)


def _file_name(name: str) -> str:
  return re.sub(r'[^\w.=+-]+', '_', name)
