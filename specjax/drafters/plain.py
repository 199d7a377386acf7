"""The drafter that proposes nothing: with it the loop is plain decoding."""

from typing import Any

from flax import struct
import jax.numpy as jnp

from specjax import types


@struct.dataclass
class Plain:
  """No proposals; every round emits one token from the target's law."""

  num_nodes: int = struct.field(pytree_node=False, default=0)
  depth: int = struct.field(pytree_node=False, default=0)
  is_chain: bool = struct.field(pytree_node=False, default=True)
  feature_layers: tuple[int, ...] = struct.field(pytree_node=False, default=())
  vocab_size: int | None = struct.field(pytree_node=False, default=None)

  def init(self, *, batch_size: int, cache_length: int, max_append: int) -> Any:
    """As `specjax.types.Drafter.init`: nothing to keep."""
    del batch_size, cache_length, max_append
    return ()

  def prefill(self, state, *, tokens, num_new, features):
    """As `specjax.types.Drafter.prefill`."""
    del tokens, num_new, features
    return state

  def propose(self, context: types.Context, state):
    """As `specjax.types.Drafter.propose`: zero nodes."""
    nothing = jnp.zeros((context.lengths.shape[0], 0), jnp.int32)
    proposal = types.Proposal(
        tokens=nothing,
        parents=nothing,
        valid=nothing.astype(bool),
        law=None,
        rows=nothing,
        kind=types.ONE_HOT,
    )
    return proposal, state, context

  def update(self, state, verification, context):
    """As `specjax.types.Drafter.update`."""
    del verification, context
    return state


def plain() -> Plain:
  """The drafter that proposes nothing."""
  return Plain()
