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
from specjax import tree as tree_lib
from specjax import types
from specjax.drafters import base

Array = jax.Array

_HIT, _CHILD = 0x5A17, 0x5A18


@struct.dataclass
class SyntheticDrafter(base.Shaped, base.Stateless):
  """Proposes the reference's tokens along one path of a fixed tree.

  Each level keeps to the reference with probability `acceptance`, independently by
  position, until it leaves it; which child of a node carries the reference's token is drawn
  too. All other nodes are wrong on purpose.

  Attributes:
    reference: [B, S'] int32, the tokens to expect at each absolute position.
    reference_lengths: [B] int32; beyond them every proposal is wrong.
    acceptance: [] float32 in [0, 1].
    keys: [B, 2] uint32.
    shape: static, of the tree.
    target_vocab_size: static, V.
  """

  reference: Array
  reference_lengths: Array
  acceptance: Array
  keys: Array
  shape: tree_lib.StaticTree = struct.field(pytree_node=False)
  target_vocab_size: int = struct.field(pytree_node=False)

  @property
  def parents(self) -> tuple[int, ...]:
    """Of nodes 1 … N."""
    return self.shape.parents

  def init(self, *, batch_size: int, cache_length: int, max_append: int) -> Any:
    """As `specjax.types.Drafter.init`."""
    del cache_length, max_append
    if batch_size != self.reference.shape[0]:
      raise ValueError(
          f'The synthetic drafter has references for {self.reference.shape[0]} rows, the '
          f'batch has {batch_size}. Give one reference per row.'
      )
    return ()

  def propose(self, context: types.Context, state):
    """As `specjax.types.Drafter.propose`."""
    batch = context.lengths.shape[0]
    depths = np.asarray(self.shape.depths[1:], np.int32)
    levels = jnp.arange(self.depth)
    positions = context.lengths[:, None] + levels
    inside = positions < self.reference_lengths[:, None]
    clipped = jnp.minimum(positions, self.reference.shape[1] - 1)
    right = jnp.take_along_axis(self.reference, clipped, axis=1)
    hit = self._uniform(positions, _HIT) < self.acceptance
    hit = jnp.cumprod((hit & inside).astype(jnp.int32), axis=1).astype(bool)

    # Node numbers that carry the reference's token, level by level.
    children = self.shape.children
    counts = jnp.asarray([len(of_node) for of_node in children])
    table = np.zeros((len(children), max(map(len, children))), np.int32)
    for node, of_node in enumerate(children):
      table[node, : len(of_node)] = of_node
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
    parents = jnp.broadcast_to(jnp.asarray(self.parents, jnp.int32), wrong.shape)
    tokens = jnp.where(carries, level_token, wrong)
    return base.chosen(tokens, jnp.bool_(True), parents=parents), state, context

  def _uniform(self, positions: Array, purpose: int) -> Array:
    source = randomness.KeySource(self.keys, jnp.full_like(positions[:, 0], purpose))
    return source.uniform(randomness.DRAFT, positions)


def synthetic(
    reference: Array,
    *,
    reference_lengths: Array | None = None,
    acceptance: float,
    vocab_size: int,
    num_speculative_tokens: int | None = None,
    tree: Any = None,
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
    tree: instead of K, a tree as `specjax.drafters.model_tree` takes it, but not a dynamic one.
    parents: instead, the parents of nodes 1 … N.
    seed: of the drafter's own choices.

  Returns:
    The drafter.

  Raises:
    ValueError: if `acceptance` is outside [0, 1], or not exactly one of K >= 1, a static tree
      and `parents` (each smaller than its node's number) is given.
  """
  if not 0.0 <= acceptance <= 1.0:
    raise ValueError(f'acceptance must be in [0, 1], got {acceptance}.')
  shape = _shape(num_speculative_tokens, tree, parents)
  reference = jnp.asarray(reference, jnp.int32)
  if reference_lengths is None:
    reference_lengths = jnp.full(reference.shape[:1], reference.shape[1], jnp.int32)
  return SyntheticDrafter(
      reference=reference,
      reference_lengths=jnp.asarray(reference_lengths, jnp.int32),
      acceptance=jnp.float32(acceptance),
      keys=randomness.row_keys(seed + jnp.arange(reference.shape[0])),
      shape=shape,
      target_vocab_size=vocab_size,
  )


def _shape(num_speculative_tokens: int | None, tree: Any, parents) -> tree_lib.StaticTree:
  """The tree that is given in one of three ways; raises as `synthetic`."""
  given = (num_speculative_tokens, tree, parents)
  if sum(value is not None for value in given) != 1:
    raise ValueError('Give either num_speculative_tokens (a chain), or tree or parents (a tree).')
  if num_speculative_tokens is not None:
    tree = (1,) * base.check_num_speculative_tokens(num_speculative_tokens)
  if tree is not None:
    shape = tree_lib.as_tree(tree)
    if not isinstance(shape, tree_lib.StaticTree):
      raise ValueError('The synthetic drafter has no confidence to grow a dynamic tree by.')
    return shape
  if not parents or any(not 0 <= p < node for node, p in enumerate(parents, start=1)):
    raise ValueError(f'Each node needs a parent with a smaller number, got parents={parents}.')
  return tree_lib.StaticTree(tuple(parents))
