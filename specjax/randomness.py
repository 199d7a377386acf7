"""Random numbers of the engine: a counter-based generator and the sources built on it.

All noise is Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
3") of a row's key and a counter, so a row's numbers depend neither on the other rows nor
on how a loop was cut into chunks. Coupled noise, of which there is one number for every
entry of the vocabulary, ends with a shorter function (`mix`) that kernels can afford.

Two streams are kept apart by their domain:

- *round* noise (draws of drafters, acceptance flips, residual and bonus draws) has the
  counter (row length at the round's start, purpose and node): fresh in every round.
  Acceptance noise keyed by absolute position alone would bias the block rule, whose
  stopping point depends on later drafts.
- *coupled* noise has the counter (absolute position, token): the same for drafter and
  target, whatever the round, which is what makes their choices agree.
"""

import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

Array = jax.Array

# Purposes of round noise.
DRAFT, ACCEPT, NEXT = 0, 1, 2

_ROUND_DOMAIN, _COUPLED_DOMAIN = 0x5EED0001, 0x5EED0002
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
  """Threefry-2x32 with 20 rounds.

  Args:
    key: two uint32 arrays.
    counter: two uint32 arrays; all four broadcast against each other.

  Returns:
    Two uint32 arrays of the broadcast shape. Known answer (Random123): key (0, 0),
    counter (0, 0) gives (0x6b200159, 0x99ba4efe).
  """
  first, second = key
  keys = (first, second, first ^ second ^ jnp.uint32(0x1BD11BDA))
  x, y = counter[0] + keys[0], counter[1] + keys[1]
  for group in range(5):
    for rotation in _ROTATIONS[group % 2]:
      x = x + y
      y = (y << rotation) | (y >> (32 - rotation))
      y = x ^ y
    x = x + keys[(group + 1) % 3]
    y = y + keys[(group + 2) % 3] + jnp.uint32(group + 1)
  return x, y


def row_keys(seeds: Array) -> Array:
  """Keys [B, 2] uint32 of seeds [B] int32 (or uint32); equal seeds give equal rows."""
  seeds = jnp.asarray(seeds).astype(jnp.uint32)
  zero = jnp.zeros_like(seeds)
  return jnp.stack(threefry((zero, zero), (seeds, zero)), axis=-1)


def _words(keys: Array, domain: int, first: Array, second: Array) -> tuple[Array, Array]:
  """Two uint32 words of counters; `keys` [B, 2], counters [B, ...] or broadcastable to it."""
  ndim = max(jnp.ndim(first), jnp.ndim(second))
  shape = keys.shape[:1] + (1,) * (ndim - 1)
  key = _domain_key(keys[:, 0], keys[:, 1], domain)
  key = (key[0].reshape(shape), key[1].reshape(shape))
  return threefry(key, (first.astype(jnp.uint32), second.astype(jnp.uint32)))


def _domain_key(first: Array, second: Array, domain: int) -> tuple[Array, Array]:
  """The key of a domain, from a row key's two words."""
  return threefry((first, second), (jnp.full_like(first, domain), jnp.zeros_like(first)))


def _uniform(bits: Array) -> Array:
  """Float32 in (0, 1) from the top 23 bits: the midpoints of 2**23 equal cells."""
  # By way of int32, for TPUs do not convert unsigned integers.
  return (bits >> 9).astype(jnp.int32).astype(jnp.float32) * 2.0**-23 + 2.0**-24


def gumbel_noise(keys: Array, positions: Array, vocab_size: int) -> Array:
  """Coupled noise: standard Gumbel variates of (row key, absolute position, token).

  Args:
    keys: [B, 2] uint32.
    positions: [B, ...] int32, the position that a token is drawn for.
    vocab_size: V.

  Returns:
    [B, ..., V] float32, finite.
  """
  return noise_at(keys, positions, jnp.arange(vocab_size, dtype=jnp.int32))


def noise_at(keys: Array, positions: Array, tokens: Array) -> Array:
  """`gumbel_noise` of some tokens [n] only: [B, ..., n] float32."""
  first, second = position_keys(keys, positions)
  tokens = tokens.astype(jnp.uint32).reshape((1,) * positions.ndim + (-1,))
  return gumbel_of(mix(first[..., None], second[..., None], tokens))


def position_keys(keys: Array, positions: Array) -> tuple[Array, Array]:
  """The two keys, uint32 [B, ...] each, of the noise at `positions` [B, ...]."""
  return _words(keys, _COUPLED_DOMAIN, positions, jnp.zeros_like(positions))


def position_words(first: Array, second: Array, positions: Array) -> tuple[Array, Array]:
  """`position_keys` of a row key's two words, elementwise: kernels call it."""
  key = _domain_key(first, second, _COUPLED_DOMAIN)
  positions = positions.astype(jnp.uint32)
  return threefry(key, (positions, jnp.zeros_like(positions)))


def mix(first: Array, second: Array, counter: Array) -> Array:
  """uint32 bits of a counter under two uint32 keys; elementwise, kernels call it too.

  Three rounds of multiply and shift with the constants of Wellons' triple32 (2018, "Prospecting
  for hash functions"), the second key put in after the first round: 13 operations a number,
  where Threefry takes 110. For fixed keys it maps counters one to one.
  """
  x = counter + first
  x = (x ^ (x >> 17)) * jnp.uint32(0xED5AD4BB)
  x = x ^ second
  x = (x ^ (x >> 11)) * jnp.uint32(0xAC4C1B51)
  x = (x ^ (x >> 15)) * jnp.uint32(0x31848BAB)
  return x ^ (x >> 14)


def gumbel_of(bits: Array) -> Array:
  """Standard Gumbel variates, float32 and finite, of uint32 bits."""
  return -jnp.log(-jnp.log(_uniform(bits)))


def draw_from(law: Array, uniform: Array, *, layout: Any = None) -> Array:
  """Inverse-CDF draw with one uniform per row.

  Sums run over blocks first (`pick_tile`), so that no scan over the vocabulary is needed.

  Args:
    law: [B, V] float32 log-probabilities; they need not be normalised.
    uniform: [B] float32 in (0, 1).
    layout: how the vocabulary is split over devices (`specjax.sharding.Layout`), or None. Sums of
      blocks are gathered then, and the block that is drawn from: left to the partitioner, each of
      a dozen short sums and comparisons after them is one of all devices.

  Returns:
    [B] int32; never a token of probability zero.
  """
  batch, vocab_size = law.shape
  blocks, block = _blocks(vocab_size)
  weights = jnp.exp(law - jnp.max(law, axis=-1, keepdims=True))
  weights = jnp.pad(weights, ((0, 0), (0, blocks * block - vocab_size)))
  weights = weights.reshape(batch, blocks, block)
  whole = lambda x: x if layout is None else layout.constrain(x, ('batch', None))
  which, goal = pick_tile(whole(weights.sum(-1)), uniform)
  inside = whole(jnp.take_along_axis(weights, which[:, None, None], axis=1)[:, 0])
  return which * block + pick(inside, goal)


def ordered_sum(values: Array) -> Array:
  """The sum over the last axis by halves, so that no compiler picks another order."""
  size = values.shape[-1]
  while size > 1:
    half = (size + 1) // 2
    rest = values[..., half:]
    head = values[..., : size - half] + rest
    values = jnp.concatenate([head, values[..., size - half : half]], axis=-1)
    size = half
  return values[..., 0]


def pick(weights: Array, goal: Array) -> Array:
  """The entry [B] at which the running sum of `weights` [B, n] exceeds `goal` [B].

  Never an entry of weight 0: where rounding leads to one, or beyond the last, the last
  positive one before it is taken, or else the first.
  """
  number = jnp.arange(weights.shape[-1], dtype=jnp.int32)
  index = jnp.sum(jnp.cumsum(weights, axis=-1) <= goal[:, None], axis=-1, dtype=jnp.int32)
  positive = weights > 0
  before = jnp.max(jnp.where(positive & (number <= index[:, None]), number, -1), axis=-1)
  first = jnp.min(jnp.where(positive, number, weights.shape[-1] - 1), axis=-1)
  return jnp.where(before >= 0, before, first)


def pick_tile(masses: Array, uniform: Array) -> tuple[Array, Array]:
  """The tile that an inverse-CDF draw falls into.

  Args:
    masses: [B, n] float32 >= 0, not all 0 in a row.
    uniform: [B] float32 in (0, 1).

  Returns:
    The tile's number [B], of positive mass, and what is left of the goal inside it [B].
  """
  goal = uniform * ordered_sum(masses)
  tile = pick(masses, goal)
  number = jnp.arange(masses.shape[-1])
  start = jnp.sum(jnp.where(number < tile[:, None], masses, 0.0), axis=-1)
  return tile, goal - start


def _blocks(vocab_size: int) -> tuple[int, int]:
  """How many blocks of what size a vocabulary is summed in: both near its square root.

  A power of two that divides the vocabulary is preferred as their number: blocks then end
  where a vocabulary that is split over devices does, and none is gathered.

  >>> _blocks(128_256), _blocks(4096), _blocks(7)
  ((256, 501), (64, 64), (1, 7))
  """
  root = vocab_size**0.5
  powers = [2**n for n in range(24) if vocab_size % 2**n == 0 and root / 4 <= 2**n <= 4 * root]
  if powers:
    blocks = min(powers, key=lambda power: abs(math.log(power / root)))
    return blocks, vocab_size // blocks
  block = max(1, int(root))
  return -(-vocab_size // block), block


@struct.dataclass
class KeySource:
  """The engine's source: every number a function of row key, length, purpose and node.

  Attributes:
    keys: [B, 2] uint32, the rows' keys.
    lengths: [B] int32, row lengths at the round's start.
    layout: static, how the laws that it draws from are split over devices; None for one.
  """

  keys: Array
  lengths: Array
  layout: Any = struct.field(pytree_node=False, default=None)

  def uniform(self, purpose: int, nodes: Array) -> Array:
    """Uniforms [B, n] in (0, 1) for node numbers [n] or [B, n]."""
    nodes = jnp.broadcast_to(nodes, (self.keys.shape[0], nodes.shape[-1]))
    counter = nodes.astype(jnp.uint32) + jnp.uint32(purpose << 24)
    return _uniform(_words(self.keys, _ROUND_DOMAIN, self.lengths[:, None], counter)[0])

  def draw(self, law: Array, *, purpose: int, node) -> tuple[Array, 'KeySource']:
    """As `specjax.types.Source.draw`."""
    if law.ndim == 3:
      uniform = self.uniform(purpose, jnp.asarray(node))
      tokens = draw_from(
          law.reshape(-1, law.shape[-1]), uniform.reshape(-1), layout=self.layout
      )
      return tokens.reshape(uniform.shape), self
    nodes = jnp.reshape(jnp.asarray(node), (-1, 1))
    return draw_from(law, self.uniform(purpose, nodes)[:, 0], layout=self.layout), self

  def flip(
      self, probs: Array, *, purpose: int, node: Array | None = None
  ) -> tuple[Array, 'KeySource']:
    """As `specjax.types.Source.flip`; probability 1 is always True, 0 always False."""
    if node is not None:
      return self.uniform(purpose, node[:, None])[:, 0] < probs, self
    return self.uniform(purpose, jnp.arange(probs.shape[1])) < probs, self

  def gumbel(self, positions: Array, vocab_size: int) -> Array:
    """As `specjax.types.Source.gumbel`."""
    return gumbel_noise(self.keys, positions, vocab_size)
