"""Files and folders appear complete or not at all."""

import os
import pathlib

import pytest

from specjax import atomic


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  """Every file in a folder, hidden ones too, and what is in it."""
  return {
      str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b'(folder)'
      for path in folder.rglob('*')
  }


def test_files_and_folders_appear_whole_and_with_the_usual_permissions(tmp_path):
  (tmp_path / 'a.txt').write_text('older')
  (tmp_path / 'c').mkdir()  # an empty folder may stand there
  with atomic.replacing(tmp_path / 'a.txt', tmp_path / 'b.npy', tmp_path / 'c') as (a, b, c):
    assert (a.name, b.suffix, c.name) == ('a.txt', '.npy', 'c')
    a.write_text('newer')
    b.write_bytes(b'\0')
    (c / 'inner').mkdir(parents=True)
    (c / 'inner' / 'file').write_text('deep')
    assert (tmp_path / 'a.txt').read_text() == 'older' and not (tmp_path / 'b.npy').exists()
  assert contents(tmp_path) == {
      'a.txt': b'newer', 'b.npy': b'\0', 'c': b'(folder)', 'c/inner': b'(folder)',
      'c/inner/file': b'deep',
  }
  (tmp_path / 'plain').touch()
  for path in ('a.txt', 'c/inner/file'):
    assert (tmp_path / path).stat().st_mode == (tmp_path / 'plain').stat().st_mode
  assert atomic.write(tmp_path / 'a.txt', 'ä\n').read_bytes() == b'\xc3\xa4\n'
  assert atomic.write(tmp_path / 'a.txt', b'\r\n').read_bytes() == b'\r\n'


@pytest.mark.parametrize('failing', ['write', 'nothing', 'flush', 'rename'])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, failing):
  (tmp_path / 'a.txt').write_text('older')
  before = contents(tmp_path)

  def fail(*args):
    raise OSError('no space left')

  if failing in ('flush', 'rename'):
    monkeypatch.setattr(os, 'fsync' if failing == 'flush' else 'replace', fail)
  with pytest.raises(OSError, match='No such file' if failing == 'nothing' else 'no space left'):
    with atomic.replacing(tmp_path / 'a.txt', tmp_path / 'b.txt') as (a, b):
      a.write_text('newer')
      if failing == 'write':
        fail()
      if failing != 'nothing':
        b.write_text('newer')
  assert contents(tmp_path) == before
