"""EAGLE heads in and out, in the layouts in which others publish them.

| layout | EAGLE-1 and EAGLE-2 | EAGLE-3 |
|---|---|---|
| `authors` | `layers.0.…`, `fc.…` | `midlayer.…`, `fc`, `norm`, `lm_head`, `d2t`, `t2d` |
| `sglang` | the same, under its own architecture names | the same, with `eagle_config` |
| `speculators` (vLLM) | `transformer.…`, `fusion_fc.…`, nested | `layers.0.…`, nested config |

DeepSpec's EAGLE-3 is as SGLang's with the names `layers.0.…`, read and not written. EAGLE-3.1 adds
`fc_norm.{i}.weight`, or `input_norm.weight` where one norm takes all features; heads of Qwen3 add
`q_norm` and `k_norm`.

`embed_tokens.weight` may be there or not, and so may `lm_head.weight` of an EAGLE-3 head over the
whole vocabulary, which then has the target's. `d2t` holds each draft token's distance to the
target's token, `t2d` marks the target's tokens that have one. Files are `model.safetensors` or
`pytorch_model.bin`. Every tensor is accounted for: a missing or a superfluous one is an error. So
is every key of `config.json` (`specjax.heads.hf.keys`).
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from specjax.heads import target as target_lib
from specjax.heads.eagle import default_layers, Eagle, EagleConfig, EagleHead
from specjax.heads.hf import keys as head_keys
from specjax.heads.hf import torch_files
from specjax.models import LanguageModel
from specjax.models.config import TransformerConfig
from specjax.models.hf import config as hf_config
from specjax.models.hf import files as hf_files
from specjax.models.hf import keys as hf_keys

LAYOUTS = ('authors', 'sglang', 'speculators')
TORCH_FILE = 'pytorch_model.bin'
# The target's own, which training code of speculators leaves in its files; and old buffers.
_IGNORED = ('verifier_norm.weight', 'verifier_lm_head.weight', 'rotary_emb.inv_freq')


def load_eagle(
    folder: str | os.PathLike, target: LanguageModel, *, dtype: Any = None
) -> Eagle:
  """Loads an EAGLE-1, EAGLE-2 or EAGLE-3 head in any of the layouts.

  Args:
    folder: with `config.json` and `model.safetensors` or `pytorch_model.bin`.
    target: the target that it was made for: its depth says which layers an EAGLE-3 head
      reads where its config does not, and its embedding is shared where the head brings the
      same or none. So is its output head, where an EAGLE-3 head over the whole vocabulary
      brings none.
    dtype: of weights and activations; None keeps that of the files.

  Returns:
    The head; its logits agree with the authors' code to 1e-4 in float32.

  Raises:
    FileNotFoundError: when the folder or a file is missing.
    ValueError: when a tensor is missing, superfluous or of another shape, the vocabulary
      maps contradict each other, `config.json` says what is not supported, or head and target
      do not fit; naming them.
  """
  folder = pathlib.Path(folder)
  data = _read_config(folder)
  tensors = _read_tensors(folder)
  where = str(folder)
  layout = _layout_of(data, tensors)
  config = _config(data, tensors, target.module.config, layout, str(folder / 'config.json'))
  target_lib.check_fits(config, target)
  own_head = 'lm_head.weight' in tensors
  names = dict(_names(
      config, layout, with_embedding='embed_tokens.weight' in tensors,
      with_head=own_head or _is_reduced(config),
  ))
  maps = {name for name in ('d2t', 't2d') if name in tensors and config.version == 3}
  copies = {'lm_head.weight'} if own_head and config.version == 1 else set()
  _check_names(set(tensors), set(names) | maps | copies, where)
  if _is_reduced(config) and 'd2t' not in tensors:
    raise ValueError(
        f'{where}: the draft vocabulary has {config.decoder.vocab_size} of '
        f'{config.target_vocab_size} tokens, but the tensor d2t, which maps them, is missing.'
    )
  kept = np.dtype(dtype or tensors[f'{_fuse_name(config, layout)}.weight'].dtype)
  values: dict[str, np.ndarray] = {}
  for name, shape in names.items():
    if tensors[name].shape != shape:
      raise ValueError(f'{where}: {name} has shape {tensors[name].shape}, expected {shape}.')
    if tensors[name].dtype.kind in 'biu':
      raise ValueError(f'{where}: {name} has dtype {tensors[name].dtype}, expected floats.')
    values[name] = tensors[name]
  if 'embed_tokens.weight' not in values and config.decoder.width != config.target_width:
    raise ValueError(
        f'{where}: the head has width {config.decoder.width} and no embed_tokens.weight; the '
        f"target's embedding, of width {config.target_width}, does not fit it."
    )
  if copies:
    target_lib.check_copy(tensors['lm_head.weight'], target, where)
  if config.version == 3 and not own_head:
    tied = bool(data.get('tie_word_embeddings')) and 'embed_tokens.weight' in values
    head = values['embed_tokens.weight'] if tied else _targets_head(config, target, where)
    values['lm_head.weight'] = head
  params = _to_params(values, config, layout, kept)
  embedding = None
  if 'embed_tokens.weight' in values:
    embedding = _own_embedding(values['embed_tokens.weight'], target, kept)
  draft_to_target = _vocabulary_map(tensors, config, where) if 'd2t' in tensors else None
  module = EagleHead(config, dtype=kept, param_dtype=kept)
  return Eagle(module, params, embedding, draft_to_target)


def save_eagle(
    head: Eagle,
    folder: str | os.PathLike,
    *,
    layout: str = 'sglang',
    dtype: Any = None,
    embedding: Any = None,
    extra_files=(),
) -> None:
  """Saves a head in one of the layouts; the folder appears complete or not at all.

  Args:
    head: the head.
    folder: must not exist yet, or be empty.
    layout: one of `LAYOUTS`.
    dtype: of the files; None keeps that of the parameters.
    embedding: [V, width] to store for readers that need one where the head has none of its
      own (the target's).
    extra_files: copied into the folder.

  Raises:
    FileExistsError: when the folder holds something.
    ValueError: for an unknown layout, or a head that it cannot express.
  """
  if layout not in LAYOUTS:
    raise ValueError(f'layout must be one of {LAYOUTS}, got {layout!r}.')
  config = head.config
  if layout != 'speculators' and (
      config.norm_before_residual or config.extra_norms or config.decoder.qk_norm
  ):
    raise ValueError(
        f'The {layout} layout has no place for norm_before_residual, extra_norms or qk_norm; '
        "save the head with layout='speculators'."
    )
  if layout == 'authors' and (config.fuse_norm or config.norm_output):
    raise ValueError(
        'The authors layout has no place for fuse_norm or norm_output; save the head with '
        "layout='sglang' or 'speculators'."
    )
  embedding = head.embedding if head.embedding is not None else embedding
  names = dict(_names(config, layout, with_embedding=embedding is not None))
  values = _from_params(head.params, config, layout)
  if embedding is not None:
    values['embed_tokens.weight'] = np.asarray(embedding)
  tensors = []
  for name, shape in names.items():
    value = np.asarray(values[name]).reshape(shape)
    kept = np.dtype(dtype or value.dtype)
    tensors.append(hf_files.Unwritten(name, shape, kept, lambda v=value, k=kept: v.astype(k)))
  if head.draft_to_target is not None:
    ids = np.asarray(head.draft_to_target, np.int64)
    offsets = ids - np.arange(len(ids))
    known = np.zeros(config.target_vocab_size, bool)
    known[ids] = True
    for name, value in (('d2t', offsets), ('t2d', known)):
      tensors.append(hf_files.Unwritten(name, value.shape, value.dtype, lambda v=value: v))
  stored = tensors[0].dtype.name
  hf_files.publish(
      folder, _write_config(config, layout, stored), tensors, extra_files=extra_files
  )


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
  file = folder / 'config.json'
  if not file.exists():
    hf_files.refuse_adapter(folder)
    raise FileNotFoundError(f'{file} is missing: {folder} is not the folder of a head.')
  return hf_files.read_json(file)


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors by name, without a leading `model.` and without what is known as idle."""
  if (folder / TORCH_FILE).exists() and not (folder / hf_files.SINGLE).exists():
    tensors = torch_files.read(folder / TORCH_FILE)
  else:
    stored = hf_files.open_folder(folder, dtypes=hf_files.FLOATS | hf_files.INTEGERS)
    tensors = {name: tensor.read() for name, tensor in stored.items()}
  stripped = {name.removeprefix('model.'): value for name, value in tensors.items()}
  return {name: value for name, value in stripped.items() if not name.endswith(_IGNORED)}


def _layout_of(data: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
  # SGLang and the authors name tensors alike.
  if 'speculators_model_type' in data:
    return 'speculators'
  return 'deepspec' if 'layers.0.hidden_norm.weight' in tensors else 'sglang'


def _config(data, tensors, target: TransformerConfig, layout: str, where: str) -> EagleConfig:
  """The head's shape, from its config and where that is silent from its tensors."""
  values = hf_keys.read(data, head_keys.EAGLE, where=where)
  known = head_keys.IDLE | head_keys.DECODER
  hf_keys.refuse_unknown(data, known | set(head_keys.EAGLE), where=where)
  inner, inside = data, where
  if layout == 'speculators':
    inner, inside = values['transformer_layer_config'], f'{where}: transformer_layer_config'
    if inner is None:
      raise ValueError(f'{where}: config.json has no transformer_layer_config.')
    hf_keys.refuse_unknown(inner, known, where=inside)
    hf_keys.read(data, hf_keys.MODEL, where=where)
  decoder = _decoder(inner, tensors, inside)
  kind = values['speculators_model_type']
  if kind not in (None, 'eagle', 'eagle3'):
    raise ValueError(f'{where}: speculators of type {kind!r} are not EAGLE heads.')
  # An output head is no sign: files of EAGLE-1 may hold a copy of the target's.
  is_third = kind == 'eagle3' or any('Eagle3' in name for name in values['architectures'] or ())
  if kind is None:
    is_third |= any(name.endswith('.hidden_norm.weight') for name in tensors)
  flags = _flags(values, where)
  fuse_norm = None
  if flags['fc_norm'] and flags['norm_before_fc']:
    raise ValueError(
        f'{where}: fc_norm and norm_before_fc are both true: a head norms its features one by '
        'one or side by side, not twice.'
    )
  if flags['fc_norm'] or flags['norm_before_fc']:
    fuse_norm = 'each' if flags['fc_norm'] else 'joint'
  common = dict(
      target_vocab_size=decoder.vocab_size,
      fuse_norm=fuse_norm,
      norm_output=flags['norm_output'],
      norm_before_residual=flags['norm_before_residual'],
      extra_norms=bool(values['layernorms']),
  )
  depth = values['num_target_layers']
  if depth is not None and depth != target.num_layers:
    raise ValueError(
        f'{where}: num_target_layers={depth}, the target has {target.num_layers}. Use the head '
        'that was made for it.'
    )
  try:
    if not is_third:
      return EagleConfig(
          decoder=decoder,
          target_width=decoder.width,
          feature_layers=(target.num_layers,),
          version=1,
          fuse_bias='fc.bias' in tensors or 'fusion_fc.bias' in tensors,
          **common,
      )
    layers = _feature_layers(values, target.num_layers)
    count = values['num_aux_hidden_states']
    if count not in (None, len(layers)):
      raise ValueError(f'num_aux_hidden_states={count}, but {len(layers)} layers are read.')
    # The authors' files copy num_hidden_layers from their target; the tensors are of one layer.
    return EagleConfig(
        decoder=dataclasses.replace(
            decoder, num_layers=1, vocab_size=values['draft_vocab_size'] or decoder.vocab_size
        ),
        target_width=values['target_hidden_size'] or decoder.width,
        feature_layers=layers,
        version=3,
        fuse_bias='fc.bias' in tensors,
        **common,
    )
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error


def _decoder(data: Mapping[str, Any], tensors, where: str) -> TransformerConfig:
  """The decoder of a head: Llama's, with the biases and norms that the tensors show."""
  kind = hf_keys.one_of(*head_keys.DECODER_TYPES, default='llama', null=True)
  kind = hf_keys.read(data, {'model_type': kind}, where=where)['model_type']
  # The two differ in what a config.json may leave out.
  qwen = kind == 'qwen3'
  names = dict(architectures=['Qwen3ForCausalLM'], model_type='qwen3') if qwen else dict(
      architectures=['LlamaForCausalLM'], model_type='llama'
  )
  types = hf_keys.read(data, {'layer_types': hf_keys.DECODER['layer_types']}, where=where)
  if 'sliding_attention' in (types['layer_types'] or ()):
    raise ValueError(
        f'{where}: layer_types has sliding_attention, but a head sees all positions; heads with '
        'a window are not supported.'
    )
  ends = lambda *tails: any(name.endswith(tails) for name in tensors)
  decoder = hf_config.read(
      {key: value for key, value in data.items() if key != 'attention_bias'} | names, where=where
  )
  if decoder.sliding_window is not None:
    raise ValueError(
        f'{where}: use_sliding_window=True, but a head sees all positions; heads with a window '
        'are not supported.'
    )
  return dataclasses.replace(
      decoder,
      qkv_bias=ends('self_attn.q_proj.bias'),
      qk_norm=ends('self_attn.q_norm.weight', 'self_attn.k_norm.weight'),
      tie_embeddings=False,
  )


def _flags(values: Mapping[str, Any], where: str) -> dict[str, bool]:
  """The switches that add no tensor, from the top of a config or from its `eagle_config`."""
  nested = values['eagle_config'] or {}
  here = f'{where}: eagle_config'
  inner = hf_keys.read(nested, head_keys.EAGLE_CONFIG, where=here)
  hf_keys.refuse_unknown(nested, head_keys.IDLE | set(head_keys.EAGLE_CONFIG), where=here)
  return {
      name: bool(values[name] or inner[name])
      for name in ('norm_before_residual', 'norm_before_fc', 'fc_norm', 'norm_output')
  }


def _feature_layers(data: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
  """After how many layers the streams are taken.

  vLLM and speculators count what goes into a layer; SGLang and DeepSpec count the layers that
  the streams come out of, which is one less.
  """
  ids = data.get('eagle_aux_hidden_state_layer_ids')
  if ids:
    return tuple(ids)
  nested = data.get('eagle_config') or {}
  ids = nested.get('eagle_aux_hidden_state_layer_ids') or data.get('target_layer_ids')
  return tuple(i + 1 for i in ids) if ids else default_layers(num_layers)


def _write_config(config: EagleConfig, layout: str, dtype: str) -> dict[str, Any]:
  plain = dataclasses.replace(
      config.decoder, vocab_size=config.target_vocab_size, qkv_bias=False, tie_embeddings=False
  )
  inner = hf_config.write(plain) | {'attention_bias': config.decoder.qkv_bias}
  is_third = config.version == 3
  switches = {
      'fc_norm': config.fuse_norm == 'each',
      'norm_before_fc': config.fuse_norm == 'joint',
      'norm_output': config.norm_output,
  }
  if layout == 'speculators':
    data = {
        'architectures': ['Eagle3Speculator' if is_third else 'EagleSpeculator'],
        'speculators_model_type': 'eagle3' if is_third else 'eagle',
        'transformer_layer_config': inner,
        'speculators_config': {
            'algorithm': 'eagle3' if is_third else 'eagle',
            'default_proposal_method': 'greedy',
            'proposal_methods': [{'proposal_type': 'greedy', 'speculative_tokens': 5}],
            'verifier': {'architectures': ['LlamaForCausalLM'], 'name_or_path': None},
        },
    }
    if is_third:
      data |= switches | {
          'draft_vocab_size': config.decoder.vocab_size,
          'norm_before_residual': config.norm_before_residual,
          'target_hidden_size': config.target_width,
          'eagle_aux_hidden_state_layer_ids': list(config.feature_layers),
      }
    else:
      data |= {
          'transformer_layer_architecture': 'LlamaDecoderLayer',
          'fusion_bias': config.fuse_bias,
          'layernorms': config.extra_norms,
      }
    return data | {'dtype': dtype, 'torch_dtype': dtype}
  data = inner | {'dtype': dtype, 'torch_dtype': dtype, 'bias': config.fuse_bias}
  if is_third:
    data |= {
        'draft_vocab_size': config.decoder.vocab_size,
        'target_hidden_size': config.target_width,
    }
  if layout == 'sglang':
    name = 'LlamaForCausalLMEagle3' if is_third else 'LlamaForCausalLMEagle'
    data['architectures'] = [name]
    if is_third:
      data |= switches
      data['eagle_config'] = {
          'use_aux_hidden_state': True,
          'eagle_aux_hidden_state_layer_ids': [i - 1 for i in config.feature_layers],
      }
  elif is_third:
    # The authors' code reads fixed layers; the key tells ours, which reads them from here.
    data['eagle_aux_hidden_state_layer_ids'] = list(config.feature_layers)
  return data


def _prefix(config: EagleConfig, layout: str, layer: int) -> str:
  if config.version == 3:
    return 'midlayer.' if layout in ('authors', 'sglang') else 'layers.0.'
  if layout == 'speculators':
    return 'transformer.'
  return f'layers.{layer}.'


def _is_reduced(config: EagleConfig) -> bool:
  """Whether the draft vocabulary is a part of the target's."""
  return config.version == 3 and config.decoder.vocab_size < config.target_vocab_size


def _fuse_name(config: EagleConfig, layout: str) -> str:
  return 'fusion_fc' if layout == 'speculators' and config.version == 1 else 'fc'


def _names(
    config: EagleConfig, layout: str, *, with_embedding: bool, with_head: bool = True
) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Every tensor of a head and its shape; the vocabulary maps apart."""
  cfg, width = config.decoder, config.decoder.width
  is_third = config.version == 3
  if with_embedding:
    yield 'embed_tokens.weight', (config.target_vocab_size, width)
  fuse = _fuse_name(config, layout)
  fan_in = len(config.feature_layers) * config.target_width if is_third else 2 * width
  yield f'{fuse}.weight', (width, fan_in)
  if config.fuse_bias:
    yield f'{fuse}.bias', (width,)
  if config.fuse_norm == 'each':
    for number in range(len(config.feature_layers)):
      yield f'fc_norm.{number}.weight', (config.target_width,)
  elif config.fuse_norm == 'joint':
    yield 'input_norm.weight', (fan_in,)
  for layer in range(cfg.num_layers):
    prefix = _prefix(config, layout, layer)
    heads, groups = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    for name, size in (('q', heads), ('k', groups), ('v', groups)):
      yield f'{prefix}self_attn.{name}_proj.weight', (size, 2 * width if is_third else width)
      if cfg.qkv_bias:
        yield f'{prefix}self_attn.{name}_proj.bias', (size,)
    if cfg.qk_norm:
      yield f'{prefix}self_attn.q_norm.weight', (cfg.head_dim,)
      yield f'{prefix}self_attn.k_norm.weight', (cfg.head_dim,)
    yield f'{prefix}self_attn.o_proj.weight', (width, heads)
    for name in ('gate', 'up'):
      yield f'{prefix}mlp.{name}_proj.weight', (cfg.mlp_width, width)
    yield f'{prefix}mlp.down_proj.weight', (width, cfg.mlp_width)
    yield f'{prefix}post_attention_layernorm.weight', (width,)
    if is_third:
      yield f'{prefix}hidden_norm.weight', (width,)
    if is_third or layer > 0 or config.extra_norms:
      yield f'{prefix}input_layernorm.weight', (width,)
  if is_third:
    yield 'norm.weight', (width,)
    if with_head:
      yield 'lm_head.weight', (cfg.vocab_size, width)
  elif config.extra_norms:
    yield 'embedding_layernorm.weight', (width,)
    yield 'pre_lm_head_layernorm.weight', (width,)


def _fuse_norms(config: EagleConfig) -> list[tuple[str, str]]:
  """Norms before the fusing product: names in the parameter tree and in files."""
  if config.fuse_norm == 'joint':
    return [('fuse_norm_0', 'input_norm.weight')]
  count = len(config.feature_layers) if config.fuse_norm else 0
  return [(f'fuse_norm_{number}', f'fc_norm.{number}.weight') for number in range(count)]


def _check_names(found: set[str], expected: set[str], where: str) -> None:
  missing, extra = sorted(expected - found), sorted(found - expected)
  if missing or extra:
    parts = [f'missing are {", ".join(missing)}'] if missing else []
    parts += [f'superfluous are {", ".join(extra)}'] if extra else []
    raise ValueError(f'{where} does not hold the tensors that its config.json says: '
                     f'{"; ".join(parts)}.')


def _to_params(values, config: EagleConfig, layout: str, dtype) -> dict[str, Any]:
  """The parameter tree from stored tensors."""
  cfg = config.decoder
  array = lambda value: jnp.asarray(np.asarray(value).astype(dtype))
  scale = lambda name: {'scale': array(values[name])}
  fuse = _fuse_name(config, layout)
  params: dict[str, Any] = {'fuse': array(values[f'{fuse}.weight'])}
  if config.fuse_bias:
    params['fuse_bias'] = array(values[f'{fuse}.bias'])
  for ours, theirs in _fuse_norms(config):
    params[ours] = scale(theirs)
  groups, head_dim = cfg.num_kv_heads, cfg.head_dim
  for layer in range(cfg.num_layers):
    prefix = _prefix(config, layout, layer)

    def joined(kind: str, prefix=prefix):
      # Query, key and value of a group side by side: [G, H / G + 2, hd, …].
      parts = [values[f'{prefix}self_attn.{name}_proj.{kind}'] for name in 'qkv']
      parts = [np.reshape(p, (groups, -1, head_dim, *p.shape[1:])) for p in parts]
      return array(np.concatenate(parts, axis=1))

    attention = {
        'qkv': joined('weight'),
        'out': array(
            np.reshape(
                values[f'{prefix}self_attn.o_proj.weight'], (cfg.width, cfg.num_heads, head_dim)
            )
        ),
    }
    if cfg.qkv_bias:
      attention['qkv_bias'] = joined('bias')
    if cfg.qk_norm:
      attention['query_norm'] = scale(f'{prefix}self_attn.q_norm.weight')
      attention['key_norm'] = scale(f'{prefix}self_attn.k_norm.weight')
    mlp = [values[f'{prefix}mlp.{name}_proj.weight'] for name in ('gate', 'up')]
    block = {
        'attention': attention,
        'mlp': {
            'gate_up': array(np.stack(mlp)),
            'down': array(values[f'{prefix}mlp.down_proj.weight']),
        },
        'mlp_norm': scale(f'{prefix}post_attention_layernorm.weight'),
    }
    if config.version == 3:
      block['feature_norm'] = scale(f'{prefix}hidden_norm.weight')
      block['embedding_norm'] = scale(f'{prefix}input_layernorm.weight')
    elif f'{prefix}input_layernorm.weight' in values:
      block['attention_norm'] = scale(f'{prefix}input_layernorm.weight')
    params[f'layer_{layer}'] = block
  if config.version == 3:
    params |= {'final_norm': scale('norm.weight'), 'head': array(values['lm_head.weight'])}
  elif config.extra_norms:
    params['embedding_norm'] = scale('embedding_layernorm.weight')
    params['final_norm'] = scale('pre_lm_head_layernorm.weight')
  return params


def _from_params(params, config: EagleConfig, layout: str) -> dict[str, np.ndarray]:
  """Stored tensors, shaped but for a final reshape, from the parameter tree."""
  repeats = config.decoder.num_heads // config.decoder.num_kv_heads
  fuse = _fuse_name(config, layout)
  values = {f'{fuse}.weight': params['fuse']}
  if config.fuse_bias:
    values[f'{fuse}.bias'] = params['fuse_bias']
  for ours, theirs in _fuse_norms(config):
    values[theirs] = params[ours]['scale']
  for layer in range(config.decoder.num_layers):
    prefix, block = _prefix(config, layout, layer), params[f'layer_{layer}']
    for source, kind in (('qkv', 'weight'), ('qkv_bias', 'bias')):
      if source in block['attention']:
        fused = np.asarray(block['attention'][source])
        parts = np.split(fused, [repeats, repeats + 1], axis=1)
        for name, part in zip('qkv', parts):
          values[f'{prefix}self_attn.{name}_proj.{kind}'] = part
    values[f'{prefix}self_attn.o_proj.weight'] = block['attention']['out']
    for source, name in (('query_norm', 'q_norm'), ('key_norm', 'k_norm')):
      if source in block['attention']:
        values[f'{prefix}self_attn.{name}.weight'] = block['attention'][source]['scale']
    gate_up = np.asarray(block['mlp']['gate_up'])
    values[f'{prefix}mlp.gate_proj.weight'], values[f'{prefix}mlp.up_proj.weight'] = gate_up
    values[f'{prefix}mlp.down_proj.weight'] = block['mlp']['down']
    norms = {
        'mlp_norm': 'post_attention_layernorm',
        'feature_norm': 'hidden_norm',
        'embedding_norm': 'input_layernorm',
        'attention_norm': 'input_layernorm',
    }
    for source, name in norms.items():
      if source in block:
        values[f'{prefix}{name}.weight'] = block[source]['scale']
  if config.version == 3:
    values |= {'norm.weight': params['final_norm']['scale'], 'lm_head.weight': params['head']}
  elif config.extra_norms:
    values['embedding_layernorm.weight'] = params['embedding_norm']['scale']
    values['pre_lm_head_layernorm.weight'] = params['final_norm']['scale']
  return values


def _own_embedding(stored: np.ndarray, target: LanguageModel, dtype):
  """The head's embedding, or None where it is the target's."""
  shared = np.asarray(target.params['embedding'])
  if stored.shape == shared.shape and np.array_equal(stored.astype(shared.dtype), shared):
    return None
  return jnp.asarray(np.asarray(stored).astype(dtype))


def _targets_head(config: EagleConfig, target: LanguageModel, where: str) -> np.ndarray:
  """The target's output head, for a head that brings none."""
  kernel = np.asarray(target_lib.output_head(target))
  wanted = (config.decoder.vocab_size, config.decoder.width)
  if kernel.shape != wanted:
    raise ValueError(
        f"{where} does not hold lm_head.weight, and the target's output head, of shape "
        f'{kernel.shape}, does not take its place: {wanted} is needed.'
    )
  return kernel


def _vocabulary_map(tensors, config: EagleConfig, where: str):
  """[V_draft] int32, the target's id of every draft token; None where all keep their ids."""
  if tensors['d2t'].dtype.kind not in 'iu':
    raise ValueError(f"{where}: d2t has dtype {tensors['d2t'].dtype}, expected integers.")
  offsets = np.asarray(tensors['d2t'], np.int64)
  size, target_size = config.decoder.vocab_size, config.target_vocab_size
  if offsets.shape != (size,):
    raise ValueError(f'{where}: d2t has shape {offsets.shape}, expected ({size},).')
  ids = offsets + np.arange(size)
  if ids.min() < 0 or ids.max() >= target_size or len(set(ids.tolist())) != size:
    raise ValueError(
        f'{where}: d2t must send the {size} draft tokens to different ones of {target_size}.'
    )
  if 't2d' in tensors:
    known = np.zeros(target_size, bool)
    known[ids] = True
    if not np.array_equal(np.asarray(tensors['t2d'], bool), known):
      raise ValueError(f'{where}: t2d does not mark the tokens that d2t leads to.')
  return jnp.asarray(ids, jnp.int32) if _is_reduced(config) or offsets.any() else None
