"""Early exit: the target's own first layers draft, through a small adapter and its head.

Elhoushi et al. 2024 (LayerSkip, 2404.16710) exit through the target's head; Liu et al. 2024
(Kangaroo, 2404.18911) train an adapter in between for a target that was not made for it. The
adapter here is one residual gated MLP and a norm: it needs no cache of its own.
"""

import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from specjax.cache import kv_cache
from specjax.heads import target as target_lib
from specjax.models import LanguageModel
from specjax.models import layers
from specjax.models import transformer
from specjax.models.config import TransformerConfig
from specjax.sharding import layout as layout_lib

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ExitConfig:
  """Where and through what the target is left.

  Attributes:
    exit_layer: layers that draft, 1 … L - 1.
    target: the target's config.
    mlp_width: hidden size of the adapter; 0 has none: the target's norm and head as they are.
  """

  exit_layer: int
  target: TransformerConfig
  mlp_width: int = 0

  def __post_init__(self):
    if not 1 <= self.exit_layer < self.target.num_layers:
      raise ValueError(
          f'exit_layer must be 1 … {self.target.num_layers - 1}, got {self.exit_layer}.'
      )

  @property
  def feature_layers(self) -> tuple[int, ...]:
    return (self.exit_layer,)

  @property
  def target_width(self) -> int:
    return self.target.width

  @property
  def target_vocab_size(self) -> int:
    return self.target.vocab_size

  @property
  def num_parameters(self) -> int:
    width = self.target.width
    return width * (3 * self.mlp_width + 2) if self.mlp_width else 0


class ExitAdapter(nn.Module):
  """From the stream at the exit to what the target's head multiplies."""

  config: ExitConfig
  dtype: Any
  param_dtype: Any
  layout: layout_lib.Layout | None = None

  @nn.compact
  def __call__(self, stream: Array) -> Array:
    """[..., width] to [..., width]."""
    cfg = dataclasses.replace(self.config.target, mlp_width=self.config.mlp_width)
    norm = lambda name: layers.RMSNorm(
        cfg.norm_epsilon, cfg.norm_offset, self.param_dtype, name=name
    )
    x = stream.astype(self.dtype)
    mlp = transformer.MLP(cfg, self.param_dtype, self.layout, name='mlp')
    hidden = mlp(norm('mlp_norm')(x))
    return norm('final_norm')(x + hidden)


@struct.dataclass
class EarlyExit:
  """An exit with its weights.

  Attributes:
    module: static, the adapter.
    params: its parameter tree; None without an adapter.
  """

  module: ExitAdapter = struct.field(pytree_node=False)
  params: Any = None

  @property
  def config(self) -> ExitConfig:
    return self.module.config

  def logits(self, target: LanguageModel, stream: Array) -> Array:
    """Draft logits [..., V] float32 of the stream [..., width] at the exit."""
    if not self.config.mlp_width:
      return target_lib.logits(target, stream)
    return target_lib.output_logits(target, self.module.apply({'params': self.params}, stream))


def init_params(module: ExitAdapter, key: Array, target: LanguageModel) -> Any:
  """Fresh parameters, the norm before the head being the target's; consumes `key`."""
  x = jnp.zeros((1, module.config.target.width), module.dtype)
  params = dict(module.clone(layout=None).init(key, x)['params'])
  scale = target.params['final_norm']['scale'].astype(module.param_dtype)
  params['final_norm'] = {'scale': scale}
  return params


def first_layers(target: LanguageModel, num_layers: int) -> LanguageModel:
  """The target's first layers as a model: the same arrays, fewer of them."""
  cfg = target.module.config
  shorter = dataclasses.replace(
      cfg, num_layers=num_layers, local_layers=cfg.local_layers[:num_layers]
  )
  params = {
      name: value
      for name, value in target.params.items()
      if not name.startswith('layer_') or int(name.removeprefix('layer_')) < num_layers
  }
  return LanguageModel(target.module.clone(config=shorter), params)


def first_cache(cache: kv_cache.KVCache, num_layers: int) -> kv_cache.KVCache:
  """The cache of the first layers: the same arrays."""
  return cache.replace(
      keys=cache.keys[:num_layers],
      values=cache.values[:num_layers],
      rings=cache.rings[:num_layers],
  )


def put_back(cache: kv_cache.KVCache, first: kv_cache.KVCache) -> kv_cache.KVCache:
  """The whole cache with the first layers' arrays written by the draft; lengths stay."""
  num_layers = len(first.keys)
  return cache.replace(
      keys=first.keys + cache.keys[num_layers:],
      values=first.values + cache.values[num_layers:],
  )


def plain_exit(target: LanguageModel, exit_layer: int) -> EarlyExit:
  """An exit without an adapter: the target's norm and head right after a layer."""
  config = ExitConfig(exit_layer=exit_layer, target=target.module.config)
  return EarlyExit(ExitAdapter(config, target.module.dtype, target.module.param_dtype))
