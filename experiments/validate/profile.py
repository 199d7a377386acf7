"""Where the time of a loop goes, by the engine's named scopes, from a trace of the device.

A trace names the operation of every kernel that ran; the compiled program says which scope of the
source an operation came from, and whether it holds a matrix product.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
import re
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from experiments.validate import results as results_lib
from experiments.validate import switches
from specjax.planning import program as program_lib
from specjax.planning import times

# Where a device's kernels are found, else the threads of XLA's CPU client.
_DEVICE = ('/device:GPU', '/device:TPU', '/host:CPU')
_PRODUCT = re.compile(r'custom_call_target="(?:__cublas|__triton|__cudnn|__onednn\$matmul)')
PARTS = ('products', 'attention', 'other of a pass', 'draft', 'sampling', 'commit', 'loop')


def part(op_name: str, *, is_product: bool) -> str:
  """One of `PARTS` that an operation belongs to; 'loop' is what no scope names.

  >>> part('jit(run)/while/body/score/Transformer/layer_0/attention/attend/mul', is_product=True)
  'attention'
  >>> part('jit(run)/while/body/score/Transformer/layer_0/mlp/dot_general', is_product=True)
  'products'
  """
  scope = times.scope_of(op_name) or 'other'
  if scope == 'score':
    if '/attend/' in op_name:
      return 'attention'
    return 'products' if is_product else 'other of a pass'
  return {'verify': 'sampling', 'other': 'loop'}.get(scope, scope)


def parts_of(text: str) -> dict[str, str]:
  """The part of each instruction of an optimised program, by the instruction's name."""
  program = program_lib.parse(text)
  products = {computation.name for computation, each in program if _is_product(each)}
  called = lambda each: each.called('calls') or each.called('to_apply')
  return {
      each.name: part(each.op_name, is_product=_is_product(each) or called(each) in products)
      for _, each in program
  }


def _is_product(each: program_lib.Instruction) -> bool:
  return each.opcode in ('dot', 'convolution') or bool(_PRODUCT.search(each.attributes))


def keep(step, name: str, bench, seconds: float, drafter=None) -> dict[str, float]:
  """Profiles a loop, keeps a row for each part and packs the trace with the program.

  Args:
    step: an `experiments.validate.context.Context`.
    name: of what is profiled.
    bench: an `experiments.validate.model.Bench`.
    seconds: of a round, as timed without the profiler.
    drafter: as in `Bench.seconds`.

  Returns:
    Seconds per round by part.
  """
  # Kernels of a CUDA graph do not say which operation they are.
  off = switches.compiler_options({'command_buffers': 'off'}, jax.default_backend())
  bench = dataclasses.replace(bench, options=dict(bench.options or {}) | off)
  setup, state = bench.started(drafter)
  run = bench.compiled(setup, state)
  parts, files = profile(run, setup, state, rounds=4 if step.smoke else 16, seconds=seconds)
  for part_name, spent in parts.items():
    step.results.add(
        f'{name}: {part_name}', measured=1e3 * spent, unit='ms', of_a_round=spent / seconds
    )
  label = name.replace(' ', '_').replace(',', '')
  packed = {f'{label}/{key}': path for key, path in files.items()}
  step.results.pack(results_lib.PROFILES, packed | {f'{label}/program.txt': run.as_text()})
  shutil.rmtree(next(iter(files.values())).parents[3], ignore_errors=True)
  return parts


def profile(
    run, setup, state, *, rounds: int, seconds: float
) -> tuple[dict[str, float], Mapping[str, pathlib.Path]]:
  """Runs a compiled loop under the profiler.

  Args:
    run: `engine.run` compiled for `setup` and `state`.
    setup: the engine's.
    state: left as it was.
    rounds: how many.
    seconds: of a round without the profiler, which takes time itself.

  Returns:
    Seconds per round by part, 'loop' holding also what no kernel filled; and the trace's files,
    in a folder that is the caller's to remove.

  Raises:
    RuntimeError: if the trace names no operation of the program, or JAX cannot read traces.
  """
  if not hasattr(jax.profiler, 'ProfileData'):
    raise RuntimeError('this JAX has no jax.profiler.ProfileData, which reads traces')
  folder = pathlib.Path(tempfile.mkdtemp(prefix='specjax_profile_'))
  fresh = jax.block_until_ready(jax.tree.map(jnp.copy, state))
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # the host's calls would be most of the file
  with jax.profiler.trace(str(folder), profiler_options=options):
    jax.block_until_ready(run(setup, fresh, np.int32(rounds)))
  files = {path.name: path for path in folder.rglob('*') if path.is_file()}
  trace = next((path for name, path in files.items() if name.endswith('.xplane.pb')), None)
  if trace is None:
    raise RuntimeError(f'the profiler wrote no xplane.pb, only {sorted(files)}')
  sums = _sums(jax.profiler.ProfileData.from_file(str(trace)), parts_of(run.as_text()))
  if not sums:
    raise RuntimeError('the trace names no operation of the program')
  found = {name: sums.get(name, 0.0) / rounds for name in PARTS}
  found['loop'] += max(seconds - sum(found.values()), 0.0)
  return found, files


def _sums(data, where: Mapping[str, str]) -> dict[str, float]:
  """Seconds of all kernels whose operation is known, by part."""
  sums: dict[str, float] = {}
  for kind in _DEVICE:
    for plane in data.planes:
      if plane.name.startswith(kind):
        for line in plane.lines:
          _add(line, where, sums)
    if sums:
      break  # the host's planes repeat what the device's say
  return sums


def _add(line, where: Mapping[str, str], sums: dict[str, float]) -> None:
  # Lines that group kernels ('XLA Ops', 'XLA Modules') tell the same time once more.
  if line.name.startswith(('XLA', 'Steps', 'Framework', 'Source')) and 'XLA Ops' != line.name:
    return
  for event in line.events:
    operation = next((value for key, value in event.stats if key == 'hlo_op'), event.name)
    name = where.get(str(operation))
    # A loop's own event spans those of its body.
    if name is not None and not str(operation).startswith(('while', 'conditional', 'call')):
      sums[name] = sums.get(name, 0.0) + event.duration_ns / 1e9
