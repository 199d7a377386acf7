"""A drafter with a set acceptance, for measuring the engine apart from draft quality.

It is told the tokens that the target will emit (a reference made by plain decoding) and
proposes them, or on purpose a wrong token, at a set rate. It costs next to nothing, so
a run with it measures verification and the loop alone. Under greedy and coupled rules its
output is the reference; as one-hot proposals they are lossless under every lossless rule.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from specjax import randomness
from specjax import types

Array = jax.Array

_HIT, _CHILD = 0x5A17, 0x5A18


@struct.dataclass
class SyntheticDrafter:
  """Proposes the reference's tokens along one path of a fixed tree.

  Each level keeps to the reference with probability `acceptance`, independently by
  position, until it leaves it; which child of a node carries the reference's token is drawn
  too. All other nodes are wrong on purpose.

  Attributes:
    reference: [B, S'] int32, the tokens to expect at each absolute position.
    reference_lengths: [B] int32; beyond them every proposal is wrong.
    acceptance: [] float32 in [0, 1].
    keys: [B, 2] uint32.
    parents: static, parents of nodes 1 … N.
    wrong_offset: static, added to a right token (modulo V) to make a wrong one.
    target_vocab_size: static, V.
  """

  reference: Array
  reference_lengths: Array
  acceptance: Array
  keys: Array
  parents: tuple[int, ...] = struct.field(pytree_node=False)
  target_vocab_size: int = struct.field(pytree_node=False)
  feature_layers: tuple[int, ...] = struct.field(pytree_node=False, default=())
  vocab_size: int | None = struct.field(pytree_node=False, default=None)

  @property
  def num_nodes(self) -> int:
    return len(self.parents)

  @property
  def is_chain(self) -> bool:
    return self.parents == tuple(range(len(self.parents)))

  @property
  def depth(self) -> int:
    return int(_depths(self.parents).max())

  def init(self, *, batch_size: int, cache_length: int, max_append: int) -> Any:
    """As `specjax.types.Drafter.init`."""
    del cache_length, max_append
    if batch_size != self.reference.shape[0]:
      raise ValueError(
          f'The synthetic drafter has references for {self.reference.shape[0]} rows, the '
          f'batch has {batch_size}. Give one reference a row.'
      )
    return ()

  def prefill(self, state, *, tokens, num_new, features):
    """As `specjax.types.Drafter.prefill`."""
    del tokens, num_new, features
    return state

  def propose(self, context: types.Context, state):
    """As `specjax.types.Drafter.propose`."""
    batch = context.lengths.shape[0]
    depths = _depths(self.parents)[1:]
    levels = jnp.arange(self.depth)
    positions = context.lengths[:, None] + levels
    inside = positions < self.reference_lengths[:, None]
    clipped = jnp.minimum(positions, self.reference.shape[1] - 1)
    right = jnp.take_along_axis(self.reference, clipped, axis=1)
    hit = self._uniform(positions, _HIT) < self.acceptance
    hit = jnp.cumprod((hit & inside).astype(jnp.int32), axis=1).astype(bool)

    # Node numbers that carry the reference's token, level by level.
    children = _children(self.parents)
    counts = jnp.asarray([len(c) for c in children])
    table = np.zeros((len(children), max(1, max(map(len, children)))), np.int32)
    for node, list_ in enumerate(children):
      table[node, : len(list_)] = list_
    table = jnp.asarray(table)
    choice = self._uniform(positions, _CHILD)
    node = jnp.zeros((batch,), jnp.int32)
    carries = jnp.zeros((batch, self.num_nodes + 1), bool)
    rows = jnp.arange(batch)
    for level in range(self.depth):
      which = (choice[:, level] * counts[node]).astype(jnp.int32)
      child = jnp.where(counts[node] > 0, table[node, which], 0)
      node = jnp.where(hit[:, level], child, 0)
      carries = carries.at[rows, node].set(True)
    carries = carries[:, 1:]

    level_token = right[:, depths - 1]
    # Siblings are wrong in different ways, so that no two of them are the same token.
    offset = 1 + jnp.arange(self.num_nodes) % (self.target_vocab_size - 1)
    wrong = (level_token + offset) % self.target_vocab_size
    parents = jnp.broadcast_to(jnp.asarray(self.parents, jnp.int32), (batch, self.num_nodes))
    proposal = types.Proposal(
        tokens=jnp.where(carries, level_token, wrong),
        parents=parents,
        valid=jnp.ones((batch, self.num_nodes), bool),
        law=None,
        rows=parents,
        kind=types.ONE_HOT,
    )
    return proposal, state, context

  def update(self, state, verification, context):
    """As `specjax.types.Drafter.update`."""
    del verification, context
    return state

  def _uniform(self, positions: Array, purpose: int) -> Array:
    source = randomness.KeySource(self.keys, jnp.full_like(positions[:, 0], purpose))
    return source.uniform(randomness.DRAFT, positions)


def _depths(parents: tuple[int, ...]) -> np.ndarray:
  depths = np.zeros(len(parents) + 1, np.int32)
  for node, parent in enumerate(parents, start=1):
    depths[node] = depths[parent] + 1
  return depths


def _children(parents: tuple[int, ...]) -> list[list[int]]:
  children = [[] for _ in range(len(parents) + 1)]
  for node, parent in enumerate(parents, start=1):
    children[parent].append(node)
  return children


def synthetic(
    reference: Array,
    *,
    reference_lengths: Array | None = None,
    acceptance: float,
    vocab_size: int,
    num_speculative_tokens: int | None = None,
    parents: tuple[int, ...] | None = None,
    seed: int = 0,
) -> SyntheticDrafter:
  """A drafter of set acceptance over a reference output.

  Args:
    reference: [B, S'] int32, prompt and output of plain decoding with the same seeds.
    reference_lengths: [B] int32; None takes all of `reference`.
    acceptance: probability in [0, 1] that a level keeps to the reference.
    vocab_size: V of the target.
    num_speculative_tokens: K, for a chain.
    parents: parents of nodes 1 … N, for a tree, instead of K.
    seed: of the drafter's own choices.

  Returns:
    The drafter.

  Raises:
    ValueError: if `acceptance` is outside [0, 1], or not exactly one of K >= 1 and
      `parents` (each smaller than its node's number) is given.
  """
  if not 0.0 <= acceptance <= 1.0:
    raise ValueError(f'acceptance must be in [0, 1], got {acceptance}.')
  if (num_speculative_tokens is None) == (parents is None):
    raise ValueError('Give either num_speculative_tokens (a chain) or parents (a tree).')
  if parents is None:
    if num_speculative_tokens < 1:
      raise ValueError(f'num_speculative_tokens must be at least 1, got {num_speculative_tokens}.')
    parents = tuple(range(num_speculative_tokens))
  if not parents or any(not 0 <= p < node for node, p in enumerate(parents, start=1)):
    raise ValueError(f'Each node needs a parent with a smaller number, got parents={parents}.')
  reference = jnp.asarray(reference, jnp.int32)
  if reference_lengths is None:
    reference_lengths = jnp.full(reference.shape[:1], reference.shape[1], jnp.int32)
  return SyntheticDrafter(
      reference=reference,
      reference_lengths=jnp.asarray(reference_lengths, jnp.int32),
      acceptance=jnp.float32(acceptance),
      keys=randomness.row_keys(seed + jnp.arange(reference.shape[0])),
      parents=tuple(parents),
      target_vocab_size=vocab_size,
  )
