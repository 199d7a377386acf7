"""The TPU compiler without a TPU: what the tests that compile ahead share.

`scripts/test.sh` puts libtpu (extra `tpu-aot`) on the path of the tests. Where there is none for
a platform, these tests are left out, and the run's summary says so.
"""

import functools
import os

import jax
from jax.experimental import topologies
import pytest

_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    # Nothing is run on a device, so that several processes may compile at once.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


@functools.cache
def devices(topology: str) -> list:
  """The devices of a TPU slice such as 'v5e:2x2', to compile for.

  Skips the calling test where libtpu is not installed.
  """
  pytest.importorskip('libtpu', reason='libtpu is not installed (extra tpu-aot)')
  os.environ.update(_ENVIRONMENT)
  return list(topologies.get_topology_desc(platform='tpu', topology_name=topology).devices)


def abstract(tree, device):
  """The tree as shapes placed on `device`, for `lower`."""
  sharding = jax.sharding.SingleDeviceSharding(device)
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )
