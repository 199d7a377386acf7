"""One run per workdir: a lock that ends with the process that holds it.

The lock is the operating system's, on a hidden file in the workdir, and so holds on one machine and
on file systems that several machines lock together (NFS from version 4 on, Lustre with `flock`).
The file says who has it, and goes when the run is over; what a killed run leaves means nothing.
"""

import json
import os
import pathlib
import socket
import time
import weakref

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

_FILE = '.claim'


class Claim:
  """A workdir that is this process's for as long as this object lives."""

  def __init__(self, path: pathlib.Path, descriptor: int | None):
    self._path, self._descriptor = path, descriptor

  def __del__(self):
    if self._descriptor is not None:
      self._path.unlink(missing_ok=True)
      os.close(self._descriptor)


# A lock knows nothing of processes but of open files: a process takes each of them once.
_mine: weakref.WeakValueDictionary[pathlib.Path, Claim] = weakref.WeakValueDictionary()


def claim(folder: pathlib.Path) -> Claim:
  """Takes a workdir, which exists, for this process, which may have it already.

  Raises:
    ValueError: if another process has it.
  """
  key = folder.resolve()
  mine = _mine.get(key)
  if mine is None:
    mine = _mine[key] = Claim(key / _FILE, _lock(folder))
  return mine


def _lock(folder: pathlib.Path) -> int | None:
  """The descriptor of the locked file; None where there are no locks."""
  if fcntl is None:
    return None
  path = folder / _FILE
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = os.read(descriptor, 1 << 16)
      os.close(descriptor)
      raise ValueError(_refusal(folder, holder)) from None
    except OSError:  # a file system without locks
      os.close(descriptor)
      return None
    # One that ended in between has taken this file away.
    if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
      break
    os.close(descriptor)
  about = dict(
      process=os.getpid(), host=socket.gethostname(), since=time.strftime('%Y-%m-%d %H:%M:%S')
  )
  os.ftruncate(descriptor, 0)
  os.write(descriptor, json.dumps(about).encode())
  return descriptor


def _refusal(folder: pathlib.Path, holder: bytes) -> str:
  try:
    run = json.loads(holder)
    who = f'process {run["process"]} on {run["host"]}, since {run["since"]}'
  except (ValueError, KeyError):
    who = 'another process'
  return (
      f'{folder} is the workdir of a run that goes on ({who}). Give another --workdir, or wait '
      'until that run is over. Tasks that are to be one run must know of each other: see what '
      '--coordinator_address says.'
  )
