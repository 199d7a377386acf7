"""The op's definition in jnp: also what runs on CPUs, older GPUs, and sharded vocabularies.

What is read, of V entries a row: each target row for its maximum and once more for its sum
(a compiler may keep it in cache between the two), each draft row likewise unless it holds a
law already, target and draft rows once more for the block rule's masses, and target and
draft at the one row that the next token is drawn from. No row of probabilities is written;
the largest arrays made are those two rows and one float a tile.
"""

import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import sampling
from specjax.kernels.accept import base
from specjax.kernels.accept import rules
from specjax.kernels.accept import streams
from specjax.kernels.accept.base import Laws, Settings
from specjax.verify.block import prefix_probs

Array = jax.Array

_LARGEST = jnp.finfo(jnp.float32).max


@struct.dataclass
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
  """The jnp implementation, over the part of the vocabulary that `stream` says is here."""

  stream: streams.Stream

  def scan(self, inputs: base.Inputs, rule: str) -> Scan:
    """Scalars of all drafted tokens; `inputs` has K >= 1."""
    batch, size = inputs.tokens.shape
    rows = jnp.arange(batch)[:, None] * (size + 1) + jnp.arange(size)
    laws = self.laws(inputs.target, inputs.settings(size + 1))
    target = self.log_prob(inputs.target, laws, rows, inputs.tokens)
    draft, draft_laws = jnp.zeros(target.shape, jnp.float32), None
    if inputs.draft is not None:
      count = inputs.draft.shape[0]
      draft_laws = base.given_laws(count)
      if not inputs.draft_is_law:
        draft_laws = self.laws(inputs.draft, inputs.settings(count // batch))
      draft = self.log_prob(inputs.draft, draft_laws, inputs.draft_rows, inputs.tokens)
    prefix = surplus = None
    if rule == 'block':
      prefix = prefix_probs(target, draft)
      surplus = rules.one_hot_surplus(prefix, target)
      if inputs.draft is not None:
        surplus = self._surplus(inputs, laws, draft_laws, prefix[:, :-1], rows[:, 1:])
    return Scan(target, draft, prefix, surplus, (laws, draft_laws))

  def finish(
      self, inputs: base.Inputs, scan: Scan | None, decision: rules.Decision, source
  ) -> tuple[Array, Array, Any]:
    """The next token [B], its log-probability under the target's law [B], and the source.

    Args:
      inputs: as for `scan`.
      scan: its result; None where K is 0.
      decision: where each sequence stops.
      source: `base.Uniforms`, or with `draw` as a `specjax.types.Source` has it.
    """
    batch, size = inputs.tokens.shape
    at = decision.num_accepted
    row = jnp.arange(batch) * (size + 1) + at
    laws = scan.laws[0] if size else self.laws(inputs.target, inputs.settings(1))
    final = _Final(
        target=inputs.target, row=row, law=laws.take(row), draft=None, draft_row=row,
        draft_law=None, scale=decision.scale, whole=decision.is_bonus,
        without=jnp.full((batch,), -1, jnp.int32),
    )
    if size:
      node = jnp.minimum(at, size - 1)[:, None]
      take = lambda values: jnp.take_along_axis(values, node, axis=1)[:, 0]
      if inputs.draft is None:
        without = jnp.where(decision.is_bonus, -1, take(inputs.tokens))
        final = final.replace(without=without)
      else:
        draft_row = take(inputs.draft_rows)
        final = final.replace(
            draft=inputs.draft, draft_row=draft_row,
            draft_law=scan.laws[1].take(draft_row),
        )
    token, source = self._draw(final, at, source)
    return token, self.log_prob(inputs.target, laws, row, token), source

  def choose(self, inputs: base.Inputs, rule: str, noise: base.Noise | None):
    """The target's own choice at every row, greedy or with shared noise.

    Returns:
      Tokens [B, K + 1] int32, and their log-probabilities under the target's law.
    """
    batch, size = inputs.tokens.shape
    shape = (batch, size + 1)
    laws = self.laws(inputs.target, inputs.settings(size + 1))
    ids = self.stream.ids(inputs.target.shape[-1])
    if rule == 'greedy':
      values = inputs.target
    else:
      scaled, kept = _scaled(inputs.target, laws, ids)
      values = jnp.where(kept, scaled, -jnp.inf).reshape(*shape, -1)
      values += randomness.noise_at(noise.keys, noise.positions, ids)
      # Made once, for the two passes that look for the largest.
      values = jax.lax.optimization_barrier(values.reshape(inputs.target.shape))
    tokens = self._argmax(values, self.stream.largest(values), ids)
    rows = jnp.arange(tokens.shape[0])
    log_probs = self.log_prob(inputs.target, laws, rows, tokens)
    return tokens.reshape(shape), log_probs.reshape(shape)

  def laws(self, logits: Array, settings: Settings) -> Laws:
    """What turns rows `logits` [R, V] into their laws."""
    stream, ids = self.stream, self.stream.ids(logits.shape[-1])
    top = jnp.minimum(stream.largest(logits).astype(jnp.float32), _LARGEST)
    lowest, chosen = self._filters(logits, top, settings)
    laws = Laws(top, settings.inverse, lowest, chosen, jnp.zeros_like(top))
    scaled, kept = _scaled(logits, laws, ids)
    return laws.replace(log_total=jnp.log(stream.total(jnp.where(kept, jnp.exp(scaled), 0.0))))

  def log_prob(self, logits: Array, laws: Laws, rows: Array, tokens: Array) -> Array:
    """Log-probabilities of `tokens` at `rows`, arrays of one shape, of logits [R, V]."""
    laws = laws.take(rows)
    scaled = (jnp.minimum(self.stream.at(logits, rows, tokens), _LARGEST) - laws.top)
    scaled *= laws.inverse
    kept = jnp.where(laws.chosen >= 0, tokens == laws.chosen, scaled >= laws.lowest)
    return jnp.where(kept, scaled - laws.log_total, -jnp.inf)

  def _filters(self, logits: Array, top: Array, settings: Settings) -> tuple[Array, Array]:
    """`lowest` and `chosen` of `Laws`; thresholds by bisection, no passes if nobody asks."""
    stream, greedy = self.stream, settings.greedy
    by_k = ~greedy & (settings.top_k > 0) & (settings.top_k < stream.vocab_size)
    by_p = ~greedy & (settings.top_p < 1)

    def scaled() -> Array:
      values = jnp.minimum(logits.astype(jnp.float32), _LARGEST)
      return (values - top[:, None]) * settings.inverse[:, None]

    def find_k() -> Array:
      count = lambda lowest: stream.total((scaled() >= lowest[:, None]).astype(jnp.float32))
      goal = settings.top_k.astype(jnp.float32)
      return sampling.bisect(count, goal, by_k, top.shape, stop_at_goal=True)

    def find_p(lowest: Array) -> Array:
      weights = lambda x: jnp.where(x >= lowest[:, None], jnp.exp(x), 0.0)

      def mass(least: Array) -> Array:
        values = scaled()
        return stream.total(jnp.where(values >= least[:, None], weights(values), 0.0))

      goal = settings.top_p * stream.total(weights(scaled()))
      return jnp.maximum(lowest, sampling.bisect(mass, goal, by_p, top.shape))

    def find() -> tuple[Array, Array]:
      lowest = jax.lax.cond(jnp.any(by_k), find_k, lambda: everything)
      lowest = jax.lax.cond(jnp.any(by_p), find_p, lambda lowest: lowest, lowest)
      chosen = self._argmax(
          jnp.minimum(logits.astype(jnp.float32), _LARGEST), top, stream.ids(logits.shape[-1])
      )
      return lowest, jnp.where(greedy, chosen, nothing)

    everything = jnp.full(top.shape, -jnp.inf, jnp.float32)
    nothing = jnp.full(top.shape, -1, jnp.int32)
    lowest, chosen = jax.lax.cond(
        jnp.any(by_k | by_p | greedy), find, lambda: (everything, nothing)
    )
    least = jnp.where(greedy, -jnp.inf, jnp.log(settings.min_p))
    return jnp.maximum(lowest, least), chosen

  def _argmax(self, values: Array, top: Array, ids: Array) -> Array:
    """The smallest token [R] whose value in [R, V] is `top` [R]."""
    # Two float reductions: `jnp.argmax` is several times slower on CPUs (exact below 2**24).
    last = float(self.stream.vocab_size - 1)
    numbers = jnp.where(values == top[:, None], ids.astype(jnp.float32), last)
    return self.stream.smallest(jnp.min(numbers, axis=-1)).astype(jnp.int32)

  def _surplus(self, inputs, laws: Laws, draft_laws: Laws, prefix: Array, rows: Array) -> Array:
    """The sums of max(p_i target - draft, 0), [B, K - 1], at `rows` [B, K - 1] of the target."""
    ids = self.stream.ids(inputs.target.shape[-1])
    flat = rows.reshape(-1)
    draft_rows = inputs.draft_rows[:, 1:].reshape(-1)
    target = _probs(inputs.target[flat], laws.take(flat), ids)
    draft = _probs(inputs.draft[draft_rows], draft_laws.take(draft_rows), ids)
    weights = jnp.maximum(prefix.reshape(-1)[:, None] * target - draft, 0.0)
    return self.stream.total(weights).reshape(rows.shape)

  def _draw(self, final: '_Final', at: Array, source) -> tuple[Array, Any]:
    """Tokens [B], drawn from the weights of `final`."""
    local_size = final.target.shape[-1]
    ids = self.stream.ids(local_size)
    target = final.target[final.row]
    draft = None if final.draft is None else final.draft[final.draft_row]
    masses = self.stream.masses(final.weights(target, draft, ids))
    # An empty residual: both laws are equal but for rounding, and the target's is drawn from.
    final = final.replace(whole=final.whole | (jnp.max(masses, axis=-1) == 0))
    if not isinstance(source, base.Uniforms):
      weights = final.weights(target, draft, ids)
      return source.draw(jnp.log(weights), purpose=randomness.NEXT, node=at)
    masses = jax.lax.cond(
        jnp.any(jnp.max(masses, axis=-1) == 0),
        lambda: self.stream.masses(final.weights(target, draft, ids)),
        lambda: masses,
    )
    uniform = jnp.take_along_axis(source.next_token, at[:, None], axis=1)[:, 0]
    tile, goal = streams.pick_tile(masses, uniform)
    target, first = self.stream.tile_at(final.target, final.row, tile)
    if draft is not None:
      draft, _ = self.stream.tile_at(final.draft, final.draft_row, tile)
    ids = first[:, None] + jnp.arange(self.stream.tile, dtype=jnp.int32)
    weights = jnp.where(ids < self.stream.vocab_size, final.weights(target, draft, ids), 0.0)
    token = first + streams.pick(weights, goal)
    return self.stream.from_holder(tile, token, local_size), source


@struct.dataclass
class _Final:
  """The row that each sequence's next token is drawn from.

  Attributes:
    target: [R, V] logits; row: [B]; law: of these rows.
    draft: [Q, V] or None; draft_row: [B]; draft_law: of these rows.
    scale: [B] float32, the factor of the target's law.
    whole: [B] bool, draw from the target's law itself.
    without: [B] int32, the token that is left out; -1 for none.
  """

  target: Array
  row: Array
  law: Laws
  draft: Array | None
  draft_row: Array
  draft_law: Laws | None
  scale: Array
  whole: Array
  without: Array

  def weights(self, target: Array, draft: Array | None, ids: Array) -> Array:
    """What is drawn from, not normalised: [B, X] of entries `ids` [X] or [B, X]."""
    whole = self.whole[:, None]
    probs = _probs(target, self.law, ids)
    if draft is None:
      return jnp.where(~whole & (ids == self.without[:, None]), 0.0, probs)
    rest = self.scale[:, None] * probs - _probs(draft, self.draft_law, ids)
    return jnp.where(whole, probs, jnp.maximum(rest, 0.0))


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
