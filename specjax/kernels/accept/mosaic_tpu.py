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
  largest entry and its token; small kernels before and behind it make keys and walk the chain.

Bytes read of a sequence: K target rows and K draft rows (none where a law is given and the
rule is rejection), then one of each: (2K + 2) V itemsize, below the floor of 2K + 3, since
the row behind the last token is read only where it is drawn from. `tpu_choose` reads K + 1
rows. Rows behind a rejection are read too: fetched row by row and skipped behind the first
rejection they would fill one of eight sublanes, so that eight rows cost the vector units
what now one group does, more than the bytes that are saved.

Groups are split over the two cores of a v5p: of `tpu_choose` as they come, of `tpu_scan` where
half of the sequences fill whole groups.

Single rows of bfloat16 cannot be addressed (two share a sublane), so that bfloat16 is cast
to float32 before `tpu_scan` and `tpu_finish`, which costs a copy; `tpu_choose` reads it as it is.
"""

import dataclasses

import jax
import jax.numpy as jnp

from specjax.kernels.accept import base
from specjax.kernels.accept import rules
from specjax.kernels.accept import tpu_choose
from specjax.kernels.accept import tpu_decide
from specjax.kernels.accept import tpu_finish
from specjax.kernels.accept import tpu_scan
from specjax.verify.block import conditional
from specjax.verify.block import stop_probs
from specjax.verify.rejection import token_probs

Array = jax.Array

# Scalar memory is small; a tree's refused tokens are compared one by one.
_MOST_LEFT_OUT = 112


@dataclasses.dataclass(frozen=True)
class Scan:
  """See `xla.Scan`; rows' laws are not kept, for `finish` makes them again from its rows."""

  target: Array
  draft: Array
  prefix: Array | None = None
  surplus: Array | None = None


@dataclasses.dataclass(frozen=True)
class MosaicTpu:
  """The implementation; see `xla.Xla` for its methods."""

  def chain(self, inputs: base.Inputs, rule: str, source):
    """As `xla.Xla.chain`; `source` must be `base.Uniforms`."""
    batch, size = inputs.tokens.shape
    if not size:
      return rules.chain(self, inputs, rule, source)
    found, given = self._found(inputs, rule, None)
    arrays = dict(flips=source.flips, uniforms=source.next_token)
    if inputs.draft is None:
      arrays['tokens'] = inputs.tokens
    if given is not None:
      arrays['given'] = given
    if not inputs.all_valid:
      arrays['valid'] = inputs.valid.astype(jnp.int32)
    count, is_bonus, token, log_probs = tpu_finish.decide_and_finish(
        found, arrays, None if inputs.in_order else inputs.draft_rows, _settings_of(inputs),
        _float32(inputs.target), _float32(inputs.draft), draft_is_law=inputs.draft_is_law,
        rule=rule,
    )
    scan = self._scan_of(inputs, found, given, rule)
    valid = rules.chain_valid(inputs.valid, scan.draft)
    if rule == 'block':
      probs = conditional(stop_probs(scan.prefix, scan.surplus, valid))
    else:
      probs = token_probs(scan.target, scan.draft, valid)
    return base.Accepted(
        num_accepted=count[:batch],
        next_token=token[:batch],
        log_probs=log_probs[:batch],
        is_bonus=is_bonus[:batch] > 0,
        accept_probs=probs,
        path=rules.chain_path(count[:batch], size),
    ), source

  def follow(self, inputs: base.Inputs, rule: str, noise, parents) -> base.Accepted:
    """As `xla.Xla.follow`."""
    batch, size = inputs.tokens.shape
    if parents is not None or not size:
      return rules.follow(self, inputs, rule, noise, parents)
    chosen, chosen_log_probs = self._choose(inputs, rule, noise)
    count, token, log_probs = tpu_choose.follow(
        chosen, chosen_log_probs, inputs.tokens,
        None if inputs.all_valid else inputs.valid.astype(jnp.int32),
    )
    count = count[:batch]
    rows = chosen[: batch * (size + 1), 0].reshape(batch, size + 1)
    matches = inputs.valid & (inputs.tokens == rows[:, :-1])
    return base.Accepted(
        num_accepted=count,
        next_token=token[:batch],
        log_probs=log_probs[:batch],
        is_bonus=count == jnp.sum(inputs.valid, axis=1),
        accept_probs=matches.astype(jnp.float32),
        path=rules.chain_path(count, size),
    )

  def scan(self, inputs: base.Inputs, rule: str, parents: Array) -> Scan:
    """As `xla.Xla.scan`, of trees: the block rule's numbers stay inside of `chain`."""
    batch, size = inputs.tokens.shape
    if not size:
      nothing = jnp.zeros((batch, 0), jnp.float32)
      return Scan(nothing, nothing)
    found, given = self._found(inputs, rule, parents)
    return self._scan_of(inputs, found, given, rule)

  def _found(self, inputs: base.Inputs, rule: str, parents: Array | None):
    """What `tpu_scan` leaves, and the draft's log-probabilities where it does not read them."""
    draft, given = inputs.draft, None
    if draft is not None and inputs.draft_is_law and rule != 'block':
      # Nothing but the tokens' own entries is needed of a law.
      given, draft = draft[inputs.flat_draft_rows, inputs.tokens].astype(jnp.float32), None
    found = tpu_scan.scan(
        inputs.tokens, parents, None if inputs.in_order else inputs.draft_rows,
        _settings_of(inputs), _float32(inputs.target), _float32(draft),
        draft_is_law=inputs.draft_is_law, rule=rule,
    )
    return found, given

  def _scan_of(self, inputs: base.Inputs, found: Array, given: Array | None, rule: str) -> Scan:
    """The scalars of `found` as arrays [B, K]."""
    batch, size = inputs.tokens.shape
    at = lambda lane: found[: batch * size, lane].reshape(batch, size)
    target = at(tpu_decide.TARGET)
    draft = at(tpu_decide.DRAFT) if given is None else given
    if rule != 'block':
      return Scan(target, draft)
    prefix = at(tpu_decide.PREFIX)
    if inputs.draft is None:
      surplus = rules.one_hot_surplus(prefix[:, :-1], target[:, 1:])
    else:
      surplus = at(tpu_decide.SURPLUS)[:, 1:]
    return Scan(target, draft, prefix, surplus)

  def finish(self, inputs: base.Inputs, scan: Scan, draw: base.Draw, source):
    """As `xla.Xla.finish`; `source` must be `base.Uniforms`."""
    del scan
    uniform = jnp.take_along_axis(source.next_token, draw.node[:, None], axis=1)[:, 0]
    tokens, found = self._finish(inputs, draw, uniform)
    return tokens, found[:, tpu_finish.LOG_PROB], source

  def mass(self, inputs: base.Inputs, scan: Scan, draw: base.Draw) -> Array:
    """As `xla.Xla.mass`."""
    del scan
    found = self._finish(inputs, draw, jnp.full(draw.scale.shape, 0.5))[1]
    return found[:, tpu_finish.MASS]

  def _finish(self, inputs: base.Inputs, draw: base.Draw, uniform: Array):
    """Tokens [B]; their log-probabilities and the mass that was drawn from, [B, 128]."""
    batch, count = draw.without.shape
    if count > _MOST_LEFT_OUT:
      raise ValueError(
          f'mosaic_tpu takes trees of up to {_MOST_LEFT_OUT} nodes, got {count}: use '
          "implementation='xla', or a smaller tree."
      )
    tokens, found = tpu_finish.finish(
        draw.row, draw.draft_row, draw.scale, draw.share, uniform, draw.without,
        _settings_of(inputs), _float32(inputs.target), _float32(inputs.draft),
        draft_is_law=inputs.draft_is_law,
    )
    return tokens[:batch, 0], found[:batch]

  def choose(self, inputs: base.Inputs, rule: str, noise: base.Noise | None):
    """As `xla.Xla.choose`."""
    batch, size = inputs.tokens.shape
    count = batch * (size + 1)
    return tuple(
        x[:count, 0].reshape(batch, size + 1) for x in self._choose(inputs, rule, noise)
    )

  def _choose(self, inputs: base.Inputs, rule: str, noise: base.Noise | None):
    """As `tpu_choose.choose`."""
    keys = None
    if rule == 'coupled':
      keys = tpu_choose.position_keys(noise.keys, noise.positions)
    return tpu_choose.choose(
        keys, _settings_of(inputs), inputs.target, rows_each=inputs.tokens.shape[1] + 1
    )


def _float32(logits: Array | None) -> Array | None:
  return None if logits is None else logits.astype(jnp.float32)


def _settings_of(inputs: base.Inputs) -> list[Array]:
  of = inputs.sampling
  return [of.temperature, of.top_k, of.top_p, of.min_p]
