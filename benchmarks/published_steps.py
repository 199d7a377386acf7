"""The time model against decode steps that others measured on TPUs, compiled from their program.

    git clone https://github.com/jax-ml/jax-llm-examples FOLDER
    PYTHONPATH=$TPU_COMPILER python -m benchmarks.published_steps --source=FOLDER \\
        --workdir=runs/published_steps

($TPU_COMPILER holds libtpu; scripts/test.sh puts it into .venv/.specjax/tpu-aot. Their code asks
for `pip install etils flatbuffers`.)

The cases are the table of jax-llm-examples' llama3/README.md: Llama-3.1-70B, weights and cache in
eight bits, on a v5e-16, split 16 ways or 8 ways twice. Their program is compiled as it stands, with
their attention kernel, for two and for four layers; 80 layers take as much again for every further
pair. Three calls of theirs are written for an older JAX and are given what they had then: two
shardings inside `shard_map`, and `pltpu.repeat`. How far the cache was filled is not published;
the whole of it is counted, so that predictions for long contexts come out high.

A row of metrics.jsonl per case: the measured milliseconds, what the model predicts, what bytes
alone take, and the error. `specjax.planning.times.ERRORS` holds the range that plans print.
"""

import functools
import json
import pathlib
import sys

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from specjax.planning import ahead
from specjax.planning import chips
from specjax.planning import program as program_lib
from specjax.planning import times

_SOURCE = flags.DEFINE_string('source', None, 'Checkout of jax-llm-examples.', required=True)
_WORKDIR = flags.DEFINE_string('workdir', 'runs/published_steps', 'Folder for metrics.jsonl.')
_CASES = flags.DEFINE_list('cases', [], 'Of these batch:context:ways alone; all by default.')

# (batch, context, ways of tensor parallelism): steps per second, from their table.
PUBLISHED = {
    (8, 2048, 16): 159.0, (8, 4096, 16): 146.0, (8, 8192, 16): 146.0,
    (16, 2048, 16): 135.0, (16, 4096, 16): 129.0, (16, 8192, 16): 123.0,
    (32, 2048, 16): 108.0, (32, 4096, 16): 100.0, (32, 8192, 16): 93.8,
    (64, 2048, 16): 68.7, (64, 4096, 16): 62.7, (128, 2048, 16): 39.3,
    (8, 2048, 8): 84.4, (8, 4096, 8): 83.4, (8, 8192, 8): 81.7,
    (16, 2048, 8): 80.2, (16, 4096, 8): 79.5, (16, 8192, 8): 76.9,
    (32, 2048, 8): 74.5, (32, 4096, 8): 74.0, (32, 8192, 8): 71.3,
    (64, 2048, 8): 58.4, (64, 4096, 8): 58.1, (128, 2048, 8): 50.2,
}
SLICE, LAYERS = 'v5e:4x4', 80


def decode_step(model, shapes, cfg, tokens):
  """Their decode step, lowered for `cfg`."""
  attention = model.attention_kernel
  reshard, spec = jax.sharding.reshard, jax.sharding.PartitionSpec

  def with_shardings(q, k, v, q_ids, kv_ids, offset, starts, lengths, cfg):
    rows = lambda x: reshard(jnp.broadcast_to(x, (q.shape[0],)), spec('x'))
    kv_ids = reshard(kv_ids, spec('x', None))
    return attention(
        q, k, v, q_ids, kv_ids, offset, starts=rows(starts), lengths=rows(lengths), cfg=cfg
    )

  @functools.partial(jax.jit, donate_argnums=(2,))
  def step(tokens, weights, cache):
    ids = reshard(jnp.ones(tokens.shape, jnp.int32), spec('x', None))
    logits, cache = model.forward(tokens, ids, weights, cfg, cache)
    return reshard(jnp.argmax(logits, -1), spec()), cache

  model.attention_kernel = with_shardings
  try:
    return step.lower(tokens, *shapes)
  finally:
    model.attention_kernel = attention


def compiled(model, *, batch: int, context: int, ways: int, layers: int) -> times.Times:
  """The times of their step with some layers."""
  devices = np.array(ahead.devices(SLICE)).reshape(16 // ways, 8, ways // 8)
  kinds = (jax.sharding.AxisType.Explicit,) * 3
  mesh = jax.sharding.Mesh(devices, ('x', 'y', 'z'), axis_types=kinds)
  cfg = model.Config(
      embed=8192, ffw_size=28672, q_heads=64, kv_heads=8, num_layers=layers, head_dim=128,
      vocab_size=128256, max_seq_len=context, causal=True, use_prefill_attn_kernel=True,
      use_decode_attn_kernel=True, mesh=mesh, quant_layer=True, quant_cache=True,
  )

  def shapes(kind, *args):
    def one(info):
      sharding = model.logical_to_sharding(info.logical_axes, cfg.mesh, cfg.rules)
      return jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=sharding)

    return jax.tree.map(one, kind.abstract(cfg, *args), is_leaf=model.is_param)

  with jax.sharding.set_mesh(mesh):
    tokens = jax.ShapeDtypeStruct(
        (batch, 1), jnp.int32,
        sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x', None)),
    )
    lowered = decode_step(model, (shapes(model.Weights), shapes(model.KVCache, batch)), cfg, tokens)
  program = program_lib.parse(ahead.text_of(lowered.compile()))
  return times.walk(program, chips.slice_of(SLICE))


def row(model, batch: int, context: int, ways: int) -> dict:
  """One case, predicted and measured."""
  two, four = (
      compiled(model, batch=batch, context=context, ways=ways, layers=layers) for layers in (2, 4)
  )
  whole = lambda two, four: 1e3 * (two + (LAYERS - 2) * (four - two) / 2)
  measured = 1e3 / PUBLISHED[batch, context, ways]
  predicted = whole(two.seconds, four.seconds)
  return {
      'batch_size': batch, 'context': context, 'ways': ways, 'measured_ms': measured,
      'predicted_ms': predicted, 'bytes_ms': whole(two.least_seconds, four.least_seconds),
      'error': predicted / measured - 1,
  }


def main(argv) -> None:
  del argv
  sys.path.insert(0, str(pathlib.Path(_SOURCE.value, 'llama3')))
  from jax.experimental.pallas import tpu as pltpu

  if not hasattr(pltpu, 'repeat'):
    pltpu.repeat = lambda x, count, axis: jnp.concatenate([x] * count, axis=axis)
  from llama3_jax import model

  folder = pathlib.Path(_WORKDIR.value)
  folder.mkdir(parents=True, exist_ok=True)
  cases = [tuple(map(int, case.split(':'))) for case in _CASES.value] or list(PUBLISHED)
  with open(folder / 'metrics.jsonl', 'w', encoding='utf-8') as file:
    for case in cases:
      made = row(model, *case)
      file.write(json.dumps(made) + '\n')
      file.flush()
      print(
          f'batch {case[0]}, context {case[1]}, {case[2]} ways: measured '
          f'{made["measured_ms"]:.2f} ms, predicted {made["predicted_ms"]:.2f} '
          f'({made["error"]:+.0%}), bytes {made["bytes_ms"]:.2f}', flush=True,
      )


if __name__ == '__main__':
  app.run(main)
