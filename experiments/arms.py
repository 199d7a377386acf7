"""Where the arms of a sweep are kept: a file each, whole or not at all, named by what made it.

An arm's key is a digest of everything that its numbers depend on: its settings, the models'
files, the prompt file, the library's source, the versions and the hardware. What another
machine or version found is therefore another file, never read for this table, and a sweep
that was killed goes on with the arms whose files are missing.
"""

from collections.abc import Iterable
import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import ml_collections

import specjax
from experiments import sweep as sweep_lib
from experiments import workdir as workdir_lib
from specjax.analysis import records

FOLDER = 'arms'

# Fields of a sweep's config that no number of an arm depends on.
_SWEEP_ONLY = (
    'arms', 'baseline', 'calibration', 'name', 'question', 'retry_failed', 'title', 'x',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Arm:
  """One arm of a sweep.

  Attributes:
    key: digest of all that its numbers depend on.
    fields: what it changes in the config.
    settings: the config with that.
  """

  key: str
  fields: sweep_lib.Arm
  settings: ml_collections.ConfigDict

  @property
  def label(self) -> str:
    return sweep_lib.label(self.fields)


def arms_of(config: ml_collections.ConfigDict) -> list[Arm]:
  """The arms of `config.arms`, in order.

  Raises:
    ValueError: without an arm, for a field that does not exist, or two equal arms.
  """
  if not config.arms:
    raise ValueError('config.arms is empty: a sweep needs at least one arm.')
  found = {}
  for fields in config.arms:
    fields = tuple((field, value) for field, value in fields)
    settings = sweep_lib.apply(config, fields)
    values = {k: v for k, v in settings.to_dict().items() if k not in _SWEEP_ONLY}
    files = _files(settings)
    key = digest(dict(settings=values, environment=environment(), files=files))
    if key in found:
      raise ValueError(f'Two arms are the same: {sweep_lib.label(fields)}.')
    found[key] = Arm(key, fields, settings)
  return list(found.values())


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


def _files(settings: ml_collections.ConfigDict) -> list[list[Any]]:
  """Digests of the files that the settings name; a model's large ones at both ends."""
  paths = [settings.prompt_file, settings.target.path, settings.drafter.path]
  return [[path, _file_digest(path)] for path in paths if path and path != '-']


@functools.lru_cache(maxsize=256)
def _file_digest(name: str) -> str:
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

  def load(self, arm: Arm) -> dict[str, Any] | None:
    """The arm's result, or None where there is none."""
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

  def save(self, arm: Arm, result: dict[str, Any]) -> None:
    """Keeps a result, as a whole."""
    self._workdir.write_json(
        f'{FOLDER}/{arm.key}.json',
        dict(key=arm.key, arm=arm.fields, environment=environment()) | result,
    )

  def others(self, arms: Iterable[Arm]) -> int:
    """How many results lie here that belong to none of these arms."""
    keys = {arm.key for arm in arms}
    return sum(path.stem not in keys for path in self._folder.glob('[!.]*.json'))
