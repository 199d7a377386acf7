"""A source whose choices are given: replays every outcome of a round's draws and flips."""

import itertools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from specjax import randomness

Array = jax.Array

DRAW, FLIP = 'draw', 'flip'

_NOT_ENUMERABLE = (
    'Coupled noise cannot be enumerated: compare the output of a coupled run with that of '
    'plain decoding under the same seeds, token by token.'
)


@struct.dataclass
class Slots:
  """Where the choices of one purpose lie; hashable, so static under `jit`.

  Attributes:
    purpose: as passed to `draw` or `flip`.
    kind: `DRAW` or `FLIP`.
    first: the first column.
    count: columns: one per node (or flip); one for the draw of the next token.
    domain: outcomes of each: V, or 2.
  """

  purpose: int = struct.field(pytree_node=False)
  kind: str = struct.field(pytree_node=False)
  first: int = struct.field(pytree_node=False)
  count: int = struct.field(pytree_node=False)
  domain: int = struct.field(pytree_node=False)


@struct.dataclass
class ReplaySource:
  """Takes its choices from an array and writes down how probable they were.

  A choice has its column by (purpose, node), as the engine's own numbers have their
  counters. Columns that nobody asked for count as uniform over their domain, so that the
  probabilities of all rows of `all_choices` sum to one whatever was asked for.

  Attributes:
    choices: [B, C] int32, the outcome of each choice.
    probs: [B, C] float32, the probability of the outcome.
    uses: [B, C] int32, how often a choice was asked for; more than once is a fault, for
      two draws that share their numbers are not independent.
    slots: static, the columns.
  """

  choices: Array
  probs: Array
  uses: Array
  slots: tuple[Slots, ...] = struct.field(pytree_node=False)

  @classmethod
  def create(cls, choices: Array, slots: tuple[Slots, ...]) -> 'ReplaySource':
    """A source for `choices` [B, C] int32, none of them used yet."""
    domains = np.concatenate([np.full(s.count, s.domain) for s in slots] or [np.zeros(0)])
    probs = jnp.broadcast_to(jnp.asarray(1.0 / domains, jnp.float32), choices.shape)
    return cls(choices=choices, probs=probs, uses=jnp.zeros_like(choices), slots=slots)

  def draw(self, law: Array, *, purpose: int, node: Any) -> tuple[Array, 'ReplaySource']:
    """As `specjax.types.Source.draw`."""
    slots = self._find(purpose, DRAW)
    laws = law if law.ndim == 3 else law[:, None]
    batch = jnp.arange(law.shape[0])[:, None]
    index = 0 if slots.count == 1 else jnp.asarray(node) - 1
    index = jnp.asarray(index) if law.ndim == 3 else jnp.reshape(index, (-1, 1))
    columns = jnp.broadcast_to(slots.first + index, laws.shape[:2])
    tokens = self.choices[batch, columns]
    probs = jax.nn.softmax(laws.astype(jnp.float32), axis=-1)
    probs = jnp.take_along_axis(probs, tokens[..., None], axis=-1)[..., 0]
    return (tokens if law.ndim == 3 else tokens[:, 0]), self._used(batch, columns, probs)

  def flip(
      self, probs: Array, *, purpose: int, node: Array | None = None
  ) -> tuple[Array, 'ReplaySource']:
    """As `specjax.types.Source.flip`."""
    slots = self._find(purpose, FLIP)
    batch = jnp.arange(probs.shape[0])[:, None]
    if node is None:
      columns = jnp.broadcast_to(slots.first + jnp.arange(slots.count), probs.shape)
      heads = self.choices[batch, columns] == 1
      return heads, self._used(batch, columns, jnp.where(heads, probs, 1.0 - probs))
    # A row without a node asks for a column that is not there: nothing is written down.
    columns = jnp.where(node > 0, slots.first + node - 1, self.choices.shape[1])[:, None]
    heads = self.choices.at[batch, columns].get(mode='clip')[:, 0] == 1
    used = self._used(batch, columns, jnp.where(heads, probs, 1.0 - probs)[:, None])
    return heads, used

  def gumbel(self, positions: Array, vocab_size: int) -> Array:
    """Raises NotImplementedError: coupled noise is continuous."""
    raise NotImplementedError(_NOT_ENUMERABLE)

  def _find(self, purpose: int, kind: str) -> Slots:
    return next(s for s in self.slots if s.purpose == purpose and s.kind == kind)

  def _used(self, batch: Array, columns: Array, probs: Array) -> 'ReplaySource':
    return self.replace(
        probs=self.probs.at[batch, columns].set(probs, mode='drop'),
        uses=self.uses.at[batch, columns].add(1, mode='drop'),
    )


@struct.dataclass
class ProbeSource:
  """Finds out, while a round is traced, which choices it asks for.

  Attributes:
    choices: static, a list to which (purpose, kind, count, domain) are appended.
    num_nodes: static, N, the most nodes that a drafter draws.
  """

  choices: list = struct.field(pytree_node=False)
  num_nodes: int = struct.field(pytree_node=False)

  def draw(self, law: Array, *, purpose: int, node: Any) -> tuple[Array, 'ProbeSource']:
    """As `specjax.types.Source.draw`."""
    del node
    count = 1 if purpose == randomness.NEXT else self.num_nodes
    self.choices.append((purpose, DRAW, count, law.shape[-1]))
    return jnp.zeros(law.shape[:-1], jnp.int32), self

  def flip(
      self, probs: Array, *, purpose: int, node: Array | None = None
  ) -> tuple[Array, 'ProbeSource']:
    """As `specjax.types.Source.flip`."""
    count = probs.shape[1] if node is None else self.num_nodes
    self.choices.append((purpose, FLIP, count, 2))
    return jnp.zeros(probs.shape, bool), self

  def gumbel(self, positions: Array, vocab_size: int) -> Array:
    """As `ReplaySource.gumbel`."""
    raise NotImplementedError(_NOT_ENUMERABLE)

  def slots(self) -> tuple[Slots, ...]:
    """The columns of all choices found."""
    result, first = [], 0
    for purpose, kind, count, domain in dict.fromkeys(self.choices):
      result.append(Slots(purpose, kind, first, count, domain))
      first += count
    return tuple(result)


def all_choices(slots: tuple[Slots, ...]) -> np.ndarray:
  """Every combination of outcomes, [branches, C] int32.

  >>> all_choices((Slots(0, DRAW, 0, 1, 3), Slots(1, FLIP, 1, 1, 2))).tolist()
  [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
  """
  domains = [s.domain for s in slots for _ in range(s.count)]
  combinations = list(itertools.product(*map(range, domains)))
  return np.asarray(combinations, np.int32).reshape(len(combinations), len(domains))
