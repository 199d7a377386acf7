"""Compiled programs on disk: where, for whom, and that only the command lines ask for it."""

import os
import pathlib
import stat

import jax
import pytest

from experiments import compile_cache

NAMES = (
    'jax_enable_compilation_cache', 'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs', 'jax_persistent_cache_min_entry_size_bytes',
    'jax_persistent_cache_enable_xla_caches',
)


@pytest.fixture
def untold(monkeypatch, tmp_path):
  """JAX as it is where the user says nothing about a cache; as it was, afterwards."""
  before = {name: getattr(jax.config, name) for name in NAMES}
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setenv('SPECJAX_CACHE', str(tmp_path / 'cache'))
  at_exit = []
  monkeypatch.setattr(compile_cache.atexit, 'register', at_exit.append)
  yield at_exit
  for name, value in before.items():
    jax.config.update(name, value)


def own_folder() -> pathlib.Path:
  """Where JAX writes and reads."""
  return pathlib.Path(jax.config.jax_compilation_cache_dir)


def test_programs_lie_by_version_and_machine(untold, tmp_path, monkeypatch):
  line = compile_cache.start()
  (folder,) = (tmp_path / 'cache' / 'compiled').iterdir()
  assert str(folder) in line and '--compile_cache=off' in line
  assert own_folder().is_relative_to(folder)
  assert folder.name.startswith(f'jax-{jax.__version__}-')
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700
  compile_cache.start(str(tmp_path / 'own'))
  assert [each.name for each in (tmp_path / 'own').iterdir()] == [folder.name]
  monkeypatch.setattr(compile_cache.platform, 'machine', lambda: 'another')
  compile_cache.start(str(tmp_path / 'own'))
  assert len(list((tmp_path / 'own').iterdir())) == 2


def test_who_keeps_none(untold, tmp_path, monkeypatch):
  assert compile_cache.start(several=True) == ''
  blocked = tmp_path / 'file'
  blocked.write_text('')
  with pytest.raises(OSError, match='--compile_cache=.*cannot be written to .*compile_cache=off'):
    compile_cache.start(str(blocked / 'folder'))
  monkeypatch.setenv('SPECJAX_CACHE', str(blocked))
  assert compile_cache.start().startswith('Compiled programs are not kept: ')
  assert jax.config.jax_compilation_cache_dir is None
  assert compile_cache.start('off') == '' and not jax.config.jax_enable_compilation_cache


def test_what_jax_was_told_stands():
  told = jax.config.jax_compilation_cache_dir  # the folder of this run of the tests
  assert told in compile_cache.start() and jax.config.jax_compilation_cache_dir == told


def test_processes_share_whole_programs_when_they_end(untold, tmp_path):
  compile_cache.start(str(tmp_path))
  first = own_folder()
  (first / 'a-cache').write_text('a')
  compile_cache.start(str(tmp_path))
  second = own_folder()
  assert second != first and not list(second.iterdir())  # the first one still runs
  (second / 'a-cache').write_text('another')
  (second / 'b-cache').write_text('b')
  for end in untold:
    end()
  (folder,) = tmp_path.iterdir()
  assert {path.name: path.read_text() for path in folder.glob('*-*')} == {
      'a-cache': 'a', 'b-cache': 'b'
  }
  assert not list((folder / '.running').iterdir())
  compile_cache.start(str(tmp_path))
  assert {path.name for path in own_folder().iterdir()} == {'a-cache', 'b-cache'}


def test_what_a_killed_process_leaves_is_taken_over_but_for_its_last_file(untold, tmp_path):
  compile_cache.start(str(tmp_path))
  (folder,) = tmp_path.iterdir()
  left = folder / '.running' / 'left'
  left.mkdir()
  (left.parent / 'left.lock').touch()
  for number, name in enumerate(['c-cache', 'b-cache', 'a-cache']):
    (left / name).write_text('half' if name == 'a-cache' else 'whole')
    os.utime(left / name, (number, number))
  compile_cache.start(str(tmp_path))
  assert {path.name: path.read_text() for path in folder.glob('*-*')} == {
      'b-cache': 'whole', 'c-cache': 'whole'
  }
  assert not left.exists() and not (left.parent / 'left.lock').exists()


def test_the_oldest_programs_make_room(untold, tmp_path, monkeypatch):
  monkeypatch.setattr(compile_cache, '_MOST_BYTES', 25)
  compile_cache.start(str(tmp_path))
  (folder,) = tmp_path.iterdir()
  for number, name in enumerate(['c-cache', 'b-cache', 'a-cache']):
    (folder / name).write_text('x' * 10)
    os.utime(folder / name, (number, number))
  compile_cache.start(str(tmp_path))
  assert {path.name for path in own_folder().iterdir()} == {'a-cache', 'b-cache'}


def test_the_library_leaves_the_cache_alone():
  root = pathlib.Path(__file__).parents[2] / 'specjax'
  assert not [path for path in root.rglob('*.py') if 'compilation_cache' in path.read_text()]
