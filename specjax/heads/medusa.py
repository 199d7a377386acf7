"""Medusa heads: several output heads on the target's last feature (Cai et al. 2024, 2401.10774).

Head k reads the target's final feature of token i (after the final norm) and predicts token
i + 2 + k without seeing those in between: `W2_k · h` with h = x + SiLU(W1_k · x + b), section
2.1.1.
"""

import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from specjax.models import layers
from specjax.sharding import layout as layout_lib

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class MedusaConfig:
  """Shape of the heads.

  Attributes:
    num_heads: K, tokens predicted beyond the target's own next one.
    num_layers: residual blocks of each head.
    target_width: width of the target's residual stream.
    target_vocab_size: V.
    target_layers: L; the feature is the last residual stream, after the final norm.
    vocab_size: of the draft, where it is a part of the target's; None means all of it.
    shared_head: whether one output head serves all heads (vLLM's `original_lm_head`).
  """

  num_heads: int
  target_width: int
  target_vocab_size: int
  target_layers: int
  num_layers: int = 1
  vocab_size: int | None = None
  shared_head: bool = False

  def __post_init__(self):
    if self.num_heads < 1 or self.num_layers < 0:
      raise ValueError(
          f'Medusa needs at least one head and no negative number of blocks, got num_heads='
          f'{self.num_heads}, num_layers={self.num_layers}.'
      )
    if self.draft_vocab_size > self.target_vocab_size:
      raise ValueError(
          f"The draft vocabulary has {self.draft_vocab_size} tokens, more than the target's "
          f'{self.target_vocab_size}.'
      )

  @property
  def feature_layers(self) -> tuple[int, ...]:
    return (self.target_layers,)

  @property
  def depth(self) -> int:
    """Tokens that are drafted at most."""
    return self.num_heads

  @property
  def draft_vocab_size(self) -> int:
    return self.vocab_size or self.target_vocab_size

  @property
  def num_output_heads(self) -> int:
    return 1 if self.shared_head else self.num_heads

  @property
  def num_parameters(self) -> int:
    block = self.target_width * (self.target_width + 1)
    head = self.target_width * self.draft_vocab_size
    return self.num_heads * self.num_layers * block + self.num_output_heads * head


class MedusaHeads(nn.Module):
  """All heads side by side.

  Attributes:
    config: their shape.
    dtype: of activations.
    param_dtype: of the stored weights.
    layout: how weights and logits are split over devices; None leaves it to the compiler.
  """

  config: MedusaConfig
  dtype: Any
  param_dtype: Any
  layout: layout_lib.Layout | None = None

  def setup(self):
    cfg, width = self.config, self.config.target_width
    shape = (cfg.num_layers, cfg.num_heads, width, width)
    zeros = nn.initializers.zeros
    self.blocks = self.param('blocks', zeros, shape, self.param_dtype)
    self.bias = self.param('bias', zeros, shape[:-1], self.param_dtype)
    self.head = self.param(
        'head',
        layers.normal_init(width),
        (cfg.num_output_heads, cfg.draft_vocab_size, width),
        self.param_dtype,
    )

  def hidden(self, features: Array, head: int) -> Array:
    """What the output head of a head multiplies: [..., width] to [..., width]."""
    x = features.astype(self.dtype)
    blocks = layout_lib.for_use(self.layout, 'blocks', self.blocks)
    # A few rows of the residual stream: whole on every device, for the next product.
    whole = ('batch', *(None,) * (x.ndim - 1))
    for layer in range(self.config.num_layers):
      inner = layers.dense(x, blocks[layer, head])
      x = x + nn.silu(inner + self.bias[layer, head].astype(x.dtype))
      x = layout_lib.constrain(self.layout, x, whole)
    return x

  def __call__(self, features: Array, num_heads: int | None = None) -> Array:
    """Logits of the first heads.

    Args:
      features: [..., width], after the target's final norm.
      num_heads: static, n; None for all.

    Returns:
      [..., n, V_draft] float32.
    """
    count = self.config.num_heads if num_heads is None else num_heads
    kernel = layout_lib.for_use(self.layout, 'head', self.head)
    kernels = [kernel[0 if self.config.shared_head else k] for k in range(count)]
    logits = jnp.stack(
        [layers.dense(self.hidden(features, k), kernels[k], jnp.float32) for k in range(count)],
        axis=-2,
    )
    axes = ('batch', *(None,) * (logits.ndim - 2), 'vocab')
    return layout_lib.constrain(self.layout, logits, axes)


@struct.dataclass
class Medusa:
  """Heads with their weights.

  Attributes:
    module: static.
    params: the parameter tree.
    draft_to_target: [V_draft] int32, the target's id of each draft token, or None where the
      vocabularies are the same.
  """

  module: MedusaHeads = struct.field(pytree_node=False)
  params: Any
  draft_to_target: Array | None = None

  @property
  def config(self) -> MedusaConfig:
    return self.module.config


def init_params(module: MedusaHeads, key: Array, head: Array | None = None) -> Any:
  """Fresh parameters; consumes `key`.

  Args:
    module: the heads.
    key: of the output heads.
    head: [V, width], the target's output head, which every head begins with, as the authors'
      do (the blocks begin as the identity); None draws them.
  """
  x = jnp.zeros((1, module.config.target_width), module.dtype)
  params = dict(module.clone(layout=None).init(key, x)['params'])
  if head is not None:
    params['head'] = jnp.broadcast_to(
        head.astype(module.param_dtype), params['head'].shape
    )
  return params
