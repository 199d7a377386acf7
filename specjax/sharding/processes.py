"""Several processes that run one program: how they start, what only the first one does."""

from collections.abc import Callable
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

# A process that says nothing for so long is taken for dead, and the others end.
HEARTBEAT_SECONDS = 20


def start(
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> bool:
  """Joins this process to the others, before anything touches a device.

  If one of them dies, the others are ended by JAX's runtime, which says so in their logs, after
  at most about twice `HEARTBEAT_SECONDS`.

  Args:
    coordinator_address: host:port of process 0. Without it, a TPU pod is recognised by what it
      sets itself (TPU_WORKER_HOSTNAMES with several hosts); else there is one process.
    num_processes: of all hosts; needed with an address.
    process_id: this one's number; needed with an address.

  Returns:
    Whether there are several processes.

  Raises:
    ValueError: for an address without the numbers, or numbers without an address.
  """
  given = (num_processes is not None, process_id is not None)
  if coordinator_address is None:
    if any(given):
      raise ValueError(
          'num_processes and process_id need the address of process 0: give '
          '--coordinator_address=HOST:PORT as well.'
      )
    pod = ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '')
    if not pod or os.environ.get('JAX_PLATFORMS', '').startswith('cpu'):
      return False
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    return jax.process_count() > 1
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
  return num_processes > 1


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


def whole(x: Any) -> np.ndarray:
  """An array's full value in every process, wherever its parts lie; all processes must ask."""
  if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
  return np.asarray(x)
