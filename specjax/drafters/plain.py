"""The drafter that proposes nothing: with it the loop is plain decoding."""

from flax import struct
import jax.numpy as jnp

from specjax import types
from specjax.drafters import base


@struct.dataclass
class Plain(base.Stateless):
  """No proposals; every round emits one token from the target's law."""

  num_nodes: int = struct.field(pytree_node=False, default=0)
  depth: int = struct.field(pytree_node=False, default=0)
  is_chain: bool = struct.field(pytree_node=False, default=True)
  feature_layers: tuple[int, ...] = struct.field(pytree_node=False, default=())
  vocab_size: int | None = struct.field(pytree_node=False, default=None)

  def propose(self, context: types.Context, state):
    """As `specjax.types.Drafter.propose`: zero nodes."""
    nothing = jnp.zeros((context.lengths.shape[0], 0), jnp.int32)
    return base.chosen(nothing, nothing.astype(bool)), state, context


def plain() -> Plain:
  """The drafter that proposes nothing."""
  return Plain()
