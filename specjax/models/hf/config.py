"""`config.json` of a Hugging Face folder to `TransformerConfig`, and back.

Read is what `transformers` (5.23) reads for these architectures, with its defaults for
what a file leaves out; what `TransformerConfig` cannot express is refused by name.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from specjax.models.config import TransformerConfig
from specjax.models.hf import keys as hf_keys
from specjax.models.hf import rope as hf_rope


@dataclasses.dataclass(frozen=True)
class _Family:
  """One architecture of `transformers`.

  Attributes:
    architecture: its class.
    model_type: its `model_type`.
    switches: fields of `TransformerConfig` that the class fixes.
    defaults: values of keys that a `config.json` may leave out, as in `transformers`.
    keys: what it reads beside `hf_keys.DECODER`.
  """

  architecture: str
  model_type: str
  switches: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  keys: hf_keys.Table = dataclasses.field(default_factory=dict)

  @property
  def is_gemma(self) -> bool:
    return 'post_norms' in self.switches


_QWEN_DEFAULTS = dict(
    max_position_embeddings=32768,
    num_key_value_heads=32,
    sliding_window=4096,
    max_window_layers=28,
)
_GEMMA = dict(post_norms=True, norm_offset=1.0)
_GEMMA_DEFAULTS = dict(
    tie_word_embeddings=True,
    hidden_activation='gelu_pytorch_tanh',
    head_dim=256,
    num_key_value_heads=4,
    query_pre_attn_scalar=256,
    sliding_window=4096,
)
FAMILIES = (
    _Family(
        'LlamaForCausalLM', 'llama', {}, dict(max_position_embeddings=2048), hf_keys.NO_GEMMA
    ),
    _Family(
        'MistralForCausalLM',
        'mistral',
        {},
        dict(max_position_embeddings=131072, sliding_window=4096, num_key_value_heads=8),
        hf_keys.NO_GEMMA | hf_keys.WINDOWS,
    ),
    _Family(
        'Qwen2ForCausalLM',
        'qwen2',
        dict(qkv_bias=True),
        _QWEN_DEFAULTS,
        hf_keys.NO_GEMMA | hf_keys.QWEN,
    ),
    _Family(
        'Qwen3ForCausalLM',
        'qwen3',
        dict(qk_norm=True),
        _QWEN_DEFAULTS | dict(head_dim=128),
        hf_keys.NO_GEMMA | hf_keys.QWEN,
    ),
    _Family(
        'Gemma2ForCausalLM',
        'gemma2',
        _GEMMA,
        _GEMMA_DEFAULTS
        | dict(
            max_position_embeddings=8192,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
        ),
        hf_keys.GEMMA,
    ),
    # The published 4B, 12B and 27B leave out even these sizes.
    _Family(
        'Gemma3ForCausalLM',
        'gemma3_text',
        _GEMMA | dict(qk_norm=True),
        _GEMMA_DEFAULTS
        | dict(
            max_position_embeddings=131072,
            vocab_size=262208,
            num_attention_heads=8,
            sliding_window_pattern=6,
        ),
        hf_keys.GEMMA3,
    ),
)
_MULTIMODAL = 'Gemma3ForConditionalGeneration'


def read(data: Mapping[str, Any], *, where: str, text_only: bool = False) -> TransformerConfig:
  """The `TransformerConfig` of a parsed `config.json`.

  Args:
    data: the parsed file.
    where: its path, for messages.
    text_only: accept a Gemma 3 with a vision tower and read its language model alone.

  Raises:
    ValueError: for what is not supported, or missing, naming it and what is supported.
  """
  family, data = _family(data, where, text_only)
  hf_keys.read(data, hf_keys.MODEL, where=where)
  values = hf_keys.read(
      data, hf_keys.DECODER | family.keys, where=where, defaults=family.defaults
  )
  width, heads = values['hidden_size'], values['num_attention_heads']
  head_dim = values['head_dim'] or width // heads
  if head_dim < 2 or head_dim % 2:
    raise ValueError(
        f'{where}: head_dim must be an even integer, got {head_dim} '
        f'(hidden_size={width} / num_attention_heads={heads}).'
    )
  theta, scaling, local_theta = hf_rope.read(
      values, by_layer_type=family.model_type == 'gemma3_text', where=where
  )
  window, local_layers = _windows(values, family, where)
  gemma = {}
  if family.is_gemma:
    gemma = dict(
        embedding_scale=math.sqrt(width),
        query_scale=values['query_pre_attn_scalar'] ** -0.5,
        attention_soft_cap=values['attn_logit_softcapping'],
        logit_soft_cap=values['final_logit_softcapping'],
    )
  try:
    config = TransformerConfig(
        vocab_size=values['vocab_size'],
        width=width,
        num_layers=values['num_hidden_layers'],
        num_heads=heads,
        num_kv_heads=values['num_key_value_heads'] or heads,
        head_dim=head_dim,
        mlp_width=values['intermediate_size'],
        rope_theta=theta,
        rope_scaling=scaling,
        local_rope_theta=local_theta,
        norm_epsilon=values['rms_norm_eps'],
        tie_embeddings=values['tie_word_embeddings'],
        activation=hf_keys.ACTIVATIONS[
            values['hidden_activation' if family.is_gemma else 'hidden_act']
        ],
        sliding_window=window,
        local_layers=local_layers,
        max_positions=values['max_position_embeddings'],
        **family.switches,
        **gemma,
    )
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error
  return canonical(config)


def write(config: TransformerConfig) -> dict[str, Any]:
  """The `config.json` of a model, without dtype and token ids.

  Raises:
    ValueError: when no supported architecture computes what `config` says, naming the
      fields that stand in the way.
  """
  family = _family_for(config)
  data = {
      'architectures': [family.architecture],
      'model_type': family.model_type,
      'vocab_size': config.vocab_size,
      'hidden_size': config.width,
      'intermediate_size': config.mlp_width,
      'num_hidden_layers': config.num_layers,
      'num_attention_heads': config.num_heads,
      'num_key_value_heads': config.num_kv_heads,
      'head_dim': config.head_dim,
      'max_position_embeddings': config.max_positions,
      'rms_norm_eps': config.norm_epsilon,
      'tie_word_embeddings': config.tie_embeddings,
      **hf_rope.write(config, by_layer_type=family.model_type == 'gemma3_text'),
      **_write_windows(config, family),
  }
  activation = {'silu': 'silu', 'gelu_tanh': 'gelu_pytorch_tanh'}[config.activation]
  data['hidden_activation' if family.is_gemma else 'hidden_act'] = activation
  if family.is_gemma:
    scalar = (config.query_scale or config.head_dim**-0.5) ** -2
    near = round(scalar)
    data['query_pre_attn_scalar'] = near if math.isclose(scalar, near) else scalar
    data['attn_logit_softcapping'] = config.attention_soft_cap
    data['final_logit_softcapping'] = config.logit_soft_cap
  # Reading back shows whether the architecture computes all that the record says.
  wanted, written = canonical(config), read(data, where='config')
  different = [
      field.name
      for field in dataclasses.fields(config)
      if getattr(wanted, field.name) != getattr(written, field.name)
  ]
  if different:
    details = ', '.join(f'{name}={getattr(config, name)!r}' for name in different)
    raise ValueError(
        f'No supported Hugging Face architecture computes this model: {family.architecture} '
        f'is nearest but differs in {details}.'
    )
  return data


def canonical(config: TransformerConfig) -> TransformerConfig:
  """The same model, written in one way: equal models give equal records."""
  windows = [config.window(layer) is not None for layer in range(config.num_layers)]
  changes = {}
  if not any(windows):
    changes = dict(sliding_window=None, local_layers=(), local_rope_theta=None)
  elif all(windows):
    changes = dict(local_layers=())
  if config.local_rope_theta == config.rope_theta and config.rope_scaling is None:
    changes['local_rope_theta'] = None
  if config.rope_scaling is not None:
    changes['rope_scaling'] = config.rope_scaling.canonical()
  if config.query_scale == config.head_dim**-0.5:
    changes['query_scale'] = None
  return dataclasses.replace(config, **changes)


def _family(data, where: str, text_only: bool) -> tuple[_Family, Mapping[str, Any]]:
  """The family of a `config.json`, and the record that describes its language model."""
  values = hf_keys.read(data, hf_keys.MODEL, where=where)
  architectures = values['architectures'] or ()
  if _MULTIMODAL in architectures:
    if not text_only:
      raise ValueError(
          f'{where}: {_MULTIMODAL} has a vision tower, which is not supported; pass '
          'text_only=True to load its language model alone.'
      )
    text = dict(values['text_config'] or {})
    text.setdefault('tie_word_embeddings', data.get('tie_word_embeddings', True))
    return next(f for f in FAMILIES if f.model_type == 'gemma3_text'), text
  model_type = values['model_type']
  for family in FAMILIES:
    # `transformers` itself goes by the type; older files may lack one of the two.
    right_type = model_type in (family.model_type, None)
    right_class = family.architecture in architectures or (not architectures and model_type)
    if right_type and right_class:
      return family, data
  supported = ', '.join(family.architecture for family in FAMILIES)
  raise ValueError(
      f'{where}: architectures={list(architectures)}, model_type={model_type!r} is not supported. '
      f'Supported are {supported}.'
  )


def _family_for(config: TransformerConfig) -> _Family:
  """The architecture with the record's switches."""
  names = ('qkv_bias', 'qk_norm', 'post_norms')
  for family in FAMILIES:
    fits = all(getattr(config, name) == family.switches.get(name, False) for name in names)
    # Llama and Mistral differ in the window alone.
    window = canonical(config).sliding_window is not None
    if fits and not (family.model_type == 'llama' and window):
      return family
  switches = ', '.join(f'{name}={getattr(config, name)}' for name in names)
  raise ValueError(f'No supported Hugging Face architecture has {switches}.')


def _windows(values: Mapping[str, Any], family: _Family, where: str):
  """`sliding_window` and `local_layers` of the record."""
  kind, num_layers = family.model_type, values['num_hidden_layers']
  window = values.get('sliding_window')
  if kind in ('qwen2', 'qwen3') and not values['use_sliding_window']:
    window = None
  rule = {
      'llama': lambda layer: False,
      'mistral': lambda layer: window is not None,
      'qwen2': lambda layer: window is not None and layer >= values['max_window_layers'],
      'qwen3': lambda layer: window is not None and layer >= values['max_window_layers'],
      'gemma2': lambda layer: layer % 2 == 0,
      'gemma3_text': lambda layer: (layer + 1) % values['sliding_window_pattern'] != 0,
  }[kind]
  local = tuple(rule(layer) for layer in range(num_layers))
  types = values['layer_types']
  if types is not None:
    unknown = sorted(set(types) - {'full_attention', 'sliding_attention'})
    if unknown:
      raise ValueError(
          f'{where}: layer_types {unknown} are not supported. Supported are '
          'full_attention, sliding_attention.'
      )
    listed = tuple(name == 'sliding_attention' for name in types)
    if len(listed) != num_layers:
      raise ValueError(
          f'{where}: layer_types has {len(listed)} entries for {num_layers} layers.'
      )
    if kind in ('llama', 'mistral') and listed != local:
      raise ValueError(f'{where}: {family.architecture} with mixed layer_types is not supported.')
    local = listed
  if any(local) and window is None:
    raise ValueError(
        f'{where}: layers with sliding_attention need sliding_window, a positive integer'
        f' (and use_sliding_window in Qwen), got {window!r}.'
    )
  return (window, local) if any(local) else (None, ())


def _write_windows(config: TransformerConfig, family: _Family) -> dict[str, Any]:
  local = [config.window(layer) is not None for layer in range(config.num_layers)]
  kind = family.model_type
  if kind == 'llama':
    return {}
  if kind == 'mistral':
    return {'sliding_window': config.sliding_window if any(local) else None}
  types = ['sliding_attention' if flag else 'full_attention' for flag in local]
  data = {'layer_types': types, 'sliding_window': config.sliding_window}
  if kind in ('qwen2', 'qwen3'):
    data['use_sliding_window'] = any(local)
    # Older readers know a first local layer only.
    data['max_window_layers'] = local.index(True) if any(local) else config.num_layers
  return data
