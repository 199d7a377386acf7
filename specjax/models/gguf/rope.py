"""Rotary settings of a GGUF file: metadata, and the tensor of Llama 3.1's factors."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from specjax.models import layers
from specjax.models.config import RopeScaling
from specjax.models.gguf import files
from specjax.models.hf import keys as hf_keys

# Divisors of the frequencies, [head_dim / 2] float32.
FACTORS = 'rope_freqs.weight'
_FLOAT32 = 0
_KINDS = ('none', 'linear', 'yarn')
_NULL = dict(default=None, null=True)
KEYS: hf_keys.Table = {
    'rope.dimension_count': hf_keys.even(**_NULL),
    'rope.freq_base': hf_keys.number(default=1e4),
    'rope.freq_base_swa': hf_keys.number(**_NULL),
    'rope.scale_linear': hf_keys.number(**_NULL),
    'rope.scaling.type': hf_keys.one_of(*_KINDS, default='linear'),
    'rope.scaling.factor': hf_keys.number(**_NULL),
    'rope.scaling.original_context_length': hf_keys.integer(**_NULL),
    'rope.scaling.finetuned': hf_keys.flag(default=None),
    'rope.scaling.attn_factor': hf_keys.only(1.0),
    'rope.scaling.yarn_ext_factor': hf_keys.only(1.0, -1.0),
    'rope.scaling.yarn_attn_factor': hf_keys.number(**_NULL),
    'rope.scaling.yarn_beta_fast': hf_keys.number(default=32.0),
    'rope.scaling.yarn_beta_slow': hf_keys.number(default=1.0),
    'rope.scaling.yarn_log_multiplier': hf_keys.only(0.0),
}


def read(
    values: Mapping[str, Any], header: files.Header, name: str, head_dim: int
) -> tuple[float, RopeScaling | None, float | None]:
  """Rotary settings of a file.

  `rope.scaling.yarn_attn_factor` is what the converter writes there, the `attention_factor` of a
  `config.json`: what cosines and sines are multiplied with, in place of 0.1 ln(factor) + 1.

  Args:
    values: of `KEYS`, and `context_length`.
    header: of the file, for `rope_freqs.weight`.
    name: of the architecture.
    head_dim: size of a head.

  Returns:
    Base and scaling of global layers, and base of local layers; None means as global.

  Raises:
    ValueError: for settings that contradict each other, or that this architecture has not.
  """
  where, theta = str(header.path), float(values['rope.freq_base'])
  scaling = _scaling(values, name, where)
  if name == 'llama' and FACTORS in header.tensors:
    if scaling is not None:
      raise ValueError(
          f'{where}: tensor {FACTORS} beside {name}.rope.scaling.factor is not supported.'
      )
    return theta, _read_factors(header, head_dim, theta), None
  local = values['rope.freq_base_swa']
  if name == 'gemma3':
    if scaling is not None and scaling.kind == 'yarn':
      raise ValueError(f"{where}: {name}.rope.scaling.type='yarn' is not supported.")
    return theta, scaling, float(local or 1e4)
  if local not in (None, theta):
    raise ValueError(
        f'{where}: {name}.rope.freq_base_swa={local} is not supported: only {name}.rope.freq_base '
        f'({theta}) is.'
    )
  return theta, scaling, None


def _scaling(values: Mapping[str, Any], name: str, where: str) -> RopeScaling | None:
  kind = values['rope.scaling.type']
  factor = values['rope.scaling.factor'] or values['rope.scale_linear']
  if kind == 'none':
    return None
  if kind == 'yarn':
    if factor is None:
      raise ValueError(
          f"{where}: {name}.rope.scaling.type='yarn' needs {name}.rope.scaling.factor."
      )
    fast, slow = values['rope.scaling.yarn_beta_fast'], values['rope.scaling.yarn_beta_slow']
    if fast <= slow:
      raise ValueError(
          f'{where}: {name}.rope.scaling.yarn_beta_fast must be above yarn_beta_slow, got {fast} '
          f'and {slow}.'
      )
    original = values['rope.scaling.original_context_length'] or values['context_length']
    return RopeScaling(
        kind, factor, original_max_positions=original, beta_fast=fast, beta_slow=slow,
        attention_factor=values['rope.scaling.yarn_attn_factor'],
    )
  return None if factor in (None, 1.0) else RopeScaling(kind, factor)


def _read_factors(header: files.Header, head_dim: int, theta: float) -> RopeScaling | None:
  """The scaling of `rope_freqs.weight`: None for ones, 'llama3' where it is Llama 3.1's."""
  tensor, where = header.tensors[FACTORS], f'{header.path}: tensor {FACTORS}'
  if (tensor.shape, tensor.kind) != ((head_dim // 2,), _FLOAT32):
    raise ValueError(
        f'{where} must be float32 of shape {(head_dim // 2,)}, got type {tensor.kind} of shape '
        f'{tensor.shape}.'
    )
  num_bytes = tensor.num_bytes(1, 4)
  if tensor.offset + num_bytes > header.size:
    raise ValueError(
        f'{header.path} is truncated: {FACTORS} lies beyond its end at byte {header.size:,}. '
        'Fetch it again.'
    )
  factors = tensor.rows(num_bytes).view('<f4')[0]
  if not (np.isfinite(factors) & (factors > 0)).all():
    raise ValueError(f'{where} must hold positive numbers: it is damaged, fetch it again.')
  if (factors == 1).all():
    return None
  # The converter computes them from Llama 3.1's constants; equal within its rounding, they are
  # these, and the record is that of the model's own `config.json`.
  llama3 = RopeScaling('llama3', float(factors.max()), 1.0, 4.0, 8192)
  plain, scaled = (layers.rope_frequencies(head_dim, theta, each) for each in (None, llama3))
  if np.allclose(plain / factors, scaled, rtol=1e-5, atol=0):
    return llama3
  return RopeScaling('factors', factors=tuple(map(float, factors)))
