"""The op's definition in jnp: also what runs on CPUs, GPUs, and sharded vocabularies.

What is read, of V entries a row: each target row for its maximum and once more for its sum
(a compiler may keep it in cache between the two), each draft row likewise unless it holds a
law already, target and draft rows once more for the block rule's masses, and target and
draft at the one row that the next token is drawn from. No row of probabilities is written;
the largest arrays made are those two rows and one float a tile.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import sampling
from specjax.kernels.accept import base
from specjax.kernels.accept import rules
from specjax.kernels.accept import tiles as tiles_lib
from specjax.kernels.accept.base import Laws, Settings
from specjax.verify.block import prefix_probs

Array = jax.Array

_LARGEST = jnp.finfo(jnp.float32).max


@dataclasses.dataclass(frozen=True)
class Scan:
  """What one pass over the rows found out.

  Attributes:
    target: [B, K] float32, log-probabilities of the drafted tokens under the target's law.
    draft: [B, K] float32, under the draft's; 0 for chosen tokens.
    prefix: [B, K] float32, the block rule's p_i; None for other rules.
    surplus: [B, K - 1] float32, the block rule's masses; None for other rules.
    laws: of whatever rows `finish` may need.
  """

  target: Array
  draft: Array
  prefix: Array | None
  surplus: Array | None
  laws: tuple[Laws, Laws | None]


@dataclasses.dataclass(frozen=True)
class Xla:
  """The jnp implementation, over the part of the vocabulary that `tiles` says is here."""

  tiles: tiles_lib.Tiles

  def chain(self, inputs: base.Inputs, rule: str, source) -> tuple[base.Accepted, Any]:
    """What rejection or block decides, and the source to use next."""
    return rules.chain(self, inputs, rule, source)

  def follow(self, inputs: base.Inputs, rule: str, numbers, parents) -> base.Accepted:
    """What greedy or coupled decides; `parents` [B, K] of a tree, or None."""
    return rules.follow(self, inputs, rule, numbers, parents)

  def scan(self, inputs: base.Inputs, rule: str, parents: Array) -> Scan:
    """Scalars of all drafted tokens.

    Args:
      inputs: the arrays; K may be 0.
      rule: the rule.
      parents: [B, K] int32, the row of its sequence that each token is judged by.
    """
    batch, size = inputs.tokens.shape
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None] * (size + 1) + parents
    laws = self.laws(inputs.target, inputs.settings(size + 1))
    target = self.log_prob(inputs.target, laws, rows, inputs.tokens)
    draft, draft_laws = jnp.zeros(target.shape, jnp.float32), None
    if inputs.draft is not None:
      count = inputs.draft.shape[0]
      draft_laws = base.given_laws(count)
      if not inputs.draft_is_law:
        draft_laws = self.laws(inputs.draft, inputs.settings(count // batch))
      draft = self.log_prob(inputs.draft, draft_laws, inputs.flat_draft_rows, inputs.tokens)
    scan = Scan(target, draft, None, None, (laws, draft_laws))
    if rule != 'block' or not size:
      return scan
    prefix = prefix_probs(target, draft)
    if inputs.draft is None or size == 1:
      # Known from scalars; with one token there are no inner rows, and no kernel takes none.
      return dataclasses.replace(
          scan, prefix=prefix, surplus=rules.one_hot_surplus(prefix[:, :-1], target[:, 1:])
      )
    flat = rows[:, 1:].reshape(-1)
    masses = self.masses(inputs, scan, base.Draw(
        node=flat, row=flat, draft_row=inputs.flat_draft_rows[:, 1:].reshape(-1),
        scale=prefix[:, :-1].reshape(-1), share=jnp.ones(flat.shape, jnp.float32),
        without=jnp.full((flat.shape[0], 1), -1, jnp.int32),
    ))
    surplus = tiles_lib.ordered_sum(masses).reshape(batch, size - 1)
    return dataclasses.replace(scan, prefix=prefix, surplus=surplus)

  def finish(
      self, inputs: base.Inputs, scan: Scan, draw: base.Draw, source
  ) -> tuple[Array, Array, Any]:
    """The next token [B], its log-probability under the target's law [B], and the source.

    Args:
      inputs: as for `scan`.
      scan: its result.
      draw: what is drawn from.
      source: `base.Uniforms`, or with `draw` as a `specjax.types.Source` has it.
    """
    masses = self.masses(inputs, scan, draw)
    # An empty residual: both laws are equal but for rounding, and the target's is drawn from.
    is_empty = jnp.max(masses, axis=-1) == 0
    draw = draw.or_target(is_empty)
    if isinstance(source, base.Uniforms):
      masses = rarely(
          jnp.any(is_empty), lambda: self.masses(inputs, scan, draw), lambda: masses
      )
      token = self._inverse(inputs, scan, draw, masses, source)
    else:
      weights = self._weights(inputs, scan, draw)
      token, source = source.draw(jnp.log(weights), purpose=randomness.NEXT, node=draw.node)
    return token, self.log_prob(inputs.target, scan.laws[0], draw.row, token), source

  def mass(self, inputs: base.Inputs, scan: Scan, draw: base.Draw) -> Array:
    """The sum of a draw's weights, [B]."""
    return tiles_lib.ordered_sum(self.masses(inputs, scan, draw))

  def choose(self, inputs: base.Inputs, rule: str, noise: base.Noise | None):
    """The target's own choice at every row, greedy or with shared noise.

    Returns:
      Tokens [B, K + 1] int32, and their log-probabilities under the target's law.
    """
    batch, size = inputs.tokens.shape
    shape = (batch, size + 1)
    laws = self.laws(inputs.target, inputs.settings(size + 1))
    if rule == 'greedy':
      tokens = self.largest_logit(inputs.target)
    else:
      words = randomness.position_keys(noise.keys, noise.positions)
      tokens = self.largest_noisy(inputs.target, laws, *[x.reshape(-1) for x in words])
    rows = jnp.arange(tokens.shape[0])
    log_probs = self.log_prob(inputs.target, laws, rows, tokens)
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
    """`lowest` and `chosen` of `Laws`; thresholds by bisection, no passes if nobody asks."""
    tiles, greedy = self.tiles, settings.greedy
    by_k = ~greedy & (settings.top_k > 0) & (settings.top_k < tiles.vocab_size)
    by_p = ~greedy & (settings.top_p < 1)

    def scaled() -> Array:
      values = jnp.minimum(logits.astype(jnp.float32), _LARGEST)
      return (values - top[:, None]) * settings.inverse[:, None]

    def find_k() -> Array:
      count = lambda lowest: tiles.total((scaled() >= lowest[:, None]).astype(jnp.float32))
      goal = settings.top_k.astype(jnp.float32)
      return sampling.bisect(count, goal, by_k, top.shape, stop_at_goal=True)

    def find_p(lowest: Array) -> Array:
      weights = lambda x: jnp.where(x >= lowest[:, None], jnp.exp(x), 0.0)

      def mass(least: Array) -> Array:
        values = scaled()
        return tiles.total(jnp.where(values >= least[:, None], weights(values), 0.0))

      goal = settings.top_p * tiles.total(weights(scaled()))
      return jnp.maximum(lowest, sampling.bisect(mass, goal, by_p, top.shape))

    def find() -> tuple[Array, Array]:
      lowest = jax.lax.cond(jnp.any(by_k), find_k, lambda: everything)
      lowest = jax.lax.cond(jnp.any(by_p), find_p, lambda lowest: lowest, lowest)
      chosen = self._argmax(
          jnp.minimum(logits.astype(jnp.float32), _LARGEST), top, tiles.ids(logits.shape[-1])
      )
      return lowest, jnp.where(greedy, chosen, nothing)

    everything = jnp.full(top.shape, -jnp.inf, jnp.float32)
    nothing = jnp.full(top.shape, -1, jnp.int32)
    lowest, chosen = rarely(
        jnp.any(by_k | by_p | greedy), find, lambda: (everything, nothing)
    )
    least = jnp.where(greedy, -jnp.inf, jnp.log(settings.min_p))
    return jnp.maximum(lowest, least), chosen

  def _argmax(self, values: Array, top: Array, ids: Array) -> Array:
    """The smallest token [R] whose value in [R, V] is `top` [R]."""
    # Two float reductions: `jnp.argmax` is several times slower on CPUs (exact below 2**24).
    last = float(self.tiles.vocab_size - 1)
    numbers = jnp.where(values == top[:, None], ids.astype(jnp.float32), last)
    return self.tiles.smallest(jnp.min(numbers, axis=-1)).astype(jnp.int32)

  def masses(self, inputs: base.Inputs, scan: Scan, draw: base.Draw) -> Array:
    """The sums of the tiles of a draw's weights, [B, n]."""
    return self.tiles.masses(self._weights(inputs, scan, draw))

  def _weights(self, inputs: base.Inputs, scan: Scan, draw: base.Draw) -> Array:
    """A draw's weights, [B, V_local]."""
    draft = None if inputs.draft is None else inputs.draft[draw.draft_row]
    ids = self.tiles.ids(inputs.target.shape[-1])
    return _weights(inputs.target[draw.row], draft, scan.laws, draw, ids)

  def _inverse(self, inputs, scan: Scan, draw: base.Draw, masses: Array, source) -> Array:
    """Tokens [B] by inverse CDF, from the tiles' masses [B, n]."""
    uniform = jnp.take_along_axis(source.next_token, draw.node[:, None], axis=1)[:, 0]
    tile, goal = tiles_lib.pick_tile(masses, uniform)
    target, first = self.tiles.tile_at(inputs.target, draw.row, tile)
    draft = None
    if inputs.draft is not None:
      draft, _ = self.tiles.tile_at(inputs.draft, draw.draft_row, tile)
    ids = first[:, None] + jnp.arange(self.tiles.tile, dtype=jnp.int32)
    weights = _weights(target, draft, scan.laws, draw, ids)
    weights = jnp.where(ids < self.tiles.vocab_size, weights, 0.0)
    token = first + tiles_lib.pick(weights, goal)
    return self.tiles.from_holder(tile, token, inputs.target.shape[-1])


def _weights(target: Array, draft: Array | None, laws, draw: base.Draw, ids: Array) -> Array:
  """Weights [B, X] from logits [B, X] of tokens `ids` [X] or [B, X]."""
  weights = draw.scale[:, None] * _probs(target, laws[0].take(draw.row), ids)
  if draft is not None:
    share = draw.share[:, None] * _probs(draft, laws[1].take(draw.draft_row), ids)
    # Where none of it is taken, the draft may have no law at all (NaN).
    weights = jnp.where(draw.share[:, None] > 0, jnp.maximum(weights - share, 0.0), weights)
  for column in range(draw.without.shape[1]):
    weights = jnp.where(ids == draw.without[:, column : column + 1], 0.0, weights)
  return weights


def rarely(condition: Array, unusual: Callable, usual: Callable) -> Any:
  """`unusual()` where a bool scalar is True; the usual cost is counted without it."""
  return jax.lax.cond(condition, unusual, usual)


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
