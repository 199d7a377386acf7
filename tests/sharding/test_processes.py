"""Two processes of four devices give what one of eight gives; a death ends the others.

They know of each other from flags, or from what a cluster sets: variables of Slurm, and of a TPU
pod with two hosts.
"""

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from jax._src import clusters
import pytest

from specjax.sharding import processes
from tests.support import short_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What clusters set, which may have started the tests.
CLUSTERS = ('MEGASCALE_', 'SLURM_', 'OMPI_', 'TPU_WORKER_', 'KUBERNETES_', 'JOB_COMPLETION_')
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(CLUSTERS)}
ENVIRONMENT |= {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}


def free_port() -> int:
  with socket.socket() as found:
    found.bind(('localhost', 0))
    return found.getsockname()[1]


def start(arguments, *, devices=4, count=2, port=None, variables=lambda port, number: {}):
  """Starts `count` processes of `python -m …` that know of each other."""
  port = port or free_port()
  flags = f'--xla_force_host_platform_device_count={devices}'
  return [
      subprocess.Popen(
          [sys.executable, '-m', *arguments(port, number)],
          cwd=ROOT, env=ENVIRONMENT | {'XLA_FLAGS': flags} | variables(port, number), text=True,
          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      )
      for number in range(count)
  ]


def slurm(port, number):
  """What `srun --ntasks=2 --ntasks-per-node=1` sets; the port is of JAX's choice by the job."""
  return {
      'SLURM_JOB_ID': '4711', 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': '2',
      'SLURM_STEP_TASKS_PER_NODE': '1(x2)', 'SLURM_STEP_NUM_NODES': '2', 'SLURM_LOCALID': '0',
      'SLURM_PROCID': str(number), 'JAX_COORDINATOR_PORT': str(port),
  }


def pod(port, number):
  """What a host of a TPU pod has; JAX takes this machine for one although it has no chip.

  The variables of a multislice stand for the metadata server, which JAX asks for them.
  """
  return {
      'MEGASCALE_NUM_SLICES': '1', 'MEGASCALE_SLICE_ID': '0',
      'MEGASCALE_COORDINATOR_ADDRESS': 'localhost',
      'JAX_FORCE_TPU_INIT': '1', 'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_ID': str(number),
      'TPU_WORKER_HOSTNAMES': 'localhost,localhost', 'JAX_COORDINATOR_PORT': str(port),
  }


def finish(started, timeout=400):
  """Waits for all; fails with the output of one that failed."""
  for process in started:
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output[-4000:]


def run(folder, name, *, count, variables=lambda port, number: {}):
  """The tokens of a few cases, by `count` processes with eight devices together."""
  out = folder / f'{name}.json'

  def arguments(port, number):
    made = ['tests.support.mesh_run', str(out), f'--devices={8 // count}', '--few']
    return made if short_run.everything() else [*made, '--short']

  finish(start(arguments, devices=8 // count, count=count, variables=variables))
  return json.loads(out.read_text())


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """What two tasks of four devices emit, which Slurm started."""
  return run(tmp_path_factory.mktemp('two'), 'two', count=2, variables=slurm)


def test_two_processes_emit_the_tokens_of_one(two, tmp_path):
  one = run(tmp_path, 'one', count=1)
  for layout, cases in one.items():
    for case, found in cases.items():
      assert found['tokens'] == two[layout][case]['tokens'], (layout, case)


def test_two_hosts_of_a_pod_give_the_same_bits(two, tmp_path):
  """Not only the tokens: every log-probability."""
  assert run(tmp_path, 'again', count=2, variables=pod) == two


def command(name, workdir, *flags):
  def arguments(port, number):
    return [
        f'experiments.{name}', f'--workdir={workdir}', f'--coordinator_address=localhost:{port}',
        '--num_processes=2', f'--process_id={number}', *flags,
    ]
  return arguments


def test_the_script_runs_a_command_on_two_processes_and_the_first_one_writes(tmp_path):
  flags = (
      '--config=configs/zoo.py:smoke', '--config.dtype=float32', '--config.mesh.preset=tensor',
      '--config.mesh.model=2', '--config.mesh.data=4', '--config.num_prompts=0',
      '--config.batch_size=4', '--config.prompt_file=' + str(tmp_path / 'prompts.jsonl'),
  )
  lines = ''.join(json.dumps({'prompt': f'def f{i}(x):'}) + '\n' for i in range(4))
  (tmp_path / 'prompts.jsonl').write_text(lines)
  done = subprocess.run(
      [ROOT / 'scripts/launch_processes.sh', '2', '4', 'generate', *flags,
       f'--workdir={tmp_path / "out"}'],
      env=ENVIRONMENT | {'SPECJAX_VENV': sys.prefix}, text=True, timeout=400,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
  )
  assert done.returncode == 0, done.stdout[-4000:]
  rows = (tmp_path / 'out' / 'outputs.jsonl').read_text().splitlines()
  assert len(rows) == 4
  assert len((tmp_path / 'out' / 'metrics.jsonl').read_text().splitlines()) == 1


@functools.cache
def training_flags():
  return (
      '--config=configs/zoo_target.py:smoke', '--config.dtype=float32',
      '--config.mesh.preset=fsdp', '--config.mesh.data=4', '--config.mesh.model=2',
      '--config.model.num_heads=4', '--config.model.num_kv_heads=2',
  )


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
  """The folder of a training by two processes, one of which was killed, and what the other said."""
  path = tmp_path_factory.mktemp('killed') / 'run'
  started = start(command('train', path, *training_flags(), '--config.num_steps=400'))
  try:
    checkpoint, limit = path / 'checkpoints' / '20', time.time() + 300
    while not checkpoint.is_dir():
      assert time.time() < limit and started[0].poll() is None, started[0].stdout.read()[-3000:]
      time.sleep(0.1)
    started[1].send_signal(signal.SIGKILL)
    before = time.time()
    output, _ = started[0].communicate(timeout=60)
    return path, started[0].returncode, time.time() - before, output
  finally:
    for process in started:
      process.kill()
      process.communicate()


def test_a_death_ends_the_others(killed):
  path, code, seconds, output = killed
  assert code != 0 and seconds < 60
  assert 'another process of this run has died' in output or 'heartbeat' in output, output
  assert not (path / 'model').exists()


def test_training_goes_on_from_its_checkpoint(killed):
  path, *_ = killed
  steps = [int(each.name) for each in (path / 'checkpoints').iterdir() if each.name.isdigit()]
  last = max(steps) + 10
  finish(start(command('train', path, *training_flags(), f'--config.num_steps={last}')))
  lines = (path / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  trained = [row['step'] for row in rows if row['kind'] == 'train']
  assert trained == list(range(5, last + 1, 5))
  assert (path / 'model' / 'model.safetensors').exists()


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(num_processes=2), 'need the address of process 0'),
        (dict(coordinator_address='localhost:1'), 'needs --num_processes'),
        (dict(coordinator_address='localhost:1', num_processes=2, process_id=2), '0 … 1, got 2'),
    ],
)
def test_flags_that_do_not_go_together_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    processes.start(**options)


@pytest.mark.parametrize(
    'change, expected',
    [
        ({}, processes.Cluster('slurm', 2, 1)),
        ({'SLURM_NTASKS': '1'}, None),
        # Inside an allocation, but not started by srun.
        ({'SLURM_STEP_NODELIST': None}, None),
    ],
)
def test_what_started_it(monkeypatch, change, expected):
  for name, value in (slurm(1, 1) | change).items():
    monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
  assert processes.detect() == expected
  assert processes.start(num_processes=1) == ''


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
  """Whatever started the tests."""
  for name in list(os.environ):
    if name.startswith(CLUSTERS):
      monkeypatch.delenv(name)


def test_a_pod_of_kubernetes_is_alone_unless_it_is_indexed(monkeypatch):
  monkeypatch.setenv('KUBERNETES_SERVICE_HOST', 'x')
  assert processes.detect() is None

  def count():
    raise RuntimeError('no permission.')

  monkeypatch.setenv('JOB_COMPLETION_INDEX', '0')
  kind = next(each for each in clusters.ClusterEnv._cluster_types if 'K8s' in each.__name__)
  monkeypatch.setattr(kind, 'is_env_present', lambda: True)
  monkeypatch.setattr(kind, 'get_process_count', count)
  with pytest.raises(ValueError, match=r'k8s started this process.*no permission.*to run alone'):
    processes.start()


def test_one_process_is_the_first_and_needs_nothing():
  assert processes.start() == ''
  assert processes.is_first()
  assert processes.first_alone(lambda: 3) == 3
