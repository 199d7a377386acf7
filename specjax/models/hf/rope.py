"""Rotary settings of a Hugging Face `config.json`, read and written in both spellings.

transformers 5 and newer keep them in `rope_parameters`, one set for all layers or, for
Gemma 3, one per kind of layer; older releases in `rope_theta`, `rope_scaling` and
`rope_local_base_freq`. Files with both are common, and ours have both.
"""

from collections.abc import Mapping
from typing import Any

from specjax.models.config import RopeScaling, TransformerConfig, yarn_magnitude
from specjax.models.hf import keys as hf_keys

_NEEDED = {
    'default': (),
    'linear': ('factor',),
    'llama3': ('factor', 'low_freq_factor', 'high_freq_factor'),
    'yarn': ('factor',),
}
# Keys of a set that are no numbers of a scaling.
_UNSCALED = (
    'type',
    'rope_type',
    'rope_theta',
    'partial_rotary_factor',
    'original_max_position_embeddings',
)


def read(
    values: Mapping[str, Any], *, by_layer_type: bool, where: str
) -> tuple[float, RopeScaling | None, float | None]:
  """Rotary settings of a `config.json`.

  Args:
    values: of the file, as `hf_keys.read` gives them for `hf_keys.DECODER`.
    by_layer_type: whether local layers have settings of their own (Gemma 3).
    where: path of the file, for messages.

  Returns:
    Base and scaling of global layers, and base of local layers; None means as global.

  Raises:
    ValueError: for a kind of scaling that is not supported, or contradicting settings.
  """
  parameters = dict(values['rope_parameters'] or {})
  nested = any(isinstance(value, Mapping) for value in parameters.values())
  if parameters and nested != by_layer_type:
    expected = 'one set for each of full_attention and sliding_attention'
    raise ValueError(
        f'{where}: rope_parameters must be {expected if by_layer_type else "one set"} for '
        f'this architecture, got keys {sorted(parameters)}.'
    )
  here = f'{where}: rope_parameters'
  if by_layer_type:
    parameters = hf_keys.read(parameters, hf_keys.ROPE_BY_LAYER, where=here)
    full, local = (
        _settings(parameters[name], f'{here}.{name}')
        for name in ('full_attention', 'sliding_attention')
    )
  else:
    full = _settings(parameters, here)
  older = _settings(values['rope_scaling'], f'{where}: rope_scaling')
  full = _merge(full, older | _theta(values['rope_theta']), where)
  theta = float(full.get('rope_theta', 1e6 if by_layer_type else 1e4))
  lengths = values['original_max_position_embeddings'], values['max_position_embeddings']
  scaling = _scaling(full, *lengths, where)
  if not by_layer_type:
    return theta, scaling, None
  local = _merge(local, _theta(values['rope_local_base_freq']), where)
  local_theta = float(local.get('rope_theta', 1e4))
  local_scaling = _scaling(local, *lengths, where)
  if (local_theta, local_scaling) == (theta, scaling):
    return theta, scaling, None
  if local_scaling is not None:
    raise ValueError(
        f'{where}: rotary scaling of sliding_attention layers is not supported unless it is '
        f'that of full_attention layers, got {local}.'
    )
  return theta, scaling, local_theta


def write(config: TransformerConfig, *, by_layer_type: bool) -> dict[str, Any]:
  """The rotary keys of a `config.json`, in both spellings.

  Raises:
    ValueError: for a scaling that `config.json` files have no words for.
  """
  scaling = _write_scaling(config.rope_scaling)
  full = {'rope_theta': config.rope_theta, **scaling}
  older = {
      'rope_theta': config.rope_theta,
      'rope_scaling': None if config.rope_scaling is None else scaling,
  }
  if not by_layer_type:
    return {'rope_parameters': full, **older}
  local = full
  if config.local_rope_theta is not None:
    local = {'rope_theta': config.local_rope_theta, 'rope_type': 'default'}
  parameters = {'full_attention': full, 'sliding_attention': local}
  return {'rope_parameters': parameters, 'rope_local_base_freq': local['rope_theta'], **older}


def _write_scaling(scaling: RopeScaling | None) -> dict[str, Any]:
  """The keys of a scaling, under the newer names."""
  if scaling is None:
    return {'rope_type': 'default'}
  if scaling.kind == 'factors':
    raise ValueError(
        'No supported Hugging Face architecture divides every rotary frequency by a factor of its '
        "own (RopeScaling('factors')); this model can only be kept in the file it came from."
    )
  keys = {'rope_type': scaling.kind, 'factor': scaling.factor}
  if scaling.kind == 'llama3':
    keys['low_freq_factor'] = scaling.low_freq_factor
    keys['high_freq_factor'] = scaling.high_freq_factor
  if scaling.kind == 'yarn':
    keys['beta_fast'], keys['beta_slow'] = scaling.beta_fast, scaling.beta_slow
    keys['attention_factor'] = float(scaling.magnitude)
    keys['truncate'] = scaling.truncate
  if scaling.kind in ('llama3', 'yarn'):
    keys['original_max_position_embeddings'] = scaling.original_max_positions
  return keys


def _settings(given: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
  """One set of settings: what it says, under the newer names.

  Raises:
    ValueError: for a wrong value, and for numbers of a scaling without its kind, which would
      scale nothing.
  """
  given = given or {}
  values = hf_keys.read(given, hf_keys.ROPE, where=where)
  values.pop('partial_rotary_factor')  # checked: there is one value
  kind = values.pop('type')
  values['rope_type'] = values['rope_type'] or kind
  numbers = [name for name in given if given[name] is not None and name not in _UNSCALED]
  if numbers and values['rope_type'] is None:
    raise ValueError(
        f'{where} has {", ".join(numbers)} but no rope_type: add the kind of scaling, one of '
        f'{", ".join(_NEEDED)}.'
    )
  return {name: value for name, value in values.items() if value is not None}


def _theta(value: float | None) -> dict[str, float]:
  return {} if value is None else {'rope_theta': value}


def _merge(newer: dict[str, Any], older: dict[str, Any], where: str) -> dict[str, Any]:
  """One set of settings from both spellings, which must not contradict each other."""
  for key in newer.keys() & older.keys():
    if newer[key] != older[key]:
      raise ValueError(
          f'{where}: rope_parameters and the older rope_theta / rope_scaling disagree about '
          f'{key}: {newer[key]!r} and {older[key]!r}. Remove one of them.'
      )
  return newer | older


def _scaling(
    rope: Mapping[str, Any], original: int | None, max_positions: int, where: str
) -> RopeScaling | None:
  """The scaling of one set of settings; `original` is the file's own top-level length."""
  kind = rope.get('rope_type', 'default')
  if kind not in _NEEDED:
    raise ValueError(
        f'{where}: rotary scaling {kind!r} is not supported. Supported are '
        f'{", ".join(_NEEDED)}.'
    )
  missing = [key for key in _NEEDED[kind] if rope.get(key) is None]
  if missing:
    raise ValueError(f'{where}: rotary scaling {kind!r} needs {", ".join(missing)}.')
  values = [float(rope[key]) for key in _NEEDED[kind]]
  if kind == 'default':
    return None
  if kind == 'linear':
    return RopeScaling(kind, *values)
  original = original or rope.get('original_max_position_embeddings') or max_positions
  if kind == 'yarn':
    return _yarn(rope, original, where)
  if values[1] >= values[2]:
    raise ValueError(
        f'{where}: rotary scaling {kind!r} needs low_freq_factor < high_freq_factor, got '
        f'{values[1]} and {values[2]}.'
    )
  return RopeScaling(kind, *values, original_max_positions=original)


def _yarn(rope: Mapping[str, Any], original: int, where: str) -> RopeScaling:
  """YaRN's scaling, with the defaults of `transformers`."""
  factor = float(rope['factor'])
  fast, slow = float(rope.get('beta_fast', 32)), float(rope.get('beta_slow', 1))
  if fast <= slow:
    raise ValueError(
        f"{where}: rotary scaling 'yarn' needs beta_fast > beta_slow, got {fast} and {slow}."
    )
  attention = rope.get('attention_factor')
  # DeepSeek's two; one of them alone says nothing.
  if attention is None and 'mscale' in rope and 'mscale_all_dim' in rope:
    attention = yarn_magnitude(factor, rope['mscale']) / yarn_magnitude(
        factor, rope['mscale_all_dim']
    )
  return RopeScaling(
      'yarn',
      factor,
      original_max_positions=original,
      beta_fast=fast,
      beta_slow=slow,
      truncate=rope.get('truncate', True),
      attention_factor=None if attention is None else float(attention),
  )
