"""The `config.json` of a DFlash or DSpark head, in the layouts of `specjax.heads.hf.dflash`.

What decides what a head computes, and where each layout says it:

| | z-lab | DeepSpec | speculators |
|---|---|---|---|
| known by | `dflash_config` | `Qwen3DSparkModel` | `speculators_model_type` |
| layers | `dflash_config.target_layer_ids` | `target_layer_ids` | `aux_hidden_state_layer_ids` |
| number i is | after i + 1 layers | the same; -1 the embedding | after i layers |
| block | `block_size`, there or nested | `block_size` | `block_size` |
| shift | masks | next | `sample_from_anchor`: next |
| windows | from each slot, all to all | the same | from the root, causal or not |
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from specjax.heads import dflash
from specjax.heads.hf import keys as head_keys
from specjax.models.config import TransformerConfig
from specjax.models.hf import config as hf_config
from specjax.models.hf import keys as hf_keys

LAYOUTS = ('z-lab', 'deepspec', 'speculators')
_DEEPSPEC = 'Qwen3DSparkModel'
_MARKOV = {'vanilla': dflash.PLAIN, 'gated': dflash.GATED, 'rnn': dflash.RNN}


def layout_of(data: Mapping[str, Any], where: str) -> str:
  """The layout of a config.

  Raises:
    ValueError: if it is none of them.
  """
  if data.get('speculators_model_type') in ('dflash', 'dspark'):
    return 'speculators'
  if isinstance(data.get('dflash_config'), Mapping):
    return 'z-lab'
  architectures = data.get('architectures')
  if isinstance(architectures, list) and _DEEPSPEC in architectures:
    return 'deepspec'
  raise ValueError(
      f'{where} is of no DFlash or DSpark head: it must have dflash_config (z-lab), architectures '
      f"with {_DEEPSPEC} (DeepSpec), or speculators_model_type 'dflash' or 'dspark' (speculators)."
  )


def read(data: Mapping[str, Any], target: TransformerConfig, *, where: str) -> dflash.DFlashConfig:
  """The shape of a head, without whether it has an output head, which its tensors show.

  Args:
    data: the content of its `config.json`.
    target: the config of its target.
    where: the file, for messages.

  Raises:
    ValueError: for what is missing, not supported, or contradicts the target, naming the key.
  """
  layout = layout_of(data, where)
  values, decoder_data, decoder_where = head_keys.read(
      data, head_keys.DFLASH, is_nested=layout == 'speculators', num_layers=target.num_layers,
      where=where,
  )
  if layout == 'z-lab':
    nested_where = f'{where}: dflash_config'
    nested = hf_keys.read(data['dflash_config'], head_keys.DFLASH_CONFIG, where=nested_where)
    hf_keys.refuse_unknown(data['dflash_config'], set(head_keys.DFLASH_CONFIG), where=nested_where)
    values |= {name: value for name, value in nested.items() if value is not None}
  decoder = _decoder(decoder_data, decoder_where)
  rank = values['markov_rank'] or 0
  kind = values['markov_head_type'] or 'vanilla'
  if rank and kind not in _MARKOV:
    known = ', '.join(_MARKOV)
    raise ValueError(f'{where}: markov_head_type must be one of {known}, got {kind!r}.')
  is_next = layout == 'deepspec' or layout == 'speculators' and _samples_anchor(values)
  # Of windows: where no layer has one, they say nothing.
  in_root = layout == 'speculators' and decoder.sliding_window is not None
  draft_vocab = values['draft_vocab_size'] if layout == 'speculators' else None
  try:
    return dflash.DFlashConfig(
        decoder=dataclasses.replace(decoder, vocab_size=draft_vocab or decoder.vocab_size),
        target_width=decoder.width,
        target_vocab_size=decoder.vocab_size,
        feature_layers=_feature_layers(values, layout, decoder.num_layers, target, where),
        block_size=_needed(values, 'block_size', where),
        mask_token=_needed(values, 'mask_token_id', where),
        shift=dflash.NEXT if is_next else dflash.MASKS,
        causal_windows=in_root and not values['sliding_window_non_causal'],
        window_from_root=in_root,
        markov=_MARKOV[kind] if rank else None,
        markov_rank=rank,
        has_confidence=bool(values['enable_confidence_head']),
        confidence_sees_token=bool(
            values['enable_confidence_head'] and values['confidence_head_with_markov']
        ),
    )
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error


def _samples_anchor(values: Mapping[str, Any]) -> bool:
  """Whether the root's slot drafts; the default is that of the kind of head."""
  given = values['sample_from_anchor']
  return values['speculators_model_type'] == 'dspark' if given is None else given


def _needed(values: Mapping[str, Any], name: str, where: str) -> int:
  """A number without which a head cannot be run.

  Raises:
    ValueError: where it is missing.
  """
  if values[name] is None:
    raise ValueError(
        f'{where} does not say {name}, and a wrong one drafts tokens that are hardly ever '
        'accepted: add it.'
    )
  return values[name]


def _decoder(data: Mapping[str, Any], where: str) -> TransformerConfig:
  """The decoder of a head: Qwen3's."""
  kind = hf_keys.one_of('qwen3', default='qwen3', null=True)
  hf_keys.read(data, {'model_type': kind}, where=where)
  family = dict(architectures=['Qwen3ForCausalLM'], model_type='qwen3')
  # transformers' default, which their shortened configs leave out; no layer reads it here.
  shortened = {'max_window_layers': 28} | {k: v for k, v in data.items() if k != 'attention_bias'}
  if 'sliding_attention' in (data.get('layer_types') or ()):
    shortened['use_sliding_window'] = True  # the layers' types say which
  decoder = hf_config.read(shortened | family, where=where)
  return dataclasses.replace(
      decoder, qkv_bias=bool(data.get('attention_bias')), tie_embeddings=False
  )


def _feature_layers(
    values: Mapping[str, Any], layout: str, num_layers: int, target: TransformerConfig, where: str
) -> tuple[int, ...]:
  if layout == 'speculators':
    ids = values['aux_hidden_state_layer_ids']
  else:
    ids = values['target_layer_ids']
    ids = None if ids is None else [i + 1 for i in ids]
  if ids is None and layout == 'z-lab':
    return dflash.default_layers(target.num_layers, num_layers)
  if not ids:
    raise ValueError(f'{where} does not say which layers of the target the head reads.')
  if max(ids) >= target.num_layers:
    raise ValueError(
        f'{where}: the head reads the target after {max(ids)} of {target.num_layers} layers, where '
        'its own code takes the stream after the final norm; such heads are not supported.'
    )
  return tuple(ids)


def write(config: dflash.DFlashConfig, layout: str, dtype: str) -> dict[str, Any]:
  """The content of a `config.json`.

  Args:
    config: of the head.
    layout: one of `LAYOUTS`.
    dtype: of the files.
  """
  decoder = dataclasses.replace(
      config.decoder, vocab_size=config.target_vocab_size, qkv_bias=False, tie_embeddings=False
  )
  data = hf_config.write(decoder) | {'attention_bias': config.decoder.qkv_bias}
  layers = list(config.feature_layers)
  block = {'block_size': config.block_size, 'mask_token_id': config.mask_token}
  markov = {
      'markov_rank': config.markov_rank,
      'markov_head_type': {v: k for k, v in _MARKOV.items()}.get(config.markov, 'vanilla'),
      'enable_confidence_head': config.has_confidence,
      'confidence_head_with_markov': config.confidence_sees_token,
  }
  if layout == 'z-lab':
    nested = {'target_layer_ids': [i - 1 for i in layers], 'mask_token_id': config.mask_token}
    data |= {
        'architectures': ['DFlashDraftModel'], 'block_size': config.block_size,
        'dflash_config': nested,
    }
  elif layout == 'deepspec':
    data |= block | markov | {
        'architectures': [_DEEPSPEC], 'target_layer_ids': [i - 1 for i in layers], 'num_anchors': 0,
    }
  else:
    kind = 'dspark' if config.markov or config.has_confidence else 'dflash'
    data = block | {
        'architectures': [f'{"DSpark" if kind == "dspark" else "DFlash"}Speculator'],
        'speculators_model_type': kind,
        'transformer_layer_config': data,
        'aux_hidden_state_layer_ids': layers,
        'draft_vocab_size': config.decoder.vocab_size,
        'sample_from_anchor': config.shift == dflash.NEXT,
        'sliding_window_non_causal': not config.causal_windows,
        'speculators_config': {
            'algorithm': kind,
            'default_proposal_method': 'greedy',
            'proposal_methods': [
                {'proposal_type': 'greedy', 'speculative_tokens': config.depth}
            ],
            'verifier': {'architectures': [], 'name_or_path': None},
        },
    } | (markov if kind == 'dspark' else {})
  return data | {'dtype': dtype, 'torch_dtype': dtype}
