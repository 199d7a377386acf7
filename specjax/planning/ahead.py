"""Compiling a run ahead, for devices that are not here, without allocating anything.

`libtpu` compiles for a TPU slice on any Linux machine (extra `tpu-aot`). What comes back are
the compiler's own facts: bytes per chip, what is aliased, every collective, and the program itself,
which `times.walk` turns into seconds.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import importlib.metadata
import os
import time
from typing import Any

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from specjax import engine
from specjax import generation
from specjax import sampling as sampling_lib
from specjax.drafters import vocabulary
from specjax.drafters.plain import plain
from specjax.models import placement
from specjax.models.language_model import LanguageModel
from specjax.planning import compiled_text
from specjax.planning import program as program_lib
from specjax.planning import schedules
from specjax.sharding import trees

PyTree = Any

_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    # Nothing is run on a device, so that several processes may compile at once.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


class DoesNotFit(Exception):
  """The compiler refused the program: it needs more memory than a chip has."""


class UnreadableProgram(ValueError):
  """This JAX cannot read the text of a program that this libtpu compiled."""


def text_of(compiled: Any) -> str:
  """The optimised program of a compiled function.

  Raises:
    UnreadableProgram: where libtpu is newer than JAX can read.
  """
  try:
    return compiled.as_text()
  except jax.errors.JaxRuntimeError as error:
    raise UnreadableProgram(
        f'JAX {jax.__version__} cannot read a program that libtpu '
        f"{importlib.metadata.version('libtpu')} compiled ({str(error).splitlines()[0][:160]}): "
        'take the newest JAX, which needs Python 3.12 or newer.'
    ) from error


@functools.cache
def devices(topology: str) -> tuple[Any, ...]:
  """The devices of a TPU slice such as 'v5e:2x2' or 'v5p:2x2x2', to compile for.

  Raises:
    ModuleNotFoundError: where libtpu is not installed.
    ValueError: for a slice that the compiler does not know.
  """
  try:
    import libtpu  # noqa: F401
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'Compiling for a TPU needs its compiler: pip install "specjax[tpu-aot]" (libtpu).'
    ) from error
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  try:
    topology = topologies.get_topology_desc(platform='tpu', topology_name=topology)
  except Exception as error:
    raise ValueError(
        f'The TPU compiler knows no slice {topology!r} ({error}). Slices are named like v5e:2x2, '
        'v6e:4x4 or v5p:2x2x2.'
    ) from error
  return tuple(topology.devices)


def abstract_model(module: Any, *, int8: bool = False) -> LanguageModel:
  """A model whose weights are shapes, split as its layout says."""
  return LanguageModel(module, placement.abstract_params(module, int8=int8))


def abstract_run(
    target: LanguageModel,
    *,
    drafter: Any = None,
    rule: Any,
    batch_size: int,
    context: int,
    prefill_chunk: int = 128,
    sampling: Any = None,
) -> tuple[engine.Setup, engine.DecodeState]:
  """Setup and state of a run as shapes, as `generation.prepare` makes them.

  Args:
    target: of `abstract_model`, or a model with or without a layout.
    drafter: its weights shapes too; None decodes plainly.
    rule: the verification rule; run through `specjax.kernels.accept` where `generation` does.
    batch_size: B.
    context: the longest row, prompt and output.
    prefill_chunk: tokens of a prefill pass.
    sampling: the settings; None means temperature 1 and nothing else.

  Returns:
    The two arguments of `engine.run`, every leaf a `ShapeDtypeStruct`, with its sharding where
    the target has a layout.
  """
  drafter = plain() if drafter is None else vocabulary.fit(drafter, target.vocab_size)
  sampling = sampling_lib.make(batch_size=batch_size) if sampling is None else sampling
  rule = generation.rule_that_runs(rule, target=target, drafter=drafter, batch_size=batch_size)
  setup = engine.Setup(
      target=target,
      drafter=drafter,
      sampling=sampling,
      stop_tokens=jnp.full((8,), -1, jnp.int32),
      rule=rule,
      width=drafter.num_nodes + 1,
  )
  sizes = generation.cache_sizes(
      batch_size, context, width=setup.width, prefill_chunk=prefill_chunk
  )

  def first(setup: engine.Setup) -> engine.DecodeState:
    layers = setup.drafter.feature_layers
    tokens = jnp.zeros((batch_size, context), jnp.int32)
    read = lambda: setup.target(tokens[:, :1], feature_layers=layers, with_logits=False)
    features = jax.eval_shape(read).features
    return generation.first_state(
        setup,
        cache=setup.target.init_cache(**sizes),
        drafter_state=setup.drafter.init(**sizes),
        features=jnp.zeros((batch_size, features.shape[-1]), features.dtype),
        tokens=tokens,
        lengths=jnp.ones((batch_size,), jnp.int32),
        limits=jnp.ones((batch_size,), jnp.int32),
        seeds=0,
    )

  state = jax.eval_shape(first, setup)
  if setup.layout is None:
    return jax.eval_shape(lambda setup: setup, setup), state
  return trees.abstract(setup, setup.layout), trees.abstract(state, setup.layout)


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler says of one program, a chip.

  Attributes:
    argument_bytes: of its arguments.
    temporary_bytes: beside arguments and outputs.
    aliased_bytes: of outputs that take the place of arguments.
    compile_seconds: of the compilation alone.
    collectives: every collective, see `compiled_text.Collective`.
    program: the optimised program, read.
    text: of the program.
    kernels: cycles of its Pallas kernels by instruction, where `schedules.watch` was called.
  """

  argument_bytes: int
  temporary_bytes: int
  aliased_bytes: int
  compile_seconds: float
  collectives: tuple[compiled_text.Collective, ...]
  program: program_lib.Program = dataclasses.field(repr=False)
  text: str = dataclasses.field(repr=False)
  kernels: Mapping[str, int] = dataclasses.field(default_factory=dict)


def compile_program(function: Any, *arguments: Any) -> Compiled:
  """Lowers and compiles a jitted function for the devices of its arguments' shardings.

  Args:
    function: jitted.
    *arguments: shapes with shardings, and plain arrays.

  Raises:
    DoesNotFit: with the compiler's message.
    UnreadableProgram: as `text_of`.
  """
  lowered = function.lower(*arguments)
  schedules.forget()
  started = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' in str(error) or 'Ran out of memory' in str(error):
      raise DoesNotFit(str(error)) from error
    raise
  seconds = time.perf_counter() - started
  memory, text = compiled.memory_analysis(), text_of(compiled)
  program = program_lib.parse(text)
  return Compiled(
      argument_bytes=memory.argument_size_in_bytes,
      temporary_bytes=memory.temp_size_in_bytes,
      aliased_bytes=memory.alias_size_in_bytes,
      compile_seconds=seconds,
      collectives=compiled_text.collectives(program),
      program=program,
      kernels=schedules.of_program(program),
      text=text,
  )


def compile_run(setup: engine.Setup, state: engine.DecodeState) -> Compiled:
  """Compiles the whole loop of a run ahead; arguments of `abstract_run`."""
  rounds = jax.ShapeDtypeStruct((), jnp.int32, sharding=setup.layout.replicated)
  return compile_program(engine.run, setup, state, rounds)


def compile_prefill(
    setup: engine.Setup, state: engine.DecodeState, *, prefill_chunk: int
) -> Compiled:
  """Compiles the one program that reads prompts of any length, chunk by chunk."""
  batch_size = state.lengths.shape[0]
  whole = setup.layout.replicated
  tokens = jax.ShapeDtypeStruct((batch_size, prefill_chunk), jnp.int32, sharding=whole)
  num_new = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=whole)
  return compile_program(
      engine.prefill_chunk, setup, state.target_cache, state.drafter, tokens, num_new
  )


def bytes_a_device(tree: PyTree) -> int:
  """Bytes of a tree's arrays on one device, by their shardings."""

  def one(x) -> int:
    shape: Sequence[int] = x.sharding.shard_shape(x.shape)
    size = x.dtype.itemsize
    for dimension in shape:
      size *= dimension
    return size

  return sum(map(one, jax.tree.leaves(tree)))
