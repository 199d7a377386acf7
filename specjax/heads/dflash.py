"""DFlash and DSpark heads: a block of draft tokens in one pass over the target's features.

DFlash (arXiv 2602.06036) reads the block [root, mask, …, mask] at the root's position and on. Each
layer also sees the *context*: the target's features of every token before the root, fused, normed
and projected to keys and values by the layer's own weights, which are kept in a cache. Inside the
block every slot sees every other one. DSpark (arXiv 2607.05147) has the same backbone; a Markov
head adds to a slot's logits what the tokens before it in the block say, and a confidence head
foretells whether its token will be accepted.

| `shift` | slot k of the block predicts | drafted tokens |
|---|---|---|
| `MASKS` (z-lab) | the token at its own place; the root's slot nothing | block_size - 1 |
| `NEXT` (DeepSpec) | the token after it; the root's slot the first | block_size |
"""

import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from specjax.cache import kv_cache
from specjax.heads import block_layers
from specjax.heads import weights
from specjax.models import attention
from specjax.models import layers
from specjax.models.config import TransformerConfig
from specjax.sharding import layout as layout_lib

Array = jax.Array

MASKS, NEXT = 'masks', 'next'
# What a Markov head sees: the token before, that and the slot's output, or the whole path.
PLAIN, GATED, RNN = 'plain', 'gated', 'rnn'


@dataclasses.dataclass(frozen=True)
class DFlashConfig:
  """Shape of a head.

  Attributes:
    decoder: sizes and switches of its layers; `vocab_size` is the draft vocabulary's. Local layers
      see a window of the context.
    target_width: width of the target's residual stream.
    target_vocab_size: V.
    feature_layers: residual streams of the target that it reads, after how many layers; increasing.
    block_size: slots of a block, the root's included.
    mask_token: the target's token that fills the slots after the root.
    shift: `MASKS` or `NEXT`.
    has_head: whether it brings an output head of its own; else it drafts with the target's.
    causal_windows: in local layers a slot sees those before it in the block alone (speculators).
    window_from_root: the window of a local layer is counted from the root, and has a place more
      (speculators); else from each slot, itself included.
    markov: `PLAIN`, `GATED`, `RNN`, or None for DFlash.
    markov_rank: r.
    has_confidence: whether there is a confidence head.
    confidence_sees_token: whether it reads the token before the slot, too.
  """

  decoder: TransformerConfig
  target_width: int
  target_vocab_size: int
  feature_layers: tuple[int, ...]
  block_size: int
  mask_token: int
  shift: str
  has_head: bool = False
  causal_windows: bool = False
  window_from_root: bool = False
  markov: str | None = None
  markov_rank: int = 0
  has_confidence: bool = False
  confidence_sees_token: bool = False

  def __post_init__(self):
    if self.shift not in (MASKS, NEXT):
      raise ValueError(f'shift must be {MASKS!r} or {NEXT!r}, got {self.shift!r}.')
    if self.block_size < 1 or self.depth < 1:
      raise ValueError(
          f'A block of {self.block_size} slots drafts nothing; block_size must be larger.'
      )
    if not 0 <= self.mask_token < self.target_vocab_size:
      raise ValueError(
          f'mask_token={self.mask_token} is none of the {self.target_vocab_size} tokens.'
      )
    if tuple(sorted(set(self.feature_layers))) != tuple(self.feature_layers):
      raise ValueError(f'feature_layers must increase, got {self.feature_layers}.')
    if self.markov not in (None, PLAIN, GATED, RNN) or bool(self.markov) != bool(self.markov_rank):
      raise ValueError(
          f'markov must be {PLAIN!r}, {GATED!r} or {RNN!r} with a markov_rank, or None without, '
          f'got {self.markov!r} and {self.markov_rank}.'
      )
    if self.confidence_sees_token and not (self.markov and self.has_confidence):
      raise ValueError('A confidence head sees the token before by a Markov head\'s embedding.')
    if self.decoder.width != self.target_width:
      raise ValueError(
          f"The head has width {self.decoder.width}, the target {self.target_width}: it reads the "
          "target's embeddings, which must be as wide."
      )
    if self.decoder.vocab_size > self.target_vocab_size:
      raise ValueError(
          f"The draft vocabulary has {self.decoder.vocab_size} tokens, more than the target's "
          f'{self.target_vocab_size}.'
      )

  @property
  def depth(self) -> int:
    """K, the tokens that a block drafts."""
    return self.block_size - (self.shift == MASKS)

  @property
  def num_parameters(self) -> int:
    """Parameters of the head itself: no embedding, and an output head if it has one."""
    cfg, width, rank = self.decoder, self.decoder.width, self.markov_rank
    heads = cfg.head_dim * (cfg.num_heads + 2 * cfg.num_kv_heads)
    layer = width * heads + width * cfg.head_dim * cfg.num_heads + 3 * width * cfg.mlp_width
    layer += 2 * width + (heads if cfg.qkv_bias else 0) + (2 * cfg.head_dim if cfg.qk_norm else 0)
    total = cfg.num_layers * layer + len(self.feature_layers) * self.target_width * width
    total += 2 * width + (cfg.vocab_size * width if self.has_head else 0)
    total += rank * (self.target_vocab_size + cfg.vocab_size)
    joint = {GATED: (width + rank, rank), RNN: (2 * rank + width, 3 * rank)}
    fan_in, fan_out = joint.get(self.markov, (0, 0))
    total += (fan_in + 1) * fan_out
    if self.has_confidence:
      total += width + (rank if self.confidence_sees_token else 0) + 1
    return total


class DFlashHead(nn.Module):
  """A DFlash or DSpark head; embeddings come from outside, for they are the target's.

  Attributes:
    config: its shape.
    dtype: of activations and of the cache.
    param_dtype: of the stored weights.
    layout: how weights, cache and activations are split over devices (for drafting that of
      the draft, see `specjax.sharding.place_head`); None leaves it to the compiler.
  """

  config: DFlashConfig
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  layout: layout_lib.Layout | None = None

  def setup(self):
    cfg, decoder = self.config, self.config.decoder
    width, rank = decoder.width, cfg.markov_rank
    weight = lambda name, fan_in, shape: self.param(
        name, layers.normal_init(fan_in), shape, self.param_dtype
    )
    bias = lambda name, size: self.param(name, nn.initializers.zeros, (size,), self.param_dtype)
    norm = lambda: layers.RMSNorm(decoder.norm_epsilon, 0.0, self.param_dtype)
    self.layers = [
        block_layers.Layer(decoder, layer, self.param_dtype, self.layout, name=f'layer_{layer}')
        for layer in range(decoder.num_layers)
    ]
    streams = len(cfg.feature_layers) * cfg.target_width
    self.fuse = weight('fuse', streams, (width, streams))
    self.context_norm, self.final_norm = norm(), norm()
    if cfg.has_head:
      self.head = weight('head', width, (decoder.vocab_size, width))
    if cfg.markov:
      self.markov_in = weight('markov_in', rank, (cfg.target_vocab_size, rank))
      self.markov_out = weight('markov_out', rank, (decoder.vocab_size, rank))
    if cfg.markov == GATED:
      self.gate = weight('gate', width + rank, (rank, width + rank))
      self.gate_bias = bias('gate_bias', rank)
    if cfg.markov == RNN:
      self.joint = weight('joint', 2 * rank + width, (3 * rank, 2 * rank + width))
      self.joint_bias = bias('joint_bias', 3 * rank)
    if cfg.has_confidence:
      fan_in = width + (rank if cfg.confidence_sees_token else 0)
      self.confidence_out = weight('confidence_out', fan_in, (1, fan_in))
      self.confidence_bias = bias('confidence_bias', 1)

  def context(self, features: Array, cache: kv_cache.KVCache, num_new: Array) -> kv_cache.KVCache:
    """The cache, longer by the keys and values of `num_new` [B] tokens.

    Args:
      features: [B, T, F], the target's at the layers of the config, side by side.
      cache: of the tokens before them.
      num_new: [B] int32, how many of the T are real.
    """
    fused = self._fuse(features)
    cos, sin = self._rope(cache.lengths[:, None] + jnp.arange(features.shape[1]))
    valid = jnp.arange(features.shape[1]) < num_new[:, None]
    for layer in self.layers:
      cache = layer.context(fused, cos, sin, cache, valid)
    return cache.replace(lengths=cache.lengths + num_new)

  def __call__(self, embedded: Array, cache: kv_cache.KVCache) -> tuple[Array, kv_cache.KVCache]:
    """Outputs of a block, ready for the output head.

    Args:
      embedded: [B, T, width], of the root and of the mask token; T is the block size.
      cache: the context's: positions 0 … root - 1.

    Returns:
      [B, T, width], and the cache, as long as it was: the block's own entries lie beyond its
      lengths, where the next context is written over them.
    """
    size = embedded.shape[1]
    positions = cache.lengths[:, None] + jnp.arange(size)
    cos, sin = self._rope(positions)
    views = {
        window: block_view(self.config, cache, size, window) for window in set(self._windows)
    }
    hidden = embedded.astype(self.dtype)
    for layer, window in zip(self.layers, self._windows):
      hidden, cache = layer(hidden, cos, sin, views[window], cache)
    return self.final_norm(hidden), cache

  def unroll(self, features: Array, embedded: Array, roots: Array) -> Array:
    """Outputs of the blocks at many roots of a text, each as `__call__` gives it.

    Args:
      features: [B, T, F], the target's, of the whole text.
      embedded: [B, A, S, width], of each root and of the mask token.
      roots: [B, A] int32, their positions, 0 … T.

    Returns:
      [B, A, S, width], ready for the output head.
    """
    cfg, (batch, blocks, size, _) = self.config, embedded.shape
    length = features.shape[1]
    fused = self._fuse(features)
    offsets = jnp.arange(size)
    positions = roots[..., None] + offsets
    context_rope = self._rope(jnp.broadcast_to(jnp.arange(length), (batch, length)))
    block_rope = self._rope(positions.reshape(batch, blocks * size))
    hidden = embedded.astype(self.dtype).reshape(batch, blocks * size, -1)
    before = jnp.arange(length) < roots[..., None, None]
    for layer, window in zip(self.layers, self._windows):
      among, seen = jnp.ones((size, size), bool), jnp.broadcast_to(
          before, (batch, blocks, size, length)
      )
      if window is not None:
        among = jnp.tril(among) if cfg.causal_windows else among
        first = positions - window + 1
        if cfg.window_from_root:
          first = jnp.broadcast_to(roots[..., None] - window, positions.shape)
        seen = seen & (jnp.arange(length) >= first[..., None])
      hidden = layer.unroll(fused, hidden, context_rope, block_rope, seen, among)
    return self.final_norm(hidden).reshape(batch, blocks, size, -1)

  def _fuse(self, features: Array) -> Array:
    """What the layers see of the context, [B, T, width]."""
    kernel = layout_lib.for_use(self.layout, 'fuse', self.fuse)
    fused = layers.dense(features.astype(self.dtype), kernel)
    return self.context_norm(layout_lib.constrain(self.layout, fused, layout_lib.RESIDUAL))

  @property
  def _windows(self) -> tuple[int | None, ...]:
    decoder = self.config.decoder
    return tuple(decoder.window(layer) for layer in range(decoder.num_layers))

  def _rope(self, positions: Array) -> tuple[Array, Array]:
    decoder = self.config.decoder
    return layers.rope_tables(
        positions, decoder.head_dim, decoder.rope_theta, decoder.rope_scaling
    )

  def markov_bias(self, tokens: Array, hidden: Array, state: Array) -> tuple[Array, Array]:
    """What the tokens before a slot add to its logits [..., V_draft] float32, and the new state.

    Arguments are as for `markov_mix`.
    """
    mixed, state = self.markov_mix(tokens, hidden, state)
    kernel = layout_lib.for_use(self.layout, 'markov_out', self.markov_out)
    return self._split(layers.dense(mixed, kernel, jnp.float32)), state

  def markov_mix(self, tokens: Array, hidden: Array, state: Array) -> tuple[Array, Array]:
    """What `markov_out` multiplies.

    Args:
      tokens: [...] int32, the token before; the root for the first drafted one.
      hidden: [..., width], the slot's output.
      state: [..., r], of the path before it; zeros at the root. Only an `RNN` reads it.

    Returns:
      [..., r], and the state after it.
    """
    before = self.markov_in[tokens].astype(self.dtype)
    mixed = before
    if self.config.markov == GATED:
      gate = self._affine(jnp.concatenate([hidden, before], -1), self.gate, self.gate_bias)
      mixed = jax.nn.sigmoid(gate) * before
    if self.config.markov == RNN:
      joint = self._affine(
          jnp.concatenate([state.astype(self.dtype), before, hidden], -1), self.joint,
          self.joint_bias,
      )
      gate, candidate, mixed = jnp.split(joint, 3, axis=-1)
      gate, mixed = jax.nn.sigmoid(gate), jnp.tanh(mixed)
      state = (gate * state + (1.0 - gate) * jnp.tanh(candidate)).astype(state.dtype)
    return mixed, state

  def confidence(self, tokens: Array, hidden: Array) -> Array:
    """The probability that a slot's token is accepted, if all before it are: [...] float32.

    Arguments are as for `confidence_logits`.
    """
    return jax.nn.sigmoid(self.confidence_logits(tokens, hidden))

  def confidence_logits(self, tokens: Array, hidden: Array) -> Array:
    """Its logit, [...] float32.

    Args:
      tokens: [...] int32, the token before.
      hidden: [..., width], the slot's output.
    """
    if self.config.confidence_sees_token:
      hidden = jnp.concatenate([hidden, self.markov_in[tokens].astype(self.dtype)], -1)
    logits = self._affine(hidden, self.confidence_out, self.confidence_bias)
    return logits[..., 0].astype(jnp.float32)

  def _affine(self, x: Array, kernel: Array, bias: Array) -> Array:
    return layers.dense(x, kernel) + bias.astype(x.dtype)

  def logits(self, hidden: Array) -> Array:
    """Draft logits [..., V_draft] float32 by the head's own output head."""
    kernel = layout_lib.for_use(self.layout, 'head', self.head)
    return self._split(layers.dense(hidden, kernel, jnp.float32))

  def _split(self, logits: Array) -> Array:
    """Logits [B, T, V_draft], split over the vocabulary."""
    return layout_lib.constrain(self.layout, logits, layout_lib.LOGITS)

  def init_everything(self, features: Array, embedded: Array) -> None:
    """Touches every parameter, for `init`."""
    cache = self.init_cache(batch_size=1, cache_length=features.shape[1], max_append=99)
    cache = self.context(features, cache, jnp.asarray([features.shape[1]]))
    self(embedded, cache)

  def init_cache(
      self, *, batch_size: int, cache_length: int, max_append: int
  ) -> kv_cache.KVCache:
    """An empty cache for the context; arguments as in `specjax.cache.kv_cache.init`.

    Local layers keep all positions too: their window is a mask.
    """
    decoder = self.config.decoder
    return kv_cache.init(
        batch_size=batch_size,
        cache_length=cache_length,
        num_kv_heads=decoder.num_kv_heads,
        head_dim=decoder.head_dim,
        windows=(None,) * decoder.num_layers,
        max_append=max_append,
        dtype=self.dtype,
        layout=self.layout,
    )


def block_view(
    config: DFlashConfig, cache: kv_cache.KVCache, size: int, window: int | None
) -> attention.View:
  """Which slots of the cache each slot of a block sees.

  Args:
    config: of the head.
    cache: of the context; the block is written after it.
    size: slots of the block.
    window: of the layer; None sees all of the context.
  """
  batch = cache.lengths.shape[0]
  offsets, among = jnp.arange(size), jnp.ones((size, size), bool)
  if window is not None and config.causal_windows:
    among = jnp.tril(among)
  if window is not None and config.window_from_root:
    offsets, window = jnp.zeros(size, jnp.int32), window + 1
  return attention.view_of(
      cache.lengths[:, None] + offsets, cache.lengths, cache.lengths + size,
      cache.keys[0].shape[2], window=window, ring=False, chain=False,
      tree_mask=jnp.broadcast_to(among, (batch, size, size)),
  )


@struct.dataclass
class DFlash(weights.HeadWithWeights):
  """A `DFlashHead` with its weights; its shape is a `DFlashConfig`."""


def init_params(module: DFlashHead, key: Array) -> Any:
  """Fresh parameters of a head; consumes `key`."""
  cfg = module.config
  features = jnp.zeros((1, 2, len(cfg.feature_layers) * cfg.target_width), module.dtype)
  embedded = jnp.zeros((1, cfg.block_size, cfg.decoder.width), module.dtype)
  # The layout is for what runs; the trace of an initialisation has a batch of its own.
  bare = module.clone(layout=None)
  return bare.init(key, features, embedded, method='init_everything')['params']


def default_layers(num_layers: int, num_draft_layers: int) -> tuple[int, ...]:
  """The layers that the authors take for a head of so many layers, as `feature_layers`.

  Theirs count outputs from 0 on, from layer 1 to layer L - 3, evenly (`build_target_layer_ids`);
  a head of one layer reads the middle.
  """
  if num_draft_layers == 1:
    return (num_layers // 2 + 1,)
  span = num_layers - 4
  ids = [round(1 + i * span / (num_draft_layers - 1)) for i in range(num_draft_layers)]
  return tuple(sorted({i + 1 for i in ids}))
