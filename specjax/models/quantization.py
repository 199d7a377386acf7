"""Weights in eight bits: one scale per output, activations as they are.

Half the bytes of bfloat16 are read in a pass. The model is another one: losslessness is with
respect to the quantised target, whose own plain decoding speculative decoding reproduces.
"""

from collections.abc import Mapping
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

Array = jax.Array

# Names of the weights that are contracted on their last axis and nothing else.
KERNELS = ('qkv', 'out', 'gate_up', 'down', 'head')


@struct.dataclass
class Quantized:
  """A weight [*out, in] as integers: `values * scales[..., None]`.

  Attributes:
    values: [*out, in] int8, in -127 … 127.
    scales: [*out] float32; 0 for a row of zeros.
  """

  values: Array
  scales: Array


def quantize(weight: Array) -> Quantized:
  """Rounds a weight [*out, in] to the nearest of 255 levels of each output's largest entry.

  An entry is off by at most half a level, 1/254 of the largest entry of its output.
  """
  # In the stored dtype, exactly: a float32 copy would be twice as large as the weight.
  largest = jnp.max(jnp.abs(weight), axis=-1).astype(jnp.float32)
  scales = largest / 127.0
  divisor = jnp.where(scales > 0, scales, 1.0)
  values = jnp.round(weight.astype(jnp.float32) / divisor[..., None])
  return Quantized(values=values.astype(jnp.int8), scales=scales)


def dequantize(weight: Quantized) -> Array:
  """The weight [*out, in] float32 that a quantised one stands for."""
  return weight.values.astype(jnp.float32) * weight.scales[..., None]


def quantize_params(params: Mapping[str, Any]) -> dict[str, Any]:
  """A model's parameters with every kernel of `KERNELS` quantised; embeddings stay as they are."""
  return {
      name: quantize_params(value)
      if isinstance(value, Mapping)
      else (quantize(value) if name in KERNELS else value)
      for name, value in params.items()
  }
