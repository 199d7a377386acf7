"""The TPU kernels that draw each sequence's next token, from the one row that it needs."""

import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from specjax.kernels.accept import base
from specjax.kernels.accept import tpu_decide
from specjax.kernels.accept import tpu_draw
from specjax.kernels.accept import tpu_fetch
from specjax.kernels.accept import tpu_laws
from specjax.kernels.accept import tpu_rows
from specjax.kernels.accept.tpu_rows import LANES
from specjax.kernels.accept.tpu_rows import ROWS

Array = jax.Array

# Lanes of what comes out of `finish`.
LOG_PROB, MASS = range(2)
# Lanes of what `_decide` notes of a sequence.
_COUNT, _SCALE, _SHARE, _UNIFORM, _WITHOUT = range(5)

_SMEM = pl.BlockSpec(memory_space=pltpu.SMEM)
_VMEM = pl.BlockSpec(memory_space=pltpu.VMEM)


def _by_group(size: int = LANES) -> pl.BlockSpec:
  return pl.BlockSpec((ROWS, size), lambda part, group, *_: (group, 0))


@functools.partial(jax.jit, static_argnames=('draft_is_law',))
def finish(
    target_rows, draft_rows, scale, share, uniform, without, settings, target, draft, *,
    draft_is_law,
):
  """Draws from given rows, whatever decided them; arguments as in `specjax.verify.rows.Draw`.

  Returns:
    Of sequences filled up to a multiple of eight: tokens [R, 128] int32, and log-probabilities
    and the masses that were drawn from [R, 128] float32, at the lanes above.
  """
  size, rows = target.shape[1], tpu_fetch.filled(scale.shape[0])
  prefetched = (target_rows, draft_rows, scale, share, uniform, without, *settings)
  sources = [target] if draft is None else [target, draft]
  return pl.pallas_call(
      functools.partial(_kernel, draft_is_law=draft_is_law, has_draft=draft is not None),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=len(prefetched),
          grid=(1, rows // ROWS),
          in_specs=[tpu_fetch.HBM] * len(sources),
          out_specs=[_by_group()] * 2,
          scratch_shapes=_scratch(size, len(sources)),
      ),
      out_shape=[
          jax.ShapeDtypeStruct((rows, LANES), jnp.int32),
          jax.ShapeDtypeStruct((rows, LANES), jnp.float32),
      ],
      compiler_params=tpu_fetch.parameters(size, len(sources), ('arbitrary',) * 2),
      name='accept_finish',
  )(*prefetched, *sources)


def _scratch(size: int, streams: int) -> list:
  return [
      *tpu_fetch.buffers(size, streams),
      pltpu.VMEM((tpu_draw.num_masses(size), ROWS, LANES), jnp.float32),
      pltpu.VMEM((streams, ROWS, tpu_rows.TILE), jnp.float32),
  ]


def _kernel(
    target_rows, draft_rows, scale, share, uniform, without, *refs, draft_is_law, has_draft
):
  """Eight sequences of `finish`."""
  settings_refs, refs = refs[:4], refs[4:]
  streams = 1 + has_draft
  sources, (token_out, found_out), scratch = refs[:streams], refs[streams:][:2], refs[streams + 2 :]
  batch, count = without.shape
  sequence = lambda group, s: jnp.minimum(group * ROWS + s, batch - 1)
  sequences = [sequence(tpu_fetch.group_number(), s) for s in range(ROWS)]
  column = lambda ref: tpu_rows.column([ref[b] for b in sequences])
  rows = tpu_fetch.arrive(tpu_fetch.streams(
      [lambda group, s, table=table: table[sequence(group, s)]
       for table in (target_rows, draft_rows)],
      sources, scratch,
  ))
  token, log_prob, mass = _draw(
      rows, settings_refs, sequences, draft_is_law=draft_is_law, scale=column(scale),
      share=column(share), uniform=column(uniform), without=tuple(
          tpu_rows.column([without[b, at] for b in sequences]) for at in range(count)
      ), scratch=scratch[-2:],
  )
  token_out[...] = jnp.broadcast_to(token, (ROWS, LANES))
  found_out[...] = tpu_rows.spread({LOG_PROB: log_prob, MASS: mass})


def _draw(
    rows, settings_refs, sequences, *, draft_is_law, scale, share, uniform, without, scratch
) -> tuple[Array, Array, Array]:
  """Tokens, their log-probabilities and the masses drawn from, [8, 1] each, of rows in VMEM."""
  masses, picked = scratch
  settings, general = tpu_laws.row_settings(settings_refs, sequences)
  if draft_is_law:
    laws = (*tpu_laws.laws(rows[:1], settings, general), tpu_laws.given_laws())
  else:
    laws = tpu_laws.laws(rows, settings, general)
  draw = tpu_draw.Draw(
      target=laws[0], draft=laws[1] if len(rows) > 1 else None, scale=scale, share=share,
      without=without,
  )
  mass = tpu_draw.tile_masses(rows, draw, masses)
  # An empty residual: both laws are equal but for rounding, and the target's is drawn from.
  draw = draw.or_target(mass == 0)
  total = base.unlikely_cond(
      tpu_rows.is_any(mass == 0), lambda: tpu_draw.tile_masses(rows, draw, masses), lambda: mass
  )
  token, log_prob = tpu_draw.draw(rows, draw, masses, total * uniform, picked)
  return token, log_prob, mass


@functools.partial(jax.jit, static_argnames=('draft_is_law', 'rule'))
def decide_and_finish(
    scalars: Array, arrays: dict[str, Array], draft_rows: Array | None, settings: list[Array],
    target: Array, draft: Array | None, *, draft_is_law: bool, rule: Any,
):
  """Decides chains and draws what follows them.

  Args:
    scalars: as `tpu_scan.scan` has left it.
    arrays: `flips` [B, K] float32, `uniforms` [B, K + 1] float32; where they matter `valid`
      [B, K] int32, `given` [B, K] float32 (see `tpu_decide.Chains`), and `tokens` [B, K] int32 of
      chosen drafts.
    draft_rows: as for `tpu_scan.scan`.
    settings: as for `tpu_laws.row_settings`.
    target: [B (K + 1), V] float32; draft: [Q, V] float32, or None.
    draft_is_law: static; rule: static, a `specjax.verify.chains.ChainRule`.

  Returns:
    Of sequences filled up to a multiple of eight, R of them: how many tokens stay, whether these
    are all, and the next token, [R] int32 each, and log-probabilities [R, K + 1] float32.
  """
  (batch, count), size = arrays['flips'].shape, target.shape[1]
  rows = tpu_fetch.filled(batch)
  if rows > batch:
    arrays = {name: jnp.pad(x, ((0, rows - batch), (0, 0))) for name, x in arrays.items()}
  prefetched = [*settings] if draft_rows is None else [draft_rows, *settings]
  sources = [target] if draft is None else [target, draft]
  counts = jax.ShapeDtypeStruct((rows,), jnp.int32)
  return pl.pallas_call(
      functools.partial(
          _chain_kernel, names=tuple(arrays), draft_is_law=draft_is_law, rule=rule, size=count,
          batch=batch, in_order=draft_rows is None, streams=len(sources),
      ),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=len(prefetched),
          grid=(1, rows // ROWS),
          in_specs=[_VMEM] * (1 + len(arrays)) + [tpu_fetch.HBM] * len(sources),
          out_specs=[_SMEM] * 3 + [_by_group(count + 1)],
          scratch_shapes=[
              *_scratch(size, len(sources)),
              pltpu.VMEM((rows, LANES), jnp.float32),
              *[pltpu.SMEM((rows,), jnp.int32)] * 2,
          ],
      ),
      out_shape=[counts] * 3 + [jax.ShapeDtypeStruct((rows, count + 1), jnp.float32)],
      compiler_params=tpu_fetch.parameters(size, len(sources), ('arbitrary',) * 2),
      name='accept_finish',
  )(*prefetched, scalars, *arrays.values(), *sources)


def _chain_kernel(*refs, names, draft_is_law, rule, size, batch, in_order, streams):
  """Eight sequences of `decide_and_finish`."""
  draft_rows, refs = (None, refs) if in_order else (refs[0], refs[1:])
  settings_refs, scalars, refs = refs[:4], refs[4], refs[5:]
  arrays, refs = dict(zip(names, refs)), refs[len(names) :]
  sources, refs = refs[:streams], refs[streams:]
  count_out, is_all_out, token_out, log_probs_out, *scratch = refs
  *scratch, noted, target_table, draft_table = scratch
  draft_each = sources[1].shape[0] // batch if streams > 1 else 0

  def chains_of(group) -> tpu_decide.Chains:
    rows = pl.ds(pl.multiple_of(group * ROWS, ROWS), ROWS)
    read = lambda name: arrays[name][rows, :] if name in arrays else None
    return tpu_decide.Chains(
        size=size, scalars=scalars, start=group * (ROWS * size), flips=read('flips'),
        valid=read('valid'), given=read('given'), one_hot='tokens' in arrays,
    )

  def decide(group, carry):
    """Notes what each sequence's next token is drawn from."""
    rows = pl.ds(pl.multiple_of(group * ROWS, ROWS), ROWS)
    chains = chains_of(group)
    valid = chains.valid_tokens()
    count, scale = tpu_decide.decide(rule, chains, valid)
    is_all = count == sum(valid)
    columns = {
        _COUNT: count.astype(jnp.float32), _SCALE: jnp.where(is_all, 1.0, scale),
        _SHARE: jnp.where(is_all, 0.0, 1.0),
        _UNIFORM: tpu_decide.at_lane(arrays['uniforms'][rows, :], count),
    }
    node = jnp.minimum(count, size - 1)
    if 'tokens' in arrays:
      # The scaled target never exceeds 1, so that the residual is the target without the token.
      token = tpu_decide.at_lane(arrays['tokens'][rows, :], node)
      columns[_WITHOUT] = jnp.where(is_all, -1, token).astype(jnp.float32)
    noted[rows, :] = tpu_rows.spread(columns)
    both = tpu_rows.scalars_of(count * 2 + is_all.astype(jnp.int32))
    for s, packed in enumerate(both):
      count, b = jax.lax.div(packed, 2), jnp.minimum(group * ROWS + s, batch - 1)
      count_out[group * ROWS + s], is_all_out[group * ROWS + s] = count, jax.lax.rem(packed, 2)
      target_table[group * ROWS + s] = b * (size + 1) + count
      if streams > 1:
        node = jnp.minimum(count, size - 1)
        draft_table[group * ROWS + s] = b * draft_each + (
            node if in_order else draft_rows[b, node]
        )
    return carry

  @pl.when(pl.program_id(1) == 0)
  def _():
    jax.lax.fori_loop(0, noted.shape[0] // ROWS, decide, 0)

  rows = tpu_fetch.arrive(tpu_fetch.streams(
      [lambda group, s, table=table: table[group * ROWS + s]
       for table in (target_table, draft_table)],
      sources, scratch,
  ))
  group = tpu_fetch.group_number()
  columns = noted[pl.ds(pl.multiple_of(group * ROWS, ROWS), ROWS), :]
  column = lambda lane: columns[:, lane : lane + 1]
  without = (column(_WITHOUT).astype(jnp.int32),) if 'tokens' in arrays else ()
  token, log_prob, _ = _draw(
      rows, settings_refs, [jnp.minimum(group * ROWS + s, batch - 1) for s in range(ROWS)],
      draft_is_law=draft_is_law, scale=column(_SCALE), share=column(_SHARE),
      uniform=column(_UNIFORM), without=without, scratch=scratch[-2:],
  )
  for s, chosen in enumerate(tpu_rows.scalars_of(token)):
    token_out[group * ROWS + s] = chosen
  log_probs_out[...] = tpu_decide.emitted(
      chains_of(group), column(_COUNT).astype(jnp.int32), log_prob
  )
