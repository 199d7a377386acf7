"""A draft model that proposes a tree: static, or grown where the draft is confident.

SpecInfer (Miao et al. 2023, 2305.09781) for the tree, EAGLE-2 (Li et al. 2024, 2406.16858)
for the dynamic shape; the expansion itself is `specjax.drafters.expansion`.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from specjax import tree as tree_lib
from specjax import types
from specjax.cache import kv_cache
from specjax.drafters import base
from specjax.drafters import expansion
from specjax.drafters import vocabulary
from specjax.drafters.model import read_last
from specjax.models import LanguageModel
from specjax.models import widths

Array = jax.Array


@struct.dataclass
class ModelTreeState:
  """What lives from round to round.

  Attributes:
    cache: the draft's.
    reads: [B, N] int32, where in its order of reading each node of the last tree stands.
  """

  cache: kv_cache.KVCache
  reads: Array


@struct.dataclass
class ModelTreeDrafter(base.Shaped):
  """Drafts a tree of N nodes with a language model and its own cache.

  A level is read in one pass, after those above it. After the round the nodes of the
  accepted path that were read move to their places; the last one may not have been read,
  which is why the next round begins with the last two tokens.

  Attributes:
    draft: the draft model; its vocabulary is the target's, but for padding.
    shape: static.
    siblings: static, one of `specjax.drafters.expansion.SIBLINGS` or None.
    step_width: static, the least tokens that a pass reads.
    reread: static, tokens that the first pass of a round reads.
  """

  draft: LanguageModel
  shape: tree_lib.StaticTree | tree_lib.DynamicTree = struct.field(pytree_node=False)
  siblings: str | None = struct.field(pytree_node=False, default=None)
  step_width: int = struct.field(pytree_node=False, default=1)
  reread: int = struct.field(pytree_node=False, default=2)

  @property
  def vocab_size(self) -> int:
    return self.draft.vocab_size

  def for_vocabulary(self, vocab_size: int) -> 'ModelTreeDrafter':
    """The same for a target that pads its vocabulary to another size."""
    return self.replace(draft=vocabulary.padded(self.draft, vocab_size))

  def beside(self, depth: int) -> 'ModelTreeDrafter':
    """The same, whose rounds begin by reading what another drafter had accepted, too."""
    return self.replace(reread=max(self.reread, depth + 2))

  def init(self, *, batch_size: int, cache_length: int, max_append: int) -> ModelTreeState:
    """As `specjax.types.Drafter.init`."""
    # After the longest row come the nodes that are read, and padding.
    extra = self.reread + self.shape.num_reads + self.step_width
    cache = self.draft.init_cache(
        batch_size=batch_size,
        cache_length=cache_length + extra,
        max_append=max(max_append, extra),
    )
    return ModelTreeState(cache, jnp.zeros((batch_size, self.num_nodes), jnp.int32))

  def prefill(
      self, state: ModelTreeState, *, target, tokens: Array, num_new: Array, features: Array
  ):
    """As `specjax.types.Drafter.prefill`."""
    del target, features
    out = self.draft(tokens, cache=state.cache, num_new=num_new, with_logits=False)
    return state.replace(cache=out.cache)

  def propose(self, context: types.Context, state: ModelTreeState):
    """As `specjax.types.Drafter.propose`."""
    logits, cache = read_last(self.draft, context, state.cache, count=self.reread)

    def step(cache: kv_cache.KVCache, frontier: expansion.Frontier) -> tuple[Array, Any]:
      positions = context.lengths[:, None] - 1 + frontier.depths
      level = widths.pad_pass(
          frontier.tokens, positions, frontier.mask, width=self.step_width
      )
      out = self.draft(
          level.tokens,
          level.positions,
          cache,
          tree_mask=level.tree_mask,
          num_new=level.num_new,
      )
      return out.logits[:, : frontier.tokens.shape[1]], out.cache

    drafted = expansion.expand(
        context, logits, step, cache, shape=self.shape, siblings=self.siblings
    )
    state = ModelTreeState(drafted.state, drafted.reads)
    return drafted.proposal, state, drafted.context

  def update(self, state: ModelTreeState, verification: types.Verification, context):
    """As `specjax.types.Drafter.update`: moves what was read of the path to its place."""
    del context
    # The deepest nodes are not read.
    path = verification.path[:, : self.depth - 1]
    if not self.shape.num_reads:
      return state
    reads = jnp.pad(state.reads, ((0, 0), (1, 0)))
    reads = jnp.take_along_axis(reads, path, axis=1)
    num_reads = self.shape.num_reads
    root = state.cache.lengths - num_reads - 1
    kept = (reads > 0).sum(-1)
    cache = kv_cache.keep_path(state.cache, root, reads, kept, num_nodes=num_reads)
    return state.replace(cache=cache)


def model_tree(
    draft: LanguageModel,
    *,
    tree: Any = (3, 2, 1, 1),
    siblings: str | None = None,
    step_width: int | None = None,
) -> ModelTreeDrafter:
  """A drafter that runs `draft` ahead of the target along several branches.

  Args:
    draft: a smaller model over the target's vocabulary, which may be padded to another size.
    tree: children of every node by depth (`(3, 2, 1)`), or paths (`[(0,), (1,), (0, 0)]`), or
      a shape of `specjax.tree`: `static_tree(...)` or `dynamic_tree(...)`.
    siblings: where the rule samples, 'rank' takes the most probable children (with one-hot
      laws), 'with_replacement' and 'without_replacement' draw them; None takes 'rank' for a
      dynamic and 'without_replacement' for a static tree.
    step_width: the least tokens that a pass reads; None takes 2 for bfloat16 on CPU, else 1.

  Returns:
    The drafter.

  Raises:
    ValueError: for a tree that is none, or siblings that do not go with it.
  """
  shape = tree_lib.as_tree(tree)
  expansion.check(shape, siblings)
  return ModelTreeDrafter(
      draft=draft,
      shape=shape,
      siblings=siblings,
      step_width=widths.step_width(step_width, draft),
  )
