"""Runs side by side: ratios, and what must be the same."""

import io
import json

import pytest
import rich.console

from experiments import compare
from tests.support import reports


def save(folder, rows, **settings):
  folder.mkdir()
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (folder / 'config.json').write_text(json.dumps(dict(name=folder.name, dtype='auto') | settings))
  return folder


def shown(folders, **options) -> str:
  console = rich.console.Console(file=io.StringIO(), width=160)
  compare.run(folders, console=console, **options)
  return console.file.getvalue()


def row(**changes):
  return reports.row(batch_size=1, **changes)


def test_what_both_have_is_compared_with_ratios(tmp_path):
  old = save(tmp_path / 'old', [reports.plain(), row(), row(rule='block')], seed=0)
  faster = dict(tokens_per_second=50.0, speedup=1.2, origin=dict(commit='ab' * 20, dirty=True))
  new = save(tmp_path / 'new', [row(**faster), dict(name='x', status='failed')], seed=1)
  text = shown([old, new])
  lines = [line.split() for line in text.splitlines()]
  assert ['draft', 'model', 'greedy', '0', '2', '40', '50', '1.250×'] in lines
  assert ['draft', 'model', 'greedy', '0', '2', '1.5', '1.2', '0.800×'] in lines
  assert 'config.seed: 0 in old, 1 in new' in text
  assert 'commit: not recorded in old, abababab+ in new' in text and 'config.name' not in text
  assert 'Not in all runs, in old: plain decode greedy 0.0 0; draft model block 0.0 2 1.' in text


def test_other_hardware_or_versions_are_refused_unless_asked_for(tmp_path):
  here = save(tmp_path / 'here', [row()])
  there = save(
      tmp_path / 'there',
      [row(versions={'jax': '0.10'}, hardware=dict(row()['hardware'], device='a GPU'))],
  )
  with pytest.raises(ValueError, match='were not measured alike') as info:
    shown([here, there])
  assert 'hardware.device: a CPU in here, a GPU in there' in str(info.value)
  assert 'versions.jax: 0.12 in here, 0.10 in there' in str(info.value)
  assert 'cpu_cores' not in str(info.value) and '--allow_different' in str(info.value)
  text = shown([here, there], allow_different=True)
  assert 'not alike: versions.jax: 0.12 in here, 0.10 in there' in text and '1.000×' in text


def test_runs_that_cannot_be_compared(tmp_path):
  one = save(tmp_path / 'one', [row()])
  other = save(tmp_path / 'other', [row(rule='block')])
  steps = save(tmp_path / 'steps', [{'step': 1, 'loss': 2.0}])
  for folders, message in (
      ([one], 'Name at least two workdirs'), ([one, one], 'named twice'),
      ([one, steps], 'steps holds no finished method'), ([one, other], 'no method in common'),
  ):
    with pytest.raises(ValueError, match=message):
      shown(folders)
  with pytest.raises(FileNotFoundError, match='run an experiment'):
    shown([one, tmp_path / 'nowhere'])
