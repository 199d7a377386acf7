"""One run per workdir: a lock that ends with the process that holds it.

The lock is the operating system's, on the hidden file `.claim` in the workdir, and so holds on one
machine and on file systems that several machines lock together (NFS from version 4 on, Lustre with
`flock`). The file itself means nothing.
"""

import pathlib
import weakref

import filelock

_FILE = '.claim'
# A lock knows nothing of processes but of open files: a process takes each of them once.
_mine: weakref.WeakValueDictionary[pathlib.Path, filelock.FileLock] = weakref.WeakValueDictionary()


def claim(folder: pathlib.Path) -> filelock.FileLock | None:
  """Takes a workdir, which exists, for this process, which may have it already.

  Returns:
    The lock, which holds for as long as somebody has it; None on a file system without locks.

  Raises:
    ValueError: if another process has it.
  """
  key = folder.resolve()
  if (lock := _mine.get(key)) is not None:
    return lock
  lock = filelock.FileLock(key / _FILE, timeout=0)
  try:
    lock.acquire()
  except filelock.Timeout:
    raise ValueError(
        f'{folder} is the workdir of another process, which goes on. Give another --workdir, or '
        'wait until it is over. Tasks that are to be one run must know of each other: see what '
        '--coordinator_address says.'
    ) from None
  except (OSError, NotImplementedError):
    return None
  _mine[key] = lock
  return lock
