"""The TPU cost of the acceptance op, counted by the TPU's compiler, without a TPU.

    PYTHONPATH=$TPU_COMPILER python -m benchmarks.acceptance_cost [--batch=8 --chips=v5e,v6e]

($TPU_COMPILER holds libtpu; scripts/test.sh puts it into .venv/.specjax/tpu-aot.)

For each chip and rule, rows of `--workdir`/metrics.jsonl for the kernels and for the XLA
definition: `cycles` (scheduled by the compiler), `bytes` (from HBM), both as microseconds of the
chip, and their sum as a share of a round of Llama-3.1-8B with K steps of a Llama-3.2-1B draft, and
of the target's pass alone. Of these only the reading of bfloat16 weights counts: a lower bound on
the round, so an upper one on the share. `microseconds_overlapped` lets kernels compute on a group
of rows while the next one is fetched, as they do where there are several groups.

Kernels carry no estimate of their own. Their cycles are the bundles of the final schedule, those
of a loop times how often it runs; the branch for settings that nobody asked for is left out. Each
kernel is also charged a launch: all that XLA estimates for its smallest operation (`x + 1` of eight
numbers), which is fixed cost. Where the schedule of a v5p says that its two cores share a kernel's
grid (`cores`: they meet at a barrier, and the loop over the grid is as long as one core's part),
the cycles are those of the longer part; other kernels run on one core there. Bytes of kernels
are counted from their copies, those of XLA by its cost analysis. The XLA definition's tiles are
made so that shards share them, not for a TPU's lanes: it rearranges its logits there, which is
most of its cost.
"""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from absl import app
from absl import flags
import jax
import jax.numpy as jnp

from specjax import sampling as sampling_lib
from specjax.kernels import accept as accept_lib
from specjax.kernels.accept import base
from specjax.planning import ahead
from specjax.planning import chips
from specjax.planning import program as program_lib
from specjax.planning import schedules as schedules_lib

_BATCH = flags.DEFINE_integer('batch', 8, 'Number of sequences.')
_SIZE = flags.DEFINE_integer('num_speculative_tokens', 8, 'Draft tokens per sequence.')
_VOCAB = flags.DEFINE_integer('vocab_size', 128_256, 'Entries of a row.')
_CHIPS = flags.DEFINE_list('chips', ['v5e', 'v5p', 'v6e'], 'Which chips.')
_RULES = flags.DEFINE_list('rules', ['rejection', 'block', 'coupled'], 'Which rules.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/acceptance_cost', 'Folder for metrics.jsonl.')
_ONE = flags.DEFINE_string('one', '', 'Internal: chip,rule,implementation of one compilation.')

TOPOLOGIES = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2'}
LLAMA_8B_BYTES, LLAMA_1B_BYTES = 16.06e9, 2.47e9


def arguments(rule: str):
  """Abstract arguments of `op`."""
  batch, size, vocab_size = _BATCH.value, _SIZE.value, _VOCAB.value
  shape = jax.ShapeDtypeStruct
  if rule == 'coupled':
    numbers = accept_lib.Noise(shape((batch, 2), jnp.uint32), shape((batch, size + 1), jnp.int32))
  else:
    numbers = accept_lib.Uniforms(
        shape((batch, size), jnp.float32), shape((batch, size + 1), jnp.float32)
    )
  return (
      shape((batch * (size + 1), vocab_size), jnp.float32),
      shape((batch, size), jnp.int32),
      numbers,
      sampling_lib.make(batch_size=batch),
      None if rule == 'coupled' else shape((batch * size, vocab_size), jnp.float32),
  )


def op(target, tokens, numbers, sampling, draft, *, rule, implementation):
  """The op on logits, as the engine uses it: probabilities of acceptance are for its trace."""
  result = accept_lib.accept(
      target, tokens, rule=rule, numbers=numbers, sampling=sampling, draft_logits=draft,
      implementation=implementation,
  )
  return result.num_accepted, result.next_token, result.log_probs


def compile_one(chip: str, rule: str, implementation: str) -> None:
  """Compiles one implementation in this process, whose libtpu writes schedules; prints costs."""
  sharding = jax.sharding.SingleDeviceSharding(ahead.devices(TOPOLOGIES[chip])[0])

  def compiled(function, *args):
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), args
    )
    return jax.jit(function).lower(*placed).compile()

  # No sequence is greedy or filtered, and no residual is empty. This process does nothing else.
  base.unlikely_cond = lambda condition, unlikely, likely: likely()
  program = compiled(
      functools.partial(op, rule=rule, implementation=implementation), *arguments(rule)
  )
  smallest = compiled(lambda x: x + 1, jax.ShapeDtypeStruct((8,), jnp.float32))
  text = ahead.text_of(program)
  cycles = lambda text: sum(each.cycles or 0 for _, each in program_lib.parse(text))
  print('RESULT ' + json.dumps(dict(
      bytes=program.cost_analysis().get('bytes accessed', 0.0),
      temporary=program.memory_analysis().temp_size_in_bytes,
      cycles=cycles(text),
      launches=len(re.findall(r'custom_call_target="tpu_custom_call"', text)),
      launch_cycles=cycles(ahead.text_of(smallest)),
  )))


def measure(chip: str, rule: str, implementation: str) -> dict:
  """The cost of one implementation, from a process of its own: libtpu reads its flags once."""
  command = [
      sys.executable, '-m', 'benchmarks.acceptance_cost', f'--one={chip},{rule},{implementation}',
      f'--batch={_BATCH.value}', f'--num_speculative_tokens={_SIZE.value}',
      f'--vocab_size={_VOCAB.value}',
  ]
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  with tempfile.TemporaryDirectory() as folder:
    if implementation == 'mosaic_tpu':
      # Some seventy files per op: only where schedules are read.
      environment['LIBTPU_INIT_ARGS'] = f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true'
    process = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    result = re.search(r'^RESULT (.*)$', process.stdout, re.MULTILINE)
    if not result:
      raise RuntimeError(
          f'{chip}, {rule}, {implementation} did not compile: {process.stderr[-2000:]}'
      )
    costs = json.loads(result[1])
    if implementation == 'mosaic_tpu':
      costs |= kernel_costs(rule, costs, _schedules(folder))
  return costs


def _schedules(folder: str) -> dict[str, str]:
  """The schedule of each kernel of the op, by the kernel's name."""
  found = schedules_lib.read(folder, lambda name: name.startswith('accept_'))
  return {re.match(r'accept_[a-z]+', name)[0]: schedule for name, schedule in found.items()}


def kernel_costs(rule: str, costs: dict, schedules: dict[str, str]) -> dict:
  """What the schedules add to the costs that XLA knows, and bytes as the kernels copy them."""
  if len(schedules) != costs['launches']:
    raise RuntimeError(f'{rule}: {costs["launches"]} kernels, schedules of {list(schedules)}.')
  kernels = {name: schedules_lib.cycles(schedule) for name, schedule in schedules.items()}
  glue = costs['cycles'] + costs['launches'] * costs['launch_cycles']
  # See specjax.kernels.accept.mosaic_tpu.
  rows = _SIZE.value + 1 if rule == 'coupled' else 2 * _SIZE.value + 2
  return dict(
      xla_cycles=costs['cycles'],
      kernels=kernels,
      cores={name: schedules_lib.cores(schedule) for name, schedule in schedules.items()},
      glue_cycles=glue,
      cycles=glue + sum(kernels.values()),
      bytes=rows * _VOCAB.value * 4 * _BATCH.value,
  )


def row_of(chip: str, rule: str, implementation: str, costs: dict) -> dict:
  """The row of metrics.jsonl: costs as microseconds of the chip and as shares of a round."""
  speed = chips.CHIPS[chip]
  compute, memory = 1e6 * costs['cycles'] / speed.clock, 1e6 * costs['bytes'] / speed.hbm_bandwidth
  glue = 1e6 * costs.get('glue_cycles', costs['cycles']) / speed.clock
  target = 1e6 * LLAMA_8B_BYTES / speed.hbm_bandwidth
  drafts = 1e6 * LLAMA_1B_BYTES * _SIZE.value / speed.hbm_bandwidth
  return dict(
      name=f'{rule}, {implementation}', chip=chip, microseconds_cycles=round(compute, 1),
      microseconds_bytes=round(memory, 1), microseconds=round(compute + memory, 1),
      microseconds_overlapped=round(max(compute - glue, memory) + glue, 1),
      share_of_round=round((compute + memory) / (target + drafts), 5),
      share_of_target_pass=round((compute + memory) / target, 5),
      floor_bytes=(2 * _SIZE.value + 3) * _VOCAB.value * 4 * _BATCH.value, **costs,
  )


def main(argv):
  del argv
  if _ONE.value:
    compile_one(*_ONE.value.split(','))
    return
  folder = pathlib.Path(_WORKDIR.value)
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'metrics.jsonl', 'w', encoding='utf-8') as file:
    for chip in _CHIPS.value:
      for rule in _RULES.value:
        for implementation in ('xla', 'mosaic_tpu'):
          row = row_of(chip, rule, implementation, measure(chip, rule, implementation))
          file.write(json.dumps(row) + '\n')
          file.flush()
          print(
              f'{chip}  {row["name"]:24s} {row["microseconds_cycles"]:8.1f} µs cycles '
              f'{row["microseconds_bytes"]:8.1f} µs bytes  '
              f'{100 * row["share_of_round"]:.3f} % of a round, '
              f'{100 * row["share_of_target_pass"]:.3f} % of its target pass; temporaries '
              f'{row["temporary"]:,} B', flush=True,
          )


if __name__ == '__main__':
  app.run(main)
