"""The `config.json` of an EAGLE head, in each of the layouts of `specjax.heads.hf.eagle`."""

from collections.abc import Collection, Mapping
import dataclasses
from typing import Any

from specjax.heads.eagle import default_layers, EagleConfig
from specjax.heads.hf import keys as head_keys
from specjax.models.config import TransformerConfig
from specjax.models.hf import config as hf_config
from specjax.models.hf import keys as hf_keys


def layout_of(data: Mapping[str, Any], names: Collection[str]) -> str:
  """The layout of a head with this config and tensors of these names.

  SGLang and the authors name tensors alike: either is `sglang`.
  """
  if 'speculators_model_type' in data:
    return 'speculators'
  return 'deepspec' if 'layers.0.hidden_norm.weight' in names else 'sglang'


def read(
    data: Mapping[str, Any],
    names: Collection[str],
    target: TransformerConfig,
    *,
    layout: str,
    where: str,
) -> EagleConfig:
  """The shape of a head, from its config and, where that says nothing, from its tensors.

  Args:
    data: the content of its `config.json`.
    names: of its tensors.
    target: the config of its target.
    layout: of `layout_of`.
    where: the file, for messages.

  Raises:
    ValueError: for what is not supported or contradicts the target, naming the key.
  """
  values, decoder_data, decoder_where = head_keys.read(
      data, head_keys.EAGLE, is_nested=layout == 'speculators', num_layers=target.num_layers,
      where=where,
  )
  decoder = _decoder(decoder_data, names, decoder_where)
  kind = values['speculators_model_type']
  if kind not in (None, 'eagle', 'eagle3'):
    raise ValueError(f'{where}: speculators of type {kind!r} are not EAGLE heads.')
  switches = _switches(values, where)
  shape = _third if _is_third(values, names) else _first
  try:
    return EagleConfig(
        target_vocab_size=decoder.vocab_size,
        extra_norms=bool(values['layernorms']),
        **switches,
        **shape(values, names, decoder, target),
    )
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error


def _decoder(data: Mapping[str, Any], names, where: str) -> TransformerConfig:
  """The decoder of a head: Llama's, with the biases and norms whose tensors are there."""
  kind = hf_keys.one_of(*head_keys.DECODER_TYPES, default='llama', null=True)
  kind = hf_keys.read(data, {'model_type': kind}, where=where)['model_type']
  # The two differ in what a config.json may leave out.
  family = dict(architectures=['LlamaForCausalLM'], model_type='llama')
  if kind == 'qwen3':
    family = dict(architectures=['Qwen3ForCausalLM'], model_type='qwen3')
  types = hf_keys.read(data, {'layer_types': hf_keys.DECODER['layer_types']}, where=where)
  if 'sliding_attention' in (types['layer_types'] or ()):
    raise ValueError(
        f'{where}: layer_types has sliding_attention, but a head sees all positions; heads with '
        'a window are not supported.'
    )
  decoder = hf_config.read(
      {key: value for key, value in data.items() if key != 'attention_bias'} | family, where=where
  )
  if decoder.sliding_window is not None:
    raise ValueError(
        f'{where}: use_sliding_window=True, but a head sees all positions; heads with a window '
        'are not supported.'
    )
  has = lambda *endings: any(name.endswith(endings) for name in names)
  return dataclasses.replace(
      decoder,
      qkv_bias=has('self_attn.q_proj.bias'),
      qk_norm=has('self_attn.q_norm.weight', 'self_attn.k_norm.weight'),
      tie_embeddings=False,
  )


def _is_third(values: Mapping[str, Any], names: Collection[str]) -> bool:
  """Whether a head is an EAGLE-3 head."""
  # An output head is no sign: files of EAGLE-1 may hold a copy of the target's.
  kind = values['speculators_model_type']
  if kind is None and any(name.endswith('.hidden_norm.weight') for name in names):
    return True
  return kind == 'eagle3' or any('Eagle3' in name for name in values['architectures'] or ())


def _first(values, names, decoder: TransformerConfig, target: TransformerConfig) -> dict[str, Any]:
  """What is particular to an EAGLE-1 head, as fields of `EagleConfig`."""
  del values
  return dict(
      decoder=decoder,
      target_width=decoder.width,
      feature_layers=(target.num_layers,),
      version=1,
      fuse_bias='fc.bias' in names or 'fusion_fc.bias' in names,
  )


def _third(values, names, decoder: TransformerConfig, target: TransformerConfig) -> dict[str, Any]:
  """What is particular to an EAGLE-3 head, as fields of `EagleConfig`."""
  layers = feature_layers(values, target.num_layers)
  count = values['num_aux_hidden_states']
  if count not in (None, len(layers)):
    raise ValueError(f'num_aux_hidden_states={count}, but {len(layers)} layers are read.')
  # The authors' files copy num_hidden_layers from their target; the tensors are of one layer.
  vocab_size = values['draft_vocab_size'] or decoder.vocab_size
  return dict(
      decoder=dataclasses.replace(decoder, num_layers=1, vocab_size=vocab_size),
      target_width=values['target_hidden_size'] or decoder.width,
      feature_layers=layers,
      version=3,
      fuse_bias='fc.bias' in names,
  )


def _switches(values: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The switches of `EagleConfig`, from the top of a config or from its `eagle_config`."""
  nested = values['eagle_config'] or {}
  nested_where = f'{where}: eagle_config'
  nested_values = hf_keys.read(nested, head_keys.EAGLE_CONFIG, where=nested_where)
  known = head_keys.IDLE | set(head_keys.EAGLE_CONFIG)
  hf_keys.refuse_unknown(nested, known, where=nested_where)
  each, joint, norm_output, norm_before_residual = (
      bool(values[name] or nested_values[name])
      for name in ('fc_norm', 'norm_before_fc', 'norm_output', 'norm_before_residual')
  )
  if each and joint:
    raise ValueError(
        f'{where}: fc_norm and norm_before_fc are both true, but a head norms its features '
        'either one by one or side by side.'
    )
  return dict(
      fuse_norm='each' if each else 'joint' if joint else None,
      norm_output=norm_output,
      norm_before_residual=norm_before_residual,
  )


def feature_layers(data: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
  """After how many of the target's layers an EAGLE-3 head reads the residual stream.

  vLLM and speculators count what goes into a layer; SGLang and DeepSpec count the layers that
  the streams come out of, which is one less.

  Args:
    data: the content of the head's `config.json`.
    num_layers: of the target, for heads that do not say.
  """
  ids = data.get('eagle_aux_hidden_state_layer_ids')
  if ids:
    return tuple(ids)
  nested = data.get('eagle_config') or {}
  ids = nested.get('eagle_aux_hidden_state_layer_ids') or data.get('target_layer_ids')
  return tuple(i + 1 for i in ids) if ids else default_layers(num_layers)


def write(config: EagleConfig, layout: str, dtype: str) -> dict[str, Any]:
  """The content of a `config.json`.

  Args:
    config: of the head.
    layout: one of `specjax.heads.LAYOUTS`.
    dtype: of the files.
  """
  decoder = dataclasses.replace(
      config.decoder, vocab_size=config.target_vocab_size, qkv_bias=False, tie_embeddings=False
  )
  data = hf_config.write(decoder) | {'attention_bias': config.decoder.qkv_bias}
  if layout == 'speculators':
    data = _speculators(config, data)
  else:
    data['bias'] = config.fuse_bias
    if config.version == 3:
      data['draft_vocab_size'] = config.decoder.vocab_size
      data['target_hidden_size'] = config.target_width
    if layout == 'sglang':
      data |= _sglang(config)
    elif config.version == 3:
      # The authors' code reads fixed layers; the key is for ours, which reads them from here.
      data['eagle_aux_hidden_state_layer_ids'] = list(config.feature_layers)
  return data | {'dtype': dtype, 'torch_dtype': dtype}


def _written_switches(config: EagleConfig) -> dict[str, bool]:
  return {
      'fc_norm': config.fuse_norm == 'each',
      'norm_before_fc': config.fuse_norm == 'joint',
      'norm_output': config.norm_output,
  }


def _sglang(config: EagleConfig) -> dict[str, Any]:
  """What SGLang's configs say in addition to the authors'."""
  if config.version == 1:
    return {'architectures': ['LlamaForCausalLMEagle']}
  return _written_switches(config) | {
      'architectures': ['LlamaForCausalLMEagle3'],
      'eagle_config': {
          'use_aux_hidden_state': True,
          'eagle_aux_hidden_state_layer_ids': [i - 1 for i in config.feature_layers],
      },
  }


def _speculators(config: EagleConfig, decoder: dict[str, Any]) -> dict[str, Any]:
  """A config of vLLM's speculators, around that of the decoder."""
  is_third = config.version == 3
  data = {
      'architectures': ['Eagle3Speculator' if is_third else 'EagleSpeculator'],
      'speculators_model_type': 'eagle3' if is_third else 'eagle',
      'transformer_layer_config': decoder,
      'speculators_config': {
          'algorithm': 'eagle3' if is_third else 'eagle',
          'default_proposal_method': 'greedy',
          'proposal_methods': [{'proposal_type': 'greedy', 'speculative_tokens': 5}],
          'verifier': {'architectures': ['LlamaForCausalLM'], 'name_or_path': None},
      },
  }
  if not is_third:
    return data | {
        'transformer_layer_architecture': 'LlamaDecoderLayer',
        'fusion_bias': config.fuse_bias,
        'layernorms': config.extra_norms,
    }
  return data | _written_switches(config) | {
      'draft_vocab_size': config.decoder.vocab_size,
      'norm_before_residual': config.norm_before_residual,
      'target_hidden_size': config.target_width,
      'eagle_aux_hidden_state_layer_ids': list(config.feature_layers),
  }
