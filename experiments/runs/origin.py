"""Where numbers come from: commit, command, day, device, and the files of the models.

Every row of `metrics.jsonl` has this as its `origin`, and so has every file in `arms/`, for a sweep
may go on days later, at another commit, and its rows may be copied elsewhere.
"""

from collections.abc import Callable, Iterable, Mapping
import datetime
import functools
import pathlib
import shlex
import subprocess
import sys
from typing import Any

from specjax.analysis import records

Origin = dict[str, Any]
# What models are made of, by what they are for: 'target', 'drafter'.
Models = Callable[[], Mapping[str, str | None]]

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SHORT = 8


def of(models: Models | None = None) -> Origin:
  """What a row that is written now has as its `origin`.

  Args:
    models: gives digests of the models' files, by what they are for.

  Returns:
    A dict of `commit` of this checkout, or None where it is none; `dirty`, whether a tracked file
    was another one than in that commit; `command`; `date`, in ISO 8601; `device`; and `models`.
  """
  commit, dirty = _checkout()
  return dict(
      commit=commit,
      dirty=dirty,
      command=_command(),
      date=datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
      device=records.hardware()['device'],
      models=dict(models()) if models else {},
  )


@functools.cache
def _checkout() -> tuple[str | None, bool | None]:
  """Commit and whether files differ from it, as they were when the first row was written."""
  # Installed among other packages, the folder may lie in a repository that is not this one.
  if not (_ROOT / '.git').exists():
    return None, None
  commit, changes = _git('rev-parse', 'HEAD'), _git('status', '--porcelain', '-uno')
  return commit, None if changes is None else bool(changes)


def _git(*arguments: str) -> str | None:
  """What git says, or None where it does not."""
  try:
    done = subprocess.run(
        ['git', '-C', str(_ROOT), *arguments], capture_output=True, text=True, timeout=30
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return None if done.returncode else done.stdout.strip()


def _command() -> str:
  """What this process was started with; where its Python lies says nothing to others."""
  _, *arguments = sys.orig_argv or ['']
  return shlex.join(['python', *arguments])


def commits(rows: Iterable[Mapping[str, Any]]) -> list[str]:
  """The commits that rows come from, in short and in their order, '+' where files differed.

  >>> commits([dict(origin=dict(commit='0123456789', dirty=True)), dict(origin=None)])
  ['01234567+']
  """
  origins = [row.get('origin') or {} for row in rows]
  return list(dict.fromkeys(
      each['commit'][:_SHORT] + ('+' if each['dirty'] else '')
      for each in origins if each.get('commit')
  ))
