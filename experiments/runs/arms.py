"""Where the results of arms are kept: a file each, whole or not at all, named by what made it.

An arm's key is a digest of everything that its numbers depend on: its settings, the models'
files (of the hub's the id alone: `organisation/model@revision` names one for good), the prompt
file, the sources of the library and of one's own parts, the versions and the hardware. What another
machine or version gave is therefore another file, never read for this table, and a run that was
killed goes on with the arms whose files are missing.
"""

from collections.abc import Iterable, Mapping
import functools
import hashlib
import json
import pathlib
from typing import Any

import specjax
from experiments import workdir as workdir_lib
from experiments.runs import records as records_lib
from specjax.analysis import records

FOLDER = 'arms'

Result = Mapping[str, Any]


def is_done(result: Result | None) -> bool:
  """Whether an arm has numbers."""
  return result is not None and result['status'] == 'done'


@functools.cache
def environment() -> dict[str, Any]:
  """What numbers depend on beside the settings: versions, hardware, and the library's source."""
  return dict(
      versions=records.versions(), hardware=records.hardware(), source=source_digest()
  )


@functools.cache
def source_digest() -> str:
  """A digest of the library's own source: an edited rule is another version."""
  root = pathlib.Path(specjax.__file__).parent
  summed = hashlib.sha256()
  for path in sorted(root.rglob('*.py')):
    summed.update(str(path.relative_to(root)).encode() + b'\0' + path.read_bytes() + b'\0')
  return summed.hexdigest()[:16]


def digest(value: Any) -> str:
  """A short digest of JSON values, whatever the order of their keys."""
  text = json.dumps(workdir_lib.to_json(value), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def file_digest(name: str) -> str:
  """A digest of a file, or of a folder's files; of large ones at both ends."""
  path = pathlib.Path(name).expanduser()
  summed = hashlib.sha256()
  for file in sorted(path.rglob('*')) if path.is_dir() else [path]:
    if file.is_file():
      size = file.stat().st_size
      summed.update(f'{file.name} {size}'.encode())
      with open(file, 'rb') as content:
        summed.update(content.read(1 << 20))
        content.seek(max(size - (1 << 20), 0))
        summed.update(content.read(1 << 20))
  return summed.hexdigest()[:16]


class Store:
  """Results of arms in a workdir, by key."""

  def __init__(self, workdir: workdir_lib.Workdir):
    """Nothing is made before the first result."""
    self._workdir = workdir
    self._folder = workdir.path / FOLDER

  def load(self, arm: records_lib.Arm) -> dict[str, Any] | None:
    """The arm's result, or None where there is none.

    Raises:
      ValueError: if its file is not JSON.
    """
    path = self._folder / f'{arm.key}.json'
    try:
      return json.loads(path.read_text(encoding='utf-8-sig'))
    except FileNotFoundError:
      return None
    except json.JSONDecodeError as error:
      raise ValueError(
          f'{path} is not JSON ({error}), although results are written whole: remove it, and '
          'its arm is run again.'
      ) from error

  def save(self, arm: records_lib.Arm, result: Result) -> None:
    """Keeps a result, as a whole."""
    self._workdir.write_json(
        f'{FOLDER}/{arm.key}.json',
        dict(key=arm.key, arm=arm.fields, environment=environment()) | dict(result),
    )

  def count_others(self, arms: Iterable[records_lib.Arm]) -> int:
    """How many results lie here that belong to none of these arms."""
    keys = {arm.key for arm in arms}
    return sum(path.stem not in keys for path in self._folder.glob('[!.]*.json'))
