"""Writes files and folders so that they appear complete or not at all."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil
import tempfile


@contextlib.contextmanager
def replacing(*paths: str | os.PathLike) -> Iterator[tuple[pathlib.Path, ...]]:
  """Gives temporary paths to write to; when the block ends, what is there takes its place.

  A temporary path has the name of the one that it stands for, in a hidden folder beside it, so
  that a writer that looks at the suffix is content. When the block ends, everything is flushed to
  the disk before the first rename; the renames come in the order of the paths. When it raises,
  what it wrote is removed, and what stood at the paths stays as it was.

  Args:
    *paths: of files or folders, each in a folder that exists. A file is replaced; in the place
      of a folder there may be an empty one or none.

  Yields:
    The temporary paths, where nothing is yet.

  Raises:
    FileNotFoundError: if the block did not write one of them; nothing is renamed then.
    OSError: if one cannot be written, flushed or renamed.
  """
  with contextlib.ExitStack() as stack:
    temporary = []
    for path in map(pathlib.Path, paths):
      # In a folder of its own, the content is made with the permissions that the user wants.
      hidden = tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent)
      stack.callback(shutil.rmtree, hidden, ignore_errors=True)
      temporary.append(pathlib.Path(hidden) / path.name)
    yield tuple(temporary)
    for each in temporary:
      _flush(each)
    for each, path in zip(temporary, paths):
      os.replace(each, path)


def write(path: str | os.PathLike, content: str | bytes) -> pathlib.Path:
  """Writes a file, text as UTF-8, and returns its path.

  Raises:
    OSError: if it cannot be written; an older file is then as it was.
  """
  with replacing(path) as (temporary,):
    temporary.write_bytes(content.encode('utf-8') if isinstance(content, str) else content)
  return pathlib.Path(path)


def _flush(path: pathlib.Path) -> None:
  """Waits until a file, or every file in a folder, is on the disk."""
  for file in [each for each in path.rglob('*') if each.is_file()] if path.is_dir() else [path]:
    with file.open('rb') as opened:
      os.fsync(opened.fileno())
