"""The op for TPUs: Pallas kernels through Mosaic.

Two kernels for rejection and block, three for greedy and coupled; those that read logits take
groups of eight rows that lie whole in VMEM, double-buffered, so that an entry is read from HBM
once for its maximum, its sum, its thresholds and the block rule's masses:

- `tpu_scan` takes the drafted tokens in eights, the target row and the draft row of each side by
  side (fetched row by row: flat rows of a sequence do not begin at a multiple of eight), and
  leaves scalars.
- `tpu_finish` decides from them, fetches the one row of target and draft that each sequence's
  next token is drawn from, eight sequences at a time, and draws: by tile, by register, by lane.
- `tpu_choose` streams the target's rows, makes coupled noise from its counters, and keeps the
  largest entry and its token; small kernels before and after it make keys and walk the chain.

Bytes read of a sequence: K target rows and K draft rows (none where a law is given and the
rule is rejection), then one of each: (2K + 2) V itemsize, below the floor of 2K + 3, since
the row after the last token is read only where it is drawn from. `tpu_choose` reads K + 1
rows. Rows after a rejection are read too: fetched row by row and skipped after the first
rejection they would fill one of eight sublanes, so that eight rows cost the vector units
what now one group does, more than the bytes that are saved.

Groups are split over the two cores of a v5p: of `tpu_choose` as they come, of `tpu_scan` where
half of the sequences fill whole groups.

Single rows of bfloat16 cannot be addressed (two share a sublane), so that bfloat16 is cast
to float32 before `tpu_scan` and `tpu_finish`, which costs a copy; `tpu_choose` reads it as it is.
"""

import jax
import jax.numpy as jnp

from specjax import types
from specjax.kernels.accept import base
from specjax.kernels.accept import tpu_choose
from specjax.kernels.accept import tpu_decide
from specjax.kernels.accept import tpu_finish
from specjax.kernels.accept import tpu_scan
from specjax.verify import chains
from specjax.verify import rows as rows_lib

Array = jax.Array

# Scalar memory is small; a tree's refused tokens are compared one by one.
_MOST_LEFT_OUT = 112


class MosaicTpuRows(rows_lib.Rows):
  """The implementation; see `specjax.verify.rows.Rows` for its methods.

  Rows' laws are not kept: `draw` makes them again from the rows that it reads.
  """

  def __init__(self, inputs: base.Inputs):
    """Reads nothing yet.

    Args:
      inputs: the arrays of a call.
    """
    self.inputs, self.proposal = inputs, inputs.proposal

  def fused_chain(self, rule, source):
    """As `Rows.fused_chain`; `source` must be `base.Uniforms`."""
    inputs, (batch, size) = self.inputs, self.inputs.tokens.shape
    if not size:
      return None
    numbers, given = self._numbers(rule.chain_surplus)
    arrays = dict(flips=source.flips, uniforms=source.next_token)
    if inputs.draft is None:
      arrays['tokens'] = inputs.tokens
    if given is not None:
      arrays['given'] = given
    if not inputs.all_valid:
      arrays['valid'] = inputs.proposal.valid.astype(jnp.int32)
    count, is_bonus, token, log_probs = tpu_finish.decide_and_finish(
        numbers, arrays, self._draft_rows(), _settings_of(inputs), _float32(inputs.target),
        _float32(inputs.draft), draft_is_law=inputs.draft_is_law, rule=rule,
    )
    scan = self._scan_of(numbers, given, rule.chain_surplus)
    num_valid = chains.valid_length(inputs.proposal.valid, scan.draft)
    return types.Verification(
        num_accepted=count[:batch],
        next_token=token[:batch],
        log_probs=log_probs[:batch],
        is_bonus=is_bonus[:batch] > 0,
        accept_probs=rule.accept_probs(rule.prob(chains.numbers_of(scan, num_valid))),
        path=chains.chain_path(count[:batch], size),
    ), source

  def fused_follow(self, source, positions):
    """As `Rows.fused_follow`."""
    inputs, (batch, size) = self.inputs, self.inputs.tokens.shape
    if not inputs.is_chain or not size:
      return None
    chosen, chosen_log_probs = self._choose(source, positions)
    valid = inputs.proposal.valid
    count, token, log_probs = tpu_choose.follow(
        chosen, chosen_log_probs, inputs.tokens,
        None if inputs.all_valid else valid.astype(jnp.int32),
    )
    count = count[:batch]
    rows = chosen[: batch * (size + 1), 0].reshape(batch, size + 1)
    matches = valid & (inputs.tokens == rows[:, :-1])
    return types.Verification(
        num_accepted=count,
        next_token=token[:batch],
        log_probs=log_probs[:batch],
        is_bonus=count == jnp.sum(valid, axis=1),
        accept_probs=matches.astype(jnp.float32),
        path=chains.chain_path(count, size),
    )

  def scan(self, *, chain_surplus: bool = False) -> rows_lib.Scan:
    """As `Rows.scan`."""
    batch, size = self.inputs.tokens.shape
    if not size:
      nothing = jnp.zeros((batch, 0), jnp.float32)
      return rows_lib.Scan(nothing, nothing)
    numbers, given = self._numbers(chain_surplus)
    return self._scan_of(numbers, given, chain_surplus)

  def _draft_rows(self) -> Array | None:
    return None if self.inputs.in_order else self.proposal.rows

  def _numbers(self, chain_surplus: bool):
    """What `tpu_scan` leaves, and the draft's log-probabilities where it does not read them."""
    inputs, draft, given = self.inputs, self.inputs.draft, None
    if draft is not None and inputs.draft_is_law and not chain_surplus:
      # Nothing but the tokens' own entries is needed of a law.
      given, draft = draft[inputs.flat_draft_rows, inputs.tokens].astype(jnp.float32), None
    numbers = tpu_scan.scan(
        inputs.tokens, None if inputs.is_chain else self.proposal.parents, self._draft_rows(),
        _settings_of(inputs), _float32(inputs.target), _float32(draft),
        draft_is_law=inputs.draft_is_law, chain_surplus=chain_surplus,
    )
    return numbers, given

  def _scan_of(self, numbers: Array, given: Array | None, chain_surplus: bool) -> rows_lib.Scan:
    """The scalars of `numbers` as arrays [B, K]."""
    batch, size = self.inputs.tokens.shape
    at = lambda lane: numbers[: batch * size, lane].reshape(batch, size)
    target = at(tpu_decide.TARGET)
    draft = at(tpu_decide.DRAFT) if given is None else given
    if not chain_surplus:
      return rows_lib.Scan(target, draft)
    prefix = at(tpu_decide.PREFIX)
    if self.inputs.draft is None:
      surplus = rows_lib.one_hot_surplus(prefix[:, :-1], target[:, 1:])
    else:
      surplus = at(tpu_decide.SURPLUS)[:, 1:]
    return rows_lib.Scan(target, draft, prefix, surplus)

  def draw(self, draw: rows_lib.Draw, source):
    """As `Rows.draw`; `source` must be `base.Uniforms`."""
    uniform = jnp.take_along_axis(source.next_token, draw.node[:, None], axis=1)[:, 0]
    tokens, scalars = self._finish(draw, uniform)
    return tokens, scalars[:, tpu_finish.LOG_PROB], source

  def mass(self, draw: rows_lib.Draw) -> Array:
    """As `Rows.mass`."""
    return self._finish(draw, jnp.full(draw.scale.shape, 0.5))[1][:, tpu_finish.MASS]

  def _finish(self, draw: rows_lib.Draw, uniform: Array):
    """Tokens [B]; their log-probabilities and the mass that was drawn from, [B, 128]."""
    inputs, (batch, count) = self.inputs, draw.without.shape
    if count > _MOST_LEFT_OUT:
      raise ValueError(
          f'mosaic_tpu takes trees of up to {_MOST_LEFT_OUT} nodes, got {count}: use '
          "implementation='xla', or a smaller tree."
      )
    tokens, scalars = tpu_finish.finish(
        *inputs.drawn_rows(draw), draw.scale, draw.share, uniform, draw.without,
        _settings_of(inputs), _float32(inputs.target), _float32(inputs.draft),
        draft_is_law=inputs.draft_is_law,
    )
    return tokens[:batch, 0], scalars[:batch]

  def choose(self, source=None, positions: Array | None = None):
    """As `Rows.choose`; the noise is that of `source.keys`."""
    batch, size = self.inputs.tokens.shape
    count = batch * (size + 1)
    return tuple(
        x[:count, 0].reshape(batch, size + 1) for x in self._choose(source, positions)
    )

  def _choose(self, source, positions: Array | None):
    """As `tpu_choose.choose`."""
    keys = None if positions is None else tpu_choose.position_keys(source.keys, positions)
    return tpu_choose.choose(
        keys, _settings_of(self.inputs), self.inputs.target,
        rows_each=self.inputs.tokens.shape[1] + 1,
    )


def _float32(logits: Array | None) -> Array | None:
  return None if logits is None else logits.astype(jnp.float32)


def _settings_of(inputs: base.Inputs) -> list[Array]:
  of = inputs.sampling
  return [of.temperature, of.top_k, of.top_p, of.min_p]
