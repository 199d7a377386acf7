"""The kernel that writes new entries into caches: interpreted, compiled for TPUs, and in place."""

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.cache import rows as cache_rows
from specjax.kernels import append as append_kernel
from specjax.planning import chips
from specjax.planning import program as program_lib
from specjax.planning import times
from tests.support import tpu_ahead

# (rows, groups, slots, head size, new entries): whole groups of rows and not, wide heads and
# narrow, entries in one tile and in several.
FLOAT, HALF = jnp.float32, jnp.bfloat16
CASES = [
    (8, 1, 64, 128, 5, HALF), (11, 2, 64, 128, 2, FLOAT), (3, 2, 384, 64, 1, HALF),
    (9, 1, 256, 64, 16, FLOAT),
    (3, 48, 32, 128, 1, HALF),  # so many heads that fewer rows than there are go together
]


def numbers(*shape, seed: int, dtype) -> jnp.ndarray:
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize('rows, groups, slots, head_dim, num_new, dtype', CASES)
def test_it_writes_what_a_scatter_would(rows, groups, slots, head_dim, num_new, dtype):
  buffers = [numbers(rows, groups, slots, head_dim, seed=seed, dtype=dtype) for seed in (0, 1)]
  new = [numbers(rows, num_new, groups, head_dim, seed=seed, dtype=dtype) for seed in (2, 3)]
  # At the very end, across the end, before the beginning, on the edges of tiles, and between.
  first = np.random.default_rng(4).integers(0, slots - num_new, size=rows)
  edges = np.array([slots - num_new, slots - 1, 1 - num_new, 16 - num_new, 16])
  first[: len(edges)] = edges[:rows]
  assert append_kernel.fits(buffers[0], num_new)
  # Copies run as late as they may, memory begins as NaN, and races raise.
  mode = pltpu.InterpretParams(
      dma_execution_mode='on_wait', detect_races=True, uninitialized_memory='nan'
  )
  made = append_kernel.append(buffers, new, jnp.asarray(first, jnp.int32), interpret=mode)
  for buffer, entries, got in zip(buffers, new, made):
    expected = np.array(buffer)
    for row in range(rows):
      for t in range(num_new):
        if 0 <= first[row] + t < slots:
          expected[row, :, first[row] + t] = entries[row, t]
    np.testing.assert_array_equal(got, expected)


def test_what_it_cannot_or_may_not_write_is_left_to_slices(monkeypatch):
  shape = lambda *sizes, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(sizes, dtype)
  assert append_kernel.fits(shape(1, 1, 48, 128), 5)
  assert not append_kernel.fits(shape(1, 1, 48, 128), 17)  # more than it puts in place one by one
  assert not append_kernel.fits(shape(1, 1, 40, 128), 1)  # not whole tiles
  assert not append_kernel.fits(shape(1, 1, 144, 64), 1)
  assert not append_kernel.fits(shape(1, 1, 16, 128), 2)  # fewer than its tiles
  assert not append_kernel.fits(shape(1, 1, 48, 128, dtype=jnp.int8), 1)
  assert not append_kernel.fits(shape(1, 1024, 48, 128), 1)  # a row's tiles fill the memory
  monkeypatch.setenv('SPECJAX_APPEND', 'xla')
  assert not append_kernel.fits(shape(1, 1, 48, 128), 5)


@pytest.mark.parametrize(
    'topology, head_dim', [('v5e:2x2', 64), ('v5p:2x2x1', 128), ('v6e:2x2', 64)]
)
def test_it_compiles_for_a_tpu_in_place_where_slices_wait_for_each_row(topology, head_dim):
  (device, *_) = tpu_ahead.devices(topology)
  buffer = jnp.zeros((8, 1, 1024, head_dim), jnp.bfloat16)
  new = jnp.zeros((8, 5, 1, head_dim), jnp.bfloat16)
  arguments = tpu_ahead.abstract((buffer, buffer, new, new, jnp.zeros((8,), jnp.int32)), device)

  def compiled(append):
    write = lambda keys, values, *rest: append((keys, values), rest[:2], rest[2])
    made = jax.jit(write, donate_argnums=(0, 1)).lower(*arguments).compile()
    program = program_lib.parse(made.as_text())
    return made.memory_analysis(), program, times.walk(program, chips.slice_of(topology)).seconds

  slices = lambda buffers, new, first: tuple(
      cache_rows._append_one(*each, first, part=False, spare=False) for each in zip(buffers, new)
  )
  memory, program, seconds = compiled(cache_rows.append)
  opcodes = [each.opcode for _, each in program]
  assert 'dynamic-update-slice' not in opcodes and opcodes.count('custom-call') == 1
  assert memory.alias_size_in_bytes >= 2 * buffer.nbytes
  assert memory.temp_size_in_bytes < buffer.nbytes
  assert seconds < compiled(slices)[2] / 4
