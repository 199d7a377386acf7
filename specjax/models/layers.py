"""Building blocks of the decoder: norms, rotary embeddings and products.

Every weight is stored `(out, in)` and contracted on its last axis: on CPUs this
is the layout whose bfloat16 products stay fast when a few rows are verified at
once, and on accelerators it costs nothing. Products accumulate in float32.

Dimension letters are those of `specjax.types`.
"""

import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from specjax.models import config as config_lib
from specjax.models.quantization import Quantized

Array = jax.Array


def dense(
    x: Array, kernel: Array, preferred_element_type: Any = None, *, split: bool = False
) -> Array:
  """Contracts the last axis of `x` with the last axis of `kernel`.

  Args:
    x: [..., in], the compute dtype.
    kernel: [*out, in], stored dtype; cast to that of `x`. Or a `Quantized` one.
    preferred_element_type: dtype of the result; that of `x` when None.
    split: whether the kernel is split over devices along an output axis but the first: its
      output axes must then stay apart.

  Returns:
    [..., *out].
  """
  # One plain matrix product: left with several output axes, XLA's CPU compiler transposes
  # the weight at every call. Products accumulate in float32 whatever the result; asking for
  # a float32 result and rounding after would make the backward pass's products float32.
  if isinstance(kernel, Quantized):
    # The scale belongs to an output: the product is of the integers, exact in bfloat16.
    kind = preferred_element_type or x.dtype
    # In the result's dtype: that is what several devices add up.
    product = dense(x, kernel.values, kind, split=split)
    return (product.astype(jnp.float32) * kernel.scales.astype(jnp.float32)).astype(kind)
  if split:
    return jax.lax.dot_general(
        x,
        kernel.astype(x.dtype),
        (((x.ndim - 1,), (kernel.ndim - 1,)), ((), ())),
        preferred_element_type=preferred_element_type or x.dtype,
    )
  result = jax.lax.dot_general(
      x,
      kernel.reshape(-1, kernel.shape[-1]).astype(x.dtype),
      (((x.ndim - 1,), (1,)), ((), ())),
      preferred_element_type=preferred_element_type or x.dtype,
  )
  return result.reshape(*x.shape[:-1], *kernel.shape[:-1])


def normal_init(fan_in: int):
  """Initialiser of a kernel: normal with variance 1 / fan_in, at any rank."""
  return nn.initializers.normal(stddev=1.0 / math.sqrt(fan_in))


class RMSNorm(nn.Module):
  """Root-mean-square norm over the last axis, in float32 (Zhang & Sennrich 2019).

  Attributes:
    epsilon: added to the mean square.
    offset: added to the stored scale; 1 for Gemma, whose files hold scale - 1.
  """

  epsilon: float
  offset: float = 0.0
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    init = nn.initializers.zeros if self.offset else nn.initializers.ones
    scale = self.param('scale', init, (x.shape[-1],), self.param_dtype)
    values = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(values), axis=-1, keepdims=True)
    values = values * jax.lax.rsqrt(mean_square + self.epsilon)
    return (values * (scale.astype(jnp.float32) + self.offset)).astype(x.dtype)


def rope_frequencies(
    head_dim: int, theta: float, scaling: config_lib.RopeScaling | None
) -> np.ndarray:
  """Inverse frequencies of rotary embeddings.

  Args:
    head_dim: size of a head, even.
    theta: base of the geometric progression (Su et al. 2021, section 3.2.2).
    scaling: None, `linear` (Chen et al. 2023), `llama3` (Llama 3.1: long wavelengths
      divided by `factor`, short ones kept, a linear blend in between), `yarn` (Peng et al. 2023,
      arXiv 2309.00071: likewise, by the rotations in the original context) or `factors`.


  Returns:
    Inverse frequencies [head_dim / 2] float32, constants of the program: an accelerator's
    own power function would be off by more than the rounding at long positions.
  """
  exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  inverse = np.float32(1.0) / np.float32(theta) ** exponent
  if scaling is None:
    return inverse
  if scaling.kind == 'linear':
    return inverse / np.float32(scaling.factor)
  if scaling.kind == 'factors':
    return inverse / np.asarray(scaling.factors, np.float32)
  if scaling.kind == 'yarn':
    stays = _yarn_share(head_dim, theta, scaling)
    return inverse / np.float32(scaling.factor) * (1 - stays) + inverse * stays
  wavelength = np.float32(2.0 * math.pi) / inverse
  low = scaling.original_max_positions / scaling.low_freq_factor
  high = scaling.original_max_positions / scaling.high_freq_factor
  blend = (scaling.original_max_positions / wavelength - scaling.low_freq_factor) / (
      scaling.high_freq_factor - scaling.low_freq_factor
  )
  blended = (1.0 - blend) * inverse / scaling.factor + blend * inverse
  scaled = np.where(wavelength > low, inverse / scaling.factor, blended)
  return np.where(wavelength < high, inverse, scaled).astype(np.float32)


def _yarn_share(head_dim: int, theta: float, scaling: config_lib.RopeScaling) -> np.ndarray:
  """How much of each frequency YaRN keeps, [head_dim / 2] float32 in 0 … 1.

  "NTK-by-parts" (arXiv 2309.00071, section 3.2): 1 for those with more than `beta_fast` rotations
  in the original context, 0 for those with fewer than `beta_slow`. In between it falls linearly
  with the dimension, as in the authors' code and in `transformers`, where the paper's falls with
  the number of rotations.
  """
  # Dimension d makes L / (2 pi theta ** (2 d / head_dim)) rotations; solved for d.
  def dimension(rotations: float) -> float:
    radians = rotations * 2 * math.pi
    return head_dim * math.log(scaling.original_max_positions / radians) / (2 * math.log(theta))

  first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
  if scaling.truncate:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, head_dim - 1)
  last += 0.001 if first == last else 0.0  # a step, not 0 / 0
  ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(first)) / np.float32(last - first)
  return np.float32(1.0) - np.clip(ramp, 0, 1)


def rope_tables(
    positions: Array, head_dim: int, theta: float, scaling: config_lib.RopeScaling | None
) -> tuple[Array, Array]:
  """Rotary tables at `positions` [B, T], for `apply_rope`.

  Returns:
    Cosines [B, T, head_dim] float32, the same for both halves of a head, and sines
    likewise, negated for the first half; both times `scaling.magnitude`.
  """
  inverse = rope_frequencies(head_dim, theta, scaling)
  angles = positions[..., None].astype(jnp.float32) * inverse
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  if scaling is not None and scaling.magnitude != 1.0:
    cos, sin = cos * scaling.magnitude, sin * scaling.magnitude
  tables = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
  # Without the barrier XLA's CPU compiler computes them anew in every layer.
  return jax.lax.optimization_barrier(tables)


def apply_rope(x: Array, cos: Array, sin: Array) -> Array:
  """Rotates the two halves of each head ("rotate half", the Hugging Face layout).

  Args:
    x: [B, T, heads, head_dim].
    cos: [B, T, head_dim] float32, from `rope_tables`.
    sin: [B, T, head_dim] float32, likewise.

  Returns:
    [B, T, heads, head_dim] in the dtype of `x`; the arithmetic is in float32.
  """
  first, second = jnp.split(x, 2, axis=-1)
  swapped = jnp.concatenate([second, first], axis=-1).astype(jnp.float32)
  rotated = x.astype(jnp.float32) * cos[:, :, None, :] + swapped * sin[:, :, None, :]
  return rotated.astype(x.dtype)


def soft_cap(x: Array, cap: float | None) -> Array:
  """`cap * tanh(x / cap)`, Gemma 2's bound on scores and logits; `x` when cap is None."""
  return x if cap is None else cap * jnp.tanh(x / cap)
