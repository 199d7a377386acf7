"""Where a validation keeps what it finds: on disk at once, in few files.

`rows.jsonl` has a line for each thing found, written out before the next one begins; `summary.md`
is the table made of them, written anew each time; `log.txt` is what programs said; `profiles.zip`
and `zoo.zip` hold what has many parts. Nothing here imports JAX.
"""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
import shutil
import time
from typing import Any
import zipfile

from experiments.validate import summary

ROWS, SUMMARY, LOG = 'rows.jsonl', 'summary.md', 'log.txt'
PROFILES, ZOO = 'profiles.zip', 'zoo.zip'
FILES = (ROWS, SUMMARY, LOG, PROFILES, ZOO)
# A borrowed machine may give back no more than some MiB per file, and a log can fill up.
_LARGEST_LOG = 4 << 20


class Results:
  """The folder of a run, as one step writes to it.

  Attributes:
    folder: the folder, made if missing.
    step: number of the step whose rows these are; 0 for the run itself.
  """

  def __init__(self, folder: str | os.PathLike, step: int = 0):
    self.folder, self.step = pathlib.Path(folder), step
    self.folder.mkdir(parents=True, exist_ok=True)

  def add(self, name: str, **fields: Any) -> dict[str, Any]:
    """Keeps a row; on disk when this returns, the summary too.

    Args:
      name: what was measured.
      **fields: plain values. `measured`, `predicted` and `unit` make the table, `goal` (a key of
        `summary.GOALS`) and `share` its goals, `skipped` and `failed` its list of what is missing.

    Returns:
      The row.
    """
    row = dict(step=self.step, name=name, at=round(time.time(), 1)) | fields
    self._end_line()
    with open(self.folder / ROWS, 'a', encoding='utf-8') as file:
      file.write(json.dumps(row, default=_plain) + '\n')
      file.flush()
      os.fsync(file.fileno())
    self.summarise()
    return row

  def skip(self, name: str, reason: str) -> None:
    """Keeps that something was not done, and why."""
    self.add(name, skipped=reason)

  def rows(self) -> list[dict[str, Any]]:
    """All rows so far, of every step; half a line that a kill left is passed over."""
    path = self.folder / ROWS
    lines = path.read_text(encoding='utf-8-sig').splitlines() if path.exists() else []
    found = []
    for line in lines:
      try:
        found.append(json.loads(line))
      except json.JSONDecodeError:
        continue
    return found

  def summarise(self) -> None:
    """Writes the table of all rows, as a whole.

    Not by `specjax.atomic`: the process that starts the steps does this too, and it imports no JAX.
    """
    beside = self.folder / f'.{SUMMARY}'
    beside.write_text(summary.table(self.rows()), encoding='utf-8')
    os.replace(beside, self.folder / SUMMARY)

  def pack(self, archive: str, files: Mapping[str, pathlib.Path | str]) -> None:
    """Adds files, or texts, to `profiles.zip` or `zoo.zip`; both the old and the new are whole."""
    from specjax import atomic  # imports JAX, which only a step does

    path = self.folder / archive
    with atomic.replacing(path) as (temporary,):
      if path.exists():
        shutil.copyfile(path, temporary)
      with zipfile.ZipFile(temporary, 'a', zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
          if isinstance(content, pathlib.Path):
            packed.write(content, name)
          else:
            packed.writestr(name, content)

  def trim_log(self) -> None:
    """Keeps the last part of a log that grew too large."""
    path = self.folder / LOG
    if path.exists() and path.stat().st_size > _LARGEST_LOG:
      path.write_bytes(path.read_bytes()[-_LARGEST_LOG // 4 :])

  def _end_line(self) -> None:
    """Ends a line that a kill cut off, so that the next row is not glued to it."""
    path = self.folder / ROWS
    if path.exists() and not path.read_bytes().endswith(b'\n'):
      if path.stat().st_size:
        with open(path, 'a', encoding='utf-8') as file:
          file.write('\n')


class Clock:
  """Seconds that a step may still take."""

  def __init__(self, seconds: float):
    self._end = time.monotonic() + seconds
    self._longest = 0.0

  def left(self) -> float:
    """Seconds left; negative when over."""
    return self._end - time.monotonic()

  def allows(self, items: Sequence[Any]):
    """Yields items while there is time for one as long as the longest so far."""
    for item in items:
      if self.left() < self._longest:
        return
      started = time.monotonic()
      yield item
      self._longest = max(self._longest, time.monotonic() - started)


def _plain(value: Any) -> Any:
  """JSON of numpy's and JAX's values; the text of anything else."""
  return value.tolist() if hasattr(value, 'tolist') else str(value)
