"""The op for Hopper GPUs and newer: the definition, its passes made by Mosaic GPU kernels.

Whatever runs over the vocabulary is one of three small kernels, a block of `BLOCK` entries of
one row per program: maxima and sums for log-sum-exps; masses of max(scale * target - draft, 0),
for the block rule and for the residual that is drawn from; the largest entry with its coupled
noise. A block is read once into registers, and leaves one float (or two). What remains, on one
float per block, is the definition's own (`xla`), as are thresholds, where a row asks for them.

Bytes read of a sequence: K + 1 target rows and K draft rows (none of a given law), two rows for
the residual, (2K + 3) V itemsize, and 2 (K - 1) rows again for the block rule's masses, which
the second-level cache of an H100 still holds at moderate batch sizes. Only the row that is
drawn from is read for the residual.

Not a default before a device of its kind has passed `scripts/check_accept_gpu.py` (`api.best`).
"""

import functools

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental import pallas as pl
import jax.numpy as jnp

from specjax import randomness
from specjax.kernels.accept import base
from specjax.kernels.accept import tiles
from specjax.kernels.accept import xla
from specjax.kernels.accept.base import Laws, Settings

Array = jax.Array

# Entries of a program: 32 registers a thread for each row that it reads.
BLOCK = 4096
# Rows begin at addresses that 16-byte loads can read, in bfloat16 too.
_ALIGNMENT = 8
# Bytes of one load of a thread; JAX takes eight before 0.11, and lays nothing out anew.
_LOAD_BYTES = 16 if jax.__version_info__ >= (0, 11) else 8
_LARGEST = float(jnp.finfo(jnp.float32).max)


class MosaicGpuRows(xla.TileRows):
  """The implementation; what it inherits runs on one float per block."""

  def laws(self, logits: Array, settings: Settings) -> Laws:
    """As `xla.TileRows.laws`; by the kernel unless a row of the batch is greedy or filtered."""
    general = jnp.any(
        settings.greedy | (settings.top_k > 0) | (settings.top_p < 1) | (settings.min_p > 0)
    )
    by_definition = functools.partial(xla.TileRows.laws, self, logits, settings)

    def by_kernel() -> Laws:
      tops, masses = _call(
          _stats_kernel, logits, settings.inverse, shape=logits.shape, outputs=2
      )
      top = jnp.max(tops, axis=1)
      masses = masses * jnp.exp((tops - top[:, None]) * settings.inverse[:, None])
      return Laws(
          top=top,
          inverse=settings.inverse,
          lowest=jnp.full(top.shape, -jnp.inf, jnp.float32),
          chosen=jnp.full(top.shape, -1, jnp.int32),
          log_total=jnp.log(randomness.ordered_sum(masses)),
      )

    return jax.lax.cond(general, by_definition, by_kernel)

  def masses(
      self, row: Array, draft_row: Array, scale: Array, share: Array, without: Array
  ) -> Array:
    """As `xla.TileRows.masses`."""
    inputs = self.inputs
    columns, rows, logits = _columns(self.target_laws.take(row)), [row], [inputs.target]
    if inputs.draft is not None:
      columns += _columns(self.draft_laws.take(draft_row))
      rows.append(draft_row)
      logits.append(inputs.draft)
    count = without.shape[1]
    columns += [scale, share, *(without[:, i] for i in range(count))]
    masses, = _call(
        functools.partial(_masses_kernel, has_draft=len(logits) == 2, count=count),
        *logits, *[x.astype(jnp.int32) for x in rows], _stack(columns),
        shape=(row.shape[0], inputs.target.shape[1]), outputs=1,
    )
    return masses

  def largest_noisy(self, logits: Array, laws: Laws, first: Array, second: Array) -> Array:
    """As `xla.TileRows.largest_noisy`."""
    scalars = _stack(_columns(laws))
    best, tokens = _call(
        _noisy_kernel, logits, scalars, first, second, shape=logits.shape, outputs=2
    )
    return self._first_of(best, tokens)

  def largest_logit(self, logits: Array) -> Array:
    """As `xla.TileRows.largest_logit`."""
    best, tokens = _call(_largest_kernel, logits, shape=logits.shape, outputs=2)
    return self._first_of(best, tokens)

  def _first_of(self, best: Array, tokens: Array) -> Array:
    """The smallest token [R] among the blocks' best ones [R, n]."""
    top = jnp.max(best, axis=1, keepdims=True)
    return jnp.min(jnp.where(best == top, tokens, jnp.inf), axis=1).astype(jnp.int32)


def rows_of(inputs: base.Inputs) -> MosaicGpuRows:
  """The rows of a call."""
  vocab_size = inputs.target.shape[1]
  return MosaicGpuRows(inputs, tiles.Tiles(vocab_size, tile=min(BLOCK, vocab_size)))


def _columns(laws: Laws) -> list[Array]:
  return [laws.top, laws.inverse, laws.lowest, laws.chosen, laws.log_total]


def _stack(columns: list[Array]) -> Array:
  """Scalars of rows, [R, n] float32 (token ids are exact below 2**24)."""
  return jnp.stack([x.astype(jnp.float32) for x in columns], axis=1)


def _call(kernel, *arguments, shape: tuple[int, int], outputs: int) -> list[Array]:
  """Runs a kernel on every block of every row: `outputs` arrays [R, n] float32."""
  rows, size = shape
  padded = max(-(-size // _ALIGNMENT) * _ALIGNMENT, BLOCK)
  if padded != size:
    fill = lambda x: jnp.pad(x, ((0, 0), (0, padded - size)), constant_values=-jnp.inf)
    arguments = [fill(x) if x.ndim == 2 and x.shape[1] == size else x for x in arguments]
  blocks = -(-size // BLOCK)
  out = [jax.ShapeDtypeStruct((rows, blocks), jnp.float32)] * outputs
  return _kernel(
      functools.partial(kernel, size=padded), out, grid=(rows, blocks), names=('row', 'block')
  )(*arguments)


def _kernel(body, out, *, grid, names):
  """`plgpu.kernel`, which names its outputs' types differently before JAX 0.11."""
  def build(**types):
    return plgpu.kernel(body, grid=grid, grid_names=names, **types)

  try:
    return build(out_type=out)
  except TypeError:
    return build(out_shape=out)


def _place():
  return jax.lax.axis_index('row'), jax.lax.axis_index('block')


def _load(ref, row, block, size: int) -> tuple[Array, Array, Array]:
  """A block of a row as float32, its token ids, and which of them are its own.

  The last block begins early enough to be whole: what the one before has too is not its own.
  """
  start = jnp.minimum(block * BLOCK, size - BLOCK)
  values = ref[row, pl.ds(start, BLOCK)].astype(jnp.float32)
  layout = plgpu.Layout.WG_STRIDED((BLOCK,), vec_size=_vector(ref.dtype))
  ids = plgpu.broadcasted_iota(jnp.int32, (BLOCK,), 0, layout=layout) + start
  return jnp.minimum(values, _LARGEST), ids, ids >= block * BLOCK


def _vector(dtype) -> int:
  """Entries of one load."""
  return _LOAD_BYTES // jnp.dtype(dtype).itemsize


def _stats_kernel(logits, inverse, top_out, mass_out, *, size):
  row, block = _place()
  values, _, own = _load(logits, row, block, size)
  values = jnp.where(own, values, -jnp.inf)
  top = jnp.maximum(jnp.max(values), -_LARGEST)
  top_out[row, block] = top
  mass_out[row, block] = jnp.sum(jnp.exp((values - top) * inverse[row]))


def _probs(values, ids, scalars, row, at: int):
  """Probabilities of a block; the law's scalars begin at column `at`."""
  top, inverse, lowest, chosen, log_total = (scalars[row, at + i] for i in range(5))
  scaled = (values - top) * inverse
  # One comparison is true of whatever token where the row is not greedy.
  is_chosen = (ids.astype(jnp.float32) == chosen) | (chosen < 0)
  kept = (scaled >= lowest) & is_chosen
  return jnp.where(kept, jnp.exp(scaled - log_total), 0.0)


def _masses_kernel(*refs, has_draft, count, size):
  streams_read = 1 + has_draft
  logits, rows = refs[:streams_read], refs[streams_read : 2 * streams_read]
  scalars, out = refs[2 * streams_read :]
  row, block = _place()
  values, ids, own = _load(logits[0], rows[0][row], block, size)
  at = 5 * streams_read
  weights = scalars[row, at] * _probs(values, ids, scalars, row, 0)
  if has_draft:
    values, _, _ = _load(logits[1], rows[1][row], block, size)
    share = scalars[row, at + 1] * _probs(values, ids, scalars, row, 5)
    # Where none of it is taken, the draft may have no law at all (NaN). A scalar by itself selects
    # nothing in Mosaic.
    taken = own & (scalars[row, at + 1] > 0)
    weights = jnp.where(taken, jnp.maximum(weights - share, 0.0), weights)
  for column in range(count):
    without = scalars[row, at + 2 + column]
    weights = jnp.where(ids.astype(jnp.float32) == without, 0.0, weights)
  out[row, block] = jnp.sum(jnp.where(own, weights, 0.0))


def _best(scores, ids, own):
  """The largest of a block and its first token, both float32."""
  scores = jnp.where(own, scores, -jnp.inf)
  top = jnp.max(scores)
  return top, jnp.min(jnp.where(scores == top, ids.astype(jnp.float32), 2.0**31))


def _largest_kernel(logits, best_out, token_out, *, size):
  row, block = _place()
  values, ids, own = _load(logits, row, block, size)
  best_out[row, block], token_out[row, block] = _best(values, ids, own)


def _noisy_kernel(logits, scalars, first, second, best_out, token_out, *, size):
  row, block = _place()
  values, ids, own = _load(logits, row, block, size)
  top, inverse, lowest, chosen = (scalars[row, i] for i in range(4))
  scaled = (values - top) * inverse
  is_chosen = (ids.astype(jnp.float32) == chosen) | (chosen < 0)
  bits = randomness.mix(first[row], second[row], ids.astype(jnp.uint32))
  scores = jnp.where((scaled >= lowest) & is_chosen, scaled + randomness.gumbel_of(bits), -jnp.inf)
  best_out[row, block], token_out[row, block] = _best(scores, ids, own)
