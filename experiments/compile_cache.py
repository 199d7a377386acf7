"""Compiled programs kept on disk: the same command starts sooner the second time.

Programs lie in a folder for each version of JAX and each kind of machine, for what was compiled on
another processor may use instructions that this one lacks. JAX writes and reads in a folder of this
process alone, in which the programs that are there are linked; what it adds is linked to the others
when the process ends. So no process ever sees half a program of another, and what a killed one
leaves is taken over by the next, but for the file that it may have been writing.
"""

import atexit
import contextlib
import hashlib
import os
import pathlib
import platform
import shutil
import uuid

import filelock
import jax
import jaxlib

from specjax.analysis import records
from specjax.zoo import fetched

OFF = 'off'

# Beyond so many, the oldest programs are removed.
_MOST_BYTES = 4 << 30
# How JAX calls the file of a program.
_PROGRAMS = '*-cache'
# Of the processes that run, a folder each, with a lock beside it that ends with its process.
_RUNNING = '.running'


def start(chosen: str = '', *, several: bool = False) -> str:
  """Has JAX keep compiled programs from now on.

  Args:
    chosen: a folder; `OFF`; '' for the folder that JAX was told to use
      (`JAX_COMPILATION_CACHE_DIR`), or else `compiled` in the user's cache folder of specjax.
    several: whether several processes run this program. They keep nothing unless a folder is
      named: one that finds a program must not go on while the others compile it together.

  Returns:
    A line that says where programs are kept, or why they are not; '' where the user knows.

  Raises:
    OSError: if the folder that was named cannot be written to.
  """
  if chosen == OFF:
    jax.config.update('jax_enable_compilation_cache', False)
    return ''
  told = jax.config.jax_compilation_cache_dir
  if not jax.config.jax_enable_compilation_cache or several and not (chosen or told):
    return ''
  if told and not chosen:
    return f'Compiled programs are kept in {told}, which JAX was told to use.'
  root = pathlib.Path(chosen).expanduser() if chosen else fetched.cache_folder() / 'compiled'
  folder = root / f'jax-{jax.__version__}-{_machine()}'
  try:
    # Whoever can write here has code run: it is the user's own.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = _open(folder)
  except (OSError, NotImplementedError) as error:  # the latter: no locks on this file system
    if chosen:
      raise OSError(
          f'--compile_cache={chosen} cannot be written to ({error}). Give another folder, or '
          f'--compile_cache={OFF}.'
      ) from error
    return f'Compiled programs are not kept: {error}.'
  for name, value in {
      'jax_compilation_cache_dir': str(own),
      'jax_persistent_cache_min_compile_time_secs': 0.0,
      'jax_persistent_cache_min_entry_size_bytes': -1,
      'jax_persistent_cache_enable_xla_caches': 'none',  # they would lie in this process's folder
  }.items():
    jax.config.update(name, value)
  return f'Compiled programs are kept in {folder} (--compile_cache={OFF} for none).'


def _open(folder: pathlib.Path) -> pathlib.Path:
  """A folder of this process alone with all programs, which are the others' when it ends."""
  running = folder / _RUNNING
  running.mkdir(exist_ok=True)
  for left in [path for path in running.iterdir() if path.is_dir()]:
    lock = _lock(left)
    try:
      lock.acquire(timeout=0)
    except filelock.Timeout:
      continue  # its process runs
    newest = sorted(left.glob(_PROGRAMS), key=lambda path: path.stat().st_mtime_ns)[-1:]
    _close(left, folder, lock, but=newest)
  _remove_oldest(folder)
  own = running / uuid.uuid4().hex
  lock = _lock(own)
  lock.acquire(timeout=0)  # first: a folder without a lock is taken over
  own.mkdir()
  for program in folder.glob(_PROGRAMS):
    with contextlib.suppress(FileNotFoundError):  # removed a moment ago
      os.link(program, own / program.name)
  process = os.getpid()  # one that was forked ends without a word
  atexit.register(lambda: _close(own, folder, lock) if os.getpid() == process else None)
  return own


def _lock(own: pathlib.Path) -> filelock.FileLock:
  return filelock.FileLock(f'{own}.lock')


def _close(
    own: pathlib.Path, folder: pathlib.Path, lock: filelock.FileLock, *, but=()
) -> None:
  """Links the programs in a process's folder to the others, and removes the folder."""
  for program in set(own.glob(_PROGRAMS)) - set(but):
    with contextlib.suppress(OSError):  # it is there already, or there is no room
      os.link(program, folder / program.name)
  shutil.rmtree(own, ignore_errors=True)
  lock.release()
  pathlib.Path(lock.lock_file).unlink(missing_ok=True)


def _remove_oldest(folder: pathlib.Path) -> None:
  """Removes the oldest programs while there are too many."""
  files = []
  for path in folder.glob(_PROGRAMS):
    with contextlib.suppress(FileNotFoundError):  # another process removes, too
      files.append((path.stat(), path))
  size = sum(about.st_size for about, _ in files)
  for about, path in sorted(files, key=lambda each: each[0].st_mtime_ns):
    if size <= _MOST_BYTES:
      break
    path.unlink(missing_ok=True)
    size -= about.st_size


def _machine() -> str:
  """A short digest of what compiled programs depend on beside JAX: processor and cores.

  Loops are divided among the cores when they are compiled.
  """
  info = pathlib.Path('/proc/cpuinfo')
  about = [jaxlib.__version__, platform.machine(), platform.processor(), str(records.num_cores())]
  if info.exists():
    # Of the first core; 'flags' on x86, 'Features' on Arm.
    lines = info.read_text(errors='replace').partition('\n\n')[0].splitlines()
    wanted = ('model name', 'flags', 'Features', 'CPU part')
    about += [line for line in lines if line.startswith(wanted)]
  return hashlib.sha256('\n'.join(about).encode()).hexdigest()[:10]
