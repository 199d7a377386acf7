"""The op for TPUs: Pallas kernels through Mosaic.

Two kernels for rejection and block, one for greedy and coupled, all over groups of eight
rows that lie whole in VMEM, double-buffered, so that an entry is read from HBM once for its
maximum, its sum, its thresholds and the block rule's masses:

- `scan` takes the drafted tokens in eights, the target row and the draft row of each side by
  side (fetched row by row: flat rows of a sequence do not begin at a multiple of eight), and
  gives scalars. The decision is `rules`', outside.
- `finish` fetches the one row of target and draft that each sequence's next token is drawn
  from, eight sequences at a time, and draws: by tile, by register, by lane.
- `choose` streams the target's rows, makes coupled noise from its counters, and keeps the
  largest entry and its token.

Bytes read of a sequence: K target rows and K draft rows (none where a law is given and the
rule is rejection), then one of each: (2K + 2) V itemsize, below the floor of 2K + 3, since
the row behind the last token is read only where it is drawn from. `choose` reads K + 1
rows. Rows behind a rejection are read too: fetched row by row and skipped behind the first
rejection they would fill one of eight sublanes, so that eight rows cost the vector units
what now one group does, more than the bytes that are saved.

Single rows of bfloat16 cannot be addressed (two share a sublane), so that bfloat16 is cast
to float32 before `scan` and `finish`, which costs a copy; `choose` reads it as it is.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from specjax import randomness
from specjax.kernels.accept import base
from specjax.kernels.accept import rules
from specjax.kernels.accept import tpu_rows
from specjax.kernels.accept.tpu_rows import LANES
from specjax.kernels.accept.tpu_rows import ROWS

Array = jax.Array

# Lanes of what comes out of `scan` and `finish`.
_TARGET, _DRAFT, _PREFIX, _SURPLUS = range(4)
_LOG_PROB, _MASS = range(2)
# Scalar memory is small; a tree's refused tokens are compared one by one.
_MOST_LEFT_OUT = 112


@dataclasses.dataclass(frozen=True)
class Scan:
  """See `xla.Scan`; rows' laws are not kept, for `finish` makes them again from its rows."""

  target: Array
  draft: Array
  prefix: Array | None
  surplus: Array | None


@dataclasses.dataclass(frozen=True)
class MosaicTpu:
  """The implementation; see `xla.Xla` for its methods."""

  def scan(self, inputs: base.Inputs, rule: str, parents: Array) -> Scan:
    """As `xla.Xla.scan`."""
    batch, size = inputs.tokens.shape
    if not size:
      nothing = jnp.zeros((batch, 0), jnp.float32)
      return Scan(nothing, nothing, None, None)
    draft, given = inputs.draft, None
    with_surplus = rule == 'block' and draft is not None
    if draft is not None and inputs.draft_is_law and not with_surplus:
      # Nothing but the tokens' own entries is needed of a law.
      given, draft = draft[inputs.flat_draft_rows, inputs.tokens].astype(jnp.float32), None
    found = _scan(
        parents, inputs.draft_rows, inputs.tokens, _settings_of(inputs), _float32(inputs.target),
        _float32(draft), draft_is_law=inputs.draft_is_law, with_surplus=with_surplus,
    )
    found = found[: batch * size].reshape(batch, size, LANES)
    target = found[..., _TARGET]
    sampled = found[..., _DRAFT] if given is None else given
    prefix = surplus = None
    if rule == 'block':
      prefix, surplus = found[..., _PREFIX], found[:, 1:, _SURPLUS]
      if not with_surplus:
        surplus = rules.one_hot_surplus(prefix, target)
    return Scan(target, sampled, prefix, surplus)

  def finish(self, inputs: base.Inputs, scan: Scan, draw: base.Draw, source):
    """As `xla.Xla.finish`; `source` must be `base.Uniforms`."""
    del scan
    uniform = jnp.take_along_axis(source.next_token, draw.node[:, None], axis=1)[:, 0]
    tokens, found = self._finish(inputs, draw, uniform)
    return tokens, found[:, _LOG_PROB], source

  def mass(self, inputs: base.Inputs, scan: Scan, draw: base.Draw) -> Array:
    """As `xla.Xla.mass`."""
    del scan
    return self._finish(inputs, draw, jnp.full(draw.scale.shape, 0.5))[1][:, _MASS]

  def _finish(self, inputs: base.Inputs, draw: base.Draw, uniform: Array):
    """Tokens [B]; their log-probabilities and the mass that was drawn from, [B, 128]."""
    batch, count = draw.without.shape
    if count > _MOST_LEFT_OUT:
      raise ValueError(
          f'mosaic_tpu takes trees of up to {_MOST_LEFT_OUT} nodes, got {count}: use '
          "implementation='xla', or a smaller tree."
      )
    tokens, found = _finish(
        draw.row, draw.draft_row, draw.scale, draw.share, uniform, draw.without,
        _settings_of(inputs), _float32(inputs.target), _float32(inputs.draft),
        draft_is_law=inputs.draft_is_law,
    )
    return tokens[:batch, 0], found[:batch]

  def choose(self, inputs: base.Inputs, rule: str, noise: base.Noise | None):
    """As `xla.Xla.choose`."""
    batch, size = inputs.tokens.shape
    keys = None
    if rule == 'coupled':
      words = randomness.position_keys(noise.keys, noise.positions)
      keys = [word.astype(jnp.int32) for word in words]
    tokens, log_probs = _choose(keys, _settings_of(inputs), inputs.target, rows_each=size + 1)
    shape = (batch, size + 1)
    count = batch * (size + 1)
    return tokens[:count, 0].reshape(shape), log_probs[:count, 0].reshape(shape)


def _float32(logits: Array | None) -> Array | None:
  return None if logits is None else logits.astype(jnp.float32)


def _settings_of(inputs: base.Inputs) -> list[Array]:
  of = inputs.sampling
  return [of.temperature, of.top_k, of.top_p, of.min_p]


def _settings(refs, sequences: list) -> tuple[tpu_rows.RowSettings, Array]:
  """Settings of eight rows of these sequences, and whether any is greedy or filtered."""
  temperature, top_k, top_p, min_p = ([ref[b] for b in sequences] for ref in refs)
  general = functools.reduce(jnp.logical_or, [
      (t == 0) | (k > 0) | (p < 1) | (m > 0)
      for t, k, p, m in zip(temperature, top_k, top_p, min_p)
  ])
  heat = tpu_rows.column(temperature)
  greedy = jnp.where(heat == 0, 1.0, 0.0)
  return tpu_rows.RowSettings(
      inverse=1.0 / jnp.where(heat == 0, 1.0, heat),
      greedy=greedy,
      top_k=tpu_rows.column(top_k),
      top_p=tpu_rows.column(top_p),
      log_min_p=jnp.log(tpu_rows.column(min_p)),
  ), general


@dataclasses.dataclass(frozen=True)
class _Stream:
  """Rows that are fetched from an array in HBM, eight a group, two groups in VMEM.

  Attributes:
    row: (group, sublane) to the row.
    source: [R, V] in HBM.
    buffer: [2, 8, V]; tail: for the last lanes; semaphore: [2].
  """

  row: Callable
  source: Any
  buffer: Any
  tail: Any
  semaphore: Any

  def fetch(self, group, slot) -> list:
    """The copies of a group's rows, one a sublane."""
    return [
        pltpu.make_async_copy(
            self.source.at[pl.ds(self.row(group, s), 1), :],
            self.buffer.at[slot, pl.ds(s, 1), :],
            self.semaphore.at[slot],
        )
        for s in range(ROWS)
    ]


def _arrive(streams: list[_Stream]) -> tuple[tpu_rows.Rows, ...]:
  """Waits for this step's group of rows and starts to fetch the next one."""
  group, slot = pl.program_id(0), jax.lax.rem(pl.program_id(0), 2)

  def start(group, slot):
    for stream in streams:
      for copy in stream.fetch(group, slot):
        copy.start()

  @pl.when(group == 0)
  def _():
    start(0, 0)

  @pl.when(group + 1 < pl.num_programs(0))
  def _():
    start(group + 1, jax.lax.rem(group + 1, 2))

  rows = []
  for stream in streams:
    for copy in stream.fetch(group, slot):
      copy.wait()
    rows.append(
        tpu_rows.Rows(stream.buffer.at[slot], stream.tail, stream.source.shape[1])
    )
    rows[-1].load_tail()
  return tuple(rows)


def _streams(rows, sources, scratch) -> list[_Stream]:
  """Streams from the scratch that `_buffers` asks for."""
  count = len(sources)
  parts = [scratch[at * count : (at + 1) * count] for at in range(3)]
  return [_Stream(*stream) for stream in zip(rows, sources, *parts)]


def _scan_kernel(
    parents, draft_rows, tokens, *refs, draft_is_law, with_surplus, has_draft, draft_each
):
  """One group of `_scan`."""
  settings_refs, refs = refs[:4], refs[4:]
  sources, out, scratch = refs[: 1 + has_draft], refs[1 + has_draft], refs[2 + has_draft :]
  batch, size = tokens.shape

  def place(group, s):
    """Sequence and number of a drafted token; groups are filled up with the last one."""
    at = jnp.minimum(group * ROWS + s, batch * size - 1)
    return jax.lax.div(at, size), jax.lax.rem(at, size)

  def target_row(group, s):
    b, j = place(group, s)
    return b * (size + 1) + parents[b, j]

  def draft_row(group, s):
    b, j = place(group, s)
    return b * draft_each + draft_rows[b, j]

  rows = _arrive(_streams((target_row, draft_row), sources, scratch[:-1]))
  places = [place(pl.program_id(0), s) for s in range(ROWS)]
  settings, general = _settings(settings_refs, [b for b, _ in places])
  drafted = [tokens[b, j] for b, j in places]
  ids = tpu_rows.column(drafted)
  target_laws = tpu_rows.laws(rows[0], settings, general)
  log_target = target_laws.log_prob(tpu_rows.at_tokens(rows[0], drafted), ids)
  log_draft = jnp.zeros((ROWS, 1), jnp.float32)
  if has_draft:
    draft_laws = tpu_rows.given_laws()
    if not draft_is_law:
      draft_laws = tpu_rows.laws(rows[1], settings, general)
    log_draft = draft_laws.log_prob(tpu_rows.at_tokens(rows[1], drafted), ids)
  first = tpu_rows.column([jnp.where(j == 0, 1, 0) for _, j in places])
  before, prefix = _prefix(log_target, log_draft, first, scratch[-1])
  mass = jnp.zeros((ROWS, 1), jnp.float32)
  if with_surplus:
    one = jnp.ones((ROWS, 1), jnp.float32)
    draw = tpu_rows.Draw(target_laws, draft_laws, before[:, :1], one, ())
    mass = tpu_rows.surplus(rows, draw)
  out[...] = _spread({
      _TARGET: log_target, _DRAFT: log_draft, _PREFIX: prefix[:, :1], _SURPLUS: mass
  })


def _prefix(log_target, log_draft, first, carry):
  """The block rule's p before and behind each of eight tokens, [8, 128] along lanes.

  `carry` holds what the group before ended with; `first` marks tokens that begin a draft.
  """
  sublane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 0)
  wide = lambda x: jnp.broadcast_to(x, (ROWS, LANES))
  log_target, first = wide(log_target), wide(first)
  ratios = jnp.exp(jnp.minimum(log_target - wide(log_draft), 80.0))
  ratios = jnp.where(log_target > -jnp.inf, ratios, 0.0)

  @pl.when(pl.program_id(0) == 0)
  def _():
    carry[...] = jnp.ones((ROWS, LANES), jnp.float32)

  last, probs, before = carry[...], jnp.zeros((ROWS, LANES), jnp.float32), None
  for s in range(ROWS):
    # Row s sees what row s - 1 ended with; row 0 what the group before did.
    before = jnp.where(sublane == 0, last, pltpu.roll(probs, 1, 0))
    before = jnp.where(first > 0, 1.0, before)
    probs = jnp.where(sublane == s, jnp.minimum(before * ratios, 1.0), probs)
  carry[...] = pltpu.roll(probs, 1, 0)
  return before, probs


def _spread(columns: dict[int, Array]) -> Array:
  """[8, 128] with [8, 1] values at their lanes."""
  lane = jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 1)
  found = jnp.zeros((ROWS, LANES), jnp.float32)
  for at, value in columns.items():
    found = jnp.where(lane == at, value, found)
  return found


def _buffers(size: int, count: int) -> list:
  """Scratch of `count` streams: two groups each, their tails, their semaphores."""
  return [
      *[pltpu.VMEM((2, ROWS, size), jnp.float32)] * count,
      *[pltpu.VMEM(tpu_rows.tail_shape(size), jnp.float32)] * count,
      *[pltpu.SemaphoreType.DMA((2,))] * count,
  ]


def _parameters(size: int, streams: int, itemsize: int = 4) -> pltpu.CompilerParams:
  """Room for the rows, their tails and masses, and 8 MiB of what the compiler spills."""
  padded = -(-size // LANES) * LANES
  rows = streams * 2 * ROWS * padded * itemsize
  return pltpu.CompilerParams(
      dimension_semantics=('arbitrary',), vmem_limit_bytes=rows + ROWS * padded + (8 << 20)
  )


_ANY = pl.BlockSpec(memory_space=pl.ANY)


def _by_group(size: int = LANES) -> pl.BlockSpec:
  return pl.BlockSpec((ROWS, size), lambda group, *_: (group, 0))


def _filled(rows: int) -> int:
  """Rows of whole groups."""
  return -(-rows // ROWS) * ROWS


@functools.partial(jax.jit, static_argnames=('draft_is_law', 'with_surplus'))
def _scan(
    parents, draft_rows, tokens, settings, target, draft, *, draft_is_law, with_surplus
):
  """Scalars [R, 128] of drafted tokens [B, K] (R is B K filled up), at the lanes above."""
  has_draft, size = draft is not None, target.shape[1]
  streams, rows = 1 + has_draft, _filled(tokens.size)
  prefetched = (parents, draft_rows, tokens, *settings)
  return pl.pallas_call(
      functools.partial(
          _scan_kernel, draft_is_law=draft_is_law, with_surplus=with_surplus,
          has_draft=has_draft, draft_each=draft.shape[0] // tokens.shape[0] if has_draft else 0,
      ),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=len(prefetched),
          grid=(rows // ROWS,),
          in_specs=[_ANY] * streams,
          out_specs=_by_group(),
          scratch_shapes=_buffers(size, streams) + [pltpu.VMEM((ROWS, LANES), jnp.float32)],
      ),
      out_shape=jax.ShapeDtypeStruct((rows, LANES), jnp.float32),
      compiler_params=_parameters(size, streams),
      name='accept_scan',
  )(*prefetched, *([target, draft] if has_draft else [target]))


def _finish_kernel(
    target_rows, draft_rows, scale, share, uniform, without, *refs, draft_is_law, has_draft
):
  """Eight sequences of `_finish`."""
  settings_refs, refs = refs[:4], refs[4:]
  streams = 1 + has_draft
  sources, (token_out, found_out), scratch = refs[:streams], refs[streams:][:2], refs[streams + 2 :]
  masses, picked = scratch[-2:]
  batch, count = without.shape
  sequence = lambda group, s: jnp.minimum(group * ROWS + s, batch - 1)
  rows = _arrive(_streams(
      [lambda group, s, table=table: table[sequence(group, s)]
       for table in (target_rows, draft_rows)],
      sources, scratch[:-2],
  ))
  sequences = [sequence(pl.program_id(0), s) for s in range(ROWS)]
  settings, general = _settings(settings_refs, sequences)
  laws = [tpu_rows.laws(rows[0], settings, general)]
  if has_draft:
    laws.append(
        tpu_rows.given_laws() if draft_is_law else tpu_rows.laws(rows[1], settings, general)
    )
  column = lambda ref: tpu_rows.column([ref[b] for b in sequences])
  draw = tpu_rows.Draw(
      target=laws[0], draft=laws[1] if has_draft else None, scale=column(scale),
      share=column(share),
      without=tuple(
          tpu_rows.column([without[b, at] for b in sequences]) for at in range(count)
      ),
  )
  mass = tpu_rows.tile_masses(rows, draw, masses)
  # An empty residual: both laws are equal but for rounding, and the target's is drawn from.
  draw = draw.or_target(mass == 0)
  total = tpu_rows.rarely(
      jnp.min(mass) == 0, lambda: tpu_rows.tile_masses(rows, draw, masses), lambda: mass
  )
  token, log_prob = tpu_rows.draw(rows, draw, masses, total * column(uniform), picked)
  token_out[...] = jnp.broadcast_to(token, (ROWS, LANES))
  found_out[...] = _spread({_LOG_PROB: log_prob, _MASS: mass})


@functools.partial(jax.jit, static_argnames=('draft_is_law',))
def _finish(
    target_rows, draft_rows, scale, share, uniform, without, settings, target, draft, *,
    draft_is_law,
):
  """Of sequences filled up to R: tokens [R, 128], log-probabilities and masses [R, 128]."""
  has_draft, size = draft is not None, target.shape[1]
  streams, rows = 1 + has_draft, _filled(scale.shape[0])
  prefetched = (target_rows, draft_rows, scale, share, uniform, without, *settings)
  return pl.pallas_call(
      functools.partial(_finish_kernel, draft_is_law=draft_is_law, has_draft=has_draft),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=len(prefetched),
          grid=(rows // ROWS,),
          in_specs=[_ANY] * streams,
          out_specs=[_by_group()] * 2,
          scratch_shapes=_buffers(size, streams) + [
              pltpu.VMEM((tpu_rows.num_masses(size), ROWS, LANES), jnp.float32),
              pltpu.VMEM((streams, ROWS, tpu_rows.TILE), jnp.float32),
          ],
      ),
      out_shape=[
          jax.ShapeDtypeStruct((rows, LANES), jnp.int32),
          jax.ShapeDtypeStruct((rows, LANES), jnp.float32),
      ],
      compiler_params=_parameters(size, streams),
      name='accept_finish',
  )(*prefetched, *([target, draft] if has_draft else [target]))


def _choose_kernel(*refs, coupled, rows_each):
  """Eight rows of `_choose`."""
  keys, refs = refs[: 2 * coupled], refs[2 * coupled :]
  settings_refs, (target, token_out, log_prob_out, tail) = refs[:4], refs[4:]
  row = tpu_rows.Rows(target, tail, target.shape[1])
  row.load_tail()
  count = settings_refs[0].shape[0] * rows_each
  numbers = [jnp.minimum(pl.program_id(0) * ROWS + s, count - 1) for s in range(ROWS)]
  places = [(jax.lax.div(r, rows_each), jax.lax.rem(r, rows_each)) for r in numbers]
  settings, general = _settings(settings_refs, [b for b, _ in places])
  laws = tpu_rows.laws(row, settings, general)
  if coupled:
    words = [
        tpu_rows.column([key[b, j] for b, j in places]).astype(jnp.uint32) for key in keys
    ]
    best = lambda unusual: tpu_rows.first_largest(row, tpu_rows.noisy(laws, *words, unusual))[1]
    token = tpu_rows.rarely(laws.unusual, lambda: best(True), lambda: best(False))
  else:
    _, token = tpu_rows.first_largest(row, lambda values, first: values)
  value = tpu_rows.at_tokens(row, tpu_rows.scalars_of(token))
  token_out[...] = jnp.broadcast_to(token, (ROWS, LANES))
  log_prob_out[...] = jnp.broadcast_to(laws.log_prob(value, token), (ROWS, LANES))


@functools.partial(jax.jit, static_argnames=('rows_each',))
def _choose(keys, settings, target, *, rows_each):
  """Tokens and log-probabilities [R, 128], equal along lanes, of rows filled up to R."""
  size, rows = target.shape[1], _filled(target.shape[0])
  prefetched = (*(keys or ()), *settings)
  return pl.pallas_call(
      functools.partial(_choose_kernel, coupled=keys is not None, rows_each=rows_each),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=len(prefetched),
          grid=(rows // ROWS,),
          in_specs=[_by_group(size)],
          out_specs=[_by_group()] * 2,
          scratch_shapes=[pltpu.VMEM(tpu_rows.tail_shape(size), jnp.float32)],
      ),
      out_shape=[
          jax.ShapeDtypeStruct((rows, LANES), jnp.int32),
          jax.ShapeDtypeStruct((rows, LANES), jnp.float32),
      ],
      compiler_params=_parameters(size, 1, target.dtype.itemsize),
      name='accept_choose',
  )(*prefetched, target)
