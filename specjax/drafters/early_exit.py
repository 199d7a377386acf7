"""Early exit: the target's own first layers draft, in the target's own cache.

Elhoushi et al. 2024 (LayerSkip, 2404.16710), Liu et al. 2024 (Kangaroo, 2404.18911). What the
first layers write for drafted tokens is what the target writes there when it verifies them,
so the cache needs no room and no repair; everything before is shared.
"""

import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from specjax import types
from specjax.drafters import base
from specjax.drafters import expansion
from specjax.heads import early_exit as exit_lib
from specjax.heads.early_exit import EarlyExit
from specjax.models import LanguageModel
from specjax.models import widths

Array = jax.Array


@struct.dataclass
class EarlyExitDrafter(base.Shaped, base.Stateless):
  """Drafts with the target's first layers; it keeps no state.

  Attributes:
    exit: where the target is left, and the adapter's weights.
    shape: static, of the tree.
    siblings: static, one of `specjax.drafters.expansion.SIBLINGS` or None.
    step_width: static, the least tokens that a pass reads.
  """

  exit: EarlyExit
  shape: Any = struct.field(pytree_node=False)
  siblings: str | None = struct.field(pytree_node=False, default=None)
  step_width: int = struct.field(pytree_node=False, default=1)

  @property
  def vocab_size(self) -> int:
    return self.exit.config.target_vocab_size

  def propose(self, context: types.Context, state):
    """As `specjax.types.Drafter.propose`; the target's cache comes back in the context."""
    num_layers = self.exit.config.exit_layer
    draft = exit_lib.first_layers(context.target, num_layers)

    def read(cache, tokens, positions=None, tree_mask=None):
      level = widths.pad_pass(tokens, positions, tree_mask, width=self.step_width)
      out = draft(
          level.tokens,
          level.positions,
          cache,
          tree_mask=level.tree_mask,
          num_new=level.num_new,
          feature_layers=(num_layers,),
          with_logits=False,
      )
      logits = self.exit.logits(context.target, out.features)
      return logits[:, : tokens.shape[1]], out.cache

    def step(cache, frontier: expansion.Frontier):
      if self.is_chain:
        return read(cache, frontier.tokens)
      positions = context.lengths[:, None] - 1 + frontier.depths
      return read(cache, frontier.tokens, positions, frontier.mask)

    root = jnp.take_along_axis(context.tokens, context.lengths[:, None] - 1, axis=1)
    logits, cache = read(exit_lib.first_cache(context.target_cache, num_layers), root)
    drafted = expansion.expand(
        context, logits[:, 0], step, cache, shape=self.shape, siblings=self.siblings
    )
    target_cache = exit_lib.put_back(context.target_cache, drafted.state)
    return drafted.proposal, state, drafted.context.replace(target_cache=target_cache)


def early_exit(
    exit: EarlyExit,
    target: LanguageModel,
    *,
    num_speculative_tokens: int | None = None,
    tree: Any = None,
    siblings: str | None = None,
    step_width: int | None = None,
) -> EarlyExitDrafter:
  """A drafter of the target's first layers.

  Args:
    exit: after which layer, and the adapter; `specjax.heads.plain_exit(target, layer)` has
      none: the target's own norm and head right after the layer.
    target: the target.
    num_speculative_tokens: K >= 1, for a chain; 4 where no tree is given either.
    tree: instead of K, a tree as `specjax.drafters.model_tree` takes it.
    siblings: as for `specjax.drafters.model_tree`.
    step_width: the least tokens that a pass reads; None takes 2 for bfloat16 on CPU, else 1.

  Returns:
    The drafter.

  Raises:
    ValueError: if the exit is of another target, for K < 1, or a dynamic tree that reads more
      nodes than it keeps: the target's cache has no room for them.
  """
  # A target on a mesh may keep its key-value heads several times: it is the same target.
  bare = lambda config: dataclasses.replace(config, kv_repeats=1)
  if bare(exit.config.target) != bare(target.module.config):
    raise ValueError(
        'The exit was made for a target of another shape. Use the one made for this target.'
    )
  shape = expansion.chain_or_tree(num_speculative_tokens, tree, siblings)
  if shape.num_reads > shape.num_nodes - 1:
    raise ValueError(
        f'This tree reads {shape.num_reads + 1} nodes to keep {shape.num_nodes}; an early exit '
        "reads them into the target's cache, which has room for those that are kept. Keep more "
        'nodes, or take a smaller width or depth.'
    )
  return EarlyExitDrafter(
      exit=exit,
      shape=shape,
      siblings=siblings,
      step_width=widths.step_width(step_width, target),
  )
