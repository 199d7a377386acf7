"""EAGLE heads: one decoder layer over the target's hidden features and the next token.

EAGLE-1 and EAGLE-2 (Li et al. 2024, 2401.15077 and 2406.16858; the same weights, EAGLE-2
differs in the tree) predict the target's last feature, which the target's own output head
turns into logits. EAGLE-3 (Li et al. 2025, 2503.01840) reads a low, a middle and a high layer,
predicts tokens with an output head of its own, over a vocabulary that may be a part of the
target's, and is trained on its own outputs ("training-time test"). EAGLE-3.1 (2605.09992) norms
the features before they are fused, and feeds back the normed output.

A head reads *pairs*: at position i the feature of token i (the target's, or while drafting
its own last output) and the embedding of token i + 1; its output there predicts token i + 2.
"""

import dataclasses
from typing import Any, NamedTuple

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from specjax.cache import kv_cache
from specjax.heads import weights
from specjax.models import attention
from specjax.models import layers
from specjax.models import transformer
from specjax.models.config import TransformerConfig
from specjax.sharding import layout as layout_lib

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class EagleConfig:
  """Shape of a head.

  Attributes:
    decoder: sizes and switches of its layers; `vocab_size` is the draft vocabulary's.
    version: 1 (EAGLE-1 and EAGLE-2) or 3.
    target_width: width of the target's residual stream.
    target_vocab_size: V.
    feature_layers: residual streams of the target that it reads, after how many layers.
    fuse_bias: a bias on the fusing product (EAGLE-1).
    norm_before_residual: the residual branch carries the normed feature (some EAGLE-3 heads
      of vLLM's speculators).
    extra_norms: norms on the embedding, on what the first layer's attention reads, and before
      the output head (EAGLE-1 heads of vLLM's speculators with `layernorms`).
    fuse_norm: RMS norms on the target's features before they are fused (EAGLE-3 alone): 'each'
      has one for each feature layer (EAGLE-3.1, `fc_norm` in published configs), 'joint' one
      over all of them side by side (`norm_before_fc`); None has none.
    norm_output: the head drafts on with its normed output, which its output head reads too
      (EAGLE-3.1), instead of with the output before the norm.
  """

  decoder: TransformerConfig
  target_width: int
  target_vocab_size: int
  feature_layers: tuple[int, ...]
  version: int = 3
  fuse_bias: bool = False
  norm_before_residual: bool = False
  extra_norms: bool = False
  fuse_norm: str | None = None
  norm_output: bool = False

  def __post_init__(self):
    if self.fuse_norm not in (None, 'each', 'joint'):
      raise ValueError(f"fuse_norm must be 'each', 'joint' or None, got {self.fuse_norm!r}.")
    if self.version != 3 and (self.fuse_norm or self.norm_output or self.norm_before_residual):
      raise ValueError(
          'fuse_norm, norm_output and norm_before_residual are for heads of version 3.'
      )
    if self.version == 3 and self.extra_norms:
      raise ValueError('extra_norms are for heads of version 1.')
    if self.version not in (1, 3):
      raise ValueError(f'version must be 1 (also for EAGLE-2) or 3, got {self.version}.')
    if self.version == 3 and self.decoder.num_layers != 1:
      raise ValueError(
          f'An EAGLE-3 head has one layer, got num_layers={self.decoder.num_layers}.'
      )
    if self.version == 1 and len(self.feature_layers) != 1:
      raise ValueError(
          f'An EAGLE-1 head reads the last layer alone, got layers {self.feature_layers}.'
      )
    if self.version == 1 and self.decoder.width != self.target_width:
      raise ValueError(
          f"An EAGLE-1 head has the target's width {self.target_width}, got "
          f'{self.decoder.width}.'
      )
    if self.decoder.vocab_size > self.target_vocab_size:
      raise ValueError(
          f"The draft vocabulary has {self.decoder.vocab_size} tokens, more than the target's "
          f'{self.target_vocab_size}.'
      )
    if self.decoder.sliding_window is not None:
      raise ValueError('A head sees all positions; set sliding_window to None.')

  @property
  def num_parameters(self) -> int:
    """Parameters of the head itself: no embedding, and for EAGLE-1 no output head."""
    cfg, width = self.decoder, self.decoder.width
    wide = 2 * width if self.version == 3 else width
    heads = cfg.head_dim * (cfg.num_heads + 2 * cfg.num_kv_heads)
    layer = wide * heads + width * cfg.head_dim * cfg.num_heads + 3 * width * cfg.mlp_width
    if cfg.qkv_bias:
      layer += heads
    if cfg.qk_norm:
      layer += 2 * cfg.head_dim
    if self.version == 3:
      streams = len(self.feature_layers) * self.target_width
      norms = streams if self.fuse_norm else 0
      return layer + norms + width * (streams + cfg.vocab_size + 4)
    total = cfg.num_layers * (layer + 2 * width) - width
    total += 2 * width * width + (width if self.fuse_bias else 0)
    return total + (3 * width if self.extra_norms else 0)


class HeadOutput(NamedTuple):
  """What a call returns.

  Attributes:
    hidden: [B, T, width]: the output, and the feature to draft on with; normed where the
      head's config has `norm_output`.
    cache: the cache, `num_new` pairs per row longer; None when none was given.
  """

  hidden: Array
  cache: kv_cache.KVCache | None


class _Attention(nn.Module):
  """Grouped-query attention over a cache, a fresh pass, or a pass unrolled in time."""

  config: TransformerConfig
  layer: int
  param_dtype: Any
  layout: layout_lib.Layout | None = None

  @nn.compact
  def __call__(self, x, cos, sin, view, cache, earlier):
    cfg = self.config
    batch, num_new, fan_in = x.shape
    repeats = cfg.num_heads // cfg.num_kv_heads
    shape = (cfg.num_kv_heads, repeats + 2, cfg.head_dim)
    kernel = self.param('qkv', layers.normal_init(fan_in), (*shape, fan_in), self.param_dtype)
    kernel = layout_lib.for_use(self.layout, 'qkv', kernel)
    qkv = layers.dense(x, kernel, split=self.layout is not None)
    qkv = layout_lib.constrain(self.layout, qkv, layout_lib.QKV)
    if cfg.qkv_bias:
      qkv += self.param('qkv_bias', nn.initializers.zeros, shape, self.param_dtype).astype(x.dtype)
    rotated = qkv[..., : repeats + 1, :]
    if cfg.qk_norm:
      norm = lambda name: layers.RMSNorm(cfg.norm_epsilon, 0.0, self.param_dtype, name=name)
      normed = norm('query_norm')(rotated[..., :repeats, :])
      rotated = jnp.concatenate([normed, norm('key_norm')(rotated[..., repeats:, :])], axis=-2)
    rotated = rotated.reshape(batch, num_new, -1, cfg.head_dim)
    rotated = layers.apply_rope(rotated, cos, sin)
    rotated = rotated.reshape(batch, num_new, -1, repeats + 1, cfg.head_dim)
    queries, keys, values = rotated[..., :repeats, :], rotated[..., repeats, :], qkv[..., -1, :]
    queries = (queries.astype(jnp.float32) * cfg.head_dim**-0.5).astype(x.dtype)
    if cache is not None:
      cache = kv_cache.append(cache, self.layer, keys, values)
      mixed = attention.over_cache(queries, cache, self.layer, view)
    elif earlier:
      mixed = attend_unrolled(queries, (*earlier, (keys, values)), view.mask)
    else:
      mixed = attention.attend_causally(queries, keys, values, view.mask)
    mixed = mixed.reshape(batch, num_new, -1).astype(x.dtype)
    mixed = layout_lib.constrain(self.layout, mixed, layout_lib.MIXED)
    out_shape = (cfg.width, cfg.num_heads, cfg.head_dim)
    out = self.param(
        'out', layers.normal_init(cfg.num_heads * cfg.head_dim), out_shape, self.param_dtype
    )
    out = layout_lib.for_use(self.layout, 'out', out)
    result = layers.dense(mixed, out.reshape(cfg.width, -1))
    return layout_lib.constrain(self.layout, result, layout_lib.RESIDUAL), cache, (keys, values)


def attend_unrolled(queries: Array, steps: tuple[tuple[Array, Array], ...], mask: Array) -> Array:
  """Attention of a later draft step, for all positions at once (EAGLE-3, section 3.2).

  Row i stands for a round whose root pair is pair i: it sees the pairs 0 … i of the first
  step, and of every later step, its own included, only its own row's.

  Args:
    queries: [B, T, G, R, hd], scaled.
    steps: (keys, values) [B, T, G, hd] of every step, the first step's first.
    mask: [B, T, T] bool, causal.

  Returns:
    [B, T, G, R, hd] float32.
  """
  (keys, values), later = steps[0], steps[1:]
  scores = jnp.einsum(
      'btgrh,bsgh->bgrts', queries, keys, preferred_element_type=jnp.float32
  )
  scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
  own_keys = jnp.stack([k for k, _ in later], axis=-2)
  own = jnp.einsum('btgrh,btgmh->bgrtm', queries, own_keys, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(jnp.concatenate([scores, own], axis=-1), axis=-1).astype(values.dtype)
  first, rest = weights[..., : keys.shape[1]], weights[..., keys.shape[1] :]
  mixed = jnp.einsum('bgrts,bsgh->btgrh', first, values, preferred_element_type=jnp.float32)
  own_values = jnp.stack([v for _, v in later], axis=-2)
  return mixed + jnp.einsum(
      'bgrtm,btgmh->btgrh', rest, own_values, preferred_element_type=jnp.float32
  )


class _Layer(nn.Module):
  """A decoder layer; EAGLE-3's attention reads embedding and feature side by side."""

  config: EagleConfig
  layer: int
  param_dtype: Any
  layout: layout_lib.Layout | None = None

  @nn.compact
  def __call__(self, embedded, features, cos, sin, view, cache, earlier):
    cfg = self.config.decoder
    norm = lambda name: layers.RMSNorm(cfg.norm_epsilon, 0.0, self.param_dtype, name=name)
    residual = features
    if self.config.version == 3:
      normed = norm('feature_norm')(features)
      if self.config.norm_before_residual:
        residual = normed
      x = jnp.concatenate([norm('embedding_norm')(embedded), normed], axis=-1)
    else:
      # The authors' first layer has no norm: the fusing product comes right before it.
      has_norm = self.layer > 0 or self.config.extra_norms
      x = norm('attention_norm')(features) if has_norm else features
    attend = _Attention(cfg, self.layer, self.param_dtype, self.layout, name='attention')
    # A norm is cheap: every device takes it whole, as in the target's blocks.
    whole = lambda x: layout_lib.constrain(self.layout, x, layout_lib.RESIDUAL)
    mixed, cache, own = attend(whole(x), cos, sin, view, cache, earlier)
    x = residual + mixed
    mlp = transformer.MLP(cfg, self.param_dtype, self.layout, name='mlp')
    hidden = mlp(whole(norm('mlp_norm')(x)))
    return x + hidden, cache, own


class EagleHead(nn.Module):
  """An EAGLE head; embeddings come from outside, for most heads share the target's.

  Attributes:
    config: its shape.
    dtype: of activations and of the cache.
    param_dtype: of the stored weights.
    layout: how weights, cache and activations are split over devices (for drafting that of
      the draft, see `specjax.sharding.place_head`); None leaves it to the compiler.
  """

  config: EagleConfig
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  layout: layout_lib.Layout | None = None

  def setup(self):
    cfg, width = self.config, self.config.decoder.width
    self.layers = [
        _Layer(cfg, layer, self.param_dtype, self.layout, name=f'layer_{layer}')
        for layer in range(cfg.decoder.num_layers)
    ]
    norm = lambda: layers.RMSNorm(cfg.decoder.norm_epsilon, 0.0, self.param_dtype)
    if cfg.version == 3:
      fan_in = len(cfg.feature_layers) * cfg.target_width
      self.final_norm = norm()
      count = {None: 0, 'joint': 1, 'each': len(cfg.feature_layers)}[cfg.fuse_norm]
      self.fuse_norm = [norm() for _ in range(count)]
      shape = (cfg.decoder.vocab_size, width)
      self.head = self.param('head', layers.normal_init(width), shape, self.param_dtype)
    else:
      fan_in = 2 * width
      if cfg.extra_norms:
        self.embedding_norm, self.final_norm = norm(), norm()
    shape = (width, fan_in)
    self.fuse = self.param('fuse', layers.normal_init(fan_in), shape, self.param_dtype)
    if cfg.fuse_bias:
      self.fuse_bias = self.param('fuse_bias', nn.initializers.zeros, (width,), self.param_dtype)

  def __call__(
      self,
      embedded: Array,
      features: Array,
      positions: Array | None = None,
      cache: kv_cache.KVCache | None = None,
      *,
      tree_mask: Array | None = None,
      num_new: Array | None = None,
      own_features: bool = False,
  ) -> HeadOutput:
    """Reads T pairs per row, after what the cache holds.

    Args:
      embedded: [B, T, width], embeddings of the tokens one ahead.
      features: [B, T, F], the target's at the layers of the config, side by side (for
        EAGLE-1 after the target's final norm); or with `own_features` the head's own
        outputs [B, T, width].
      positions: [B, T] int32; None means the row's length plus 0 … T-1.
      cache: pairs read before, or None for a fresh causal pass.
      tree_mask: [B, T, T] bool among the new pairs; None means causal.
      num_new: [B] int32, how many of the T are real; None means all.
      own_features: static.

    Returns:
      A `HeadOutput`.
    """
    batch, width = embedded.shape[:2]
    lengths = jnp.zeros([batch], jnp.int32) if cache is None else cache.lengths
    total = lengths + (width if num_new is None else num_new)
    chain = positions is None and tree_mask is None
    if positions is None:
      positions = lengths[:, None] + jnp.arange(width)
    slots = width if cache is None else cache.keys[0].shape[2]
    view = attention.view_of(
        positions, lengths, total, slots, window=None, ring=False, chain=chain,
        tree_mask=tree_mask,
    )
    hidden, cache, _ = self._read(embedded, features, positions, view, cache, (), own_features)
    if cache is not None:
      cache = cache.replace(lengths=total)
    return HeadOutput(hidden, cache)

  def unroll(self, embedded: Array, features: Array, num_steps: int) -> Array:
    """Outputs of `num_steps` draft steps from every position (training-time test).

    Step j of row i reads the head's output of step j - 1 at row i and the embedding of
    token i + 1 + j: what it would read when drafting j + 1 tokens from there.

    Args:
      embedded: [B, T + num_steps - 1, width], embeddings of tokens 1, 2, …
      features: [B, T, F], the target's.
      num_steps: static, at least 1.

    Returns:
      [num_steps, B, T, width]; entry (j, b, i) predicts token i + 2 + j.
    """
    batch, length = features.shape[:2]
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
    view = attention.View(mask, None, None)
    hidden, earlier, outputs = features, (), []
    for step in range(num_steps):
      tokens = embedded[:, step : step + length]
      hidden, _, own = self._read(
          tokens, hidden, positions + step, view, None, earlier, step > 0
      )
      earlier = (*earlier, own)
      outputs.append(hidden)
    return jnp.stack(outputs)

  def _read(self, embedded, features, positions, view, cache, earlier, own_features):
    cfg = self.config
    embedded, hidden = embedded.astype(self.dtype), features.astype(self.dtype)
    if cfg.version == 1:
      if cfg.extra_norms:
        embedded = self.embedding_norm(embedded)
      hidden = self._fuse(jnp.concatenate([embedded, hidden], axis=-1))
    elif not own_features:
      hidden = self._fuse(self._norm_features(hidden))
    decoder = cfg.decoder
    cos, sin = layers.rope_tables(
        positions, decoder.head_dim, decoder.rope_theta, decoder.rope_scaling
    )
    owns = []
    for layer in self.layers:
      before = tuple(step[layer.layer] for step in earlier)
      hidden, cache, own = layer(embedded, hidden, cos, sin, view, cache, before)
      owns.append(own)
    if cfg.norm_output:
      hidden = self.final_norm(hidden)
    return hidden, cache, tuple(owns)

  def _norm_features(self, features: Array) -> Array:
    if not self.fuse_norm:
      return features
    parts = jnp.split(features, len(self.fuse_norm), axis=-1)
    return jnp.concatenate([norm(x) for norm, x in zip(self.fuse_norm, parts)], axis=-1)

  def _fuse(self, x: Array) -> Array:
    fused = layers.dense(x, layout_lib.for_use(self.layout, 'fuse', self.fuse))
    fused = layout_lib.constrain(self.layout, fused, layout_lib.RESIDUAL)
    return fused + self.fuse_bias.astype(x.dtype) if self.config.fuse_bias else fused

  def output(self, hidden: Array) -> Array:
    """What the output head multiplies: normed for EAGLE-3, as it is for most of EAGLE-1."""
    has_norm = self.config.version == 3 or self.config.extra_norms
    # Under norm_output what comes in is normed.
    return self.final_norm(hidden) if has_norm and not self.config.norm_output else hidden

  def logits(self, hidden: Array) -> Array:
    """Draft logits [..., V_draft] float32 of EAGLE-3 outputs [..., width]."""
    return layers.dense(self.output(hidden), self.head, jnp.float32)

  def init_everything(self, embedded: Array, features: Array) -> Array:
    """Touches every parameter, for `init`."""
    hidden = self(embedded, features).hidden
    return self.logits(hidden) if self.config.version == 3 else self.output(hidden)

  def init_cache(
      self, *, batch_size: int, cache_length: int, max_append: int
  ) -> kv_cache.KVCache:
    """An empty cache for the head; arguments as in `specjax.cache.kv_cache.init`."""
    cfg = self.config.decoder
    return kv_cache.init(
        batch_size=batch_size,
        cache_length=cache_length,
        num_kv_heads=cfg.num_kv_heads,
        head_dim=cfg.head_dim,
        windows=(None,) * cfg.num_layers,
        max_append=max_append,
        dtype=self.dtype,
        layout=self.layout,
    )


@struct.dataclass
class Eagle(weights.HeadWithWeights):
  """An `EagleHead` with its weights; its shape is an `EagleConfig`."""


def init_params(module: EagleHead, key: Array) -> Any:
  """Fresh parameters of a head; consumes `key`."""
  cfg = module.config
  streams = len(cfg.feature_layers) * cfg.target_width
  embedded = jnp.zeros((1, 1, cfg.decoder.width), module.dtype)
  features = jnp.zeros((1, 1, streams), module.dtype)
  # The layout is for what runs; the trace of an initialisation has a batch of its own.
  bare = module.clone(layout=None)
  return bare.init(key, embedded, features, method='init_everything')['params']


def default_layers(num_layers: int) -> tuple[int, ...]:
  """Low, middle and high layer of a target of L layers, as the authors take them.

  Their code keeps what goes into layers 2, L // 2 and L - 3: the streams after that many
  layers. Targets of fewer than six layers take 1, L // 2 and L - 1 where these differ.
  """
  if num_layers >= 6:
    return (2, num_layers // 2, num_layers - 3)
  return tuple(sorted({1, max(num_layers // 2, 1), max(num_layers - 1, 1)}))
