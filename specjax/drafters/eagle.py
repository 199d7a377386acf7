"""EAGLE heads as drafters: chains and trees over the target's hidden features.

Li et al. 2024 (EAGLE 2401.15077, EAGLE-2 2406.16858), Li et al. 2025 (EAGLE-3 2503.01840).
The weights and their versions are in `specjax.heads.eagle`; EAGLE-2 is an EAGLE-1 head with a
dynamic tree.
"""

from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from specjax import types
from specjax.cache import kv_cache
from specjax.drafters import base
from specjax.drafters import expansion
from specjax.heads import target as target_lib
from specjax.heads.eagle import Eagle
from specjax.models import LanguageModel
from specjax.models import layers
from specjax.models import widths

Array = jax.Array


class EagleState(NamedTuple):
  """What lives from round to round.

  Attributes:
    cache: the head's: pair i in slot i.
    feature: [B, F], the target's of the last token that prefill read.
    has_feature: [B] bool.
  """

  cache: kv_cache.KVCache
  feature: Array
  has_feature: Array


@struct.dataclass
class EagleDrafter(base.Shaped):
  """Drafts from the target's features of what was committed, and on from its own outputs.

  A round begins with the pairs that the last round committed: their features are the
  target's, and replace what the head had made up for them in its cache.

  Attributes:
    head: the head and its weights; what it shares with the target (the embedding, for EAGLE-1
      final norm and output head too) it finds there.
    target_to_draft: [V] int32, the draft's id of each token or -1; None where the
      vocabularies are the same.
    shape: static, of the tree.
    siblings: static, one of `specjax.drafters.expansion.SIBLINGS` or None.
    step_width: static, the least pairs that a pass reads.
  """

  head: Eagle
  target_to_draft: Array | None
  shape: Any = struct.field(pytree_node=False)
  siblings: str | None = struct.field(pytree_node=False, default=None)
  step_width: int = struct.field(pytree_node=False, default=1)

  @property
  def feature_layers(self) -> tuple[int, ...]:
    return self.head.config.feature_layers

  @property
  def vocab_size(self) -> int:
    return self.head.config.target_vocab_size

  def init(self, *, batch_size: int, cache_length: int, max_append: int) -> EagleState:
    """As `specjax.types.Drafter.init`."""
    # After the longest row come the nodes that are read, and padding.
    extra = self.depth + 1 + self.shape.num_reads + self.step_width
    module = self.head.module
    cache = module.init_cache(
        batch_size=batch_size,
        cache_length=cache_length + extra,
        max_append=max(max_append, extra),
    )
    cfg = self.head.config
    width = len(cfg.feature_layers) * cfg.target_width
    return EagleState(
        cache=cache,
        feature=jnp.zeros((batch_size, width), module.dtype),
        has_feature=jnp.zeros((batch_size,), bool),
    )

  def prefill(self, state: EagleState, *, target, tokens: Array, num_new: Array, features: Array):
    """As `specjax.types.Drafter.prefill`: token t goes with the feature of token t - 1."""
    features = features.astype(state.feature.dtype)
    before = jnp.concatenate([state.feature[:, None], features], axis=1)
    # A row's first token has nothing before it: its pairs begin one later.
    skip = jnp.where(state.has_feature, 0, 1)
    index = jnp.arange(tokens.shape[1]) + skip[:, None]
    paired = jnp.take_along_axis(tokens, jnp.minimum(index, tokens.shape[1] - 1), axis=1)
    before = jnp.take_along_axis(before, index[..., None], axis=1)
    num_pairs = jnp.maximum(num_new - skip, 0)
    out = self._read(target, state.cache, paired, before, num_new=num_pairs)
    last = jnp.take_along_axis(features, jnp.maximum(num_new - 1, 0)[:, None, None], axis=1)[:, 0]
    fresh = num_new > 0
    return EagleState(
        cache=out.cache,
        feature=jnp.where(fresh[:, None], last, state.feature),
        has_feature=state.has_feature | fresh,
    )

  def propose(self, context: types.Context, state: EagleState):
    """As `specjax.types.Drafter.propose`."""
    target = context.target
    # The features of the last round stand at positions `start` on; each goes with the token
    # after it, the last one with the root.
    count = context.features_valid.sum(-1).astype(jnp.int32)
    start = context.lengths - 1 - count
    index = start[:, None] + 1 + jnp.arange(context.features.shape[1])
    tokens = jnp.take_along_axis(
        context.tokens, jnp.minimum(index, context.tokens.shape[1] - 1), axis=1
    )
    cache = kv_cache.roll_back(state.cache, start)
    out = self._read(target, cache, tokens, context.features, num_new=count)
    last = jnp.maximum(count - 1, 0)[:, None, None]
    root = jnp.take_along_axis(out.hidden, last, axis=1)
    # Of the root and of every node, in the order of reading.
    hidden = widths.pad_to(root, 1 + self.shape.num_reads)

    def step(carry, frontier: expansion.Frontier):
      cache, hidden = carry
      width = frontier.tokens.shape[1]
      own = jnp.take_along_axis(hidden, frontier.parents[..., None], axis=1)
      positions = context.lengths[:, None] - 2 + frontier.depths[-width:]
      out = self._read_level(target, cache, frontier, own, positions)
      before = 1 + len(frontier.depths) - width
      hidden = hidden.at[:, before : before + width].set(out.hidden)
      return self._logits(target, out.hidden), (out.cache, hidden)

    drafted = expansion.expand(
        context,
        self._logits(target, root)[:, 0],
        step,
        (out.cache, hidden),
        shape=self.shape,
        siblings=self.siblings,
    )
    proposal = drafted.proposal
    # A prompt of one token has no feature yet: nothing to draft from.
    has_pair = (context.lengths > 1) & (count > 0)
    proposal = proposal.replace(valid=proposal.valid & has_pair[:, None])
    return proposal, state._replace(cache=drafted.state[0]), drafted.context

  def _read(self, target, cache, tokens: Array, features: Array, num_new: Array):
    """Pairs of tokens [B, T] and the target's features [B, T, F]."""
    if self.head.config.version != 3:
      features = target_lib.final_norm(target, features)
    tokens = widths.pad_to(tokens, self.step_width)
    features = widths.pad_to(features, self.step_width)
    return self._apply(self._embed(target, tokens), features, None, cache, num_new=num_new)

  def _read_level(
      self, target, cache, frontier: expansion.Frontier, own: Array, positions: Array
  ):
    """The nodes of a level [B, W], each with its parent's output [B, W, width]."""
    # One node per level, after all others, sees what is there.
    tree = (None, None) if self.is_chain else (positions, frontier.mask)
    level = widths.pad_pass(frontier.tokens, *tree, width=self.step_width)
    out = self._apply(
        self._embed(target, level.tokens),
        widths.pad_to(own, self.step_width),
        level.positions,
        cache,
        tree_mask=level.tree_mask,
        num_new=level.num_new,
        own_features=True,
    )
    return out._replace(hidden=out.hidden[:, : frontier.tokens.shape[1]])

  def _apply(self, *args, **kwargs):
    return self.head.module.apply({'params': self.head.params}, *args, **kwargs)

  def _embed(self, target, tokens: Array) -> Array:
    own, dtype = self.head.embedding, self.head.module.dtype
    return target_lib.embed(target, tokens, dtype=dtype, own=own)

  def _logits(self, target, hidden: Array) -> Array:
    """[B, T, width] to raw logits [B, T, V] in the target's vocabulary."""
    output = self._apply(hidden, method='output')
    if self.head.config.version == 3:
      logits = layers.dense(output, self.head.params['head'], jnp.float32)
    else:
      logits = target_lib.output_logits(target, output)
    layout = self.head.module.layout if self.head.config.version == 3 else None
    return target_lib.to_target(logits, self.target_to_draft, layout=layout)


def eagle(
    head: Eagle,
    target: LanguageModel,
    *,
    num_speculative_tokens: int | None = None,
    tree: Any = None,
    siblings: str | None = None,
    step_width: int | None = None,
) -> EagleDrafter:
  """A drafter that runs an EAGLE head on a target's features.

  Args:
    head: the head, of any version.
    target: the target that it was made for, whose embedding (and for EAGLE-1 output head and
      final norm) it shares unless it brings its own.
    num_speculative_tokens: K >= 1, for a chain; 4 where no tree is given either.
    tree: instead of K, a tree as `specjax.drafters.model_tree` takes it; EAGLE-2's is
      `specjax.tree.dynamic_tree(num_nodes=60, depth=6, width=10)`.
    siblings: as for `specjax.drafters.model_tree`.
    step_width: the least pairs that a pass reads; None takes 2 for bfloat16 on CPU, else 1.

  Returns:
    The drafter.

  Raises:
    ValueError: if head and target do not fit, for K < 1, or both K and a tree.
  """
  target_lib.check_fits(head.config, target)
  return EagleDrafter(
      head=head,
      target_to_draft=target_lib.inverse(head.draft_to_target, target.vocab_size),
      shape=expansion.chain_or_tree(num_speculative_tokens, tree, siblings),
      siblings=siblings,
      step_width=widths.step_width(step_width, head),
  )
