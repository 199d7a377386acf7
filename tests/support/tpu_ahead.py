"""The TPU compiler without a TPU: what the tests that compile ahead share.

`scripts/test.sh` puts libtpu (extra `tpu-aot`) on the path of the tests. Where there is none for
a platform, these tests are left out, and the run's summary says so.
"""

import jax
import pytest

from specjax.planning import ahead


def devices(topology: str) -> list:
  """The devices of a TPU slice such as 'v5e:2x2', to compile for.

  Skips the calling test where libtpu is not installed.
  """
  pytest.importorskip('libtpu', reason='libtpu is not installed (extra tpu-aot)')
  return list(ahead.devices(topology))


def abstract(tree, device):
  """The tree as shapes placed on `device`, for `lower`."""
  sharding = jax.sharding.SingleDeviceSharding(device)
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )
