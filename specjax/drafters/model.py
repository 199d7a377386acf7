"""A draft model: a smaller language model proposes a chain, token by token.

Leviathan et al. 2022 (2211.17192), Chen et al. 2023 (2302.01318).
"""

from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from specjax import tree
from specjax import types
from specjax.cache import kv_cache
from specjax.drafters import base
from specjax.drafters import vocabulary
from specjax.models import LanguageModel
from specjax.models import widths

Array = jax.Array


class _Drafted(NamedTuple):
  """The loop's state: what was drafted so far.

  Attributes:
    step: tokens drawn before this step.
    logits: [B, V] raw draft logits for the next token.
    cache: the draft's cache.
    sampler: the context's, advanced.
    tokens: [B, K] int32.
    valid: [B, K] bool.
    law: [B, K, V] float32, or [B, K, 0] where nobody asks for it.
    active: [B] bool, rows that still draft; where there is nothing to draw from they end.
    confidence: [B] float32, sum of the largest log-probabilities.
  """

  step: Array
  logits: Array
  cache: kv_cache.KVCache
  sampler: Any
  tokens: Array
  valid: Array
  law: Array
  active: Array
  confidence: Array


@struct.dataclass
class ModelDrafter(base.Chain):
  """Drafts a chain of K tokens with a language model and its own cache.

  The state is the draft's cache. After a round with everything accepted it lacks one position
  more than the target's, so the first step of every round reads the last two tokens: what it
  rewrites is what was there, and no case is special.

  Attributes:
    draft: the draft model; its vocabulary is the target's, but for padding.
    min_confidence: [] float32; drafting stops before the token at which the product of the
      draft's largest probabilities would fall below it. The decision looks at laws and at
      tokens already kept, never at the token that it would drop, so the output stays
      unbiased. 0 never stops.
    num_nodes: static, K.
    step_width: static, tokens that a later draft step reads; 2 pads the single token where
      one row alone is slower than two (bfloat16 on CPU).
    adaptive: static, whether `min_confidence` is looked at.
    reread: static, tokens that the first step of a round reads.
  """

  draft: LanguageModel
  min_confidence: Array
  num_nodes: int = struct.field(pytree_node=False)
  step_width: int = struct.field(pytree_node=False, default=1)
  adaptive: bool = struct.field(pytree_node=False, default=False)
  reread: int = struct.field(pytree_node=False, default=2)

  @property
  def vocab_size(self) -> int:
    return self.draft.vocab_size

  def for_vocabulary(self, vocab_size: int) -> 'ModelDrafter':
    """The same for a target that pads its vocabulary to another size."""
    return self.replace(draft=vocabulary.padded(self.draft, vocab_size))

  def beside(self, depth: int) -> 'ModelDrafter':
    """The same, whose rounds begin by reading what another drafter had accepted, too."""
    return self.replace(reread=max(self.reread, depth + 2))

  def init(self, *, batch_size: int, cache_length: int, max_append: int) -> kv_cache.KVCache:
    """As `specjax.types.Drafter.init`."""
    return self.draft.init_cache(
        batch_size=batch_size,
        cache_length=cache_length,
        max_append=max(max_append, self.reread),
    )

  def prefill(self, state, *, target, tokens: Array, num_new: Array, features: Array):
    """As `specjax.types.Drafter.prefill`."""
    del target, features
    return self.draft(tokens, cache=state, num_new=num_new, with_logits=False).cache

  def propose(self, context: types.Context, state: kv_cache.KVCache):
    """As `specjax.types.Drafter.propose`: at most K draft steps, in one loop.

    No step waits for rows that are not active, and their nodes are not valid.
    """
    batch, num_nodes = context.lengths.shape[0], self.num_nodes
    logits, cache = read_last(self.draft, context, state, count=self.reread)

    has_law = context.sampler.keep_law and context.sampler.mode != 'greedy'
    law_size = self.vocab_size if has_law else 0
    drafted = _Drafted(
        step=jnp.int32(0),
        logits=logits,
        cache=cache,
        sampler=context.sampler,
        tokens=jnp.zeros((batch, num_nodes), jnp.int32),
        valid=jnp.zeros((batch, num_nodes), bool),
        law=jnp.zeros((batch, num_nodes, law_size), jnp.float32),
        active=jnp.ones((batch,), bool) if context.active is None else context.active,
        confidence=jnp.zeros((batch,), jnp.float32),
    )
    if self.adaptive:
      drafted = self._decide(drafted)
    # The last token is drawn but not read: nothing is drafted from it.
    drafted = jax.lax.while_loop(
        lambda d: (d.step < num_nodes - 1) & d.active.any(),
        lambda d: self._advance(self._draw(d, context)),
        drafted,
    )
    drafted = self._draw(drafted, context)
    kind = {'greedy': types.ONE_HOT, 'sample': types.SAMPLED, 'coupled': types.COUPLED}
    proposal = types.Proposal(
        tokens=drafted.tokens,
        parents=tree.chain_parents(batch, num_nodes),
        valid=drafted.valid,
        law=drafted.law if has_law else None,
        rows=tree.chain_parents(batch, num_nodes),
        kind=kind[context.sampler.mode],
    )
    return proposal, drafted.cache, context.replace(sampler=drafted.sampler)

  def _draw(self, d: _Drafted, context: types.Context) -> _Drafted:
    """Draws the token of node `step + 1` where the row is still drafting, and can."""
    token, law, is_empty, sampler = d.sampler.draw_node(
        d.logits,
        path=d.tokens,
        path_valid=d.valid,
        position=context.lengths + d.step,
        node=d.step + 1,
    )
    laws, active = d.law, d.active & ~is_empty
    if law is not None and laws.shape[-1]:
      laws = jax.lax.dynamic_update_slice(laws, law[:, None], (0, d.step, 0))
    return d._replace(
        sampler=sampler,
        tokens=jax.lax.dynamic_update_slice(d.tokens, token[:, None], (0, d.step)),
        valid=jax.lax.dynamic_update_slice(d.valid, active[:, None], (0, d.step)),
        law=laws,
        active=active,
    )

  def _advance(self, d: _Drafted) -> _Drafted:
    """Reads the token drawn last and decides whether the row drafts on."""
    token = jax.lax.dynamic_slice_in_dim(d.tokens, d.step, 1, axis=1)
    padded = widths.pad_to(token, self.step_width)
    logits, cache = _read(self.draft, d.cache, padded, jnp.ones_like(d.cache.lengths))
    d = d._replace(step=d.step + 1, logits=logits, cache=cache)
    return self._decide(d) if self.adaptive else d

  def _decide(self, d: _Drafted) -> _Drafted:
    """Stops rows whose joint confidence falls below the bound, before anything is drawn."""
    confidence = d.confidence + jnp.max(jax.nn.log_softmax(d.logits), axis=-1)
    active = d.active & (confidence >= jnp.log(self.min_confidence))
    return d._replace(active=active, confidence=confidence)


def read_last(
    draft: LanguageModel, context: types.Context, cache: kv_cache.KVCache, *, count: int = 2
):
  """Reads the root, and again the tokens before it, which a draft may not have read yet.

  What it rewrites is what was there; a row of fewer tokens reads them and padding.

  Args:
    draft: the draft.
    context: of the round.
    cache: the draft's, in which `lengths - count` positions are right.
    count: static, how many tokens; 2 where the draft reads what it drafts.

  Returns:
    Raw logits [B, V] for the token after the root, and the cache of `lengths` positions.
  """
  start = jnp.maximum(context.lengths - count, 0)
  index = jnp.minimum(start[:, None] + jnp.arange(count), context.tokens.shape[1] - 1)
  tokens = jnp.take_along_axis(context.tokens, index, axis=1)
  return _read(draft, kv_cache.roll_back(cache, start), tokens, context.lengths - start)


def _read(draft, cache, tokens: Array, num_new: Array) -> tuple[Array, kv_cache.KVCache]:
  """Logits [B, V] after the last of `num_new` [B] tokens."""
  out = draft(tokens, cache=cache, num_new=num_new)
  last = jnp.maximum(num_new - 1, 0)[:, None, None]
  return jnp.take_along_axis(out.logits, last, axis=1)[:, 0], out.cache


def model(
    draft: LanguageModel,
    *,
    num_speculative_tokens: int = 4,
    min_confidence: float | None = None,
    step_width: int | None = None,
) -> ModelDrafter:
  """A drafter that runs `draft` ahead of the target.

  Args:
    draft: a smaller model over the target's vocabulary, which may be padded to another size.
    num_speculative_tokens: K >= 1, the most tokens drafted in a round.
    min_confidence: None drafts K tokens always; a number in [0, 1) stops a round early,
      before the token at which the joint confidence of the draft falls below it.
    step_width: tokens a draft step reads; None takes 2 for bfloat16 on CPU, else 1.

  Returns:
    The drafter.

  Raises:
    ValueError: if K < 1 or `min_confidence` is outside [0, 1).
  """
  if min_confidence is not None and not 0.0 <= min_confidence < 1.0:
    raise ValueError(f'min_confidence must be in [0, 1), got {min_confidence}.')
  return ModelDrafter(
      draft=draft,
      min_confidence=jnp.float32(min_confidence or 0.0),
      num_nodes=base.check_num_speculative_tokens(num_speculative_tokens),
      step_width=widths.step_width(step_width, draft),
      adaptive=min_confidence is not None,
  )
