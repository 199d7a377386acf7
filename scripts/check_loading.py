"""Shows what memory loading takes: a made-up checkpoint of some gigabytes, read onto a mesh.

    python scripts/check_loading.py --gigabytes=2.5
    python scripts/check_loading.py --gigabytes=2.5 --int8

Writes a Hugging Face folder of random bfloat16 weights in several files (removed afterwards),
loads it onto eight CPU devices in a process of its own, and prints that process's peak beside
the size of the loaded arrays and of the largest tensor. Exit code 1 if the peak beyond the
arrays exceeds the largest tensor plus one device's part of it (and what JAX itself takes).
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
_FOLDER = flags.DEFINE_string('folder', '', 'Load this folder (used by the script itself).')

DEVICES = 8
# Files are mapped: pages that are being read count, and leave with the tensor.
_POLL_SECONDS = 0.01


def write(folder: pathlib.Path, gigabytes: float) -> None:
  """A Llama of the wanted size; every layer is the same random block, so that it is quick."""
  import jax.numpy as jnp
  import numpy as np

  from specjax import models

  shape = dict(
      vocab_size=32_000, width=2048, num_heads=16, num_kv_heads=8, head_dim=128, mlp_width=8192
  )
  one = models.TransformerConfig(num_layers=1, **shape).num_parameters
  two = models.TransformerConfig(num_layers=2, **shape).num_parameters
  layers = max(1, round((gigabytes * 1e9 / 2 - one) / (two - one)) + 1)
  config = models.TransformerConfig(num_layers=layers, **shape)

  module = models.Transformer(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
  rng, made = np.random.default_rng(0), {}

  def fill(x):
    if x.shape not in made:
      values = rng.standard_normal(x.shape, np.float32) * 0.02
      made[x.shape] = values.astype(jnp.bfloat16)
    return made[x.shape]

  import jax

  params = jax.tree.map(fill, models.abstract_params(module))
  models.save_hf(models.LanguageModel(module, params), folder, max_shard_bytes=500_000_000)


def load(folder: str, int8: bool) -> None:
  """Loads and prints: peak beyond the start, bytes of arrays, of the largest tensor."""
  import jax
  import jax.numpy as jnp

  from specjax import models
  from specjax import sharding
  from specjax.models import quantization

  layouts = sharding.make('tensor', model=DEVICES)
  # What the compiler takes for its first programs is not the checkpoint's.
  small = jnp.zeros((64, 64), jnp.bfloat16, device=layouts.target.sharding(('vocab', None)))
  jax.block_until_ready(jax.jit(quantization.quantize)(small))
  start, peak, over = _resident(), [0], threading.Event()

  def watch():
    while not over.is_set():
      peak[0] = max(peak[0], _resident())
      time.sleep(_POLL_SECONDS)

  thread = threading.Thread(target=watch)
  thread.start()
  began = time.perf_counter()
  model = models.load_hf(folder, layout=layouts.target, int8=int8)
  jax.block_until_ready(model.params)
  seconds = time.perf_counter() - began
  over.set()
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
  """Bytes of this process in memory, mapped files included."""
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
