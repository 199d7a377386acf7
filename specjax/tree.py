"""Token trees: their shapes, and depths, ancestors and masks from the parents of nodes.

Nodes are numbered 0 … N with 0 the root; `parents` [B, N] holds the parent of nodes
1 … N, always a smaller number. A chain has parents 0, 1, …, N - 1.
"""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Level(NamedTuple):
  """The nodes of one depth of a static tree; static.

  Attributes:
    rows: numbers of the nodes one level up that have children, in order.
    counts: how many children each of them has.
    first: the number of this level's first node; children of a row lie together.
  """

  rows: tuple[int, ...]
  counts: tuple[int, ...]
  first: int


@dataclasses.dataclass(frozen=True)
class StaticTree:
  """A shape that is the same for every row and round. Made by `static_tree`.

  Attributes:
    parents: of nodes 1 … N, which are numbered level by level, siblings together. (Where nobody
      asks for `levels`, in any order in which parents come first.)
  """

  parents: tuple[int, ...]

  @property
  def num_nodes(self) -> int:
    return len(self.parents)

  @property
  def depths(self) -> tuple[int, ...]:
    """Of nodes 0 … N."""
    depths = [0]
    for parent in self.parents:
      depths.append(depths[parent] + 1)
    return tuple(depths)

  @property
  def depth(self) -> int:
    return max(self.depths)

  @property
  def children(self) -> tuple[tuple[int, ...], ...]:
    """Of nodes 0 … N, in the order of their numbers."""
    numbered = tuple(enumerate(self.parents, start=1))
    return tuple(
        tuple(node for node, parent in numbered if parent == number)
        for number in range(self.num_nodes + 1)
    )

  @property
  def is_chain(self) -> bool:
    return self.parents == tuple(range(self.num_nodes))

  @property
  def num_reads(self) -> int:
    """Nodes with children, the root excluded: what a drafter has to read."""
    return len(set(self.parents)) - 1

  def levels(self) -> tuple[Level, ...]:
    """One `Level` per depth, from 1 on."""
    levels, first = [], 1
    for depth in range(1, self.depth + 1):
      parents = [p for p in self.parents if self.depths[p] == depth - 1]
      rows = tuple(sorted(set(parents)))
      levels.append(Level(rows, tuple(parents.count(row) for row in rows), first))
      first += len(parents)
    return tuple(levels)

  def path(self, node: int) -> tuple[int, ...]:
    """Nodes on the way from the root (excluded) to `node` (included)."""
    path = []
    while node:
      path.append(node)
      node = self.parents[node - 1]
    return tuple(reversed(path))


@dataclasses.dataclass(frozen=True)
class DynamicTree:
  """A shape that follows the draft's confidence, row by row. Made by `dynamic_tree`.

  Attributes:
    num_nodes: N, how many nodes are kept.
    depth: D, levels that are expanded.
    width: nodes that are expanded per level, and children that each of them gets.
  """

  num_nodes: int
  depth: int
  width: int
  is_chain: bool = False

  @property
  def num_reads(self) -> int:
    """Nodes that a drafter has to read, the root excluded."""
    return self.width * (self.depth - 1)


@dataclasses.dataclass(frozen=True)
class BestFirstTree:
  """The most probable nodes of all, row by row. Made by `best_first_tree`.

  Attributes:
    num_nodes: N.
    depth: D.
    width: k, the most children that a node may have.
  """

  num_nodes: int
  depth: int
  width: int
  is_chain: bool = False

  @property
  def num_reads(self) -> int:
    """Nodes that a drafter has to read, the root excluded: one per depth."""
    return self.depth - 1


def static_tree(
    *,
    paths: Sequence[Sequence[int]] | None = None,
    widths: Sequence[int] | None = None,
) -> StaticTree:
  """A static tree from a list of paths, or from a width per depth.

  >>> static_tree(paths=[(0,), (1,), (0, 0), (0, 1), (0, 0, 0)]).parents
  (0, 0, 1, 1, 3)
  >>> static_tree(widths=[2, 2]).parents
  (0, 0, 1, 1, 2, 2)

  Args:
    paths: one per node, as Medusa's choices: which child of which child …; (0, 1) is the
      second child of the root's first child. In any order; ancestors and earlier siblings
      must be there.
    widths: children of every node of depth 0, 1, …; all ones is a chain.

  Returns:
    The shape.

  Raises:
    ValueError: if not exactly one of them is given, a width is below 1, or an ancestor or
      an earlier sibling of a path is missing.
  """
  if (paths is None) == (widths is None):
    raise ValueError('A static tree takes either paths= or widths=.')
  if widths is not None:
    if not len(widths) or min(widths) < 1:
      raise ValueError(f'widths must be one or more numbers from 1 on, got {tuple(widths)}.')
    level, paths = [()], []
    for width in widths:
      level = [(*path, rank) for path in level for rank in range(width)]
      paths += level
  known = sorted({tuple(int(rank) for rank in path) for path in paths} - {()})
  if not known:
    raise ValueError('A tree needs at least one path.')
  for path in known:
    earlier = [path[:-1]] if len(path) > 1 else []
    earlier += [(*path[:-1], path[-1] - 1)] if path[-1] > 0 else []
    for other in earlier:
      if other not in known:
        raise ValueError(f'The path {path} needs {other} beside it in the tree; add it.')
    if min(path) < 0:
      raise ValueError(f'The path {path} has a negative entry; children are numbered from 0.')
  order = sorted(known, key=lambda path: (len(path), path))
  number = {path: node for node, path in enumerate(order, start=1)} | {(): 0}
  return StaticTree(parents=tuple(number[path[:-1]] for path in order))


def dynamic_tree(*, num_nodes: int, depth: int, width: int = 10) -> DynamicTree:
  """A tree that is grown where the draft is confident (EAGLE-2, 2406.16858, section 4).

  At every depth the `width` nodes with the largest joint draft probability are expanded,
  each to its `width` most probable children; of all nodes the `num_nodes` with the largest
  joint probability are kept. A node is at most as probable as its parent, so that they
  form a tree.

  Args:
    num_nodes: N.
    depth: D.
    width: k.

  Returns:
    The shape.

  Raises:
    ValueError: if a number is below 1, or there are fewer than N candidates.
  """
  if min(num_nodes, depth, width) < 1:
    raise ValueError(
        f'num_nodes, depth and width must be at least 1, got {num_nodes}, {depth}, {width}.'
    )
  candidates = width + (depth - 1) * width**2
  if num_nodes > candidates:
    raise ValueError(
        f'A dynamic tree of width {width} and depth {depth} has {candidates} candidates, too few '
        f'for num_nodes={num_nodes}. Raise the width or the depth, or keep fewer nodes.'
    )
  return DynamicTree(num_nodes=num_nodes, depth=depth, width=width)


def best_first_tree(*, num_nodes: int, depth: int, width: int = 10) -> BestFirstTree:
  """The N nodes with the largest joint draft probability (DDTree, 2604.12989, algorithm 1).

  For drafters whose laws depend on the depth alone, as those of Medusa heads and of DFlash do: then
  all of them are known after one pass, and no node is expanded that is not kept. A node is at most
  as probable as its parent, and as the sibling before it, so that they form a tree.

  Args:
    num_nodes: N.
    depth: D, the deepest node.
    width: k, the most children of a node.

  Returns:
    The shape.

  Raises:
    ValueError: if a number is below 1, or there are fewer than N such nodes.
  """
  if min(num_nodes, depth, width) < 1:
    raise ValueError(
        f'num_nodes, depth and width must be at least 1, got {num_nodes}, {depth}, {width}.'
    )
  if num_nodes > (most := sum(width**level for level in range(1, depth + 1))):
    raise ValueError(
        f'A tree of width {width} and depth {depth} has at most {most} nodes, too few for '
        f'num_nodes={num_nodes}. Raise the width or the depth, or keep fewer nodes.'
    )
  return BestFirstTree(num_nodes=num_nodes, depth=depth, width=width)


def evenly(num_nodes: int, depth: int) -> StaticTree:
  """A tree of N nodes on D levels of about the same width, each level's parents in turn.

  >>> evenly(5, 2).parents
  (0, 0, 0, 1, 2)
  """
  parents, before, start = [], [0], 1
  for level in np.array_split(np.arange(num_nodes), depth):
    parents += [before[index % len(before)] for index in range(len(level))]
    before = list(range(start, start + len(level)))
    start += len(level)
  return StaticTree(tuple(parents))


def as_tree(tree, *, is_independent: bool = False) -> StaticTree | DynamicTree | BestFirstTree:
  """A shape from a shape, a list of widths, or a list of paths.

  Args:
    tree: any of these.
    is_independent: whether the drafter's laws depend on the depth alone.

  Raises:
    ValueError: if it is no tree, or a best-first one of a drafter whose laws depend on the path.
  """
  if isinstance(tree, BestFirstTree) and not is_independent:
    raise ValueError(
        'A best-first tree is grown from laws that depend on the depth alone: Medusa heads, or a '
        'DFlash head without a Markov head. Of this drafter take a dynamic tree.'
    )
  if isinstance(tree, StaticTree | DynamicTree | BestFirstTree):
    return tree
  tree = tuple(tree)
  if tree and all(isinstance(entry, int | np.integer) for entry in tree):
    return static_tree(widths=tree)
  return static_tree(paths=tree)


def chain_parents(batch_size: int, num_nodes: int) -> Array:
  """Parents [B, N] of a chain."""
  return jnp.broadcast_to(jnp.arange(num_nodes, dtype=jnp.int32), (batch_size, num_nodes))


def paths(parents: Array, depth: int) -> tuple[Array, Array]:
  """Nodes on the way from the root to every node.

  Args:
    parents: [B, N] int32.
    depth: D, the depth of the deepest node.

  Returns:
    Node numbers [B, N + 1, D] int32, the root's child first, the node itself last, 0
    beyond; and depths [B, N + 1] int32, the root's being 0. For parents (0, 0, 1) and D = 2
    the paths are (0, 0), (1, 0), (2, 0), (1, 3) and the depths 0, 1, 1, 2.
  """
  batch, num_nodes = parents.shape
  full = jnp.concatenate([jnp.zeros((batch, 1), jnp.int32), parents], axis=1)
  node = jnp.broadcast_to(jnp.arange(num_nodes + 1, dtype=jnp.int32), full.shape)
  upward = []
  for _ in range(depth):
    upward.append(node)
    node = jnp.take_along_axis(full, node, axis=1)
  if not upward:
    return jnp.zeros((batch, num_nodes + 1, 0), jnp.int32), jnp.zeros_like(full)
  upward = jnp.stack(upward, axis=-1)
  depths = (upward > 0).sum(-1).astype(jnp.int32)
  # Upward order begins at the node: entry d of the path is `depths - 1 - d` steps up.
  steps = depths[..., None] - 1 - jnp.arange(depth)
  nodes = jnp.take_along_axis(upward, jnp.maximum(steps, 0), axis=-1)
  return jnp.where(steps >= 0, nodes, 0), depths


def ancestor_mask(node_paths: Array) -> Array:
  """Which rows see which: [B, N + 1, N + 1] bool, from the paths [B, N + 1, D].

  Every row sees the root, its ancestors and itself.
  """
  rows = node_paths.shape[1]
  numbers = jnp.arange(rows)
  on_path = (node_paths[..., None] == numbers).any(axis=2)
  return on_path | (numbers == 0)


def prefix_length(flags: Array) -> Array:
  """How many of `flags` [B, n] bool are True before the first False, [B] int32."""
  size = flags.shape[1]
  return jnp.min(jnp.where(flags, size, jnp.arange(size, dtype=jnp.int32)), axis=1, initial=size)


def reached_nodes(flags: Array, parents: Array) -> Array:
  """[B, N] bool, the nodes whose flags [B, N] are set, and those of all of their ancestors."""
  # Pointer doubling with the root in front: log2(N) steps instead of one per level.
  reached = jnp.pad(flags, ((0, 0), (1, 0)), constant_values=True)
  ancestors = jnp.pad(parents, ((0, 0), (1, 0)))
  for _ in range(max(0, flags.shape[1] - 1).bit_length()):
    reached &= jnp.take_along_axis(reached, ancestors, axis=1)
    ancestors = jnp.take_along_axis(ancestors, ancestors, axis=1)
  return reached[:, 1:]
