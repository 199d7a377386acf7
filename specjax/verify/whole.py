"""Rows whose laws are in memory: what small vocabularies, and rules of one's own, run on."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import sampling as sampling_lib
from specjax import types
from specjax.verify import rows as rows_lib

Array = jax.Array


@struct.dataclass
class WholeRows(rows_lib.Rows):
  """`specjax.verify.rows.Rows` over arrays as large as the vocabulary.

  Attributes:
    values: [B, N + 1, V] float32, log-probabilities of the target's law. For `choose` alone they
      may be more by a constant per row, and without noise logits.
    proposal: with the draft's laws.
  """

  values: Array
  proposal: types.Proposal

  def scan(self, *, chain_surplus: bool = False) -> rows_lib.Scan:
    """As `Rows.scan`."""
    proposal, target = self.proposal, self.target_log_probs()
    draft = proposal.log_probs()
    if not chain_surplus or not proposal.num_nodes:
      return rows_lib.Scan(target, draft)
    prefix = rows_lib.prefix_probs(target, draft)
    inner = prefix[:, :-1]
    if proposal.kind == types.ONE_HOT:
      surplus = rows_lib.one_hot_surplus(inner, target[:, 1:])
    else:
      law = jnp.take_along_axis(proposal.law, proposal.rows[:, 1:, None], axis=1)
      difference = inner[..., None] * jnp.exp(self.values[:, 1:-1]) - jnp.exp(law)
      surplus = jnp.sum(jnp.maximum(difference, 0.0), axis=-1)
    return rows_lib.Scan(target, draft, prefix, surplus)

  def target_log_probs(self) -> Array:
    """`Scan.target` alone, of drafts of any kind."""
    batch = jnp.arange(self.proposal.tokens.shape[0])[:, None]
    return self.values[batch, self.proposal.parents, self.proposal.tokens]

  def choose(self, source: Any = None, positions: Array | None = None):
    """As `Rows.choose`; no log-probabilities."""
    values = self.values
    if positions is not None:
      values = values + source.gumbel(positions, values.shape[-1])
    # Two plain reductions: a split vocabulary is reduced where it lies, never gathered.
    return sampling_lib.argmax(values), None

  def mass(self, draw: rows_lib.Draw) -> Array:
    """As `Rows.mass`."""
    return jnp.sum(self._weights(draw, self._row(draw.node)), axis=-1)

  def draft_mass(self, draw: rows_lib.Draw, scan: rows_lib.Scan) -> Array:
    """As `Rows.draft_mass`, summed."""
    del scan
    left = rows_lib.strike(jnp.exp(self._draft_row(draw.node)), draw.without, self._ids)
    return jnp.sum(left, axis=-1)

  def draw(self, draw: rows_lib.Draw, source: Any):
    """As `Rows.draw`; no log-probabilities."""
    law = self._row(draw.node)
    if self.proposal.num_nodes:
      is_struck = jnp.any(draw.without >= 0, axis=1)
      is_target = ~is_struck if self.proposal.law is None else ~is_struck & (draw.share <= 0)
      weights = self._weights(draw, law)
      is_empty = jnp.max(weights, axis=-1) == 0
      law = jnp.where((is_target | is_empty)[:, None], law, jnp.log(weights))
    token, source = source.draw(law, purpose=randomness.NEXT, node=draw.node)
    return token, None, source

  def law(self, nodes: Array | None = None) -> Array:
    """As `Rows.law`."""
    if nodes is None:
      return self.values
    return jnp.take_along_axis(self.values, nodes[..., None], axis=1)

  def _row(self, node: Array) -> Array:
    """Row `node` [B] of the target, [B, V]."""
    return self.law(node[:, None])[:, 0]

  def _weights(self, draw: rows_lib.Draw, law: Array) -> Array:
    """A draw's weights [B, V], `law` [B, V] being the target's row."""
    has_draft = self.proposal.kind != types.ONE_HOT and self.proposal.num_nodes
    return rows_lib.draw_weights(
        jnp.exp(law),
        jnp.exp(self._draft_row(draw.node)) if has_draft else None,
        scale=draw.scale,
        share=draw.share,
        without=draw.without,
        ids=self._ids,
    )

  @property
  def _ids(self) -> Array:
    return jnp.arange(self.values.shape[-1], dtype=jnp.int32)

  def _draft_row(self, node: Array) -> Array:
    """The draft's law [B, V] that the children of `node` [B] were drawn from."""
    child = rows_lib.child_of(self.proposal, node)[:, None]
    row = jnp.take_along_axis(self.proposal.rows, child, axis=1)
    return jnp.take_along_axis(self.proposal.law, row[..., None], axis=1)[:, 0]


def rows_of(
    logits: Array, *, mode: str, sampling: types.Sampling, proposal: types.Proposal
) -> WholeRows:
  """Whole rows of controlled logits.

  Args:
    logits: [B, N + 1, V] float32, after `specjax.sampling.control`.
    mode: the rule's: what is not needed for its choices is not computed.
    sampling: the settings.
    proposal: what was drafted.
  """
  if mode == 'coupled':
    logits = sampling_lib.scaled(logits, sampling)
  elif mode != 'greedy':
    logits = sampling_lib.law(logits, sampling)
  return WholeRows(logits, proposal)
