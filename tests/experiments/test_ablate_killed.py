"""A sweep that is killed, once or three times, ends with the table of one left alone."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from experiments import workdir as workdir_lib

ROOT = pathlib.Path(__file__).parents[2]

# Columns that a clock decides.
TIMES = (
    'origin', 'prefill_seconds', 'seconds', 'speedup', 'speedup_high', 'speedup_low',
    'tokens_per_second',
)  # fmt: skip


def start(workdir: pathlib.Path) -> subprocess.Popen:
  return subprocess.Popen(
      [sys.executable, '-m', 'tests.support.sweep_of_24', str(workdir)],
      cwd=ROOT,
      env=os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path])),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
  )


def finished(workdir: pathlib.Path) -> dict[str, int]:
  """Modification times of the arms' files, by name."""
  return {path.name: path.stat().st_mtime_ns for path in workdir.glob('arms/[!.]*.json')}


def table(workdir: pathlib.Path) -> list[dict]:
  rows = workdir_lib.read_rows(workdir)
  return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The folder of a sweep that was left alone."""
  path = tmp_path_factory.mktemp('sweep') / 'alone'
  whole = start(path)
  output, _ = whole.communicate(timeout=400)
  assert whole.returncode == 0, output
  assert len(table(path)) == 24 and 'failed' not in output
  return path


def test_a_sweep_killed_once_has_the_same_table(alone, tmp_path):
  check(alone, tmp_path / 'killed', times=1)


def test_a_sweep_killed_three_times_has_the_same_table(alone, tmp_path):
  check(alone, tmp_path / 'killed', times=3)


def check(alone: pathlib.Path, killed: pathlib.Path, times: int) -> None:
  """Kills a sweep so often, at random, lets it end, and compares it with the other."""
  chance = random.Random(os.environ.get('SPECJAX_TEST_SEED', '0'))
  kept = {}
  for number in sorted(chance.sample(range(1, 23), times)):
    running = start(killed)
    deadline = time.monotonic() + 300
    while len(finished(killed)) < number and running.poll() is None:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 0.4))
    running.send_signal(signal.SIGKILL)
    running.communicate()
    now = finished(killed)
    assert number <= len(now) < 24
    assert kept.items() <= now.items()  # no finished arm was run again
    kept = now
    # What was written is whole at every moment.
    workdir_lib.read_rows(killed)
    for path in killed.glob('arms/[!.]*.json'):
      json.loads(path.read_text())
  last = start(killed)
  output, _ = last.communicate(timeout=400)
  assert last.returncode == 0, output
  assert f'{len(kept)} of 24 arms are finished' in output
  assert kept.items() <= finished(killed).items()
  assert table(killed) == table(alone)
  assert sorted(finished(killed)) == sorted(finished(alone))
