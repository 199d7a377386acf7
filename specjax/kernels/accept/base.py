"""The records of the acceptance op, and the letters of its shapes.

B sequences, K draft tokens of each, V vocabulary, R rows of logits, P pairs of a target row
and a draft row (a drafted token has one), n tiles of the vocabulary. Rows are flat: row
`b * (K + 1) + j` of the target is what sequence b says behind j of its draft tokens.
"""

import math

from flax import struct
import jax
import jax.numpy as jnp

from specjax import types

Array = jax.Array

RULES = ('greedy', 'rejection', 'block', 'coupled', 'recursive')
IMPLEMENTATIONS = ('xla', 'mosaic_tpu', 'mosaic_gpu')


@struct.dataclass
class Uniforms:
  """The random numbers of rejection, block and recursive.

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


@struct.dataclass
class Accepted:
  """What the op decides.

  Attributes:
    num_accepted: [B] int32, 0 … K (or the depth of a tree).
    next_token: [B] int32, recovered or bonus.
    log_probs: [B, K + 1] float32, of each emitted token under the target's law (after the
      settings); 0 beyond them.
    is_bonus: [B] bool, whether everything proposed was accepted.
    accept_probs: [B, K] float32, the probability with which each token stays if the one before
      it does; 0 where not valid.
    path: [B, K] int32, node numbers of what was accepted, 0 beyond; 1, 2, … in a chain.
  """

  num_accepted: Array
  next_token: Array
  log_probs: Array
  is_bonus: Array
  accept_probs: Array
  path: Array


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
    tokens: [B, K] int32.
    draft_rows: [B, K] int32, the row among its sequence's that each token was drawn from.
    valid: [B, K] bool, a prefix in a chain.
    sampling: settings, one a sequence.
    draft_is_law: static; `draft` holds the log-probabilities that tokens were drawn from, to
      which no settings apply any more.
    all_valid: static, whether all tokens are known to be valid; in_order: whether `draft_rows`
      are known to be 0 … K - 1. Kernels then need not be handed the arrays.
  """

  target: Array
  draft: Array | None
  tokens: Array
  draft_rows: Array
  valid: Array
  sampling: types.Sampling
  draft_is_law: bool = struct.field(pytree_node=False)
  all_valid: bool = struct.field(pytree_node=False, default=False)
  in_order: bool = struct.field(pytree_node=False, default=False)

  @property
  def flat_draft_rows(self) -> Array:
    """[B, K] int32, rows of `draft`."""
    batch = self.tokens.shape[0]
    each = 0 if self.draft is None else self.draft.shape[0] // batch
    return self.draft_rows + jnp.arange(batch, dtype=jnp.int32)[:, None] * each

  def settings(self, rows_each: int) -> 'Settings':
    """The settings of rows, `rows_each` a sequence."""
    return settings_of(self.sampling, rows_each)


@struct.dataclass
class Draw:
  """What each sequence's next token is drawn from.

  Weights are max(scale * target - share * draft, 0), without some tokens, not normalised.

  Attributes:
    node: [B] int32, the node that the token follows; 0 is the root.
    row: [B] int32, its row of the target.
    draft_row: [B] int32, the row of the draft; whichever where there is no draft.
    scale: [B] float32.
    share: [B] float32.
    without: [B, C] int32, tokens that are left out; -1 for none.
  """

  node: Array
  row: Array
  draft_row: Array
  scale: Array
  share: Array
  without: Array

  def or_target(self, is_empty: Array) -> 'Draw':
    """The target's own law where `is_empty` [B]."""
    return self.replace(
        scale=jnp.where(is_empty, 1.0, self.scale),
        share=jnp.where(is_empty, 0.0, self.share),
        without=jnp.where(is_empty[:, None], -1, self.without),
    )


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


def settings_of(sampling: types.Sampling, rows_each: int) -> Settings:
  """Settings [B * rows_each] of rows, `rows_each` a sequence, from those of sequences [B]."""
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
