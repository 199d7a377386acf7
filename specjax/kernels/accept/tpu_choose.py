"""The TPU kernels of greedy and coupled: the target's choice at every row, and the chain's walk."""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from specjax import randomness
from specjax.kernels.accept import base
from specjax.kernels.accept import tpu_decide
from specjax.kernels.accept import tpu_fetch
from specjax.kernels.accept import tpu_laws
from specjax.kernels.accept import tpu_rows
from specjax.kernels.accept.tpu_rows import LANES
from specjax.kernels.accept.tpu_rows import ROWS

Array = jax.Array

_VMEM = pl.BlockSpec(memory_space=pltpu.VMEM)
_SMEM = pl.BlockSpec(memory_space=pltpu.SMEM)


@jax.jit
def position_keys(keys: Array, positions: Array) -> list[Array]:
  """The two keys [B', K + 1] int32 of coupled noise, B' a multiple of eight.

  One kernel for some seven fusions. The row keys [B, 2] go in as scalars, the other way round:
  as XLA lays them out.
  """
  batch, size = positions.shape
  rows = tpu_fetch.filled(batch)
  if rows > batch:
    positions = jnp.pad(positions, ((0, rows - batch), (0, 0)))

  def kernel(keys, positions, *out):
    def step(group, carry):
      here = pl.ds(pl.multiple_of(group * ROWS, ROWS), ROWS)
      words = randomness.position_words(*(
          tpu_rows.column([
              keys[word, jnp.minimum(group * ROWS + s, batch - 1)] for s in range(ROWS)
          ])
          for word in range(2)
      ), positions[here, :])
      for ref, word in zip(out, words):
        ref[here, :] = word.astype(jnp.int32)
      return carry

    jax.lax.fori_loop(0, rows // ROWS, step, 0)

  return pl.pallas_call(
      kernel,
      in_specs=[_SMEM, _VMEM],
      out_specs=[_VMEM] * 2,
      out_shape=[jax.ShapeDtypeStruct((rows, size), jnp.int32)] * 2,
      name='accept_keys',
  )(keys.T, positions)


@functools.partial(jax.jit, static_argnames=('rows_each',))
def choose(keys, settings, target, *, rows_each):
  """Tokens int32 and log-probabilities float32, [R, 128] each, equal along lanes.

  R is (K + 1) times the sequences, filled up to a multiple of eight; what belongs to no row is
  not written.
  """
  count, size = target.shape
  batch = settings[0].shape[0]
  rows = tpu_fetch.filled(batch) * rows_each
  prefetched = (*(keys or ()), *settings)
  by_group = lambda size: pl.BlockSpec((ROWS, size), lambda group, *_: (group, 0))
  return pl.pallas_call(
      functools.partial(_kernel, coupled=keys is not None, rows_each=rows_each),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=len(prefetched),
          grid=(tpu_fetch.filled(count) // ROWS,),
          in_specs=[by_group(size)],
          out_specs=[by_group(LANES)] * 2,
          scratch_shapes=[pltpu.VMEM(tpu_rows.tail_shape(size), jnp.float32)],
      ),
      out_shape=[
          jax.ShapeDtypeStruct((rows, LANES), jnp.int32),
          jax.ShapeDtypeStruct((rows, LANES), jnp.float32),
      ],
      compiler_params=tpu_fetch.parameters(size, 1, ('parallel',), target.dtype.itemsize),
      name='accept_choose',
  )(*prefetched, target)


def _kernel(*refs, coupled, rows_each):
  """Eight rows of `choose`."""
  keys, refs = refs[: 2 * coupled], refs[2 * coupled :]
  settings_refs, (target, token_out, log_prob_out, tail) = refs[:4], refs[4:]
  row = tpu_rows.Rows(target, tail, target.shape[1])
  row.load_tail()
  count = settings_refs[0].shape[0] * rows_each
  numbers = [jnp.minimum(pl.program_id(0) * ROWS + s, count - 1) for s in range(ROWS)]
  places = [(jax.lax.div(r, rows_each), jax.lax.rem(r, rows_each)) for r in numbers]
  settings, general = tpu_laws.row_settings(settings_refs, [b for b, _ in places])
  law, = tpu_laws.laws((row,), settings, general)
  if coupled:
    words = [
        tpu_rows.column([key[b, j] for b, j in places]).astype(jnp.uint32) for key in keys
    ]
    best = lambda unusual: tpu_rows.first_largest(row, tpu_laws.noisy(law, *words, unusual))[1]
    token = base.unlikely_cond(law.unusual, lambda: best(True), lambda: best(False))
  else:
    _, token = tpu_rows.first_largest(row, lambda values, first: values)
  value = tpu_rows.at_tokens(row, tpu_rows.scalars_of(token))
  token_out[...] = jnp.broadcast_to(token, (ROWS, LANES))
  log_prob_out[...] = jnp.broadcast_to(law.log_prob(value, token), (ROWS, LANES))


@jax.jit
def follow(tokens: Array, log_probs: Array, drafted: Array, valid: Array | None):
  """Walks the chains whose rows `choose` has chosen at.

  Args:
    tokens: [R, 128] int32; log_probs: [R, 128] float32, as `choose` has left them.
    drafted: [B, K] int32.
    valid: [B, K] int32, or None for all.

  Returns:
    How many tokens stay and the next token, [B'] int32 each, and log-probabilities of what is
    emitted [B', K + 1] float32, B' a multiple of eight.
  """
  batch, size = drafted.shape
  rows = tpu_fetch.filled(batch)
  arrays = [drafted] if valid is None else [drafted, valid]
  if rows > batch:
    arrays = [jnp.pad(x, ((0, rows - batch), (0, 0))) for x in arrays]

  def kernel(tokens, log_probs, *refs):
    arrays, (count_out, token_out, log_probs_out) = refs[:-3], refs[-3:]

    def step(group, carry):
      here = pl.ds(pl.multiple_of(group * ROWS, ROWS), ROWS)
      read = [ref[here, :] for ref in arrays]
      count, token, emitted = tpu_decide.follow(
          tokens, log_probs, group * (ROWS * (size + 1)), read[0], read[1] if read[1:] else None
      )
      log_probs_out[here, :] = emitted
      for ref, column in ((count_out, count), (token_out, token)):
        for s, value in enumerate(tpu_rows.scalars_of(column)):
          ref[group * ROWS + s] = value
      return carry

    jax.lax.fori_loop(0, rows // ROWS, step, 0)

  scalars = jax.ShapeDtypeStruct((rows,), jnp.int32)
  return pl.pallas_call(
      kernel,
      in_specs=[_VMEM] * (2 + len(arrays)),
      out_specs=[_SMEM] * 2 + [_VMEM],
      out_shape=[scalars] * 2 + [jax.ShapeDtypeStruct((rows, size + 1), jnp.float32)],
      name='accept_follow',
  )(tokens, log_probs, *arrays)
