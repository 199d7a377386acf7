"""Where a run puts `config.json`, `metrics.jsonl` and `report.html`, nothing half-written.

Files appear as a whole (`specjax.atomic`); a row of `metrics.jsonl` is one line, written at once
and flushed. Nothing is made before the first result, so that a run that is refused leaves neither
an empty folder nor an older result damaged.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
from typing import Any

import numpy as np

from experiments import claims
from experiments.runs import origin
from specjax import atomic
from specjax.sharding import processes

CONFIG, METRICS, REPORT = 'config.json', 'metrics.jsonl', 'report.html'
CALIBRATION, TRACES = 'calibration.json', 'traces.json'


@dataclasses.dataclass
class Workdir:
  """A run's folder.

  Attributes:
    path: the folder; it exists once something was written.
    config: what `config.json` will say, plain JSON values.
    resume: whether rows of an earlier run in this folder are kept and added to.
    writes: False in all processes but the first: they write nothing.
    models: digests of the models that its rows are about (`experiments.runs.origin`), or None.
  """

  path: pathlib.Path
  config: Any
  resume: bool = False
  writes: bool = True
  models: origin.Models | None = None
  _started: bool = dataclasses.field(default=False, repr=False)
  _claim: Any = dataclasses.field(default=None, repr=False, compare=False)

  def record(self, row: Mapping[str, Any]) -> None:
    """Appends a row and its `origin` to `metrics.jsonl`; on the disk's queue when this returns."""
    if not self.writes:
      return
    line = json.dumps(to_json(dict(row, origin=origin.of(self.models))), allow_nan=False) + '\n'
    self._start()
    with open(self.path / METRICS, 'a', encoding='utf-8') as file:
      file.write(line)
      file.flush()

  def write(self, name: str, text: str) -> pathlib.Path:
    """Writes a file as a whole or not at all; returns its path."""
    if not self.writes:
      return self.path / name
    self._start()
    path = self.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic.write(path, text)

  def write_json(self, name: str, value: Any) -> pathlib.Path:
    """As `write`, for anything that `to_json` takes."""
    return self.write(name, json.dumps(to_json(value), indent=2, allow_nan=False) + '\n')

  def claim(self) -> None:
    """Makes the folder and takes it for this process, before something else is written there.

    Raises:
      ValueError: if it belongs to a run that goes on.
    """
    if self.writes:
      self.path.mkdir(parents=True, exist_ok=True)
      self._claim = claims.claim(self.path)

  def _start(self) -> None:
    if self._started:
      return
    self.claim()
    metrics = self.path / METRICS
    if metrics.exists() and self.resume:
      # A kill may have left half a line, to which the next row must not be glued.
      whole = metrics.read_bytes()
      if not whole.endswith(b'\n'):
        atomic.write(metrics, whole[: whole.rfind(b'\n') + 1])
    else:
      # A report beside another run's rows would be taken for theirs.
      for name in (METRICS, REPORT):
        (self.path / name).unlink(missing_ok=True)
      shutil.rmtree(self.path / 'tensorboard', ignore_errors=True)
    self._started = True
    self.write_json(CONFIG, self.config)


def open_workdir(
    path: str | os.PathLike,
    config: Any,
    *,
    resume: bool = False,
    models: origin.Models | None = None,
) -> Workdir:
  """A folder for a run's results.

  Args:
    path: the folder; made, with its parents, at the first result.
    config: a ConfigDict, a dataclass or a dict; saved as `config.json` at the first result.
    resume: keep the rows of an earlier run there (training); otherwise they are removed
      when the first result of this one is written.
    models: gives digests of the models that rows are about, for their `origin`.

  Returns:
    The `Workdir`.

  Raises:
    ValueError: if no path is given, it is on remote storage or a file, or it cannot be written to.
  """
  if not str(path):
    raise ValueError('No workdir: say where results go with --workdir=DIR.')
  if scheme := re.match(r'([a-z][a-z0-9+.-]*)://', str(path)):
    raise ValueError(
        f'The workdir {path} is on remote storage ({scheme[1]}), which is not written to: give a '
        'local folder, and copy it when the run is over.'
    )
  path = pathlib.Path(path).expanduser()
  existing = path
  while not existing.exists():
    existing = existing.parent
  if not existing.is_dir():
    raise ValueError(f'The workdir {path} cannot be made: {existing} is a file, not a folder.')
  if not os.access(existing, os.W_OK):
    raise ValueError(f'The workdir {path} cannot be written: no permission in {existing}.')
  return Workdir(
      path=path, config=to_json(config), resume=resume, writes=processes.is_first(), models=models
  )


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The rows of a `metrics.jsonl`, or of the one in a folder; half a last line is left out.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if a whole line is not JSON.
  """
  path = pathlib.Path(path)
  path = path / METRICS if path.is_dir() else path
  if not path.exists():
    raise FileNotFoundError(f'There is no {path}: run an experiment with this --workdir first.')
  rows = []
  *lines, _ = path.read_text(encoding='utf-8-sig').split('\n')
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError as error:
      raise ValueError(f'{path}, line {number} is not JSON: {error}') from error
  return rows


def read_json(path: pathlib.Path) -> Any:
  """The value in a JSON file, or None where there is no file.

  Raises:
    ValueError: if it is not JSON.
  """
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding='utf-8-sig'))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path} is not JSON: {error}') from error


def to_json(value: Any) -> Any:
  """Plain JSON values of configs, dataclasses, arrays and containers of them.

  Numbers that JSON has no word for (NaN, infinities) become null; what has no JSON form at
  all becomes its text.
  """
  if hasattr(value, 'to_dict') and callable(value.to_dict):
    value = value.to_dict()
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
  if isinstance(value, Mapping):
    return {str(key): to_json(entry) for key, entry in value.items()}
  if isinstance(value, (list, tuple, set, frozenset)):
    return [to_json(entry) for entry in value]
  if isinstance(value, np.ndarray) or (hasattr(value, 'tolist') and hasattr(value, 'shape')):
    return to_json(np.asarray(value).tolist())
  if isinstance(value, (bool, int, str)) or value is None:
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  return str(value)
