"""Suffix drafting: what followed the longest match in prompt, output and past outputs.

SuffixDecoding (Oliaro et al. 2024, 2411.04975) asks a suffix tree two things: where does the
longest suffix of the text so far occur, and how often was it followed by what. Here the
answer is kept as one number per position of the text, the length of the match that ends there:
a new token adds one where it agrees and sets zero elsewhere, so it is one comparison over the
text, in place and without pointers, and a match of any length is exact.
"""

from collections.abc import Sequence
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from specjax import tree as tree_lib
from specjax import types
from specjax.drafters import base
from specjax.drafters import expansion

Array = jax.Array

# Stands between texts and matches nothing.
_BREAK = -1


@struct.dataclass
class SuffixState:
  """What lives from round to round. The text of a row is C past tokens and its own.

  Attributes:
    text: [B, C + S] int32; `_BREAK` where there is none.
    matched: [B, C + S] int32, how many tokens before and with each one agree with the end of
      the row; 0 at the end itself and beyond.
    lengths: [B] int32, tokens of the row that were read.
  """

  text: Array
  matched: Array
  lengths: Array


@struct.dataclass
class SuffixDrafter(base.Shaped):
  """Proposes what most often followed the longest match.

  All places whose match is as long as the longest one vote, where matches of `max_match` and
  more count as equally long; a node's confidence is its share of the votes of its parent, and
  a tree follows the votes where they part. A match that reaches the present repeats itself.

  Attributes:
    past: [C] int32, outputs to draw from beside the row's own text, with breaks between them;
      shared by all rows (see `remember`).
    vocab_size: static, V of the target.
    shape: static.
    min_match: static, the shortest match that is used.
    max_match: static.
  """

  past: Array
  vocab_size: int = struct.field(pytree_node=False)
  shape: tree_lib.StaticTree | tree_lib.DynamicTree = struct.field(pytree_node=False)
  min_match: int = struct.field(pytree_node=False, default=1)
  max_match: int = struct.field(pytree_node=False, default=16)

  def remember(self, sequences: Sequence[Sequence[int]]) -> 'SuffixDrafter':
    """The drafter with more past outputs; the oldest tokens make room. Nothing recompiles.

    Args:
      sequences: token ids, for instance `[output.new_tokens(row) for row in …]`.

    Raises:
      ValueError: if the drafter was made without room for past outputs.
    """
    size = self.past.shape[0]
    if not size:
      raise ValueError('This drafter has no room for past outputs: give suffix(past_tokens=…).')
    return self.replace(past=_past(sequences, size, before=np.asarray(self.past)))

  def init(self, *, batch_size: int, cache_length: int, max_append: int) -> SuffixState:
    """As `specjax.types.Drafter.init`."""
    own = jnp.full((batch_size, cache_length + max_append), _BREAK, jnp.int32)
    past = jnp.broadcast_to(self.past, (batch_size, self.past.shape[0]))
    text = jnp.concatenate([past, own], axis=1)
    return SuffixState(text, jnp.zeros_like(text), jnp.zeros((batch_size,), jnp.int32))

  def prefill(self, state: SuffixState, *, target, tokens: Array, num_new: Array, features: Array):
    """As `specjax.types.Drafter.prefill`."""
    del target, features

    def read(state: SuffixState, column: tuple[Array, Array]):
      token, index = column
      return self._read(state, token, index < num_new), None

    columns = (tokens.T, jnp.arange(tokens.shape[1]))
    return jax.lax.scan(read, state, columns)[0]

  def propose(self, context: types.Context, state: SuffixState):
    """As `specjax.types.Drafter.propose`."""
    state = self.read_new(context, state)
    alive = self.votes(state)
    size = state.text.shape[1]
    end = self.past.shape[0] + state.lengths - 1
    places = jnp.arange(size)
    period = jnp.maximum(end[:, None] - places, 1)

    def following(depth: int) -> Array:
      """The token [B, C + S] that comes `depth` + 1 after each place."""
      index = jnp.minimum(places + 1 + depth % period, size - 1)
      return jnp.take_along_axis(state.text, index, axis=1)

    def counts(alive: Array, depth: int) -> Array:
      """Log-counts [B, W, V] of what follows the places `alive` [B, W, C + S]."""
      token = following(depth)
      batch, rows = alive.shape[:2]
      index = jnp.where(token == _BREAK, self.vocab_size, token)[:, None]
      index = jnp.broadcast_to(index, alive.shape)
      votes = jnp.zeros((batch, rows, self.vocab_size), jnp.float32)
      at = (jnp.arange(batch)[:, None, None], jnp.arange(rows)[None, :, None], index)
      return jnp.log(votes.at[at].add(alive.astype(jnp.float32), mode='drop'))

    def step(alive: Array, frontier: expansion.Frontier) -> tuple[Array, Array]:
      """`alive` [B, R + 1, C + S] holds the places that agree with every node read."""
      before = jnp.take_along_axis(alive, frontier.parents[..., None], axis=1)
      agrees = following(frontier.depth - 1)[:, None] == frontier.tokens[..., None]
      here = before & agrees
      return counts(here, frontier.depth), jnp.concatenate([alive, here], axis=1)

    alive = alive[:, None]
    drafted = expansion.expand(
        context, counts(alive, 0)[:, 0], step, alive, shape=self.shape, siblings=expansion.RANK
    )
    return drafted.proposal, state, drafted.context

  def read_new(self, context: types.Context, state: SuffixState) -> SuffixState:
    """The state after the tokens that the last round emitted, the root included."""
    size = context.tokens.shape[1]

    def read(state: SuffixState) -> SuffixState:
      index = jnp.minimum(state.lengths, size - 1)[:, None]
      token = jnp.take_along_axis(context.tokens, index, axis=1)[:, 0]
      return self._read(state, token, state.lengths < context.lengths)

    return jax.lax.while_loop(
        lambda state: jnp.any(state.lengths < context.lengths), read, state
    )

  def match_length(self, state: SuffixState) -> Array:
    """[B] int32, how long the longest match is; `state` has read the root."""
    return jnp.max(state.matched, axis=1)

  def votes(self, state: SuffixState) -> Array:
    """[B, C + S] bool, the places whose match is as long as the longest."""
    longest = self.match_length(state)[:, None]
    enough = jnp.minimum(longest, self.max_match)
    return (state.matched >= enough) & (longest >= self.min_match)

  def _read(self, state: SuffixState, token: Array, is_new: Array) -> SuffixState:
    """One token [B] more where `is_new` [B]."""
    size = state.text.shape[1]
    end = self.past.shape[0] + state.lengths
    places = jnp.arange(size)
    before = jnp.pad(state.matched[:, :-1], ((0, 0), (1, 0)))
    matched = jnp.where(state.text == token[:, None], before + 1, 0)
    matched = jnp.where(places < end[:, None], matched, 0)
    at = jnp.where(is_new, end, size)
    return SuffixState(
        text=state.text.at[jnp.arange(token.shape[0]), at].set(token, mode='drop'),
        matched=jnp.where(is_new[:, None], matched, state.matched),
        lengths=state.lengths + is_new,
    )


def _past(sequences: Sequence[Sequence[int]], size: int, *, before: np.ndarray) -> Array:
  """`size` tokens: the last ones of `before` and the sequences, a break after each."""
  parts = [before]
  for sequence in sequences:
    parts += [np.asarray(sequence, np.int32).reshape(-1), np.asarray([_BREAK], np.int32)]
  text = np.concatenate([np.full((size,), _BREAK, np.int32), *parts])
  return jnp.asarray(text[len(text) - size :], jnp.int32)


def suffix(
    *,
    vocab_size: int,
    num_speculative_tokens: int = 8,
    tree: Any = None,
    past: Sequence[Sequence[int]] = (),
    past_tokens: int | None = None,
    min_match: int = 1,
    max_match: int = 16,
) -> SuffixDrafter:
  """A drafter that continues the longest match in prompt, output and past outputs.

  >>> drafter = suffix(vocab_size=9, past=[[1, 2, 3], [1, 2, 4]])
  >>> drafter.past.tolist()
  [1, 2, 3, -1, 1, 2, 4, -1]
  >>> drafter.remember([[5, 6]]).past.tolist()
  [-1, 1, 2, 4, -1, 5, 6, -1]

  Args:
    vocab_size: V of the target.
    num_speculative_tokens: K >= 1, for a chain.
    tree: a tree instead (see `specjax.drafters.model_tree`); it branches where the votes part.
    past: token ids of past outputs, or of any text that may come again.
    past_tokens: room for past outputs, in tokens; None takes what `past` needs. Each costs one
      comparison for every token that is emitted.
    min_match: the shortest match that is used, >= 1.
    max_match: matches from this length on count as equally long, >= `min_match`.

  Returns:
    The drafter.

  Raises:
    ValueError: if a number is out of range, or a token of `past` is none of the vocabulary.
  """
  base.check_num_speculative_tokens(num_speculative_tokens)
  if not 1 <= min_match <= max_match:
    raise ValueError(
        f'Matches must have 1 <= min_match <= max_match, got {min_match} and {max_match}.'
    )
  for number, sequence in enumerate(past):
    ids = np.asarray(sequence)
    if ids.size and not (0 <= ids.min() and ids.max() < vocab_size):
      raise ValueError(
          f'Past output {number} has tokens from {ids.min()} to {ids.max()}; the target knows 0 '
          f'to {vocab_size - 1}.'
      )
  if past_tokens is None:
    past_tokens = sum(len(sequence) + 1 for sequence in past)
  shape = (1,) * num_speculative_tokens if tree is None else tree
  return SuffixDrafter(
      past=_past(past, past_tokens, before=np.zeros((0,), np.int32)),
      vocab_size=vocab_size,
      shape=tree_lib.as_tree(shape),
      min_match=min_match,
      max_match=max_match,
  )
