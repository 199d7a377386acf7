"""DFlash and DSpark heads in and out, in the layouts in which others publish them.

| layout | published by | embedding and output head |
|---|---|---|
| `z-lab` | z-lab/dflash | the target's |
| `deepspec` | deepseek-ai/DeepSpec, DFlash's too | stored; the target's where they are equal |
| `speculators` | vllm-project/speculators | stored, with `d2t` and `t2d` for a draft vocabulary |

All call the backbone `fc`, `hidden_norm`, `norm` and `layers.{i}`, the Markov head
`markov_head.…` and the confidence head `confidence_head.proj`. Weights may be in eight bits
(`specjax.heads.hf.eight_bits`). `table` lists the tensors; a missing or an unexpected one is an
error, and so is an unknown key of `config.json` (`specjax.heads.hf.dflash_config`).
"""

from collections.abc import Iterator
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from specjax.heads import dflash
from specjax.heads import target as target_lib
from specjax.heads.dflash import DFlash, DFlashConfig, DFlashHead
from specjax.heads.hf import dflash_config
from specjax.heads.hf import eight_bits
from specjax.heads.hf import stored
from specjax.heads.hf import vocabulary_maps
from specjax.models import LanguageModel
from specjax.models.hf import files as hf_files
from specjax.models.hf import tensors as hf_tensors

LAYOUTS = dflash_config.LAYOUTS
_EMBEDDING, _HEAD = 'embed_tokens.weight', 'lm_head.weight'


def table(config: DFlashConfig, *, with_embedding: bool) -> Iterator[hf_tensors.Parameter]:
  """Every parameter of a head and the tensors that it is stored as, without vocabulary maps.

  Args:
    config: of the head.
    with_embedding: whether the head has an embedding, which stands in the tree as 'embedding'.
  """
  cfg, width, rank = config.decoder, config.decoder.width, config.markov_rank
  if with_embedding:
    yield hf_tensors.whole(('embedding',), _EMBEDDING, (config.target_vocab_size, width))
  streams = len(config.feature_layers) * config.target_width
  yield hf_tensors.whole(('fuse',), 'fc.weight', (width, streams))
  yield hf_tensors.norm(('context_norm',), 'hidden_norm', width)
  for layer in range(cfg.num_layers):
    path, name = f'layer_{layer}', f'layers.{layer}'
    yield hf_tensors.norm((path, 'attention_norm'), f'{name}.input_layernorm', width)
    yield from hf_tensors.attention(
        cfg, (path, 'attention'), f'{name}.self_attn', fan_in=width
    )
    yield hf_tensors.whole(
        (path, 'attention', 'out'), f'{name}.self_attn.o_proj.weight',
        (width, cfg.num_heads, cfg.head_dim), (width, cfg.num_heads * cfg.head_dim),
    )
    yield hf_tensors.norm((path, 'mlp_norm'), f'{name}.post_attention_layernorm', width)
    yield from hf_tensors.gated_mlp(
        (path, 'mlp'), f'{name}.mlp', width=width, mlp_width=cfg.mlp_width
    )
  yield hf_tensors.norm(('final_norm',), 'norm', width)
  if config.has_head:
    yield hf_tensors.whole(('head',), _HEAD, (cfg.vocab_size, width))
  markov = 'markov_head'
  if config.markov:
    shape = (config.target_vocab_size, rank)
    yield hf_tensors.whole(('markov_in',), f'{markov}.markov_w1.weight', shape)
    yield hf_tensors.whole(('markov_out',), f'{markov}.markov_w2.weight', (cfg.vocab_size, rank))
  if config.markov == dflash.GATED:
    yield hf_tensors.whole(('gate',), f'{markov}.gate_proj.weight', (rank, width + rank))
    yield hf_tensors.whole(('gate_bias',), f'{markov}.gate_proj.bias', (rank,))
  if config.markov == dflash.RNN:
    shape = (3 * rank, 2 * rank + width)
    yield hf_tensors.whole(('joint',), f'{markov}.joint_proj.weight', shape)
    yield hf_tensors.whole(('joint_bias',), f'{markov}.joint_proj.bias', (3 * rank,))
  if config.has_confidence:
    fan_in = width + (rank if config.confidence_sees_token else 0)
    yield hf_tensors.whole(('confidence_out',), 'confidence_head.proj.weight', (1, fan_in))
    yield hf_tensors.whole(('confidence_bias',), 'confidence_head.proj.bias', (1,))


def load_dflash(
    folder: str | os.PathLike, target: LanguageModel, *, dtype: Any = None
) -> DFlash:
  """Loads a DFlash or DSpark head in any of the layouts.

  Args:
    folder: with `config.json` and `model.safetensors`.
    target: the target that the head was made for; its embedding and output head are shared where
      the head brings the same or none.
    dtype: of weights and activations; None keeps that of the files, or takes float32 where they
      hold eight bits.

  Returns:
    The head; its outputs agree with the authors' code to 1e-4 in float32.

  Raises:
    FileNotFoundError: when the folder or a file is missing.
    ValueError: naming what is wrong: a tensor is missing, unexpected or of another shape, the
      vocabulary maps contradict each other, something in `config.json` is missing or not
      supported, or head and target do not fit.
  """
  folder = pathlib.Path(folder)
  where, file = str(folder), folder / 'config.json'
  if not file.exists():
    hf_files.refuse_adapter(folder)
    raise FileNotFoundError(f'{file} is missing: {folder} is not the folder of a head.')
  config = dflash_config.read(hf_files.read_json(file), target.module.config, where=str(file))
  target_lib.check_fits(config, target)
  tensors = stored.read(folder)
  maps = {name: tensors.pop(name) for name in ('d2t', 't2d') if name in tensors}
  is_reduced = config.decoder.vocab_size < config.target_vocab_size
  shared = {_EMBEDDING: target.params['embedding']}
  if not is_reduced:
    shared[_HEAD] = target_lib.output_head(target)
  for name, value in shared.items():
    if name in tensors and stored.is_copy(tensors[name], value):
      del tensors[name]
  config = dataclasses.replace(config, has_head=_HEAD in tensors)
  if is_reduced and not config.has_head:
    raise ValueError(
        f'{where} holds no {_HEAD}, and its draft vocabulary is a part of the target\'s, whose '
        'output head does not take its place.'
    )
  with_embedding = _EMBEDDING in tensors
  hf_tensors.check(tensors, table(config, with_embedding=with_embedding), where)
  draft_to_target = vocabulary_maps.read(
      maps, config.decoder.vocab_size, config.target_vocab_size, where
  )
  kept = np.dtype(dtype or tensors['fc.weight'].dtype)
  params = hf_tensors.load(table(config, with_embedding=with_embedding), tensors, kept)
  embedding = params.pop('embedding', None)
  module = DFlashHead(config, dtype=kept, param_dtype=kept)
  return DFlash(module, params, embedding, draft_to_target)


def save_dflash(
    head: DFlash,
    folder: str | os.PathLike,
    *,
    layout: str | None = None,
    dtype: Any = None,
    int8: bool = False,
    target: LanguageModel | None = None,
    extra_files=(),
) -> None:
  """Saves a head in one of the layouts; the folder appears complete or not at all.

  Args:
    head: the head.
    folder: must not exist yet, or be empty.
    layout: one of `LAYOUTS`; None takes the first that has a place for the head.
    dtype: of the files; None keeps that of the parameters.
    int8: stores weights in eight bits (`specjax.heads.hf.eight_bits`), which rounds them.
    target: whose embedding and output head are stored for readers that need them where the head
      has none of its own (DeepSpec's).
    extra_files: copied into the folder.

  Raises:
    FileExistsError: when the folder is not empty.
    ValueError: for an unknown layout, or a head that the layout has no place for.
  """
  config = head.config
  if layout is None:
    layout = next((each for each in LAYOUTS if not _misfit(config, each)), LAYOUTS[-1])
  if layout not in LAYOUTS:
    raise ValueError(f'layout must be one of {LAYOUTS}, got {layout!r}.')
  if misfit := _misfit(config, layout):
    fitting = [each for each in LAYOUTS if not _misfit(config, each)]
    raise ValueError(
        f'The {layout} layout has no place for {misfit}; save the head with layout='
        f'{" or ".join(map(repr, fitting)) or "none of them: change its config"}.'
    )
  params, written = dict(head.params), config
  embedding = head.embedding
  if target is not None:
    embedding = target.params['embedding'] if embedding is None else embedding
    if not config.has_head:
      params['head'] = np.asarray(target_lib.output_head(target))
      written = dataclasses.replace(config, has_head=True)
  if embedding is not None:
    params['embedding'] = np.asarray(embedding)
  parameters = table(written, with_embedding=embedding is not None)
  tensors = list(hf_tensors.unwritten(params, parameters, dtype))
  name = tensors[0].dtype.name
  if int8:
    tensors = eight_bits.rounded(tensors)
  if head.draft_to_target is not None:
    tensors += vocabulary_maps.tensors(head.draft_to_target, config.target_vocab_size)
  data = dflash_config.write(config, layout, name)
  hf_files.publish(folder, data, tensors, extra_files=extra_files)


def _misfit(config: DFlashConfig, layout: str) -> str:
  """What of a head a layout cannot express; '' where it can all."""
  local = any(config.decoder.window(i) for i in range(config.decoder.num_layers))
  if local and (config.window_from_root or config.causal_windows) != (layout == 'speculators'):
    return 'its windows'
  if layout == 'speculators':
    return ''
  if config.decoder.vocab_size != config.target_vocab_size:
    return 'a part of the vocabulary'
  if layout == 'z-lab':
    if config.markov or config.has_confidence:
      return 'a Markov or confidence head'
    return 'a block whose root drafts' if config.shift == dflash.NEXT else ''
  return 'a block whose root drafts nothing' if config.shift == dflash.MASKS else ''
