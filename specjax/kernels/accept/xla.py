"""The op's definition in jnp: also what runs on CPUs, GPUs, and sharded vocabularies.

What is read, of V entries per row: each target row for its maximum and once more for its sum
(a compiler may keep it in cache between the two), each draft row likewise unless it holds a
law already, target and draft rows once more for the block rule's masses, and target and
draft at the one row that the next token is drawn from. No row of probabilities is written;
the largest arrays made are those two rows and one float per tile.
"""

from typing import Any

import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import sampling
from specjax.kernels.accept import base
from specjax.kernels.accept import tiles as tiles_lib
from specjax.kernels.accept.base import Laws, Settings
from specjax.verify import rows as rows_lib

Array = jax.Array

_LARGEST = jnp.finfo(jnp.float32).max


class TileRows(rows_lib.Rows):
  """The jnp implementation, over the part of the vocabulary that `tiles` says is here.

  What it inherits runs on one float per tile; kernels override what runs over the vocabulary.
  """

  def __init__(self, inputs: base.Inputs, tiles: tiles_lib.Tiles):
    """Reads all rows once for their laws; what no rule asks for is never compiled.

    Args:
      inputs: the arrays of a call.
      tiles: the part of the vocabulary that they hold.
    """
    self.inputs, self.tiles, self.proposal = inputs, tiles, inputs.proposal
    batch, size = inputs.tokens.shape
    self.target_laws = self.laws(inputs.target, inputs.settings(size + 1))
    self.draft_laws = None
    if inputs.draft is not None:
      count = inputs.draft.shape[0]
      self.draft_laws = base.given_laws(count)
      if not inputs.draft_is_law:
        self.draft_laws = self.laws(inputs.draft, inputs.settings(count // batch))

  def scan(self, *, chain_surplus: bool = False) -> rows_lib.Scan:
    """As `Rows.scan`."""
    inputs, size = self.inputs, self.proposal.num_nodes
    rows = inputs.target_rows(self.proposal.parents)
    target = self.log_prob(inputs.target, self.target_laws, rows, inputs.tokens)
    draft = jnp.zeros(target.shape, jnp.float32)
    if inputs.draft is not None:
      draft = self.log_prob(inputs.draft, self.draft_laws, inputs.flat_draft_rows, inputs.tokens)
    if not chain_surplus or not size:
      return rows_lib.Scan(target, draft)
    prefix = rows_lib.prefix_probs(target, draft)
    if inputs.draft is None or size == 1:
      # Known from scalars; with one token there are no inner rows, and no kernel takes none.
      surplus = rows_lib.one_hot_surplus(prefix[:, :-1], target[:, 1:])
      return rows_lib.Scan(target, draft, prefix, surplus)
    flat = rows[:, 1:].reshape(-1)
    masses = self.masses(
        flat, inputs.flat_draft_rows[:, 1:].reshape(-1), scale=prefix[:, :-1].reshape(-1),
        share=jnp.ones(flat.shape, jnp.float32),
        without=jnp.full((flat.shape[0], 1), -1, jnp.int32),
    )
    surplus = randomness.ordered_sum(masses).reshape(-1, size - 1)
    return rows_lib.Scan(target, draft, prefix, surplus)

  def draw(self, draw: rows_lib.Draw, source: Any) -> tuple[Array, Array, Any]:
    """As `Rows.draw`; `base.Uniforms` are taken as they are, any other source draws by itself."""
    rows = self.inputs.drawn_rows(draw)
    masses = self._masses_of(rows, draw)
    is_empty = jnp.max(masses, axis=-1) == 0
    draw = draw.or_target(is_empty)
    if isinstance(source, base.Uniforms):
      masses = base.unlikely_cond(
          jnp.any(is_empty), lambda: self._masses_of(rows, draw), lambda: masses
      )
      token = self._inverse(rows, draw, masses, source)
    else:
      weights = self._weights(*rows, draw.scale, draw.share, draw.without)
      token, source = source.draw(jnp.log(weights), purpose=randomness.NEXT, node=draw.node)
    return token, self.log_prob(self.inputs.target, self.target_laws, rows[0], token), source

  def mass(self, draw: rows_lib.Draw) -> Array:
    """As `Rows.mass`."""
    return randomness.ordered_sum(self._masses_of(self.inputs.drawn_rows(draw), draw))

  def draft_mass(self, draw: rows_lib.Draw, scan: rows_lib.Scan) -> Array:
    """As `Rows.draft_mass`, summed."""
    del scan
    _, row = self.inputs.drawn_rows(draw)
    ids = self.tiles.ids(self.inputs.target.shape[-1])
    probs = _probs(self.inputs.draft[row], self.draft_laws.take(row), ids)
    return self.tiles.total(rows_lib.strike(probs, draw.without, ids))

  def choose(self, source: Any = None, positions: Array | None = None):
    """As `Rows.choose`; the noise is that of `source.keys`."""
    target, shape = self.inputs.target, (-1, self.proposal.num_nodes + 1)
    if positions is None:
      tokens = self.largest_logit(target)
    else:
      words = randomness.position_keys(source.keys, positions)
      tokens = self.largest_noisy(target, self.target_laws, *[x.reshape(-1) for x in words])
    rows = jnp.arange(tokens.shape[0])
    log_probs = self.log_prob(target, self.target_laws, rows, tokens)
    return tokens.reshape(shape), log_probs.reshape(shape)

  def largest_logit(self, logits: Array) -> Array:
    """The token [R] of the largest of logits [R, V], the smallest of equals."""
    return self._argmax(logits, self.tiles.largest(logits), self.tiles.ids(logits.shape[-1]))

  def largest_noisy(self, logits: Array, laws: Laws, first: Array, second: Array) -> Array:
    """The token [R] of the largest scaled logit with the coupled noise of keys [R], [R]."""
    ids = self.tiles.ids(logits.shape[-1])
    scaled, kept = _scaled(logits, laws, ids)
    bits = randomness.mix(first[:, None], second[:, None], ids.astype(jnp.uint32))
    values = jnp.where(kept, scaled, -jnp.inf) + randomness.gumbel_of(bits)
    # Made once, for the two passes that look for the largest.
    values = jax.lax.optimization_barrier(values)
    return self._argmax(values, self.tiles.largest(values), ids)

  def laws(self, logits: Array, settings: Settings) -> Laws:
    """What turns rows `logits` [R, V] into their laws."""
    tiles, ids = self.tiles, self.tiles.ids(logits.shape[-1])
    top = jnp.minimum(tiles.largest(logits).astype(jnp.float32), _LARGEST)
    lowest, chosen = self._filters(logits, top, settings)
    laws = Laws(top, settings.inverse, lowest, chosen, jnp.zeros_like(top))
    scaled, kept = _scaled(logits, laws, ids)
    return laws.replace(log_total=jnp.log(tiles.total(jnp.where(kept, jnp.exp(scaled), 0.0))))

  def log_prob(self, logits: Array, laws: Laws, rows: Array, tokens: Array) -> Array:
    """Log-probabilities of `tokens` at `rows`, arrays of one shape, of logits [R, V]."""
    laws = laws.take(rows)
    scaled = (jnp.minimum(self.tiles.at(logits, rows, tokens), _LARGEST) - laws.top)
    scaled *= laws.inverse
    kept = jnp.where(laws.chosen >= 0, tokens == laws.chosen, scaled >= laws.lowest)
    return jnp.where(kept, scaled - laws.log_total, -jnp.inf)

  def _filters(self, logits: Array, top: Array, settings: Settings) -> tuple[Array, Array]:
    """`lowest` and `chosen` of `Laws`."""

    def values() -> Array:
      return jnp.minimum(logits.astype(jnp.float32), _LARGEST)

    return sampling.thresholds(
        lambda: (values() - top[:, None]) * settings.inverse[:, None],
        sampling.Filters(settings.greedy, settings.top_k, settings.top_p, settings.min_p),
        shape=top.shape,
        vocab_size=self.tiles.vocab_size,
        total=self.tiles.total,
        argmax=lambda: self._argmax(values(), top, self.tiles.ids(logits.shape[-1])),
        keep_weights=False,
        cond=base.unlikely_cond,
    )

  def _argmax(self, values: Array, top: Array, ids: Array) -> Array:
    """The smallest token [R] whose value in [R, V] is `top` [R]."""
    first = sampling.first_at(values, top, ids, self.tiles.vocab_size - 1)
    return self.tiles.smallest(first).astype(jnp.int32)

  def masses(
      self, row: Array, draft_row: Array, scale: Array, share: Array, without: Array
  ) -> Array:
    """The sums of the tiles of the weights of P draws, [P, n].

    Args:
      row: [P] int32, rows of the target; draft_row: [P] int32, of the draft.
      scale: [P] float32, as in `specjax.verify.rows.Draw`, and so are the others: share [P],
        without [P, C].
    """
    return self.tiles.masses(self._weights(row, draft_row, scale, share, without))

  def _masses_of(self, rows: tuple[Array, Array], draw: rows_lib.Draw) -> Array:
    """`masses` of a draw at `rows` of target and draft, [B, n]."""
    return self.masses(*rows, draw.scale, draw.share, draw.without)

  def _weights(self, row, draft_row, scale, share, without) -> Array:
    """The weights [P, V_local] of `masses`."""
    inputs = self.inputs
    draft = None if inputs.draft is None else inputs.draft[draft_row]
    ids = self.tiles.ids(inputs.target.shape[-1])
    return self._weights_of(
        inputs.target[row], row, draft, draft_row, scale=scale, share=share, without=without,
        ids=ids,
    )

  def _weights_of(self, target, row, draft, draft_row, *, ids, **numbers) -> Array:
    """Weights [P, X] from logits [P, X] of tokens `ids` at rows of target and draft [P]."""
    target = _probs(target, self.target_laws.take(row), ids)
    if draft is not None:
      draft = _probs(draft, self.draft_laws.take(draft_row), ids)
    return rows_lib.draw_weights(target, draft, ids=ids, **numbers)

  def _inverse(
      self, rows: tuple[Array, Array], draw: rows_lib.Draw, masses: Array, source: base.Uniforms
  ) -> Array:
    """Tokens [B] by inverse CDF, from the tiles' masses [B, n]."""
    inputs, (row, draft_row) = self.inputs, rows
    uniform = jnp.take_along_axis(source.next_token, draw.node[:, None], axis=1)[:, 0]
    tile, goal = randomness.pick_tile(masses, uniform)
    target, first = self.tiles.tile_at(inputs.target, row, tile)
    draft = None
    if inputs.draft is not None:
      draft, _ = self.tiles.tile_at(inputs.draft, draft_row, tile)
    ids = first[:, None] + jnp.arange(self.tiles.tile, dtype=jnp.int32)
    weights = self._weights_of(
        target, row, draft, draft_row, scale=draw.scale, share=draw.share, without=draw.without,
        ids=ids,
    )
    weights = jnp.where(ids < self.tiles.vocab_size, weights, 0.0)
    token = first + randomness.pick(weights, goal)
    return self.tiles.from_holder(tile, token, inputs.target.shape[-1])


def _scaled(logits: Array, laws: Laws, ids: Array) -> tuple[Array, Array]:
  """Scaled logits [B, X], and which of them are kept."""
  # Infinite logits count as the largest float, so that inf - inf does not arise.
  values = jnp.minimum(logits.astype(jnp.float32), _LARGEST)
  scaled = (values - laws.top[:, None]) * laws.inverse[:, None]
  chosen = laws.chosen[:, None]
  return scaled, jnp.where(chosen >= 0, ids == chosen, scaled >= laws.lowest[:, None])


def _probs(logits: Array, laws: Laws, ids: Array) -> Array:
  """Probabilities [B, X]."""
  scaled, kept = _scaled(logits, laws, ids)
  return jnp.where(kept, jnp.exp(scaled - laws.log_total[:, None]), 0.0)
