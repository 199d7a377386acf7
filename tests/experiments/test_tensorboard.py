"""Event files: what TensorBoard would read of a training run, a sweep and a benchmark."""

import pathlib
import struct
import sys
import types

import pytest
from tensorboardX.proto import event_pb2

from experiments import report
from experiments import tracking
from experiments import workdir as workdir_lib
from experiments.report import tensorboard
from tests.support import reports
from tests.support import tolerance


def scalars(folder: pathlib.Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
  """(run, tag) -> points, from the records of all event files below a folder.

  A record is its length (8 bytes), a checksum (4), the event, and a checksum (4): TFRecord.
  """
  found = {}
  for path in sorted(folder.rglob('events.out.tfevents.*')):
    content = path.read_bytes()
    while content:
      (size,) = struct.unpack('<Q', content[:8])
      event = event_pb2.Event.FromString(content[12 : 12 + size])
      content = content[16 + size :]
      for value in event.summary.value:
        key = str(path.parent.relative_to(folder)), value.tag
        point = tolerance.approx(value.simple_value, roundings=1, dtype='float32')
        found.setdefault(key, []).append((event.step, point))
  return found


def test_training_has_curves_over_steps(tmp_path):
  rows = [dict(step=step, kind='train', loss=3.0 / step, name='x') for step in (1, 2)]
  rows += [dict(step=2, kind='held_out', loss=2.5, acceptance=None)]
  tensorboard.write(tmp_path, rows)
  assert scalars(tmp_path / 'tensorboard') == {
      ('train', 'loss'): [(1, 3.0), (2, 1.5)],
      ('held_out', 'loss'): [(2, 2.5)],
  }


def test_a_sweep_has_a_run_for_each_line(tmp_path):
  rows = [reports.arm(k, rule) for rule in ('rejection', 'block') for k in (2, 4)]
  tensorboard.write(tmp_path, rows, x='drafter.num_speculative_tokens')
  found = scalars(tmp_path / 'tensorboard')
  assert found['rule=block', 'speedup'] == [(2, 1.5), (4, 1.5)]
  assert {run for run, _ in found} == {'rule=rejection', 'rule=block'}
  # A field that is no integer is counted.
  rows = [reports.arm(2, rule) for rule in ('rejection', 'block')]
  tensorboard.write(tmp_path, rows, x='rule.name')
  found = scalars(tmp_path / 'tensorboard')
  assert found['K=2', 'mean_acceptance_length'] == [(0, 2.0), (1, 2.0)]


def test_the_report_writes_them_and_a_new_run_removes_them(tmp_path):
  run = workdir_lib.open_workdir(tmp_path, {'name': 'a run'})
  run.record(reports.row())
  report.write(run)
  found = scalars(tmp_path / 'tensorboard')
  assert found['draft_model_greedy_T=0', 'tokens_per_second'] == [(2, 40.0)]
  report.write(run)
  assert scalars(tmp_path / 'tensorboard') == found
  names = sorted(path.name for path in tmp_path.glob('[!.]*'))
  assert names == ['config.json', 'metrics.jsonl', 'report.html', 'tensorboard']
  workdir_lib.open_workdir(tmp_path, {}).record({'step': 1})
  assert not (tmp_path / 'tensorboard').exists()


def test_training_is_followed_while_it_goes_on(tmp_path, monkeypatch):
  said = []
  service = types.SimpleNamespace(
      __spec__=True,
      init=lambda **options: said.append(options['name']),
      log=lambda numbers, step: said.append((step, numbers)),
      finish=lambda: said.append('end'),
  )
  monkeypatch.setitem(sys.modules, 'trackio', service)
  found = lambda name: name == 'trackio' or None
  monkeypatch.setattr(tracking.importlib.util, 'find_spec', found)
  run = workdir_lib.open_workdir(tmp_path, {}, resume=True)
  row = lambda step: dict(name='x', kind='train', step=step, loss=1.0 / step)
  run.record(row(1))  # by the part of the run before this one
  with tracking.tracker(run, name='x', services=tracking.check('trackio')) as track:
    run.record(row(2))
    track(row(2))
  assert scalars(tmp_path / 'tensorboard') == {('train', 'loss'): [(1, 1.0), (2, 0.5)]}
  assert said == ['x', (2, {'train/loss': 0.5}), 'end']
  for name, message in [('wandb', 'pip install wandb'), ('mlflow', "got 'mlflow'")]:
    with pytest.raises(ValueError, match=message):
      tracking.check(name)
