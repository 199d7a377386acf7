"""Step 1: what the machine is, and how fast it copies."""

import os
import pathlib
import shutil
import subprocess

import jax

from experiments.validate import context as context_lib
from scripts import check_accept_gpu
from specjax.analysis import records

_OPTIONAL = ('ml_collections', 'rich', 'tensorboardX', 'jinja2', 'torch', 'pytest')


def run(step: context_lib.Context) -> None:
  """Devices, versions, what is not installed, and the bandwidth of copies."""
  results, hardware = step.results, records.hardware()
  devices = ', '.join(str(device) for device in jax.devices())
  results.add('devices', says=f'{hardware["device"]}, {devices}', hardware=hardware)
  versions = records.versions()
  told = ', '.join(f'{name} {version}' for name, version in versions.items())
  results.add('versions', says=told, commit=_output('git', 'describe', '--always', '--dirty'))
  missing = context_lib.has(*_OPTIONAL)
  results.add('not installed', says=', '.join(missing) or 'nothing')
  results.add(
      'driver', says=_output('nvidia-smi', '--query-gpu=name,driver_version,memory.total,'
                             'clocks.max.mem,power.limit', '--format=csv,noheader') or 'none',
      environment={
          name: value for name, value in os.environ.items() if name.startswith(('XLA_', 'JAX_'))
      },
  )
  wanted = os.environ.get('JAX_PLATFORMS', '').split(',')[0]
  platforms = {'cuda': 'gpu', 'rocm': 'gpu'}
  if wanted and platforms.get(wanted, wanted) != jax.default_backend():
    results.add('devices wanted', failed=f'{wanted} was asked for, {jax.default_backend()} is used')
  for num_elements in (1 << 14, 1 << 16) if step.smoke else (1 << 28, 1 << 30):
    rate = check_accept_gpu.bandwidth(num_elements)
    results.add(f'copy of {4 * num_elements / 1e9:.2g} GB', measured=rate / 1e9, unit='GB/s')


def bandwidth(step: context_lib.Context) -> float:
  """Bytes per second of a copy, measured again: a later call may be on another machine."""
  return check_accept_gpu.bandwidth(1 << 16 if step.smoke else 1 << 30)


def _output(*command: str) -> str:
  """What a program says, if it is there."""
  if shutil.which(command[0]) is None:
    return ''
  root = pathlib.Path(__file__).parents[2]
  found = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20)
  return found.stdout.strip() if found.returncode == 0 else ''
