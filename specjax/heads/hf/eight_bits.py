"""Weights of heads in eight bits: int8 with a float32 scale per output beside them.

A `.weight` may be int8 with a `.weight_scale` [out, 1] beside it, as compressed-tensors stores
them; a file takes half of what bfloat16 takes. Norms and biases keep their dtype.
"""

from collections.abc import Iterable, Mapping
import pathlib

import jax.numpy as jnp
import numpy as np

from specjax.models import quantization
from specjax.models.hf import files as hf_files

_SCALE = '_scale'


def rounded(tensors: Iterable[hf_files.Unwritten]) -> list[hf_files.Unwritten]:
  """The tensors, every weight of two axes in eight bits, followed by its scales."""
  return [each for tensor in tensors for each in _rounded(tensor)]


def _rounded(tensor: hf_files.Unwritten) -> list[hf_files.Unwritten]:
  if not tensor.name.endswith('.weight') or len(tensor.shape) != 2:
    return [tensor]
  quantized = quantization.quantize(jnp.asarray(tensor.make()))
  arrays = {
      tensor.name: np.asarray(quantized.values),
      f'{tensor.name}{_SCALE}': np.asarray(quantized.scales)[:, None],
  }
  return [
      hf_files.Unwritten(name, array.shape, array.dtype, lambda a=array: a)
      for name, array in arrays.items()
  ]


def floats(folder: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors, with every int8 one multiplied by its scales.

  Raises:
    ValueError: naming an int8 tensor that has no scales, or others than one per output.
  """
  result = {}
  integers = {name for name, value in tensors.items() if value.dtype == np.int8}
  for name, value in tensors.items():
    if name.removesuffix(_SCALE) in integers - {name}:
      continue
    if name in integers:
      scales = tensors.get(f'{name}{_SCALE}')
      expected = (*value.shape[:1], 1)
      if scales is None or scales.shape != expected:
        raise ValueError(
            f'{folder}: {name} is int8 and needs {name}{_SCALE} of shape {expected}, got '
            f'{"none" if scales is None else scales.shape}. Export the head again with one '
            'scale per output.'
        )
      value = value.astype(np.float32) * scales.astype(np.float32)
    result[name] = value
  return result
