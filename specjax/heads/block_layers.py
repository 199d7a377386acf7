"""Decoder layers of DFlash and DSpark heads, whose attention sees a context beside the block."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from specjax.cache import kv_cache
from specjax.models import attention
from specjax.models import layers
from specjax.models import transformer
from specjax.models.config import TransformerConfig
from specjax.sharding import layout as layout_lib

Array = jax.Array


class Attention(nn.Module):
  """Attention whose keys and values are of the context and of the block itself."""

  config: TransformerConfig
  layer: int
  param_dtype: Any
  layout: layout_lib.Layout | None = None

  def setup(self):
    cfg = self.config
    repeats = cfg.num_heads // cfg.num_kv_heads
    shape = (cfg.num_kv_heads, repeats + 2, cfg.head_dim)
    init = layers.normal_init
    self.qkv = self.param('qkv', init(cfg.width), (*shape, cfg.width), self.param_dtype)
    if cfg.qkv_bias:
      self.qkv_bias = self.param('qkv_bias', nn.initializers.zeros, shape, self.param_dtype)
    out = (cfg.width, cfg.num_heads, cfg.head_dim)
    self.out = self.param('out', init(cfg.num_heads * cfg.head_dim), out, self.param_dtype)
    if cfg.qk_norm:
      norm = lambda: layers.RMSNorm(cfg.norm_epsilon, 0.0, self.param_dtype)
      self.query_norm, self.key_norm = norm(), norm()

  def append(self, x: Array, cos: Array, sin: Array, cache: kv_cache.KVCache, valid=None):
    """The cache with the keys and values of x [B, T, width] after each row's length."""
    return kv_cache.append(cache, self.layer, *self._keys_values(x, cos, sin), valid)

  def __call__(
      self, x: Array, cos: Array, sin: Array, view: attention.View, cache: kv_cache.KVCache
  ):
    """What the block x [B, T, width] sees of itself and of the context, and the cache."""
    cache = self.append(x, cos, sin, cache)
    queries = self._queries(x, cos, sin)
    mixed = attention.over_cache(queries, cache, self.layer, view)
    return self._output(mixed, x), cache

  def unroll(self, context, x, context_rope, block_rope, context_mask, among):
    """As `__call__`, for many blocks of a text at once: x [B, A * S, width].

    Args:
      context: [B, T, width], of all tokens of the text.
      x: the blocks.
      context_rope: cosines and sines of the context's positions.
      block_rope: those of the blocks' positions, [B, A * S, hd].
      context_mask: [B, A, S, T] bool, which of the context each slot sees.
      among: [S, S] bool, which slots of its block.
    """
    cfg, (batch, blocks, size, _) = self.config, context_mask.shape
    keys, values = self._keys_values(context, *context_rope)
    own_keys, own_values = (
        each.reshape(batch, blocks, size, *each.shape[2:])
        for each in self._keys_values(x, *block_rope)
    )
    queries = self._queries(x, *block_rope).reshape(
        batch, blocks, size, cfg.num_kv_heads, -1, cfg.head_dim
    )
    einsum = lambda *args: jnp.einsum(*args, preferred_element_type=jnp.float32)
    far = einsum('bnsgrh,btgh->bngrst', queries, keys)
    near = einsum('bnsgrh,bnugh->bngrsu', queries, own_keys)
    far = jnp.where(context_mask[:, :, None, None], far, -jnp.inf)
    near = jnp.where(among, near, -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([far, near], -1), axis=-1).astype(values.dtype)
    far, near = weights[..., : keys.shape[1]], weights[..., keys.shape[1] :]
    mixed = einsum('bngrst,btgh->bnsgrh', far, values)
    mixed += einsum('bngrsu,bnugh->bnsgrh', near, own_values)
    return self._output(mixed, x)

  def _output(self, mixed: Array, x: Array) -> Array:
    """What all heads saw [B, …, hd], projected to the shape and dtype of x [B, T, width]."""
    mixed = mixed.reshape(*x.shape[:2], -1).astype(x.dtype)
    mixed = layout_lib.constrain(self.layout, mixed, layout_lib.MIXED)
    out = layout_lib.for_use(self.layout, 'out', self.out)
    result = layers.dense(mixed, out.reshape(self.config.width, -1))
    return layout_lib.constrain(self.layout, result, layout_lib.RESIDUAL)

  def _keys_values(self, x: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    """[B, T, G, hd] each."""
    projected = self._project(x, slice(-2, None))
    keys = self._rotate(projected[..., :1, :], 'key_norm', cos, sin)[..., 0, :]
    return keys, projected[..., 1, :]

  def _queries(self, x: Array, cos: Array, sin: Array) -> Array:
    """[B, T, G, R, hd], scaled."""
    queries = self._rotate(self._project(x, slice(-2)), 'query_norm', cos, sin)
    scale = self.config.head_dim**-0.5
    return (queries.astype(jnp.float32) * scale).astype(x.dtype)

  def _project(self, x: Array, part: slice) -> Array:
    """[B, T, G, R or 2, hd]."""
    kernel = layout_lib.for_use(self.layout, 'qkv', self.qkv)[:, part]
    projected = layers.dense(x, kernel, split=self.layout is not None)
    projected = layout_lib.constrain(self.layout, projected, layout_lib.QKV)
    return projected + self.qkv_bias[:, part].astype(x.dtype) if self.config.qkv_bias else projected

  def _rotate(self, x: Array, norm: str, cos: Array, sin: Array) -> Array:
    """[B, T, G, R, hd], normed where the decoder norms heads, and rotated."""
    x = getattr(self, norm)(x) if self.config.qk_norm else x
    flat = x.reshape(*x.shape[:2], -1, x.shape[-1])
    return layers.apply_rope(flat, cos, sin).reshape(x.shape)


class Layer(nn.Module):
  """A decoder layer; the context goes into its attention as it is, without the layer's norm."""

  config: TransformerConfig
  layer: int
  param_dtype: Any
  layout: layout_lib.Layout | None = None

  def setup(self):
    cfg = self.config
    norm = lambda: layers.RMSNorm(cfg.norm_epsilon, 0.0, self.param_dtype)
    self.attention = Attention(cfg, self.layer, self.param_dtype, self.layout)
    self.attention_norm, self.mlp_norm = norm(), norm()
    self.mlp = transformer.MLP(cfg, self.param_dtype, self.layout)

  def context(self, x, cos, sin, cache, valid):
    return self.attention.append(x, cos, sin, cache, valid)

  def unroll(self, context, x, context_rope, block_rope, context_mask, among):
    x = x + self.attention.unroll(
        context, self._whole(self.attention_norm(x)), context_rope, block_rope, context_mask, among
    )
    return x + self.mlp(self._whole(self.mlp_norm(x)))

  def __call__(self, x, cos, sin, view, cache):
    mixed, cache = self.attention(self._whole(self.attention_norm(x)), cos, sin, view, cache)
    x = x + mixed
    return x + self.mlp(self._whole(self.mlp_norm(x))), cache

  def _whole(self, x: Array) -> Array:
    """A norm is cheap: every device takes it whole, as in the target's blocks."""
    return layout_lib.constrain(self.layout, x, layout_lib.RESIDUAL)
