"""Token trees: depths, ancestors and masks from the parents of nodes.

Nodes are numbered 0 … N with 0 the root; `parents` [B, N] holds the parent of nodes
1 … N, always a smaller number. A chain has parents 0, 1, …, N - 1.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


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
