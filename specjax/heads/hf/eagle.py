"""EAGLE heads in and out, in the layouts in which others publish them.

| layout | EAGLE-1 and EAGLE-2 | EAGLE-3 |
|---|---|---|
| `authors` | `layers.0.…`, `fc.…` | `midlayer.…`, `fc`, `norm`, `lm_head`, `d2t`, `t2d` |
| `sglang` | the same, under its own architecture names | the same, with `eagle_config` |
| `speculators` (vLLM) | `transformer.…`, `fusion_fc.…`, nested | `layers.0.…`, nested config |

DeepSpec's EAGLE-3 is like SGLang's with the names `layers.0.…`; it is read but not written.
EAGLE-3.1 adds `fc_norm.{i}.weight`, or `input_norm.weight` where one norm takes all features; heads
of Qwen3 add `q_norm` and `k_norm`.

`embed_tokens.weight` is optional, and so is the `lm_head.weight` of an EAGLE-3 head over the whole
vocabulary, which then has the target's; one over a part of it has the target's rows where its
`config.json` says `shares_output_head`, a key of this project alone. `d2t` holds the distance from
each draft token to the target's token, `t2d` marks the target's tokens that have a draft token.
Files are `model.safetensors` or `pytorch_model.bin`; weights may be in eight bits
(`specjax.heads.hf.eight_bits`). `table` lists all other tensors of a layout; reading, checking and
writing follow from it, and a missing or an unexpected tensor is an error. So is an unknown key of
`config.json` (`specjax.heads.hf.eagle_config`, `specjax.heads.hf.keys`).
"""

from collections.abc import Iterator
import os
import pathlib
from typing import Any

import numpy as np

from specjax.heads import target as target_lib
from specjax.heads.eagle import Eagle, EagleConfig, EagleHead
from specjax.heads.hf import eagle_config
from specjax.heads.hf import eight_bits
from specjax.heads.hf import stored
from specjax.heads.hf import vocabulary_maps
from specjax.models import LanguageModel
from specjax.models.hf import files as hf_files
from specjax.models.hf import tensors as hf_tensors

LAYOUTS = ('authors', 'sglang', 'speculators')
_EMBEDDING, _HEAD = 'embed_tokens.weight', 'lm_head.weight'
_SHARES = 'shares_output_head'
# (layout, version): the fusing product's name, and what the names of a layer begin with.
_NAMES = {
    ('authors', 1): ('fc', 'layers.{layer}'),
    ('authors', 3): ('fc', 'midlayer'),
    ('sglang', 1): ('fc', 'layers.{layer}'),
    ('sglang', 3): ('fc', 'midlayer'),
    ('deepspec', 3): ('fc', 'layers.0'),
    ('speculators', 1): ('fusion_fc', 'transformer'),
    ('speculators', 3): ('fc', 'layers.0'),
}


def table(
    config: EagleConfig, layout: str, *, with_embedding: bool
) -> Iterator[hf_tensors.Parameter]:
  """Every parameter of a head and the tensors that it is stored as, without vocabulary maps.

  Args:
    config: of the head.
    layout: one of `LAYOUTS`, or 'deepspec'.
    with_embedding: whether the head has an embedding, which stands in the tree as 'embedding'.
  """
  width, is_third = config.decoder.width, config.version == 3
  fuse, _ = _NAMES[layout, config.version]
  if with_embedding:
    shape = (config.target_vocab_size, width)
    yield hf_tensors.whole(('embedding',), _EMBEDDING, shape)
  fan_in = len(config.feature_layers) * config.target_width if is_third else 2 * width
  yield hf_tensors.whole(('fuse',), f'{fuse}.weight', (width, fan_in))
  if config.fuse_bias:
    yield hf_tensors.whole(('fuse_bias',), f'{fuse}.bias', (width,))
  if config.fuse_norm == 'each':
    for number in range(len(config.feature_layers)):
      yield hf_tensors.norm((f'fuse_norm_{number}',), f'fc_norm.{number}', config.target_width)
  if config.fuse_norm == 'joint':
    yield hf_tensors.norm(('fuse_norm_0',), 'input_norm', fan_in)
  for layer in range(config.decoder.num_layers):
    yield from _layer_table(config, layout, layer)
  if is_third:
    yield hf_tensors.norm(('final_norm',), 'norm', width)
    yield hf_tensors.whole(('head',), _HEAD, (config.decoder.vocab_size, width))
  elif config.extra_norms:
    yield hf_tensors.norm(('embedding_norm',), 'embedding_layernorm', width)
    yield hf_tensors.norm(('final_norm',), 'pre_lm_head_layernorm', width)


def _layer_table(
    config: EagleConfig, layout: str, layer: int
) -> Iterator[hf_tensors.Parameter]:
  """The rows of one decoder layer."""
  cfg, width, is_third = config.decoder, config.decoder.width, config.version == 3
  path, name = f'layer_{layer}', _NAMES[layout, config.version][1].format(layer=layer)
  yield from hf_tensors.attention(
      cfg, (path, 'attention'), f'{name}.self_attn', fan_in=2 * width if is_third else width
  )
  yield hf_tensors.whole(
      (path, 'attention', 'out'),
      f'{name}.self_attn.o_proj.weight',
      (width, cfg.num_heads, cfg.head_dim),
      (width, cfg.num_heads * cfg.head_dim),
  )
  yield from hf_tensors.gated_mlp(
      (path, 'mlp'), f'{name}.mlp', width=width, mlp_width=cfg.mlp_width
  )
  yield hf_tensors.norm((path, 'mlp_norm'), f'{name}.post_attention_layernorm', width)
  if is_third:
    yield hf_tensors.norm((path, 'feature_norm'), f'{name}.hidden_norm', width)
    yield hf_tensors.norm((path, 'embedding_norm'), f'{name}.input_layernorm', width)
  elif layer > 0 or config.extra_norms:
    yield hf_tensors.norm((path, 'attention_norm'), f'{name}.input_layernorm', width)


def load_eagle(
    folder: str | os.PathLike, target: LanguageModel, *, dtype: Any = None
) -> Eagle:
  """Loads an EAGLE-1, EAGLE-2 or EAGLE-3 head in any of the layouts.

  Args:
    folder: with `config.json` and `model.safetensors` or `pytorch_model.bin`.
    target: the target that the head was made for. Its depth determines which layers an EAGLE-3
      head reads where the head's config does not. Its embedding is shared where the head brings
      the same or none, and so is its output head where an EAGLE-3 head brings none (the rows of the
      draft vocabulary, where its config says so).
    dtype: of weights and activations; None keeps that of the files, or takes float32 where they
      hold eight bits.

  Returns:
    The head; its logits agree with the authors' code to 1e-4 in float32.

  Raises:
    FileNotFoundError: when the folder or a file is missing.
    ValueError: naming what is wrong: a tensor is missing, unexpected or of another shape, the
      vocabulary maps contradict each other, something in `config.json` is not supported, or head
      and target do not fit.
  """
  folder = pathlib.Path(folder)
  where = str(folder)
  data = _read_config(folder)
  shares = data.pop(_SHARES, False)
  tensors = stored.read(folder)
  layout = eagle_config.layout_of(data, tensors)
  config = eagle_config.read(
      data, tensors, target.module.config, layout=layout, where=str(folder / 'config.json')
  )
  target_lib.check_fits(config, target)
  maps = {}
  if config.version == 3:
    maps = {name: tensors.pop(name) for name in ('d2t', 't2d') if name in tensors}
    if _HEAD not in tensors and (shares or config.decoder.vocab_size == config.target_vocab_size):
      is_tied = data.get('tie_word_embeddings') and _EMBEDDING in tensors
      kernel = tensors[_EMBEDDING] if is_tied else np.asarray(target_lib.output_head(target))
      whose = 'its own embedding' if is_tied else "the target's output head"
      tensors[_HEAD] = _shared_head(config, kernel, maps, where, whose)
  elif _HEAD in tensors:
    target_lib.check_copy(tensors.pop(_HEAD), target, where)
  with_embedding = _EMBEDDING in tensors
  hf_tensors.check(tensors, table(config, layout, with_embedding=with_embedding), where)
  draft_to_target = vocabulary_maps.read(
      maps, config.decoder.vocab_size, config.target_vocab_size, where
  )
  if not with_embedding and config.decoder.width != config.target_width:
    raise ValueError(
        f"{where}: the head has width {config.decoder.width} and no {_EMBEDDING}; the target's "
        f'embedding, of width {config.target_width}, does not fit it.'
    )
  kept = np.dtype(dtype or tensors[f'{_NAMES[layout, config.version][0]}.weight'].dtype)
  has_own = with_embedding and not stored.is_copy(
      tensors[_EMBEDDING], target.params['embedding']
  )
  params = hf_tensors.load(table(config, layout, with_embedding=has_own), tensors, kept)
  embedding = params.pop('embedding', None)
  return Eagle(EagleHead(config, dtype=kept, param_dtype=kept), params, embedding, draft_to_target)


def save_eagle(
    head: Eagle,
    folder: str | os.PathLike,
    *,
    layout: str = 'sglang',
    dtype: Any = None,
    embedding: Any = None,
    int8: bool = False,
    shared_with: LanguageModel | None = None,
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
    int8: stores weights in eight bits (`specjax.heads.hf.eight_bits`), which rounds them.
    shared_with: the target, of whose output head this head has rows (EAGLE-3): they are left out,
      and `load_eagle` takes them from the target.
    extra_files: copied into the folder.

  Raises:
    FileExistsError: when the folder is not empty.
    ValueError: for an unknown layout, a head that the layout has no place for, or an output head
      that is not the target's.
  """
  if layout not in LAYOUTS:
    raise ValueError(f'layout must be one of {LAYOUTS}, got {layout!r}.')
  config = head.config
  _check_has_place(config, layout)
  params = dict(head.params)
  embedding = head.embedding if head.embedding is not None else embedding
  if embedding is not None:
    params['embedding'] = np.asarray(embedding)
  parameters = table(config, layout, with_embedding=embedding is not None)
  tensors = list(hf_tensors.unwritten(params, parameters, dtype))
  if shared_with is not None:
    _check_shared(head, shared_with)
    tensors = [tensor for tensor in tensors if tensor.name != _HEAD]
  dtype_name = tensors[0].dtype.name
  if int8:
    tensors = eight_bits.rounded(tensors)
  if head.draft_to_target is not None:
    tensors += vocabulary_maps.tensors(head.draft_to_target, config.target_vocab_size)
  data = eagle_config.write(config, layout, dtype_name)
  if shared_with is not None:
    data[_SHARES] = True
  hf_files.publish(folder, data, tensors, extra_files=extra_files)


def _check_shared(head: Eagle, target: LanguageModel) -> None:
  """Raises where the output head is not the target's."""
  kernel = np.asarray(target_lib.output_head(target))
  if head.draft_to_target is not None:
    kernel = kernel[np.asarray(head.draft_to_target)]
  if 'head' not in head.params or not stored.is_copy(np.asarray(head.params['head']), kernel):
    raise ValueError(
        "The head's output head is not that of the target: leave out shared_with=, so that it is "
        'stored.'
    )


def _check_has_place(config: EagleConfig, layout: str) -> None:
  """Raises where a layout cannot express a head."""
  if layout == 'speculators':
    if config.decoder.num_layers > 1:
      raise ValueError(
          f'The speculators layout has a place for one layer, the head has '
          f"{config.decoder.num_layers}; save the head with layout='authors' or 'sglang'."
      )
    return
  if config.norm_before_residual or config.extra_norms or config.decoder.qk_norm:
    raise ValueError(
        f'The {layout} layout has no place for norm_before_residual, extra_norms or qk_norm; '
        "save the head with layout='speculators'."
    )
  if layout == 'authors' and (config.fuse_norm or config.norm_output):
    raise ValueError(
        'The authors layout has no place for fuse_norm or norm_output; save the head with '
        "layout='sglang' or 'speculators'."
    )


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
  file = folder / 'config.json'
  if not file.exists():
    hf_files.refuse_adapter(folder)
    raise FileNotFoundError(f'{file} is missing: {folder} is not the folder of a head.')
  return hf_files.read_json(file)


def _shared_head(
    config: EagleConfig, kernel: np.ndarray, maps: dict[str, np.ndarray], where: str, whose: str
) -> np.ndarray:
  """The rows of an embedding or of the target's output head, for a head that brings none."""
  size, width = config.decoder.vocab_size, config.decoder.width
  ids = vocabulary_maps.read(maps, size, config.target_vocab_size, where)
  rows = kernel if ids is None else kernel[np.asarray(ids)]
  if rows.shape != (size, width):
    raise ValueError(
        f'{where} does not hold {_HEAD}, and {whose}, of shape {kernel.shape}, does not take its '
        f'place: {(size, width)} is needed.'
    )
  return rows
