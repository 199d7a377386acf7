"""What drafters share: facts that follow from a tree's shape, and keeping no state."""

from typing import Any

from specjax import tree as tree_lib


class Shaped:
  """A drafter whose `shape` says how much it proposes.

  Attributes:
    shape: static, of `specjax.tree`.
  """

  shape: tree_lib.StaticTree | tree_lib.DynamicTree

  @property
  def num_nodes(self) -> int:
    """N."""
    return self.shape.num_nodes

  @property
  def depth(self) -> int:
    """D."""
    return self.shape.depth

  @property
  def is_chain(self) -> bool:
    """Whether no node has a sibling."""
    return self.shape.is_chain


class Stateless:
  """A drafter that finds all it needs in the context of a round."""

  def init(self, *, batch_size: int, cache_length: int, max_append: int) -> Any:
    """As `specjax.types.Drafter.init`: nothing to keep."""
    del batch_size, cache_length, max_append
    return ()

  def prefill(self, state, *, tokens, num_new, features):
    """As `specjax.types.Drafter.prefill`."""
    del tokens, num_new, features
    return state

  def update(self, state, verification, context):
    """As `specjax.types.Drafter.update`."""
    del verification, context
    return state
