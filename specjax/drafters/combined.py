"""Two drafters in one: a free one where it knows what comes, a learned one elsewhere.

What repeats itself (code that is quoted, a document that is edited) is drafted best, and for
nothing, by looking it up; what is new, by a model. Which of them drafts is decided row by row
and before anything is drawn, so the output's law does not notice.
"""

from typing import Any

from flax import struct
import jax.numpy as jnp

from specjax import _moved
from specjax import tree as tree_lib
from specjax import types
from specjax.drafters import base
from specjax.drafters import vocabulary
from specjax.models import widths

Array = types.Array


@struct.dataclass
class CombinedState:
  """What lives from round to round.

  Attributes:
    free: the free drafter's state.
    learned: the learned one's.
    use_free: [B] bool, which rows the free one drafted last.
    num_free_rounds: [B] int32, in how many rounds it did.
  """

  free: Any
  learned: Any
  use_free: Array
  num_free_rounds: Array

  @property
  def free_rounds(self) -> Array:
    """The old name of `num_free_rounds`, for one version."""
    _moved.warn('CombinedState.free_rounds', 'CombinedState.num_free_rounds')
    return self.num_free_rounds


@struct.dataclass
class CombinedDrafter(base.Defaults):
  """Takes the free proposal where there is one, else the learned one's.

  Attributes:
    free: a chain drafter with one-hot laws, whose first node is valid where its match is long
      enough.
    learned: any drafter whose rounds begin by reading what was committed (see
      `specjax.types.Drafter.beside`); it saves work where it heeds `Context.active`.
  """

  free: Any
  learned: Any

  @property
  def num_nodes(self) -> int:
    return max(self.free.num_nodes, self.learned.num_nodes)

  @property
  def depth(self) -> int:
    return max(self.free.depth, self.learned.depth)

  @property
  def is_chain(self) -> bool:
    return self.learned.is_chain

  @property
  def feature_layers(self) -> tuple[int, ...]:
    return self.learned.feature_layers

  @property
  def vocab_size(self) -> int | None:
    return self.learned.vocab_size

  def for_vocabulary(self, vocab_size: int) -> 'CombinedDrafter':
    """The same for a target that pads its vocabulary to another size."""
    fit = vocabulary.fit
    return self.replace(free=fit(self.free, vocab_size), learned=fit(self.learned, vocab_size))

  def beside(self, depth: int) -> 'CombinedDrafter':
    """As `specjax.types.Drafter.beside`."""
    return self.replace(free=self.free.beside(depth), learned=self.learned.beside(depth))

  def init(self, *, batch_size: int, cache_length: int, max_append: int) -> CombinedState:
    """As `specjax.types.Drafter.init`."""
    sizes = dict(batch_size=batch_size, cache_length=cache_length, max_append=max_append)
    return CombinedState(
        free=self.free.init(**sizes),
        learned=self.learned.init(**sizes),
        use_free=jnp.zeros((batch_size,), bool),
        num_free_rounds=jnp.zeros((batch_size,), jnp.int32),
    )

  def prefill(self, state: CombinedState, **chunk) -> CombinedState:
    """As `specjax.types.Drafter.prefill`."""
    return state.replace(
        free=self.free.prefill(state.free, **chunk),
        learned=self.learned.prefill(state.learned, **chunk),
    )

  def propose(self, context: types.Context, state: CombinedState):
    """As `specjax.types.Drafter.propose`."""
    looked_up, free, context = self.free.propose(context, state.free)
    use_free, active = looked_up.valid[:, 0], context.active
    # What was committed is read in any case; nothing is drafted where no row needs it.
    others = ~use_free if active is None else active & ~use_free
    drafted, learned, context = self.learned.propose(
        context.replace(active=others), state.learned
    )
    proposal = choose(use_free, looked_up, drafted)
    counted = use_free & ~context.done
    num_free_rounds = state.num_free_rounds + (counted if active is None else counted & active)
    state = CombinedState(free, learned, use_free, num_free_rounds)
    return proposal, state, context.replace(active=active)

  def update(self, state: CombinedState, verification: types.Verification, context):
    """As `specjax.types.Drafter.update`."""
    free = self.free.update(state.free, verification, context)
    # A path through the other proposal is none of the learned drafter's.
    own = jnp.where(state.use_free[:, None], 0, verification.path)
    learned = self.learned.update(state.learned, verification.replace(path=own), context)
    return state.replace(free=free, learned=learned)


def choose(use_free: Array, free: types.Proposal, learned: types.Proposal) -> types.Proposal:
  """The free proposal in rows `use_free` [B], the learned one in the others.

  Args:
    use_free: [B] bool.
    free: a chain of kind ONE_HOT or COUPLED, N nodes.
    learned: of any kind, N' nodes; its laws go on to hold, and the free one's become one-hot
      rows of the same array.

  Returns:
    A proposal of max(N, N') nodes, of the learned one's kind.
  """
  batch, nodes = use_free.shape[0], max(free.num_nodes, learned.num_nodes)
  chain = tree_lib.chain_parents(batch, nodes)
  pad = lambda x: widths.pad_to(x, nodes)
  pick = lambda first, second: jnp.where(use_free[:, None], pad(first), pad(second))
  parents = jnp.concatenate([learned.parents, chain[:, learned.num_nodes :]], axis=1)
  law, rows = None, parents
  if learned.law is not None:
    vocab_size = learned.law.shape[2]
    certain = jnp.where(jnp.arange(vocab_size) == free.tokens[..., None], 0.0, -jnp.inf)
    size = max(learned.law.shape[1], free.num_nodes)
    pad_law = lambda x: widths.pad_to(x, size)
    law = jnp.where(use_free[:, None, None], pad_law(certain), pad_law(learned.law))
    rows = pick(chain[:, : free.num_nodes], learned.rows)
  return types.Proposal(
      tokens=pick(free.tokens, learned.tokens),
      parents=jnp.where(use_free[:, None], chain, parents),
      valid=pick(free.valid, learned.valid),
      law=law,
      rows=rows,
      kind=learned.kind,
  )


def combined(free: Any, learned: Any) -> CombinedDrafter:
  """A drafter that looks up where it can, and asks a model where it cannot.

  Args:
    free: `specjax.drafters.suffix(...)` or `ngram(...)`, a chain; its `min_match` (or
      `min_ngram`) says how long a match must be for its proposal to be taken.
    learned: the other one: a draft model as chain or tree, or a head.

  Returns:
    The drafter.

  Raises:
    ValueError: if the free drafter proposes trees, or shares no vocabulary with the other.
  """
  free, learned = base.complete(free), base.complete(learned)
  if not free.is_chain:
    raise ValueError(
        'The free drafter of a combination proposes a chain, for it is verified by the rule of '
        'the other one. Give suffix(num_speculative_tokens=…), without a tree.'
    )
  if free.vocab_size is not None:
    # It was told the target's; the other one may be padded to another size.
    try:
      learned = vocabulary.fit(learned, free.vocab_size)
    except ValueError as error:
      raise ValueError(
          f'The drafters have vocabularies of {free.vocab_size} and {learned.vocab_size} tokens; '
          "both must be the target's."
      ) from error
  # What the other one had accepted was not read: it is, when the next round begins.
  learned = learned.beside(max(free.depth, learned.depth))
  return CombinedDrafter(free=free, learned=learned)
