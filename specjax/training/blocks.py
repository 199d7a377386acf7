"""The loss of DFlash and DSpark heads: blocks at random roots of a text, all at once.

Chen et al. 2026 (DFlash, 2602.06036) and the authors of DSpark (2607.05147): roots are drawn at
random among the tokens after which something counts; every block sees the context before its root
and itself. Token k of a block (from 1 on) has the weight exp(-(k - 1) / gamma).

| `kind` | per token |
|---|---|
| `cross_entropy` | -log q(token that came); DFlash |
| `dspark` | 0.1 cross-entropy + 0.9 sum |p - q| |
| one of `losses.TERMS` | that divergence of the draft's law q from the target's p |

A confidence head learns 1 - sum |p - q| / 2 by its binary cross-entropy.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from specjax.heads import dflash as heads
from specjax.heads import target as target_lib
from specjax.models import LanguageModel
from specjax.training import chunked
from specjax.training import losses
from specjax.training.chunked import Side
from specjax.training.heads import streams

Array = jax.Array

CROSS_ENTROPY, DSPARK = 'cross_entropy', 'dspark'
# DeepSpec's, of cross-entropy and of the distance of the laws.
_DSPARK_WEIGHTS = 0.1, 0.9
# Of the papers, by the size of a block.
_GAMMA = {16: 7.0, 8: 4.0, 7: 4.0}


def default_gamma(block_size: int) -> float:
  """gamma of the papers: 7 for blocks of 16, 4 for blocks of 8; between them by proportion."""
  return _GAMMA.get(block_size, max(block_size * 7.0 / 16.0, 1.0))


def check_kind(kind: str) -> None:
  """Refuses a loss that does not exist."""
  if kind not in (CROSS_ENTROPY, DSPARK, *losses.TERMS):
    known = ', '.join([CROSS_ENTROPY, DSPARK, *sorted(losses.TERMS)])
    raise ValueError(f'The loss must be one of {known}; got {kind!r}.')


def dflash(
    module: heads.DFlashHead,
    target: LanguageModel,
    *,
    num_roots: int,
    kind: str = CROSS_ENTROPY,
    gamma: float | None = None,
    num_chunks: int = 1,
    draft_to_target: Array | None = None,
):
  """The loss of a head, for `specjax.training.train.fit`.

  Batches are those of `specjax.training.heads`. Roots are a function of the batch, so that a
  resumed run takes the same ones.

  Args:
    module: the head.
    target: frozen.
    num_roots: A, blocks per row.
    kind: `CROSS_ENTROPY`, `DSPARK`, or of `specjax.training.losses.TERMS`.
    gamma: of the weights; None takes `default_gamma`.
    num_chunks: parts of the vocabulary in which logits are made (`specjax.training.chunked`).
    draft_to_target: [V_draft] int32 or None.

  Returns:
    The loss function, its arrays bound. Metrics: `loss`, `acceptance_j` (mean probability that
    token j of a block is accepted at temperature 1, those before it being the text's),
    `agreement_j` (of the most likely tokens), and `confidence_error` (mean distance of the
    confidence from that probability) where there is a confidence head. With `draft_to_target` all
    are of the target's law within that vocabulary, above what drafting finds.

  Raises:
    ValueError: if head and target do not fit, or for an unknown kind.
  """
  check_kind(kind)
  target_lib.check_fits(module.config, target)
  layers, num_layers = module.config.feature_layers, target.module.config.num_layers
  if max(layers) >= num_layers:
    raise ValueError(
        f'A DFlash head reads streams after 0 … {num_layers - 1} layers of this target: what is '
        f'after the last one its files do not name. feature_layers is {layers}.'
    )
  if draft_to_target is not None and not module.config.has_head:
    raise ValueError('A draft vocabulary needs an output head of its own: has_head=True.')
  capped = target.module.config.logit_soft_cap is not None and not module.config.has_head
  if capped and module.config.markov:
    raise ValueError(
        "A Markov head adds to the logits of an output head without a cap, and this target's has "
        'one: give the head its own, has_head=True.'
    )
  gamma = default_gamma(module.config.block_size) if gamma is None else gamma
  fn = functools.partial(
      _dflash, module=module, num_roots=num_roots, kind=kind, gamma=gamma, num_chunks=num_chunks
  )
  return jax.tree_util.Partial(fn, target=target, draft_to_target=draft_to_target)


def _dflash(
    params, batch, *, target, draft_to_target, module, num_roots, kind, gamma, num_chunks
):
  cfg = module.config
  last, depth = target.module.config.num_layers, cfg.depth
  read = streams(batch, target, (*cfg.feature_layers, last))
  tokens, length = read.tokens, read.tokens.shape[1] - 1
  features = jnp.concatenate([read.by_layer[layer] for layer in cfg.feature_layers], axis=-1)
  counted = jnp.ones(tokens.shape, bool) if read.mask is None else read.mask
  roots, has_root = _roots(tokens, counted, min(num_roots, length))
  # Token k after the root is at root + k; the last one of the text is `length`.
  after = roots[..., None] + 1 + jnp.arange(depth)
  inside = after <= length
  after = jnp.minimum(after, length)
  rows = jnp.arange(tokens.shape[0])[:, None, None]
  wanted = tokens[rows, after]
  weight = has_root[..., None] & inside & counted[rows, after]
  # A block ends at the first token that does not count.
  weight = jnp.cumprod(weight, axis=-1).astype(jnp.float32)
  decayed = weight * jnp.exp(-jnp.arange(depth) / gamma)

  apply = lambda *args, **kw: module.apply({'params': params}, *args, **kw)
  block = jnp.full((*roots.shape, cfg.block_size), cfg.mask_token)
  block = block.at[..., 0].set(jnp.take_along_axis(tokens, roots, axis=1))
  hidden = apply(features, target_lib.embed(target, block), roots, method='unroll')
  hidden = hidden[..., 1:, :] if cfg.shift == heads.MASKS else hidden
  before = tokens[rows, after - 1]
  draft = _side(module, params, target, hidden, before, apply)
  goal = chunked.side_of(target, read.by_layer[last][rows, after - 1], draft_to_target)

  mean = losses.mean
  compared_kind = 'total_variation' if kind in (CROSS_ENTROPY, DSPARK) else kind
  compared = chunked.compare(goal, draft, kind=compared_kind, num_chunks=num_chunks)
  total = 0.0
  if kind in (CROSS_ENTROPY, DSPARK):
    chosen, known = wanted, jnp.ones(wanted.shape, bool)
    if draft_to_target is not None:
      table = target_lib.inverse(draft_to_target, cfg.target_vocab_size)
      chosen, known = jnp.maximum(table[wanted], 0), table[wanted] >= 0
    entropy = chunked.cross_entropy(draft, chosen, num_chunks=num_chunks)
    total = mean(entropy, decayed * known)
  if kind == DSPARK:
    # sum |p - q| is twice the total variation.
    distance = mean(2.0 * compared.divergence, decayed)
    total = _DSPARK_WEIGHTS[0] * total + _DSPARK_WEIGHTS[1] * distance
  elif kind != CROSS_ENTROPY:
    total = mean(compared.divergence, decayed)
  metrics = {}
  if cfg.has_confidence:
    said = apply(before, hidden, method='confidence_logits')
    error = optax.sigmoid_binary_cross_entropy(said, compared.acceptance)
    total += mean(error, decayed)
    far = jnp.abs(jax.nn.sigmoid(said) - compared.acceptance)
    metrics['confidence_error'] = mean(far, weight)
  for j in range(depth):
    metrics |= {
        f'acceptance_{j + 1}': mean(compared.acceptance[..., j], weight[..., j]),
        f'agreement_{j + 1}': mean(compared.agrees[..., j], weight[..., j]),
    }
  return total, {'loss': total} | metrics


def _roots(tokens: Array, counted: Array, count: int) -> tuple[Array, Array]:
  """Roots [B, A] after which a token counts, drawn without replacement, and which are any."""
  key = jax.random.fold_in(jax.random.key(0), tokens.astype(jnp.uint32).sum())
  usable = counted[:, 1:]
  order = jnp.where(usable, jax.random.uniform(key, usable.shape), 2.0)
  roots = jnp.argsort(order, axis=1)[:, :count].astype(jnp.int32)
  return roots, jnp.take_along_axis(usable, roots, axis=1)


def _side(module, params, target, hidden: Array, before: Array, apply: Any) -> Side:
  """The draft's laws, of outputs [B, A, K, width] and the tokens before each slot."""
  cfg = module.config
  if cfg.has_head:
    side = Side(hidden, params['head'])
  else:
    # As the target's output head is used.
    side = Side(hidden, target_lib.head_kernel(target), target.module.config.logit_soft_cap)
  if not cfg.markov:
    return side
  state, mixed = jnp.zeros((*hidden.shape[:-2], cfg.markov_rank), hidden.dtype), []
  for slot in range(hidden.shape[-2]):
    each, state = apply(before[..., slot], hidden[..., slot, :], state, method='markov_mix')
    mixed.append(each)
  # A sum of two products is a product of what lies side by side.
  kernel = jnp.concatenate(
      [side.kernel.astype(jnp.float32), params['markov_out'].astype(jnp.float32)], axis=-1
  )
  return side._replace(
      hidden=jnp.concatenate([hidden, jnp.stack(mixed, axis=-2)], axis=-1), kernel=kernel
  )
