"""The records of the acceptance op, and the letters of its shapes.

B sequences, K draft tokens of each, V vocabulary, R rows of logits, P pairs of a target row
and a draft row (a drafted token has one), n tiles of the vocabulary. Rows are flat: row
`b * (K + 1) + j` of the target is what sequence b says after j of its draft tokens.
"""

from collections.abc import Callable
import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from specjax import types
from specjax.verify import rows as rows_lib

Array = jax.Array

RULES = ('greedy', 'rejection', 'block', 'coupled', 'recursive', 'traversal')
IMPLEMENTATIONS = ('xla', 'mosaic_tpu', 'mosaic_gpu')


@struct.dataclass
class Uniforms:
  """The random numbers of the rules that sample.

  Attributes:
    flips: [B, K] float32 in (0, 1): token j stays where its number is below its probability.
    next_token: [B, K + 1] float32 in (0, 1): what follows j accepted tokens is drawn with
      number j by inverse CDF in the order of token ids (in a tree: what follows node j). Each
      is used at most once.
  """

  flips: Array
  next_token: Array

  def flip(
      self, probs: Array, *, purpose: int, node: Array | None = None
  ) -> tuple[Array, 'Uniforms']:
    """As `specjax.types.Source.flip`."""
    del purpose
    if node is None:
      return self.flips < probs, self
    at = jnp.maximum(node - 1, 0)[:, None]
    return jnp.take_along_axis(self.flips, at, axis=1)[:, 0] < probs, self


@struct.dataclass
class Noise:
  """Where coupled noise comes from (`specjax.randomness.gumbel_noise`).

  Attributes:
    keys: [B, 2] uint32, the row keys.
    positions: [B, K + 1] int32, the absolute position that a token drawn from a row takes.
  """

  keys: Array
  positions: Array


# What the op decides; `log_probs` [B, K + 1] are always there.
Accepted = types.Verification


@struct.dataclass
class Settings:
  """Sampling settings of rows.

  Attributes:
    inverse: [R] float32, one over the temperature; 1 in greedy rows.
    greedy: [R] bool, temperature 0: the law is one-hot at the largest logit, the smallest
      token among equals.
    top_k: [R] int32; 0 keeps all.
    top_p: [R] float32; 1 keeps all.
    min_p: [R] float32; 0 keeps all.
  """

  inverse: Array
  greedy: Array
  top_k: Array
  top_p: Array
  min_p: Array

  def take(self, rows: Array) -> 'Settings':
    """The settings of other rows."""
    return jax.tree.map(lambda x: x[rows], self)


@struct.dataclass
class Inputs:
  """The arrays of a call, checked.

  Attributes:
    target: [B * (K + 1), V] bfloat16 or float32, logits.
    draft: [Q, V] bfloat16 or float32, or None where tokens were chosen.
    proposal: tokens, parents, valid, rows and kind; its `law` is None, for `draft` holds it.
    sampling: settings, one per sequence.
    draft_is_law: static; `draft` holds the log-probabilities that tokens were drawn from, to
      which no settings apply any more.
    is_chain: static, whether `proposal.parents` are known to be a chain's; all_valid: whether all
      tokens are known to be valid; in_order: whether `proposal.rows` are known to be 0 … K - 1.
      Kernels then need not be handed the arrays.
  """

  target: Array
  draft: Array | None
  proposal: types.Proposal
  sampling: types.Sampling
  draft_is_law: bool = struct.field(pytree_node=False)
  is_chain: bool = struct.field(pytree_node=False, default=False)
  all_valid: bool = struct.field(pytree_node=False, default=False)
  in_order: bool = struct.field(pytree_node=False, default=False)

  @property
  def tokens(self) -> Array:
    """[B, K] int32."""
    return self.proposal.tokens

  @property
  def flat_draft_rows(self) -> Array:
    """[B, K] int32, the row of `draft` that each token was drawn from."""
    batch = self.tokens.shape[0]
    each = 0 if self.draft is None else self.draft.shape[0] // batch
    return self.proposal.rows + jnp.arange(batch, dtype=jnp.int32)[:, None] * each

  def target_rows(self, nodes: Array) -> Array:
    """[B, n] int32, the rows of `target` of nodes [B, n]."""
    batch, size = self.tokens.shape
    return nodes + jnp.arange(batch, dtype=jnp.int32)[:, None] * (size + 1)

  def drawn_rows(self, draw: rows_lib.Draw) -> tuple[Array, Array]:
    """The rows [B] of target and draft of a draw; the latter is 0 where there is no draft."""
    row = self.target_rows(draw.node[:, None])[:, 0]
    if self.draft is None or not self.proposal.num_nodes:
      return row, jnp.zeros_like(row)
    if self.is_chain:
      child = jnp.minimum(draw.node, self.proposal.num_nodes - 1)
    else:
      child = rows_lib.child_of(self.proposal, draw.node)
    return row, jnp.take_along_axis(self.flat_draft_rows, child[:, None], axis=1)[:, 0]

  def settings(self, rows_each: int) -> 'Settings':
    """The settings of rows, `rows_each` per sequence."""
    return settings_of(self.sampling, rows_each)


@struct.dataclass
class Laws:
  """All that is needed to turn a row's logits into its law.

  The law is exp(scaled - log_total) where it is kept, with
  scaled = (min(logit, largest float) - top) * inverse.

  Attributes:
    top: [R] float32, the largest logit, at most the largest float.
    inverse: [R] float32.
    lowest: [R] float32, the least `scaled` that is kept; -inf keeps all.
    chosen: [R] int32, the one token kept in a greedy row; -1 elsewhere.
    log_total: [R] float32, log of the sum of exp(scaled) over what is kept.
  """

  top: Array
  inverse: Array
  lowest: Array
  chosen: Array
  log_total: Array

  def take(self, rows: Array) -> 'Laws':
    """The laws of other rows."""
    return jax.tree.map(lambda x: x[rows], self)


def unlikely_cond(condition: Array, unlikely: Callable, likely: Callable) -> Any:
  """`unlikely()` where a bool scalar is True, else `likely()`.

  Costs are counted without the unlikely branch: `benchmarks/acceptance_cost.py` replaces this
  function, which is therefore called as `base.unlikely_cond`.
  """
  return jax.lax.cond(condition, unlikely, likely)


def settings_of(sampling: types.Sampling, rows_each: int) -> Settings:
  """Settings [B * rows_each] of rows, `rows_each` per sequence, from those of sequences [B]."""
  repeat = lambda x: jnp.repeat(x, rows_each)
  greedy = sampling.temperature == 0
  return Settings(
      inverse=repeat(1.0 / jnp.where(greedy, 1.0, sampling.temperature)),
      greedy=repeat(greedy),
      top_k=repeat(sampling.top_k),
      top_p=repeat(sampling.top_p),
      min_p=repeat(sampling.min_p),
  )


def given_laws(count: int) -> Laws:
  """Of rows that hold log-probabilities already: nothing to subtract, everything kept."""
  zeros = jnp.zeros((count,), jnp.float32)
  return Laws(
      top=zeros,
      inverse=zeros + 1.0,
      lowest=zeros - jnp.inf,
      chosen=jnp.full((count,), -1, jnp.int32),
      log_total=zeros,
  )


def tile_size(vocab_size: int) -> int:
  """Entries of a tile: a divisor of the vocabulary, about 2,048, that shards share.

  Sums over the vocabulary are sums of tiles, in one order whatever the number of shards, so
  tiles must not cross shards: up to 16 chips hold whole ones. Where no divisor is near, the
  tile is 2,048 and the last one is filled up with -inf.

  >>> [tile_size(v) for v in (32_000, 128_256, 151_936, 262_144, 7, 32_003)]
  [2000, 2004, 2374, 2048, 7, 2048]
  """
  part = vocab_size // math.gcd(vocab_size, 16)
  if part <= 4096:
    return part
  divisors = [d for d in range(512, 8193) if part % d == 0]
  return min(divisors, key=lambda d: abs(math.log(d / 2048)), default=2048)
