"""DFlash and DSpark heads as drafters: one pass for a whole block (2602.06036, 2607.05147).

The law of a slot is the law that its token is drawn from: for DFlash it depends on the depth
alone, for DSpark on the path as well, token by token. Penalties and constraints act along each
path, as for every drafter, since `expand` draws node by node.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from specjax import types
from specjax.cache import kv_cache
from specjax.drafters import base
from specjax.drafters import expansion
from specjax.heads import target as target_lib
from specjax.heads.dflash import DFlash, MASKS
from specjax.models import LanguageModel
from specjax.sharding import layout as layout_lib

Array = jax.Array


@struct.dataclass
class DFlashDrafter(base.Shaped):
  """Drafts from the target's features of every token before the root.

  Its state is the context's cache: entry i is made of the feature of token i.

  Attributes:
    head: the head and its weights.
    target_to_draft: [V] int32, the draft's id of each token or -1; None where the vocabularies are
      the same.
    min_confidence: float32 scalar or [B]; no token is drafted whose joint confidence is below it.
      None drafts all.
    shape: static, of the tree, at most K deep.
    siblings: static, one of `specjax.drafters.expansion.SIBLINGS` or None.
  """

  head: DFlash
  target_to_draft: Array | None
  min_confidence: Array | None
  shape: Any = struct.field(pytree_node=False)
  siblings: str | None = struct.field(pytree_node=False, default=None)

  @property
  def feature_layers(self) -> tuple[int, ...]:
    return self.head.config.feature_layers

  @property
  def vocab_size(self) -> int:
    return self.head.config.target_vocab_size

  def init(self, *, batch_size: int, cache_length: int, max_append: int) -> kv_cache.KVCache:
    """As `specjax.types.Drafter.init`."""
    size = self.head.config.block_size
    return self.head.module.init_cache(
        batch_size=batch_size, cache_length=cache_length + size,
        max_append=max(max_append, size, self.depth + 1),
    )

  def prefill(self, state, *, target, tokens: Array, num_new: Array, features: Array):
    """As `specjax.types.Drafter.prefill`."""
    del target, tokens
    return self._apply(features, state, num_new, method='context')

  def propose(self, context: types.Context, state: kv_cache.KVCache):
    """As `specjax.types.Drafter.propose`."""
    cfg, target = self.head.config, context.target
    # What the last round committed, the new root not included.
    num_new = jnp.maximum(context.lengths - 1 - state.lengths, 0)
    cache = self._apply(context.features, state, num_new, method='context')
    root = jnp.take_along_axis(context.tokens, context.lengths[:, None] - 1, axis=1)
    masks = jnp.full((root.shape[0], cfg.block_size - 1), cfg.mask_token, jnp.int32)
    block = self._embed(target, jnp.concatenate([root, masks], axis=1))
    hidden, cache = self._apply(block, cache)
    # Entry d predicts the token at depth d + 1.
    hidden = hidden[:, 1:] if cfg.shift == MASKS else hidden
    logits = self._logits(target, hidden[:, : self.depth])

    def follow(depth: int, tokens: Array, state: Array, joint: Array):
      """Logits after nodes [B, W] of a depth, their paths' states, and joint confidences."""
      shape = tokens.shape
      wide = lambda x: jnp.broadcast_to(x[:, depth, None], (*shape, x.shape[-1]))
      here, raw = wide(hidden), wide(logits)
      if cfg.markov:
        bias, state = self._apply(tokens, here, state, method='markov_bias')
        raw = raw + bias
      raw = target_lib.to_target(raw, self.target_to_draft, layout=self.head.module.layout)
      if self.min_confidence is not None:
        # Decided by what is before the token, never by the token itself.
        joint = joint * self._apply(tokens, here, method='confidence')
        least = jnp.reshape(self.min_confidence, (-1, 1))
        raw = jnp.where((joint >= least)[..., None], raw, -jnp.inf)
      return raw, state, joint

    # Of the root and of every node, in the order of reading.
    nodes = 1 + self.shape.num_reads
    states = jnp.zeros((root.shape[0], nodes, cfg.markov_rank), hidden.dtype)
    joints = jnp.ones((root.shape[0], nodes))

    def step(carry, frontier: expansion.Frontier):
      states, joints = carry
      of_parents = lambda x: jnp.take_along_axis(
          x, frontier.parents.reshape(*frontier.parents.shape, *(1,) * (x.ndim - 2)), axis=1
      )
      width = frontier.tokens.shape[1]
      raw, own, joint = follow(
          frontier.depth, frontier.tokens, of_parents(states), of_parents(joints)
      )
      at = 1 + len(frontier.depths) - width
      carry = states.at[:, at : at + width].set(own), joints.at[:, at : at + width].set(joint)
      return raw, carry

    first, own, joint = follow(0, root, states[:, :1], joints[:, :1])
    start = states.at[:, :1].set(own), joints.at[:, :1].set(joint)
    drafted = expansion.expand(
        context, first[:, 0], step, start, shape=self.shape, siblings=self.siblings
    )
    return drafted.proposal, cache, drafted.context

  def _apply(self, *args, **kwargs):
    return self.head.module.apply({'params': self.head.params}, *args, **kwargs)

  def _embed(self, target, tokens: Array) -> Array:
    own, dtype = self.head.embedding, self.head.module.dtype
    return target_lib.embed(target, tokens, dtype=dtype, own=own)

  def _logits(self, target, hidden: Array) -> Array:
    """[B, T, width] to raw logits [B, T, V_draft]."""
    if self.head.config.has_head:
      return self._apply(hidden, method='logits')
    logits = target_lib.output_logits(target, hidden)
    return layout_lib.constrain(target.layout, logits, layout_lib.LOGITS)


def dflash(
    head: DFlash,
    target: LanguageModel,
    *,
    num_speculative_tokens: int | None = None,
    tree: Any = None,
    siblings: str | None = None,
    min_confidence: Any = None,
) -> DFlashDrafter:
  """A drafter of a DFlash or DSpark head on a target.

  Args:
    head: the head.
    target: the target that it was made for, whose embedding and output head it shares unless it
      brings its own.
    num_speculative_tokens: 1 … K tokens of the block, for a chain; all of them where no tree is
      given. The whole block is read in any case: its slots see each other.
    tree: instead, a tree as `specjax.drafters.model_tree` takes it, at most K deep.
    siblings: as for `specjax.drafters.model_tree`.
    min_confidence: of a head with a confidence head: drafting stops before the token at which the
      product of the confidences falls below this number, in [0, 1]; one number, or one per row.

  Returns:
    The drafter.

  Raises:
    ValueError: if head and target do not fit, the tree is deeper than the block, or there is no
      confidence head to ask.
  """
  target_lib.check_fits(head.config, target)
  depth = head.config.depth
  if num_speculative_tokens is None and tree is None:
    num_speculative_tokens = depth
  shape = expansion.chain_or_tree(
      num_speculative_tokens, tree, siblings,
      is_independent=not head.config.markov and min_confidence is None,
  )
  if shape.depth > depth:
    raise ValueError(
        f'A block of {head.config.block_size} slots drafts at most {depth} tokens, {shape.depth} '
        'were asked for.'
    )
  if min_confidence is not None:
    if not head.config.has_confidence:
      raise ValueError('min_confidence needs a head with a confidence head, and this has none.')
    min_confidence = jnp.asarray(min_confidence, jnp.float32)
    if not bool(((min_confidence >= 0) & (min_confidence <= 1)).all()):
      raise ValueError(f'min_confidence must be in [0, 1], got {min_confidence}.')
  return DFlashDrafter(
      head=head,
      target_to_draft=target_lib.inverse(head.draft_to_target, target.vocab_size),
      min_confidence=min_confidence,
      shape=shape,
      siblings=siblings,
  )
