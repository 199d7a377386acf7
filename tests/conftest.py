"""What all tests share."""

import ctypes
import os
import sys
import tempfile

import jax
import pytest

# So that their asserts say what was compared, as those of tests do.
pytest.register_assert_rewrite('tests.support')
from tests.support import short_run  # noqa: E402

_CACHE = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config):
  """Shares compiled programs between workers, modules and the processes that tests start.

  Small operations (random numbers, reshapes) are compiled again wherever a process starts or a
  module ends. The folder lives as long as the run: what is tested was compiled from this very
  code, by this very compiler.
  """
  if hasattr(config, 'workerinput'):
    return  # xdist's workers have the variables of the process that started them
  if config.args_source is pytest.Config.ArgsSource.ARGS:
    os.environ[short_run.EVERYTHING] = '1'  # what is named is run whole
  config.stash[_CACHE] = folder = tempfile.TemporaryDirectory(prefix='specjax_compiled_')
  settings = {
      'jax_compilation_cache_dir': folder.name,
      'jax_persistent_cache_min_compile_time_secs': 0.0,
      'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  for name, value in settings.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
  """Leaves out what is not in the short run; long modules come first."""
  config.stash[short_run.COLLECTED] = list(items)
  if not short_run.everything():
    kept, left = short_run.split(items)
    config.hook.pytest_deselected(items=left)
    items[:] = kept
  items[:] = short_run.ordered(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
  """Leaves out, and says so, what an old JAX cannot read of a program that libtpu compiled."""
  try:
    return (yield)
  except Exception as error:
    if type(error).__name__ == 'UnreadableProgram' and jax.__version_info__ < (0, 11):
      pytest.skip(f'NOT TESTED: {error}')
    raise


def pytest_unconfigure(config):
  if folder := config.stash.get(_CACHE, None):
    folder.cleanup()


@pytest.fixture(scope='module')
def compiled_fast():
  """For modules about laws and results, not about programs: compiled with little optimisation.

  Their programs run for a moment, on a handful of numbers. What must hold bit for bit, in place,
  or on real text is tested on programs as users get them.
  """
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')  # for processes that a test starts
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(autouse=True, scope='module')
def few_programs_at_once():
  """Forgets compiled programs after each module, and gives their memory back.

  Each holds memory maps of its own, and a process has only so many (65,530 on Linux): with too
  many programs alive XLA aborts. glibc keeps what is freed (up to 1 GB after one module) unless
  it is asked to return it.
  """
  yield
  jax.clear_caches()
  if sys.platform == 'linux':
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # musl has none
    if trim is not None:
      trim(0)
