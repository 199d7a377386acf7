"""Medusa heads as a drafter: all tokens of a round at once (Cai et al. 2024, 2401.10774).

The heads look at the target's last feature alone, so a node's law depends on its depth only,
and a tree is their Cartesian product (section 2.1.2) or the part of it that the shape keeps.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from specjax import types
from specjax.drafters import base
from specjax.drafters import expansion
from specjax.heads import target as target_lib
from specjax.heads.medusa import Medusa
from specjax.models import LanguageModel
from specjax.models import widths

Array = jax.Array


@struct.dataclass
class MedusaDrafter(base.Shaped, base.Stateless):
  """Drafts from the target's last feature; it keeps no state.

  Attributes:
    heads: the heads and their weights.
    target_to_draft: [V] int32, the draft's id of each token or -1; None where the vocabularies
      are the same.
    shape: static, of the tree, at most K deep.
    siblings: static, one of `specjax.drafters.expansion.SIBLINGS` or None.
    step_width: static, the least rows of a product.
  """

  heads: Medusa
  target_to_draft: Array | None
  shape: Any = struct.field(pytree_node=False)
  siblings: str | None = struct.field(pytree_node=False, default=None)
  step_width: int = struct.field(pytree_node=False, default=1)

  @property
  def feature_layers(self) -> tuple[int, ...]:
    return self.heads.config.feature_layers

  @property
  def vocab_size(self) -> int:
    return self.heads.config.target_vocab_size

  def propose(self, context: types.Context, state):
    """As `specjax.types.Drafter.propose`."""
    count = context.features_valid.sum(-1)
    last = jnp.maximum(count - 1, 0)[:, None, None]
    feature = jnp.take_along_axis(context.features, last, axis=1)[:, 0]
    rows = target_lib.final_norm(context.target, feature)
    rows = widths.pad_to(rows, self.step_width, axis=0)
    logits = self.heads.module.apply({'params': self.heads.params}, rows, self.depth)
    logits = target_lib.to_target(logits[: feature.shape[0]], self.target_to_draft)

    def step(state, frontier: expansion.Frontier):
      of_depth = logits[:, frontier.depth, None]
      wide = (*frontier.tokens.shape, of_depth.shape[-1])
      return jnp.broadcast_to(of_depth, wide), state

    drafted = expansion.expand(
        context, logits[:, 0], step, (), shape=self.shape, siblings=self.siblings
    )
    # A prompt of one token has no feature yet: nothing to draft from.
    valid = drafted.proposal.valid & (count > 0)[:, None]
    return drafted.proposal.replace(valid=valid), state, drafted.context


def medusa(
    heads: Medusa,
    target: LanguageModel,
    *,
    num_speculative_tokens: int | None = None,
    tree: Any = None,
    siblings: str | None = None,
) -> MedusaDrafter:
  """A drafter of Medusa heads on a target.

  Args:
    heads: the heads.
    target: the target that they were made for.
    num_speculative_tokens: 1 … K heads, for a chain; all of them where no tree is given.
    tree: instead, a tree as `specjax.drafters.model_tree` takes it, at most K deep; Medusa's
      own choices are lists of paths.
    siblings: as for `specjax.drafters.model_tree`.

  Returns:
    The drafter.

  Raises:
    ValueError: if heads and target do not fit, or the tree is deeper than there are heads.
  """
  target_lib.check_fits(heads.config, target)
  if num_speculative_tokens is None and tree is None:
    num_speculative_tokens = heads.config.num_heads
  shape = expansion.chain_or_tree(
      num_speculative_tokens, tree, siblings, is_independent=True
  )
  if shape.depth > heads.config.num_heads:
    raise ValueError(
        f'{heads.config.num_heads} heads draft at most {heads.config.num_heads} tokens deep, '
        f'{shape.depth} were asked for.'
    )
  return MedusaDrafter(
      heads=heads,
      target_to_draft=target_lib.inverse(heads.draft_to_target, target.vocab_size),
      shape=shape,
      siblings=siblings,
      step_width=widths.step_width(None, heads),
  )
