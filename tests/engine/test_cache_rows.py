"""Reading and writing by a slice per row, and by a gather and a scatter, come to the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax.cache import rows as cache_rows

SLOTS = 24


def entries(rows: int, length: int, seed: int) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(rows, length, 2, 8)).astype(np.float32)


def buffer(rows: int) -> jnp.ndarray:
  return jnp.asarray(entries(rows, SLOTS, seed=0).swapaxes(1, 2))


@pytest.mark.parametrize('part', [False, True])
@pytest.mark.parametrize('rows', [3, 37])
def test_entries_are_written_one_after_another(rows, part):
  new = entries(rows, 4, seed=1)
  # In a part of a cache, rows begin before it, end after it, or do not touch it.
  start = np.arange(rows) * 5 % (SLOTS + 16) - 8 if part else np.arange(rows) * 5 % (SLOTS - 3)
  expected = np.array(buffer(rows))
  for row, first in enumerate(start):
    for t in range(4):
      if 0 <= first + t < SLOTS:
        expected[row, :, first + t] = new[row, t]
  first = jnp.asarray(start)
  written = cache_rows.append((buffer(rows), buffer(rows)), (new, new), first, part=part)
  for each in written:
    np.testing.assert_array_equal(each, expected)
  by_slices = jax.jit(cache_rows._write_rows, static_argnames=('part', 'unroll'))
  np.testing.assert_array_equal(by_slices(buffer(rows), new, first, part=part, unroll=16), expected)


@pytest.mark.parametrize('rows', [3, 37])
def test_a_stretch_is_read_by_slices_as_by_a_gather(rows):
  most = 6
  first = jnp.arange(rows) * 5 % (SLOTS - 2)  # some end so that the stretch would end outside
  offsets = jnp.minimum(
      jnp.asarray(np.random.default_rng(2).integers(0, most + 1, size=(rows, 5))),
      SLOTS - 1 - first[:, None],
  )
  slots = np.asarray(first)[:, None] + np.asarray(offsets)
  expected = np.asarray(buffer(rows))[np.arange(rows)[:, None], :, slots]
  for read in (cache_rows.read_at, cache_rows._read_rows):
    out = jax.jit(read, static_argnums=3)(buffer(rows), first, offsets, most)
    np.testing.assert_array_equal(out, expected)


def test_a_single_entry_may_bring_a_stale_one():
  new, first = entries(2, 1, seed=1), jnp.array([3, 22])
  (out,) = cache_rows.append((buffer(2),), (new,), first, spare=True)
  expected = np.array(buffer(2))
  expected[[0, 1], :, [3, 22]] = new[:, 0]
  for row, stale in enumerate((4, 23)):
    others = np.arange(SLOTS) != stale
    np.testing.assert_array_equal(out[row][:, others], expected[row][:, others])
