"""Measures the memory that loading takes: a random checkpoint of some gigabytes, onto a mesh.

    python scripts/check_loading.py --gigabytes=2.5
    python scripts/check_loading.py --gigabytes=2.5 --int8

Writes a Hugging Face folder of random bfloat16 weights in several files (removed afterwards),
loads it onto eight CPU devices in a process of its own, and prints that process's peak memory
beyond the loaded arrays, and the size of the arrays and of the largest tensor. Exits with 1 if
that peak exceeds the largest tensor plus one device's part of it (and what JAX itself takes).
"""

import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import threading
import time

from absl import app
from absl import flags

_GIGABYTES = flags.DEFINE_float('gigabytes', 2.5, 'Size of the checkpoint.')
_INT8 = flags.DEFINE_bool('int8', False, 'Quantise while loading.')
_FOLDER = flags.DEFINE_string('folder', '', 'Internal: the folder to load.')

DEVICES = 8
# Files are mapped: pages that are being read count as memory, and go with their tensor.
_POLL_SECONDS = 0.01


def write(folder: pathlib.Path, gigabytes: float) -> None:
  """Writes a Llama of this size; every layer has the same random weights, which is quick."""
  import jax.numpy as jnp
  import numpy as np

  from specjax import models

  shape = dict(
      vocab_size=32_000, width=2048, num_heads=16, num_kv_heads=8, head_dim=128, mlp_width=8192
  )
  size_of_one = models.TransformerConfig(num_layers=1, **shape).num_parameters
  size_of_two = models.TransformerConfig(num_layers=2, **shape).num_parameters
  layers = max(
      1, round((gigabytes * 1e9 / 2 - size_of_one) / (size_of_two - size_of_one)) + 1
  )
  config = models.TransformerConfig(num_layers=layers, **shape)

  module = models.Transformer(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
  rng, values_by_shape = np.random.default_rng(0), {}

  def fill(x):
    if x.shape not in values_by_shape:
      values = rng.standard_normal(x.shape, np.float32) * 0.02
      values_by_shape[x.shape] = values.astype(jnp.bfloat16)
    return values_by_shape[x.shape]

  import jax

  params = jax.tree.map(fill, models.abstract_params(module))
  models.save_hf(models.LanguageModel(module, params), folder, max_shard_bytes=500_000_000)


def load(folder: str, int8: bool) -> None:
  """Loads a folder; prints and judges the peak memory beyond the arrays, and exits."""
  import jax
  import jax.numpy as jnp

  from specjax import models
  from specjax import sharding
  from specjax.models import quantization

  layouts = sharding.make('tensor', model=DEVICES)
  # Memory that compiling the first programs takes must not count.
  small = jnp.zeros((64, 64), jnp.bfloat16, device=layouts.target.sharding(('vocab', None)))
  jax.block_until_ready(jax.jit(quantization.quantize)(small))
  start, peak, finished = _resident(), [0], threading.Event()

  def watch():
    while not finished.is_set():
      peak[0] = max(peak[0], _resident())
      time.sleep(_POLL_SECONDS)

  thread = threading.Thread(target=watch)
  thread.start()
  started = time.perf_counter()
  model = models.load_hf(folder, layout=layouts.target, int8=int8)
  jax.block_until_ready(model.params)
  seconds = time.perf_counter() - started
  finished.set()
  thread.join()
  config = model.module.config
  arrays = sum(
      shard.data.nbytes for leaf in jax.tree.leaves(model.params) for shard in
      leaf.addressable_shards
  )
  largest = 2 * max(config.vocab_size * config.width, 2 * config.mlp_width * config.width)
  beyond = max(peak[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) - start - arrays
  gb = lambda value: f'{value / 1e9:.3f} GB'
  print(
      f'loaded {gb(arrays)} onto {DEVICES} devices in {seconds:.1f} s; peak beyond the arrays '
      f'{gb(beyond)}; the largest tensor is {gb(largest)}'
  )
  allowed = largest * (1 + 1 / DEVICES) + 150e6
  sys.exit(0 if beyond <= allowed else f'error: that is more than {gb(allowed)}.')


def _resident() -> int:
  """Bytes of memory that this process uses, mapped files included."""
  pages = pathlib.Path('/proc/self/statm').read_text().split()[1]
  return int(pages) * os.sysconf('SC_PAGE_SIZE')


def main(argv) -> None:
  del argv
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={DEVICES}'
  if _FOLDER.value:
    load(_FOLDER.value, _INT8.value)
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary) / 'model'
    write(folder, _GIGABYTES.value)
    print(f'wrote {len(list(folder.glob("*.safetensors")))} files', flush=True)
    command = [sys.executable, __file__, f'--folder={folder}', f'--int8={_INT8.value}']
    sys.exit(subprocess.run(command).returncode)


if __name__ == '__main__':
  app.run(main)
