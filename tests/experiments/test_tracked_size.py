"""A borrowed machine takes 64 MiB of files, some of which are not tracked."""

import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_tracked_files_are_at_most_56_mebibytes():
  listed = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
  if listed.returncode:
    pytest.skip('not a checkout of the repository')
  files = [ROOT / name for name in listed.stdout.split('\0') if name]
  size = sum(file.stat().st_size for file in files if file.is_file())
  assert size <= 56 * 2**20, f'{size / 2**20:.1f} MiB: shrink what the zoo ships'
