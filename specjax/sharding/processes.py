"""Several processes that run one program: how they start, what only the first one does."""

from collections.abc import Callable
import json
import os
import re
from typing import Any, NamedTuple

import jax
from jax._src import clusters
from jax.experimental import multihost_utils
import numpy as np

# A process that says nothing for so long is taken for dead, and the others end.
HEARTBEAT_SECONDS = 20
# JAX leaves the one for Kubernetes without a name, and before 0.8 all of them.
_NAMES = {
    'K8sCluster': 'k8s', 'SlurmCluster': 'slurm', 'OmpiCluster': 'ompi',
    'GkeTpuCluster': 'gketpu', 'GceTpuCluster': 'gcetpu', 'Mpi4pyCluster': 'mpi4py',
}
_PODS = ('gketpu', 'gcetpu')


class Cluster(NamedTuple):
  """What started this process together with others.

  Attributes:
    name: 'slurm', 'ompi' (Open MPI), 'gketpu' or 'gcetpu' (TPU pods), 'k8s'.
    num_processes: of all hosts.
    process_id: this one's number.
  """

  name: str
  num_processes: int
  process_id: int


def detect() -> Cluster | None:
  """The cluster that started this process, by JAX's own detection; None for a single process.

  Raises:
    ValueError: if there is one that does not say how many processes there are.
  """
  for kind in clusters.ClusterEnv._cluster_types:
    name = _NAMES.get(kind.__name__, kind.__name__)
    if getattr(kind, 'opt_in_only_method', False) or _is_alone(name):
      continue
    try:
      if not kind.is_env_present():
        continue
      cluster = Cluster(name, kind.get_process_count(), kind.get_process_id())
    except (RuntimeError, KeyError, ValueError, OSError) as error:
      raise ValueError(
          f'{name} started this process and does not say as which of how many: {error!r}. Give '
          '--coordinator_address=HOST:PORT --num_processes=N --process_id=0 … N - 1, or '
          '--num_processes=1 to run alone.'
      ) from error
    return cluster if cluster.num_processes > 1 else None
  return None


def _is_alone(name: str) -> bool:
  """Whether a process is one of its own, although the variables of a cluster are there."""
  if name == 'k8s':  # a pod that is no part of an indexed job: a notebook, say
    return 'JOB_COMPLETION_INDEX' not in os.environ
  if name == 'slurm':  # inside an allocation, but not started by srun
    return 'SLURM_STEP_NODELIST' not in os.environ
  # On one host of a slice, something that is to run on its processor.
  is_cpu = os.environ.get('JAX_PLATFORMS', '').startswith('cpu')
  return name in _PODS and is_cpu and 'JAX_FORCE_TPU_INIT' not in os.environ


def start(
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> str:
  """Joins this process to the others, before anything touches a device.

  If one of them dies, the others are ended by JAX's runtime, which says so in their logs, after
  at most about twice `HEARTBEAT_SECONDS`.

  Args:
    coordinator_address: host:port of process 0. Without it, JAX looks whether Slurm, Open MPI, an
      indexed job of Kubernetes or a TPU pod started this process (`detect`); if none of them did,
      there is one process.
    num_processes: of all hosts; needed with an address. 1 without an address is one process,
      whatever started it.
    process_id: this one's number; needed with an address.

  Returns:
    What was found, in words; empty for a single process.

  Raises:
    ValueError: for an address without the numbers, or numbers without an address.
  """
  given = (num_processes is not None, process_id is not None)
  if coordinator_address is None:
    if num_processes == 1 and not process_id:
      return ''
    if any(given):
      raise ValueError(
          'num_processes and process_id need the address of process 0: give '
          '--coordinator_address=HOST:PORT as well.'
      )
    return _join(detect())
  if not all(given):
    raise ValueError(
        'An address of process 0 needs --num_processes=N and --process_id=0 … N - 1 as well.'
    )
  if not 0 <= process_id < num_processes:
    raise ValueError(f'process_id must lie in 0 … {num_processes - 1}, got {process_id}.')
  jax.distributed.initialize(
      coordinator_address=coordinator_address,
      num_processes=num_processes,
      process_id=process_id,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      initialization_timeout=120,
  )
  if num_processes == 1:
    return ''
  return f'Process {process_id} of {num_processes}, at {coordinator_address}.'


def _join(cluster: Cluster | None) -> str:
  if cluster is None:
    return ''
  jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
  if _is_alone_on_its_host(cluster.name):
    # JAX gives every task one GPU, the one of its number on its host.
    for platform in ('cuda', 'rocm'):
      jax.config.update(f'jax_{platform}_visible_devices', 'all')
  return f'Process {cluster.process_id} of {cluster.num_processes}, as {cluster.name} says.'


def _is_alone_on_its_host(name: str) -> bool:
  if name == 'slurm':
    tasks = os.environ.get('SLURM_STEP_TASKS_PER_NODE', '')
    return re.fullmatch(r'1(\(x\d+\))?', tasks) is not None
  return name == 'ompi' and os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE') == '1'


def is_first() -> bool:
  """Whether this is the process that writes files and talks."""
  return jax.process_index() == 0


def first_alone(make: Callable[[], Any]) -> Any:
  """What `make` returns: in the first process, and then, when its files are there, in the rest."""
  if jax.process_count() == 1:
    return make()
  made = make() if is_first() else None
  multihost_utils.sync_global_devices('specjax: the first process is ready')
  return made if is_first() else make()


def of_first(make: Callable[[], Any]) -> Any:
  """What `make` returns in the first process, a JSON value, in all of them; all must ask.

  What a clock or a file of one host decides must be decided once: programs of which some
  processes run another one wait for each other for ever.
  """
  if jax.process_count() == 1:
    return make()
  text = json.dumps(make()).encode() if is_first() else b''
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  data = np.frombuffer(text.ljust(size, b' '), np.uint8)
  return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(data)).tobytes())


def whole(x: Any) -> np.ndarray:
  """An array's full value in every process, wherever its parts lie; all processes must ask."""
  if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
  return np.asarray(x)
