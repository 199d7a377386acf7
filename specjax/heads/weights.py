"""A head with its weights."""

from typing import Any

from flax import struct
import jax

Array = jax.Array


@struct.dataclass
class HeadWithWeights:
  """A head with its weights.

  Attributes:
    module: static, the head.
    params: its parameter tree.
    embedding: [V, width] of its own, or None where it shares the target's.
    draft_to_target: [V_draft] int32, the target's id of each draft token, or None where the
      vocabularies are the same.
  """

  module: Any = struct.field(pytree_node=False)
  params: Any
  embedding: Array | None = None
  draft_to_target: Array | None = None

  @property
  def config(self) -> Any:
    """The shape of the head."""
    return self.module.config
