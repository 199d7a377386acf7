"""The TPU kernel that reads the rows of drafted tokens, and leaves scalars of each."""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from specjax.kernels.accept import tpu_decide
from specjax.kernels.accept import tpu_draw
from specjax.kernels.accept import tpu_fetch
from specjax.kernels.accept import tpu_laws
from specjax.kernels.accept import tpu_rows
from specjax.kernels.accept.tpu_rows import LANES
from specjax.kernels.accept.tpu_rows import ROWS
from specjax.verify import rows as rows_lib

Array = jax.Array


@functools.partial(jax.jit, static_argnames=('draft_is_law', 'chain_surplus'))
def scan(
    tokens: Array, parents: Array | None, draft_rows: Array | None, settings: list[Array],
    target: Array, draft: Array | None, *, draft_is_law: bool, chain_surplus: bool,
) -> Array:
  """Scalars of drafted tokens, at the lanes of `tpu_decide`.

  Args:
    tokens: [B, K] int32.
    parents: [B, K] int32, the row of its sequence that each token is judged by; None for a
      chain.
    draft_rows: [B, K] int32, the row of the draft that each was drawn from; None for 0 … K - 1.
    settings: as for `tpu_laws.row_settings`.
    target: [B (K + 1), V] float32; draft: [Q, V] float32, or None.
    draft_is_law: static; chain_surplus: static, whether the block rule's numbers are wanted.

  Returns:
    [B' K, 128] float32, B' a multiple of eight; what belongs to no token is not written.
  """
  (batch, count), size = tokens.shape, target.shape[1]
  has_draft, groups = draft is not None, tpu_fetch.filled(tokens.size) // ROWS
  # Two parts where a sequence and a group end in the middle: for a chip with two cores.
  parts = 2 if groups % 2 == 0 and batch % 2 == 0 and batch * count % (2 * ROWS) == 0 else 1
  rows = tpu_fetch.filled(batch) * count
  prefetched = {'parents': parents, 'draft_rows': draft_rows, 'tokens': tokens}
  prefetched = {name: x for name, x in prefetched.items() if x is not None}
  sources = [target, draft] if has_draft else [target]
  kernel = functools.partial(
      _kernel, names=tuple(prefetched), draft_is_law=draft_is_law, chain_surplus=chain_surplus,
      has_draft=has_draft, draft_each=draft.shape[0] // batch if has_draft else 0,
  )
  return pl.pallas_call(
      kernel,
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=len(prefetched) + len(settings),
          grid=(parts, groups // parts),
          in_specs=[tpu_fetch.HBM] * len(sources),
          out_specs=tpu_fetch.HBM,
          scratch_shapes=[
              *tpu_fetch.buffers(size, len(sources)),
              pltpu.VMEM((ROWS, LANES), jnp.float32),
              pltpu.VMEM((groups // parts * ROWS, LANES), jnp.float32),
              pltpu.SemaphoreType.DMA,
          ],
      ),
      out_shape=jax.ShapeDtypeStruct((rows, LANES), jnp.float32),
      compiler_params=tpu_fetch.parameters(size, len(sources), ('parallel', 'arbitrary')),
      name='accept_scan',
  )(*prefetched.values(), *settings, *sources)


def _kernel(*refs, names, draft_is_law, chain_surplus, has_draft, draft_each):
  """One group of `scan`."""
  tables, refs = dict(zip(names, refs)), refs[len(names) :]
  settings_refs, refs = refs[:4], refs[4:]
  sources, out, scratch = refs[: 1 + has_draft], refs[1 + has_draft], refs[2 + has_draft :]
  *scratch, carry, scalars, semaphore = scratch
  tokens = tables['tokens']
  batch, size = tokens.shape

  def place(group, s):
    """Sequence and number of a drafted token; groups are filled up with the last one."""
    at = jnp.minimum(group * ROWS + s, batch * size - 1)
    return jax.lax.div(at, size), jax.lax.rem(at, size)

  def row_of(table: str, each: int):
    def row(group, s):
      b, j = place(group, s)
      return b * each + (tables[table][b, j] if table in tables else j)

    return row

  rows_of = row_of('parents', size + 1), row_of('draft_rows', draft_each)
  rows = tpu_fetch.arrive(tpu_fetch.streams(rows_of, sources, scratch))
  places = [place(tpu_fetch.group_number(), s) for s in range(ROWS)]
  settings, general = tpu_laws.row_settings(settings_refs, [b for b, _ in places])
  drafted = [tokens[b, j] for b, j in places]
  ids = tpu_rows.column(drafted)
  if has_draft and draft_is_law:
    laws = (*tpu_laws.laws(rows[:1], settings, general), tpu_laws.given_laws())
  else:
    laws = tpu_laws.laws(rows, settings, general)
  log_probs = [
      law.log_prob(tpu_rows.at_tokens(row, drafted), ids) for law, row in zip(laws, rows)
  ]
  columns = {tpu_decide.TARGET: log_probs[0], tpu_decide.DRAFT: jnp.zeros((ROWS, 1))}
  if has_draft:
    columns[tpu_decide.DRAFT] = log_probs[1]
  if chain_surplus:
    first = tpu_rows.column([jnp.where(j == 0, 1, 0) for _, j in places])
    before, prefix = _prefix(log_probs[0], columns[tpu_decide.DRAFT], first, carry)
    columns[tpu_decide.PREFIX] = prefix[:, :1]
    if has_draft:
      draw = tpu_draw.Draw(*laws, before[:, :1], None, ())
      columns[tpu_decide.SURPLUS] = tpu_draw.surplus(rows, draw)
  _leave(tpu_rows.spread(columns), scalars, out, semaphore)


def _leave(values: Array, scalars, out, semaphore) -> None:
  """Keeps a group's scalars, and copies those of the whole part out after its last group."""
  local = pl.program_id(1)
  scalars[pl.ds(pl.multiple_of(local * ROWS, ROWS), ROWS), :] = values

  @pl.when(local == pl.num_programs(1) - 1)
  def _():
    count = scalars.shape[0]
    start = pl.multiple_of(pl.program_id(0) * count, ROWS)
    copy = pltpu.make_async_copy(scalars, out.at[pl.ds(start, count), :], semaphore)
    copy.start()
    copy.wait()


def _prefix(log_target, log_draft, first, carry) -> tuple[Array, Array]:
  """The block rule's p before and after each of eight tokens, [8, 128] along lanes.

  `carry` holds what the group before ended with; `first` marks tokens that begin a draft.
  """
  sublane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 0)
  wide = lambda x: jnp.broadcast_to(x, (ROWS, LANES))
  log_target, first = wide(log_target), wide(first)
  ratios = rows_lib.prefix_ratio(log_target, wide(log_draft))

  @pl.when(pl.program_id(1) == 0)
  def _():
    carry[...] = jnp.ones((ROWS, LANES), jnp.float32)

  last, probs, before = carry[...], jnp.zeros((ROWS, LANES), jnp.float32), None
  for s in range(ROWS):
    # Row s sees what row s - 1 ended with; row 0 what the group before did.
    before = jnp.where(sublane == 0, last, pltpu.roll(probs, 1, 0))
    before = jnp.where(first > 0, 1.0, before)
    probs = jnp.where(sublane == s, rows_lib.prefix_step(before, ratios), probs)
  carry[...] = pltpu.roll(probs, 1, 0)
  return before, probs
