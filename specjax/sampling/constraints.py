"""Allowed-token hooks: how the engine walks them, and a ready-made one.

A hook is any pytree that follows `specjax.types.Constraint`. It sees output tokens only:
its first state stands before the first token that is generated.
"""

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from specjax import types

Array = jax.Array


def advance(
    constraint: types.Constraint, state: types.PyTree, tokens: Array, valid: Array
) -> types.PyTree:
  """The state after the valid ones of a few tokens, in order.

  Args:
    constraint: the hook.
    state: its state, leading axis B.
    tokens: [B, n] int32.
    valid: [B, n] bool; the others are skipped.

  Returns:
    The state, of the same structure.
  """
  for index in range(tokens.shape[1]):
    ahead = constraint.advance(state, tokens[:, index])

    def choose(new, old, keep=valid[:, index]):
      return jnp.where(keep.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)

    state = jax.tree.map(choose, ahead, state)
  return state


def mask(
    logits: Array,
    *,
    constraint: types.Constraint,
    state: types.PyTree,
    path: Array,
    path_valid: Array,
) -> Array:
  """Excludes what the hook does not allow after each row's path.

  Args:
    logits: [B, R, V] float32.
    constraint: the hook.
    state: its state at the root, leading axis B.
    path: [B, R, D] int32, tokens on the way from the root to each row.
    path_valid: [B, R, D] bool.

  Returns:
    [B, R, V] float32, `-inf` where a token is not allowed: throughout in a row in whose state
    nothing is. That is a fault of the hook if the row is reached. It need not be: a drafter
    that knows nothing of the hook may have proposed a token that it forbids, which is rejected.
  """

  def walk(tokens: Array, valid: Array) -> Array:
    return constraint.allowed(advance(constraint, state, tokens, valid))

  # A map over R shows the hook batches of B, so that it may hold something for each row.
  allowed = jax.vmap(walk, in_axes=1, out_axes=1)(path, path_valid)
  return jnp.where(allowed, logits, -jnp.inf)


@struct.dataclass
class TokenAutomaton:
  """A finite automaton over tokens (Willard & Louf 2023): the table says what may follow.

  Use `TokenAutomaton.create`, which checks the table.

  Attributes:
    transitions: [states, V] int32, the state that each token leads to; -1: not allowed.
    start: static, the state before the first output token.
  """

  transitions: Array
  start: int = struct.field(pytree_node=False, default=0)

  @classmethod
  def create(cls, transitions: np.ndarray | Array, *, start: int = 0) -> 'TokenAutomaton':
    """An automaton from a checked table.

    >>> digits_then_stop = TokenAutomaton.create([[0, 0, 1], [-1, -1, 1]])
    >>> state = digits_then_stop.initial(2)
    >>> state = digits_then_stop.advance(state, jnp.array([0, 2]))
    >>> digits_then_stop.allowed(state).tolist()
    [[True, True, True], [False, False, True]]

    Args:
      transitions: [states, V] integers, -1 … states - 1.
      start: the first state.

    Raises:
      ValueError: a table of another shape or range, or a state in which no token is
        allowed.
    """
    table = np.asarray(transitions)
    if table.ndim != 2 or 0 in table.shape or not np.issubdtype(table.dtype, np.integer):
      raise ValueError(
          'transitions must be integers of shape [states, vocabulary]; got '
          f'{table.dtype} of shape {table.shape}.'
      )
    states = table.shape[0]
    if table.min() < -1 or table.max() >= states:
      raise ValueError(
          f'transitions must lie in -1 … {states - 1} (-1: not allowed) for a table of '
          f'{states} states; got {table.min()} … {table.max()}.'
      )
    if not 0 <= start < states:
      raise ValueError(f'start must be one of the states 0 … {states - 1}; got {start}.')
    dead = np.flatnonzero((table < 0).all(axis=1))
    if dead.size:
      raise ValueError(
          'Every state must allow at least one token; got none in state '
          f'{dead[0]}. Allow the stop token there, leading back to the same state.'
      )
    return cls(transitions=jnp.asarray(table, jnp.int32), start=int(start))

  def initial(self, batch_size: int) -> Array:
    """[B] int32, the start."""
    return jnp.full([batch_size], self.start, jnp.int32)

  def advance(self, state: Array, tokens: Array) -> Array:
    """[B] int32; a token that is not allowed leaves the state as it is."""
    ahead = self.transitions[state, tokens]
    return jnp.where(ahead >= 0, ahead, state)

  def allowed(self, state: Array) -> Array:
    """[B, V] bool."""
    return self.transitions[state] >= 0
