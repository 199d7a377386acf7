"""The run on hardware: what is on disk when it is cut off, shares of time, and a rehearsal."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from experiments.validate import model
from experiments.validate import profile
from experiments.validate import results as results_lib
from experiments.validate import speculation
from experiments.validate import steps as steps_lib
from experiments.validate import summary
from experiments.validate import switches
from specjax import drafters

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'scripts' / 'validate_hardware.sh'
# What a bare GPU machine may lack. (Not rich, which Flax itself imports.)
OPTIONAL = ('ml_collections', 'tensorboardX', 'torch', 'playwright', 'pytest')

# Steps without JAX: the first ends, the second keeps a row and goes on for ever.
_FAKE = """
import os, time
def run(step):
  step.results.add('first', pid=os.getpid(), measured=1.0, predicted=2.0, unit='ms')
  step.results.add('second', measured=3, lossless=True)
  if {endless}:
    time.sleep(60)
  if {fails}:
    raise RuntimeError('on purpose')
"""
_RUN = """
import sys
from experiments.validate import steps
made = [steps.Step(n, f'fake {n}', name, 1.0) for n, name in enumerate(sys.argv[3:], 1)]
sys.exit(0 if steps.run(made, sys.argv[1], minutes=float(sys.argv[2])) else 1)
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
  """Starts a run of steps by name."""
  folder = tmp_path / 'fakes'
  folder.mkdir()
  for name in ('whole', 'endless', 'fails'):
    text = _FAKE.format(endless=name == 'endless', fails=name == 'fails')
    (folder / f'fake_{name}.py').write_text(text)
  env = os.environ | {'PYTHONPATH': f'{ROOT}:{folder}'}

  def start(*names: str, minutes: float = 1.0) -> subprocess.Popen:
    modules = [f'fake_{name}' for name in names]
    return subprocess.Popen(
        [sys.executable, '-c', _RUN, str(tmp_path / 'out'), str(minutes), *modules],
        cwd=tmp_path, env=env, stdout=subprocess.DEVNULL,
    )

  return start


def wait_for(condition, seconds: float = 60.0) -> None:
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'it never came'
    time.sleep(0.05)


def alive(pid: int) -> bool:
  """Whether a process runs; one that nobody waits for has ended too."""
  told = subprocess.run(['ps', '-o', 'stat=', '-p', str(pid)], capture_output=True, text=True)
  return bool(told.stdout.strip()) and not told.stdout.startswith('Z')


def test_a_run_that_is_killed_has_lost_nothing_that_it_knew(fakes, tmp_path):
  results = results_lib.Results(tmp_path / 'out')
  process = fakes('whole', 'endless', 'whole')
  inside = lambda: {(row['step'], row['name']) for row in results.rows()} >= {(2, 'second')}
  wait_for(inside)
  process.send_signal(signal.SIGKILL)
  process.wait()
  # The step does not outlive it, or it would keep the accelerator.
  pid = results.rows()[-2]['pid']
  wait_for(lambda: not alive(pid))
  names = [(row['step'], row['name']) for row in results.rows()]
  assert names[0] == (0, 'run of steps 1, 2, 3')
  assert names[1:] == [(step, name) for step in (1, 2) for name in ('first', 'second')]
  table = (tmp_path / 'out' / 'summary.md').read_text()
  assert '| 1 | first | 1 | 2 | 0.5 | ms | pid' in table and '| 2 | second | 3 |' in table
  files = {path.name for path in (tmp_path / 'out').iterdir()}
  assert files <= set(results_lib.FILES) and len(results_lib.FILES) <= 8
  # The next call adds to it; half a line that a kill left is passed over.
  with open(tmp_path / 'out' / 'rows.jsonl', 'a') as file:
    file.write('{"step": 2, "na')
  assert fakes('whole').wait() == 0
  rows = results.rows()
  assert [row['step'] for row in rows] == [0, 1, 1, 2, 2, 0, 1, 1]


def test_a_step_gets_its_share_of_the_minutes_and_stops_no_other(fakes, tmp_path):
  started = time.monotonic()
  # Of 12 s a third each; the first step leaves what it does not need to the second.
  assert fakes('fails', 'endless', 'whole', minutes=0.2).wait() == 1
  assert 7 < time.monotonic() - started < 30
  rows = results_lib.Results(tmp_path / 'out').rows()
  failed = {row['step']: row['failed'] for row in rows if 'failed' in row}
  assert 'ended with code 1' in failed[1] and 'was over' in failed[2] and 3 not in failed
  assert [row['name'] for row in rows if row['step'] == 3] == ['first', 'second']
  told = (tmp_path / 'out' / 'summary.md').read_text()
  assert 'step 1, the step: failed: its process ended' in told
  assert any('on purpose' in row.get('failed', '') for row in rows)


def test_steps_are_chosen_like_pages():
  numbers = lambda text: [step.number for step in steps_lib.chosen(text)]
  assert numbers('') == [1, 2, 3, 4, 5] and numbers('1-3') == [1, 2, 3]
  assert numbers('4-') == [4, 5] and numbers('-2') == [1, 2] and numbers('2,5') == [2, 5]
  for wrong in ('6', '3-1', 'two', '0-2', '1-9'):
    with pytest.raises(ValueError, match="like '2', '1-3' or '4-'"):
      numbers(wrong)
  assert sum(step.share for step in steps_lib.STEPS) == pytest.approx(1.0)


def test_goals_are_told_with_what_was_found():
  rows = [
      dict(step=3, name='a', measured=5.0, predicted=4.0, goal='plain', share=0.8),
      dict(step=4, name='b', measured=0.02, goal='overhead', share=0.02),
      dict(step=4, name='c', skipped='no time'),
      # Measured again: the later one counts.
      dict(step=4, name='b', measured=0.04, goal='overhead', share=0.04),
  ]
  text = summary.table(rows)
  assert "of the copy's bandwidth | a 80.0% | no |" in text
  assert 'below 5 % of a plain step | b 4.0% | yes |' in text and 'b 2.0%' not in text
  assert 'forecast | not measured |  |' in text and '- step 4, c: no time' in text


def test_a_switch_that_was_asked_for_beats_a_decision_and_that_the_default(tmp_path):
  assert switches.decided(tmp_path / 'none', {})['attention'] == 'default'
  switches.decide(tmp_path / 'some', 'attention', 'cudnn')
  switches.decide(tmp_path / 'some', 'command_buffers', 'loop')
  found = switches.decided(tmp_path / 'some', {'attention': 'pallas', 'autotuning': None})
  assert found['attention'] == 'pallas' and found['command_buffers'] == 'loop'
  options = switches.compiler_options(found, 'gpu')
  assert 'WHILE' in options.pop('xla_gpu_enable_command_buffer')
  assert options == {'xla_gpu_graph_min_graph_size': 1}
  assert switches.compiler_options(found, 'cpu') == {}


def test_parts_of_a_program_are_told_apart():
  text = """
%fused (p: f32[4]) -> f32[4] {
  ROOT %dot.1 = f32[4] dot(%p, %p), metadata={op_name="jit(run)/while/body/score/x/mlp/dot_general"}
}
ENTRY %main (a: f32[4]) -> f32[4] {
  %fusion.1 = f32[4] fusion(%a), calls=%fused, metadata={op_name="jit(run)/score/x/mlp/mul"}
  %fusion.2 = f32[4] fusion(%a), calls=%other, metadata={op_name="jit(run)/score/x/mlp/mul"}
  %gemm.3 = f32[4] custom-call(%a), custom_call_target="__cublas$gemm", metadata={op_name="score"}
  %exp.4 = f32[4] exp(%a), metadata={op_name="jit(run)/score/layer_0/attention/attend/exp"}
  %max.5 = f32[4] max(%a), metadata={op_name="jit(run)/verify/max"}
  ROOT %copy.6 = f32[4] copy(%a)
}
"""
  found = profile.parts_of(text)
  assert [found[f'fusion.{n}'] for n in (1, 2)] == ['products', 'other of a pass']
  assert found['gemm.3'] == 'products' and found['exp.4'] == 'attention'
  assert found['max.5'] == 'sampling' and found['copy.6'] == 'loop'


@pytest.mark.parametrize('accept', ['mosaic', 'xla'])
def test_set_acceptance_is_had_by_chains_and_trees(accept, compiled_fast):
  # Through the op, whose rule must know whether there are branches.
  target = model.random_model(model.preset('Llama-3.1-8B', smoke=True), says_zero=True)
  bench = model.Bench(target, 1, context=4, room=40, accept=accept)
  for parents, depth in (((0, 1), 2), ((0, 0, 1, 1, 2), 2)):
    make = lambda acceptance: drafters.synthetic(
        np.zeros((1, 44), np.int32), acceptance=acceptance, vocab_size=256, parents=parents
    )
    run = bench.compiled(*bench.started(make(1.0)))
    for acceptance, wanted in ((1.0, depth + 1), (0.0, 1)):
      tokens, rounds, _ = speculation.emitted(bench, make(acceptance), run)
      assert rounds > 10 and tokens == wanted * rounds


@pytest.fixture
def bare(tmp_path):
  """The environment of a machine without a network and without the optional packages."""
  folder = tmp_path / 'bare'
  folder.mkdir()
  for name in OPTIONAL:
    (folder / f'{name}.py').write_text(f'raise ModuleNotFoundError("No module named {name!r}")\n')
  (folder / 'sitecustomize.py').write_text(
      'import socket\n'
      'def refuse(*args, **kwargs):\n'
      '  raise OSError("there is no network here")\n'
      'socket.getaddrinfo = socket.socket.connect = refuse\n'
  )
  return os.environ | {
      'PYTHONPATH': str(folder), 'JAX_PLATFORMS': 'cpu', 'SPECJAX_EXTRA': 'cpu',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true', 'PIP_NO_INDEX': '1',
  }


def rehearse(bare, tmp_path, *arguments: str) -> tuple[int, list[dict], str]:
  """Runs the script; its code, its rows and its table."""
  before = set(ROOT.iterdir())
  done = subprocess.run(
      [SCRIPT, f'--python={sys.executable}', '--smoke', f'--out={tmp_path / "out"}',
       f'--cache={tmp_path / "cache"}', *arguments],
      env=bare, cwd=tmp_path, capture_output=True, text=True,
  )
  assert (tmp_path / 'out').is_dir(), done.stderr
  assert set(ROOT.iterdir()) <= before | {ROOT / 'runs'}, 'it left something behind'
  assert len(list((tmp_path / 'out').iterdir())) <= 8
  rows = results_lib.Results(tmp_path / 'out').rows()
  return done.returncode, rows, (tmp_path / 'out' / 'summary.md').read_text() + done.stderr


def test_a_rehearsal_of_the_first_step(bare, tmp_path):
  code, rows, told = rehearse(bare, tmp_path, '--steps=1', '--minutes=5')
  assert code == 0, told
  missing = next(row['says'] for row in rows if row['name'] == 'not installed')
  assert missing == 'ml_collections, tensorboardX, torch, pytest'
  assert len([row for row in rows if row.get('unit') == 'GB/s']) == 2
  refused = subprocess.run([SCRIPT, 'smoke'], capture_output=True, text=True)
  assert refused.returncode == 1 and '--NAME=VALUE' in refused.stderr


def test_the_whole_rehearsal(bare, tmp_path):
  code, rows, told = rehearse(bare, tmp_path, '--minutes=30')
  assert code == 0, told
  assert {row['step'] for row in rows} == {0, 1, 2, 3, 4, 5}
  assert not [row for row in rows if 'failed' in row]
  skipped = {row['name']: row['skipped'] for row in rows if 'skipped' in row}
  assert skipped.pop('attention=cudnn').startswith('RuntimeError: cuDNN')
  assert skipped == {
      'the usual verifier in torch': 'torch is not installed',
      'benchmark_zoo': 'ml_collections, tensorboardX not installed',
      'tests of losslessness': 'pytest not installed',
  }
  names = {row['name'] for row in rows}
  parts = {f'plain step, B=1, context 16: {part}' for part in profile.PARTS}
  wanted = {'K=2: o', 'K=2: speed-up at acceptance 0.8', '1B draft, K=2: a round', 'r(3)'}
  assert names >= parts | wanted | {'tree of 4 nodes: o', 'a round at K=2: acceptance'}
  assert any(row['step'] == 5 and row.get('lossless') is True for row in rows)
  for goal in summary.GOALS:
    assert any(row.get('goal') == goal for row in rows), goal
  with zipfile.ZipFile(tmp_path / 'out' / 'profiles.zip') as packed:
    assert sum(name.endswith('program.txt') for name in packed.namelist()) == 3
  # Cut in two, the second call adds to the first and takes its decisions.
  assert json.loads((tmp_path / 'cache' / 'smoke' / 'decided.json').read_text())
  code, again, told = rehearse(bare, tmp_path, '--steps=1', '--minutes=5')
  assert code == 0 and again[: len(rows)] == rows and len(again) > len(rows)
