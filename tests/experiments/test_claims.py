"""One run per workdir."""

import pathlib
import subprocess
import sys

import pytest

from experiments import claims
from experiments import workdir as workdir_lib
from experiments.runs import chat

ROOT = pathlib.Path(__file__).resolve().parents[2]
_TAKE = '''import pathlib, sys
from experiments import claims
claims.claim(pathlib.Path(sys.argv[1]))
'''


def take(folder: pathlib.Path) -> str:
  """What another process says that wants the workdir; empty if it gets it."""
  command = [sys.executable, '-c', _TAKE, str(folder)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stderr


def test_a_workdir_has_one_run(tmp_path):
  run = workdir_lib.open_workdir(tmp_path / 'run', {})
  run.record({'step': 1})
  assert 'is the workdir of another process' in take(run.path)
  # The same process may go on with it.
  again = workdir_lib.open_workdir(run.path, {}, resume=True)
  again.record({'step': 2})
  del run
  assert 'of another process' in take(again.path)
  del again
  assert not take(tmp_path / 'run')


def test_a_chat_in_a_workdir_of_another_process_is_refused_before_a_turn(tmp_path, monkeypatch):

  def refuse(folder):
    raise ValueError('another process')

  monkeypatch.setattr(claims, 'claim', refuse)
  results = workdir_lib.open_workdir(tmp_path, {}, resume=True)
  with pytest.raises(ValueError, match='another process'):
    chat.run(None, results, None, ask=lambda text: pytest.fail('a turn was asked for'))


def test_what_a_killed_run_leaves_is_no_claim(tmp_path):
  (tmp_path / '.claim').write_text('whatever')
  assert not take(tmp_path)
