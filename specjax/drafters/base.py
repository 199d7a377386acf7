"""What drafters share: the defaults of their contract, chains, shapes, and keeping no state."""

import inspect
from typing import Any
import warnings

from flax import struct
import jax.numpy as jnp

from specjax import tree as tree_lib
from specjax import types

Array = types.Array


class Defaults:
  """The members of `specjax.types.Drafter` that most drafters need not write."""

  feature_layers: tuple[int, ...] = ()
  vocab_size: int | None = None
  shape: tree_lib.StaticTree | tree_lib.DynamicTree | None = None

  def for_vocabulary(self, vocab_size: int) -> Any:
    """As `specjax.types.Drafter.for_vocabulary`: the vocabulary is what it is."""
    del vocab_size

  def beside(self, depth: int) -> Any:
    """As `specjax.types.Drafter.beside`: it reads whatever was committed."""
    del depth
    return self

  def update(self, state, verification, context):
    """As `specjax.types.Drafter.update`: `propose` finds the rest in its context."""
    del verification, context
    return state


class Chain(Defaults):
  """A drafter of chains of `num_nodes` tokens."""

  num_nodes: int
  is_chain: bool = True

  @property
  def depth(self) -> int:
    """D."""
    return self.num_nodes


class Shaped(Defaults):
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


class Stateless(Defaults):
  """A drafter that finds all it needs in the context of a round."""

  def init(self, *, batch_size: int, cache_length: int, max_append: int) -> Any:
    """As `specjax.types.Drafter.init`: nothing to keep."""
    del batch_size, cache_length, max_append
    return ()

  def prefill(self, state, *, target, tokens, num_new, features):
    """As `specjax.types.Drafter.prefill`."""
    del target, tokens, num_new, features
    return state


def chosen(tokens: Array, valid: Array, *, parents: Array | None = None) -> types.Proposal:
  """A proposal of tokens that were chosen, not drawn.

  Args:
    tokens: [B, N] int32.
    valid: [B, N] bool, or what broadcasts to it.
    parents: [B, N] int32; None is a chain.
  """
  if parents is None:
    parents = tree_lib.chain_parents(*tokens.shape)
  return types.Proposal(
      tokens=tokens,
      parents=parents,
      valid=jnp.broadcast_to(valid, tokens.shape),
      law=None,
      rows=parents,
      kind=types.ONE_HOT,
  )


def check_num_speculative_tokens(count: int) -> int:
  """K, the length of a chain.

  Raises:
    ValueError: for K < 1.
  """
  if count < 1:
    raise ValueError(
        f'num_speculative_tokens must be at least 1, got {count}. For plain decoding use '
        'specjax.decode.'
    )
  return count


@struct.dataclass
class _Completed(Defaults):
  """A drafter of a user's own, with the members of the contract that it leaves out.

  Attributes:
    inner: the drafter.
    takes_target: static, whether its `prefill` is given the target.
    takes_active: static, whether its `propose` takes the rows that want it as an argument.
  """

  inner: Any
  takes_target: bool = struct.field(pytree_node=False)
  takes_active: bool = struct.field(pytree_node=False)

  @property
  def num_nodes(self) -> int:
    return self.inner.num_nodes

  @property
  def depth(self) -> int:
    return self.inner.depth

  @property
  def is_chain(self) -> bool:
    return self.inner.is_chain

  @property
  def feature_layers(self) -> tuple[int, ...]:
    return self.inner.feature_layers

  @property
  def vocab_size(self) -> int | None:
    return self.inner.vocab_size

  @property
  def shape(self) -> Any:
    return getattr(self.inner, 'shape', None)

  def for_vocabulary(self, vocab_size: int) -> Any:
    other = self._optional('for_vocabulary', vocab_size)
    return None if other is None else self.replace(inner=other)

  def beside(self, depth: int) -> Any:
    other = self._optional('beside', depth)
    return self if other is None else self.replace(inner=other)

  def init(self, **sizes) -> Any:
    return self.inner.init(**sizes)

  def prefill(self, state, *, target, **chunk):
    if self.takes_target:
      chunk = dict(chunk, target=target)
    return self.inner.prefill(state, **chunk)

  def propose(self, context: types.Context, state):
    if self.takes_active:
      return self.inner.propose(context, state, active=context.active)
    return self.inner.propose(context, state)

  def update(self, state, verification, context):
    return self.inner.update(state, verification, context)

  def _optional(self, name: str, argument: int) -> Any:
    method = getattr(self.inner, name, None)
    return None if method is None else method(argument)


def complete(drafter: Any) -> Any:
  """A drafter with all members of `specjax.types.Drafter`, whatever it leaves out.

  This is the only place that looks at what a drafter has; every public function that takes one
  comes here (through `specjax.drafters.vocabulary.fit`). For one version it also takes drafters
  whose `prefill` does not know of `target`, or whose `propose` has an argument `active`.

  Args:
    drafter: a drafter with at least `num_nodes`, `depth`, `is_chain`, `feature_layers`,
      `vocab_size`, `init`, `prefill`, `propose` and `update`.

  Returns:
    The drafter itself where it has everything.
  """
  optional = ('shape', 'for_vocabulary', 'beside')
  takes_target = _takes(drafter.prefill, 'target')
  takes_active = _takes(drafter.propose, 'active', by_name=True)
  if takes_target and not takes_active and all(hasattr(drafter, name) for name in optional):
    return drafter
  name = type(drafter).__name__
  if not takes_target:
    _warn(
        f'{name}.prefill takes no target. With the next version it is called as prefill(state, '
        '*, target, tokens, num_new, features): add the argument.'
    )
  if takes_active:
    _warn(
        f'{name}.propose has an argument active. With the next version it is called as '
        'propose(context, state): take the rows from context.active.'
    )
  return _Completed(drafter, takes_target, takes_active)


def _takes(method: Any, name: str, *, by_name: bool = False) -> bool:
  """Whether a method takes the keyword argument `name`, or with `by_name` has it written out."""
  parameters = inspect.signature(method).parameters.values()
  is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
  return any(p.name == name for p in parameters) or (is_open and not by_name)


def _warn(message: str) -> None:
  warnings.warn(message, DeprecationWarning, stacklevel=3)
