"""One decoder-only transformer for every supported family, as a pure Flax Linen module.

`Transformer.apply` is the whole contract between a target (or draft) and the engine:
tokens and cache in, logits, features and cache out. The families differ only in the
fields of `TransformerConfig`. Layers are unrolled, with one cache array each: scanned
layers copy the cache (and on CPU the weights) at every step.

Weights are fused and `(out, in)`: query, key and value of a key-value group lie together
([G, H / G + 2, hd, width]), so that one product reads them and the group axis can still be
sharded; gate and up projections likewise.
"""

from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from specjax.cache import kv_cache
from specjax.kernels import attention as attention_kernels
from specjax.models import attention as attention_lib
from specjax.models import layers
from specjax.models.config import TransformerConfig
from specjax.sharding import layout as layout_lib

Array = jax.Array


class Output(NamedTuple):
  """What one call returns.

  Attributes:
    logits: [B, T, V] float32, raw (soft-capped where the family does so).
    features: [B, T, sum of widths], the residual stream after each of the layers asked
      for, side by side; width 0 when none was asked for.
    cache: the cache, `num_new` tokens per row longer; None when none was given.
  """

  logits: Array
  features: Array
  cache: kv_cache.KVCache | None


class _Scope(NamedTuple):
  """What all layers of one call share, by kind of layer (global, local).

  Attributes:
    cos: rotary cosines [B, T, hd].
    sin: likewise.
    view: which slots the new tokens see.
  """

  cos: Array
  sin: Array
  view: attention_lib.View


class Attention(nn.Module):
  """Grouped-query attention over the cache, new tokens included."""

  config: TransformerConfig
  layer: int
  dtype: Any
  param_dtype: Any
  layout: layout_lib.Layout | None = None
  over_cache: str = 'auto'

  @nn.compact
  def __call__(self, x, scope: _Scope, cache, valid):
    cfg = self.config
    batch, num_new = x.shape[:2]
    groups = cfg.num_stored_kv_heads
    repeats = cfg.num_heads // groups
    shape = (groups, repeats + 2, cfg.head_dim)
    kernel = self.param('qkv', layers.normal_init(cfg.width), (*shape, cfg.width), self.param_dtype)
    kernel = layout_lib.for_use(self.layout, 'qkv', kernel)
    qkv = layers.dense(x, kernel, split=self.layout is not None)
    qkv = layout_lib.constrain(self.layout, qkv, layout_lib.QKV)
    if cfg.qkv_bias:
      qkv += self.param('qkv_bias', nn.initializers.zeros, shape, self.param_dtype).astype(x.dtype)
    queries_keys, values = qkv[..., : repeats + 1, :], qkv[..., repeats + 1, :]
    if cfg.qk_norm:
      norm = lambda name: layers.RMSNorm(
          cfg.norm_epsilon, cfg.norm_offset, self.param_dtype, name=name
      )
      queries_keys = jnp.concatenate(
          [
              norm('query_norm')(queries_keys[..., :repeats, :]),
              norm('key_norm')(queries_keys[..., repeats:, :]),
          ],
          axis=-2,
      )
    # Queries and keys turn by the same angle: one rotation for both.
    flat = queries_keys.reshape(batch, num_new, -1, cfg.head_dim)
    flat = layers.apply_rope(flat, scope.cos, scope.sin)
    queries_keys = flat.reshape(queries_keys.shape)
    queries, keys = queries_keys[..., :repeats, :], queries_keys[..., repeats, :]
    scale = cfg.head_dim**-0.5 if cfg.query_scale is None else cfg.query_scale
    queries = (queries.astype(jnp.float32) * scale).astype(x.dtype)

    if cache is not None:
      cache = kv_cache.append(cache, self.layer, keys, values, valid)
    # The scope tells attention from the products around it in compiled programs and profiles.
    with jax.named_scope('attend'):
      if cache is None:
        mixed = attention_lib.attend_causally(
            queries, keys, values, scope.view.mask, soft_cap=cfg.attention_soft_cap
        )
      else:
        mixed = attention_lib.over_cache(
            queries, cache, self.layer, scope.view, implementation=self.over_cache,
            soft_cap=cfg.attention_soft_cap,
        )
    mixed = mixed.reshape(batch, num_new, -1).astype(x.dtype)
    mixed = layout_lib.constrain(self.layout, mixed, layout_lib.MIXED)
    fan_in = cfg.num_heads * cfg.head_dim
    out = self.param('out', layers.normal_init(fan_in), (cfg.width, fan_in), self.param_dtype)
    result = layers.dense(mixed, layout_lib.for_use(self.layout, 'out', out))
    return layout_lib.constrain(self.layout, result, layout_lib.RESIDUAL), cache


class MLP(nn.Module):
  """Gated MLP (Shazeer 2020): activation(gate) * up, projected down."""

  config: TransformerConfig
  param_dtype: Any
  layout: layout_lib.Layout | None = None

  @nn.compact
  def __call__(self, x):
    cfg = self.config
    kernel = self.param(
        'gate_up', layers.normal_init(cfg.width), (2, cfg.mlp_width, cfg.width), self.param_dtype
    )
    kernel = layout_lib.for_use(self.layout, 'gate_up', kernel)
    hidden = layers.dense(x, kernel, split=self.layout is not None)
    hidden = layout_lib.constrain(self.layout, hidden, layout_lib.GATE_UP)
    gate, up = hidden[..., 0, :], hidden[..., 1, :]
    if cfg.activation == 'silu':
      gate = nn.silu(gate)
    else:
      gate = nn.gelu(gate, approximate=True)
    down = self.param(
        'down', layers.normal_init(cfg.mlp_width), (cfg.width, cfg.mlp_width), self.param_dtype
    )
    result = layers.dense(gate * up, layout_lib.for_use(self.layout, 'down', down))
    return layout_lib.constrain(self.layout, result, layout_lib.RESIDUAL)


class Block(nn.Module):
  """Attention and MLP with norms before, and for Gemma also after, each."""

  config: TransformerConfig
  layer: int
  dtype: Any
  param_dtype: Any
  layout: layout_lib.Layout | None = None
  over_cache: str = 'auto'

  @nn.compact
  def __call__(self, x, scope: _Scope, cache, valid):
    cfg = self.config
    norm = lambda name: layers.RMSNorm(
        cfg.norm_epsilon, cfg.norm_offset, self.param_dtype, name=name
    )
    attention = Attention(
        cfg, self.layer, self.dtype, self.param_dtype, self.layout, self.over_cache,
        name='attention',
    )
    # A norm is cheap: every device takes it whole, instead of a part and two collectives.
    whole = lambda x: layout_lib.constrain(self.layout, x, layout_lib.RESIDUAL)
    mixed, cache = attention(whole(norm('attention_norm')(x)), scope, cache, valid)
    if cfg.post_norms:
      mixed = norm('post_attention_norm')(mixed)
    x = x + mixed
    hidden = MLP(cfg, self.param_dtype, self.layout, name='mlp')(whole(norm('mlp_norm')(x)))
    if cfg.post_norms:
      hidden = norm('post_mlp_norm')(hidden)
    return x + hidden, cache


class Transformer(nn.Module):
  """A decoder-only language model.

  Attributes:
    config: the family's switches and sizes.
    dtype: of activations and of the cache.
    param_dtype: of the stored weights.
    remat: recompute each layer in the backward pass (training only).
    layout: how weights, cache and activations are split over devices; None is one device.
    attention: how a cache is attended to, one of `specjax.kernels.attention.IMPLEMENTATIONS`.
      'cudnn' and 'pallas' are for GPUs and long caches, on one device, without windows and soft
      caps on scores.
  """

  config: TransformerConfig
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  remat: bool = False
  layout: layout_lib.Layout | None = None
  attention: str = 'auto'

  @property
  def vocab_size(self) -> int:
    return self.config.vocab_size

  @nn.compact
  def __call__(
      self,
      tokens: Array,
      positions: Array | None = None,
      cache: kv_cache.KVCache | None = None,
      *,
      tree_mask: Array | None = None,
      num_new: Array | None = None,
      feature_layers: tuple[int, ...] = (),
      with_logits: bool = True,
  ) -> Output:
    """Reads T new tokens per row, after what the cache holds.

    Args:
      tokens: [B, T] int32.
      positions: [B, T] int32, for rotary embeddings and windows; None means the row's
        length plus 0 … T-1 (a chain). A tree gives root position plus depth.
      cache: what was read before, or None for a fresh causal pass (training).
      tree_mask: [B, T, T] bool, `[b, i, j]` True where new token i sees new token j
        (itself included); None means causal. Everything in the cache is visible by length.
        A tree that is read level by level gives [B, T, P + T]: the P tokens that the cache
        took last are nodes of it too, and come first; `positions` is then [B, P + T].
      num_new: [B] int32, how many of the T tokens are real; the rest are padding after
        them. None means all.
      feature_layers: residual streams to return: after how many layers, 0 … L. They come
        in increasing order, whatever the order here.
      with_logits: False returns logits of width 0 (prefill needs none).

    Returns:
      An `Output`. The cache's `lengths` grow by `num_new`.
    """
    cfg = self.config
    batch, width = tokens.shape
    lengths = jnp.zeros([batch], jnp.int32) if cache is None else cache.lengths
    if not all(0 <= number <= cfg.num_layers for number in feature_layers):
      raise ValueError(
          f'feature_layers must lie in 0 … {cfg.num_layers}, got {tuple(feature_layers)}.'
      )
    if self.attention not in ('auto', 'xla'):
      self._check_attention()
    chain = positions is None and tree_mask is None
    if positions is None:
      positions = lengths[:, None] + jnp.arange(width)
    tree_positions, positions = positions, positions[:, -width:]
    valid = None
    if num_new is not None:
      valid = jnp.arange(width) < num_new[:, None]

    embedding = self.param(
        'embedding', nn.initializers.normal(0.02), (cfg.vocab_size, cfg.width), self.param_dtype
    )
    embedding = layout_lib.for_use(self.layout, 'embedding', embedding)
    x = embedding[tokens].astype(self.dtype)
    x = layout_lib.constrain(self.layout, x, layout_lib.RESIDUAL)
    if cfg.embedding_scale != 1.0:
      # Gemma rounds the factor to the compute dtype, and so must we to agree with it.
      x = x * jnp.asarray(cfg.embedding_scale, self.dtype)

    total = lengths + (width if num_new is None else num_new)
    scopes = {}
    features = [x] if 0 in feature_layers else []
    block = nn.remat(Block) if self.remat else Block
    for layer in range(cfg.num_layers):
      window = cfg.window(layer)
      ring = cache is not None and cache.rings[layer]
      if (window, ring) not in scopes:
        slots = width if cache is None else cache.keys[layer].shape[2]
        view = attention_lib.view_of(
            tree_positions,
            lengths,
            total,
            slots,
            window=window,
            ring=ring,
            chain=chain,
            tree_mask=tree_mask,
        )
        scopes[window, ring] = _Scope(*self._rotary(positions, window), view)
      here = block(
          cfg, layer, self.dtype, self.param_dtype, self.layout, self.attention,
          name=f'layer_{layer}',
      )
      x, cache = here(x, scopes[window, ring], cache, valid)
      if layer + 1 in feature_layers:
        features.append(x)

    features = jnp.concatenate(features, axis=-1) if features else x[..., :0]
    logits = jnp.zeros((batch, width, 0), jnp.float32)
    # The head's parameters exist whether or not this call uses them.
    final_norm = layers.RMSNorm(
        cfg.norm_epsilon, cfg.norm_offset, self.param_dtype, name='final_norm'
    )
    if with_logits or self.is_initializing():
      head = embedding
      if not cfg.tie_embeddings:
        head = self.param(
            'head', layers.normal_init(cfg.width), (cfg.vocab_size, cfg.width), self.param_dtype
        )
        head = layout_lib.for_use(self.layout, 'head', head)
      x = layout_lib.constrain(self.layout, final_norm(x), layout_lib.RESIDUAL)
      logits = layers.dense(x, head, jnp.float32)
      logits = layout_lib.constrain(self.layout, logits, layout_lib.LOGITS)
      logits = layers.soft_cap(logits, cfg.logit_soft_cap)
    if cache is not None:
      cache = cache.replace(lengths=total)
    return Output(logits=logits, features=features, cache=cache)

  def _check_attention(self) -> None:
    cfg = self.config
    has_windows = any(cfg.window(layer) is not None for layer in range(cfg.num_layers))
    reasons = {
        'sliding windows': has_windows,
        'a soft cap on scores': cfg.attention_soft_cap is not None,
        'a layout over several devices': self.layout is not None,
    }
    if unknown := [name for name, here in reasons.items() if here]:
      raise ValueError(
          f"attention={self.attention!r} does not know {', '.join(unknown)}: leave it 'auto' here."
      )

  def _rotary(self, positions: Array, window: int | None) -> tuple[Array, Array]:
    cfg = self.config
    if window is not None and cfg.local_rope_theta is not None:
      return layers.rope_tables(positions, cfg.head_dim, cfg.local_rope_theta, None)
    return layers.rope_tables(positions, cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)

  def init_cache(
      self, *, batch_size: int, cache_length: int, max_append: int
  ) -> kv_cache.KVCache:
    """An empty cache for this model; arguments as in `specjax.cache.kv_cache.init`."""
    cfg = self.config
    slots = attention_kernels.num_slots(cache_length + max_append, self.attention)
    return kv_cache.init(
        batch_size=batch_size,
        cache_length=slots - max_append,
        num_kv_heads=cfg.num_stored_kv_heads,
        head_dim=cfg.head_dim,
        windows=tuple(cfg.window(layer) for layer in range(cfg.num_layers)),
        max_append=max_append,
        dtype=self.dtype,
        layout=self.layout,
    )
