"""The TPU cost of the acceptance op, counted by the TPU's compiler, without a TPU.

    PYTHONPATH=$TPU_COMPILER python -m benchmarks.acceptance_cost [--batch=8 --chips=v5e]

($TPU_COMPILER holds libtpu; scripts/test.sh puts it into .venv/.specjax/tpu-aot.)

For each chip and rule, rows of `--workdir`/metrics.jsonl for the kernels and for the XLA
definition: `cycles` (scheduled by the compiler), `bytes` (from HBM), both as microseconds of the
chip, and their sum as a share of a round of Llama-3.1-8B with K steps of a Llama-3.2-1B draft, and
of the target's pass alone. Of these only the reading of bfloat16 weights counts: a lower bound on
the round, so an upper one on the share. `microseconds_overlapped` lets kernels compute on a group
of rows while the next is fetched, as they do where there are several groups.

Kernels carry no estimate of their own. Their cycles are the bundles of the final schedule, those
of a loop times how often it runs; the branch of settings that nobody asked for is left out. Each
is charged a launch too: all that XLA estimates for its smallest operation (`x + 1` of eight
numbers), which is fixed cost. Where the schedule of a v5p says that its two cores share a kernel's
grid (`cores`: they meet at a barrier, and the loop over the grid is as long as one core's part),
the cycles are those of the longer part; other kernels run on one core there. Bytes of kernels
are counted from their copies, those of XLA by its cost analysis. The XLA definition's tiles are
made so that shards share them, not for a TPU's lanes: it lays its logits out anew there, which
most of its cost is.
"""

import contextlib
import functools
import glob
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from absl import app
from absl import flags

_BATCH = flags.DEFINE_integer('batch', 8, 'Sequences.')
_SIZE = flags.DEFINE_integer('num_speculative_tokens', 8, 'Draft tokens of each.')
_VOCAB = flags.DEFINE_integer('vocab_size', 128_256, 'Entries of a row.')
_CHIPS = flags.DEFINE_list('chips', ['v5e', 'v5p', 'v6e'], 'Which chips.')
_RULES = flags.DEFINE_list('rules', ['rejection', 'block', 'coupled'], 'Which rules.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/acceptance_cost', 'Where metrics.jsonl goes.')
_ONE = flags.DEFINE_string('one', '', 'Internal: chip,rule,form,dump folder of one compilation.')

TOPOLOGIES = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2'}
LLAMA_8B_BYTES, LLAMA_1B_BYTES = 16.06e9, 2.47e9


def arguments(chip: str, rule: str):
  """Abstract arguments of `op`, placed on a device of the chip."""
  import jax
  import jax.numpy as jnp
  from specjax import sampling as sampling_lib
  from specjax.kernels import accept as accept_lib
  from specjax.planning import ahead

  device = ahead.devices(TOPOLOGIES[chip])[0]
  batch, size, vocab_size = _BATCH.value, _SIZE.value, _VOCAB.value
  of = jax.ShapeDtypeStruct
  if rule == 'coupled':
    numbers = accept_lib.Noise(of((batch, 2), jnp.uint32), of((batch, size + 1), jnp.int32))
  else:
    numbers = accept_lib.Uniforms(
        of((batch, size), jnp.float32), of((batch, size + 1), jnp.float32)
    )
  made = (
      of((batch * (size + 1), vocab_size), jnp.float32),
      of((batch, size), jnp.int32),
      numbers,
      sampling_lib.make(batch_size=batch),
      None if rule == 'coupled' else of((batch * size, vocab_size), jnp.float32),
  )
  sharding = jax.sharding.SingleDeviceSharding(device)
  return jax.tree.map(lambda x: of(x.shape, x.dtype, sharding=sharding), made)


def op(target, tokens, numbers, sampling, draft, *, rule, implementation):
  """The op on logits, as the engine uses it: probabilities of acceptance are for its trace."""
  from specjax.kernels import accept as accept_lib
  found = accept_lib.accept(
      target, tokens, rule=rule, numbers=numbers, sampling=sampling, draft_logits=draft,
      implementation=implementation,
  )
  return found.num_accepted, found.next_token, found.log_probs


@contextlib.contextmanager
def without_unusual_branches():
  """Both forms as they run where no sequence is greedy or filtered and no residual is empty."""
  from specjax.kernels.accept import base
  before = base.unlikely_cond
  base.unlikely_cond = lambda condition, unusual, usual: usual()
  try:
    yield
  finally:
    base.unlikely_cond = before


def compile_one(chip: str, rule: str, form: str) -> None:
  """Compiles one form in this process, whose libtpu dumps schedules; prints what XLA says."""
  import jax
  with without_unusual_branches():
    compiled = jax.jit(functools.partial(op, rule=rule, implementation=form)).lower(
        *arguments(chip, rule)
    ).compile()
  cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
  device = jax.tree.leaves(arguments(chip, rule))[0].sharding
  smallest = jax.jit(lambda x: x + 1).lower(
      jax.ShapeDtypeStruct((8,), 'float32', sharding=device)
  ).compile()
  text = compiled.as_text()
  print('RESULT ' + json.dumps(dict(
      bytes=cost.get('bytes accessed', 0.0),
      temporary=memory.temp_size_in_bytes,
      cycles=estimated_cycles(text),
      launches=len(re.findall(r'custom_call_target="tpu_custom_call"', text)),
      launch_cycles=estimated_cycles(smallest.as_text()),
  )))


def estimated_cycles(text: str) -> int:
  """The sum of the compiler's estimates.

  Some operations have none, for which a number near 2**63 or 2**64 stands: half an hour and more
  is no estimate, and counts as nothing.
  """
  found = map(int, re.findall(r'"estimated_cycles":"(\d+)"', text))
  return sum(each for each in found if each < 2**42)


# A branch takes effect after this many bundles.
_DELAY = 4


def scheduled_cycles(path: str) -> int:
  """Bundles of a kernel's final schedule, those of a loop times how often it runs.

  A loop begins at a bundle marked LB and ends after a branch back, which is the one with a
  negated predicate; how often it runs is in its exit test. Bundles that a predicate leaves out
  are counted all the same.

  Raises:
    RuntimeError: if a loop has no constant exit test.
  """
  bundles = [
      line for line in pathlib.Path(path).read_text(encoding='utf-8-sig').splitlines()
      if re.match(r'\s*(0x[\da-f]+|0)\s+(LB|LH|LE|PB|PF|CT)?\s*:', line)
  ]
  total, weights = 0, [1] * (len(bundles) + _DELAY)
  starts = []
  for at, line in enumerate(bundles):
    if re.match(r'\s*0x[\da-f]+\s+LB', line):
      starts.append(at)
    if re.search(r'sbr\.rel \(!', line) and starts:
      start = starts.pop()
      tests = re.findall(r'scmp\.ge\.s32\.totalorder [^,]+, (\d+)[^;]*loop exit test',
                         ' '.join(bundles[start : at + 1]))
      if not tests:
        raise RuntimeError(f'{path}: no exit test of the loop at bundle {start}.')
      for bundle in range(start, at + 1 + _DELAY):
        weights[bundle] *= int(tests[-1])
  total = sum(weights[: len(bundles)])
  return total


def kernel_cycles(folder: str) -> tuple[dict[str, int], dict[str, int]]:
  """Cycles of each kernel, and on how many cores, from the schedules in a dump folder."""
  cycles, cores = {}, {}
  for path in sorted(glob.glob(f'{folder}/**/*-final_bundles.txt', recursive=True)):
    name = re.search(r'accept_[a-z]+', os.path.basename(path))
    if name and 'schedule-analysis' not in path:
      cycles[name.group(0)] = scheduled_cycles(path)
      text = pathlib.Path(path).read_text(encoding='utf-8-sig')
      cores[name.group(0)] = 2 if 'BarrierMegacore' in text else 1
  return cycles, cores


def kernel_bytes(rule: str) -> int:
  """Bytes that the kernels copy from HBM: see `specjax.kernels.accept.mosaic_tpu`."""
  rows = _SIZE.value + 1 if rule == 'coupled' else 2 * _SIZE.value + 2
  return rows * _VOCAB.value * 4 * _BATCH.value


def measure(chip: str, rule: str, form: str) -> dict:
  """One row, from a process of its own: libtpu reads its flags once."""
  with tempfile.TemporaryDirectory() as folder:
    environment = dict(
        os.environ, JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1',
        TPU_ACCELERATOR_TYPE='v5litepod-16', TPU_WORKER_HOSTNAMES='localhost',
        ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    )
    if form == 'mosaic_tpu':
      # Some seventy files an op: only where schedules are read.
      dump = f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true'
      environment['LIBTPU_INIT_ARGS'] = dump
    flags_given = [
        f'--batch={_BATCH.value}', f'--num_speculative_tokens={_SIZE.value}',
        f'--vocab_size={_VOCAB.value}', f'--one={chip},{rule},{form}',
    ]
    done = subprocess.run(
        [sys.executable, '-m', 'benchmarks.acceptance_cost', *flags_given], env=environment,
        capture_output=True, text=True, check=False,
    )
    found = re.search(r'^RESULT (.*)$', done.stdout, re.MULTILINE)
    if not found:
      raise RuntimeError(f'{chip} {rule} {form} did not compile: {done.stderr[-2000:]}')
    row = json.loads(found.group(1))
    if form == 'mosaic_tpu':
      kernels, cores = kernel_cycles(folder)
      if len(kernels) != row['launches']:
        raise RuntimeError(f'{chip} {rule}: {row["launches"]} kernels, schedules of {kernels}.')
      row['xla_cycles'], row['kernels'], row['cores'] = row['cycles'], kernels, cores
      row['glue_cycles'] = row['cycles'] + row['launches'] * row['launch_cycles']
      row['cycles'] = row['glue_cycles'] + sum(kernels.values())
      row['bytes'] = kernel_bytes(rule)
  from specjax.planning.chips import CHIPS
  of = CHIPS[chip]
  compute, memory = 1e6 * row['cycles'] / of.clock, 1e6 * row['bytes'] / of.hbm_bandwidth
  glue = 1e6 * row.get('glue_cycles', row['cycles']) / of.clock
  target = 1e6 * LLAMA_8B_BYTES / of.hbm_bandwidth
  drafts = 1e6 * LLAMA_1B_BYTES * _SIZE.value / of.hbm_bandwidth
  return dict(
      name=f'{rule}, {form}', chip=chip, microseconds_cycles=round(compute, 1),
      microseconds_bytes=round(memory, 1), microseconds=round(compute + memory, 1),
      microseconds_overlapped=round(max(compute - glue, memory) + glue, 1),
      share_of_round=round((compute + memory) / (target + drafts), 5),
      share_of_target_pass=round((compute + memory) / target, 5),
      floor_bytes=(2 * _SIZE.value + 3) * _VOCAB.value * 4 * _BATCH.value, **row,
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
        for form in ('xla', 'mosaic_tpu'):
          row = measure(chip, rule, form)
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
