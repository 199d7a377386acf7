"""Medusa heads in and out, in the layouts in which others publish them.

- `authors` (FasterDecoding/Medusa): `medusa_lm_head.safetensors` or `.pt` with
  `{head}.{block}.linear.weight` and `.bias`, and `{head}.{blocks}.weight`;
- `vllm`: `model.safetensors` with `blocks.{head}.layers.{block}.weight`, an optional `.bias`, and
  `lm_heads.{head}.weight`, or with `original_lm_head` one `lm_head.weight` for all heads, or none
  for the target's. `token_map` lists the tokens of a vocabulary that is a part of the target's.

In either, weights may be in eight bits (`specjax.heads.hf.eight_bits`).

`table` lists the tensors of a layout; reading, checking and writing follow from it. A missing or an
unexpected tensor is an error, and so is an unknown key of `config.json` (`specjax.heads.hf.keys`).
"""

from collections.abc import Iterator, Mapping
import os
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from specjax import _moved
from specjax.heads import target as target_lib
from specjax.heads.hf import eight_bits
from specjax.heads.hf import keys as head_keys
from specjax.heads.hf import torch_files
from specjax.heads.medusa import Medusa, MedusaConfig, MedusaHeads
from specjax.models import LanguageModel
from specjax.models.config import TransformerConfig
from specjax.models.hf import files as hf_files
from specjax.models.hf import keys as hf_keys
from specjax.models.hf import tensors as hf_tensors

LAYOUTS = ('authors', 'vllm')
_AUTHORS_FILE = 'medusa_lm_head.safetensors'
_TORCH_FILE = 'medusa_lm_head.pt'
_SHARED_HEAD = 'lm_head.weight'
# What the tensors of a block, and those of an output head, are called without their endings.
_NAMES = {
    'authors': ('{head}.{block}.linear', '{head}.{blocks}'),
    'vllm': ('blocks.{head}.layers.{block}', 'lm_heads.{head}'),
}


def table(
    config: MedusaConfig, layout: str, *, with_bias: bool = True
) -> Iterator[hf_tensors.Parameter]:
  """Every parameter of the heads and the tensors that it is stored as.

  Args:
    config: of the heads.
    layout: one of `LAYOUTS`.
    with_bias: whether the files hold the blocks' biases, which are zeros otherwise.
  """
  width, blocks, heads = config.target_width, config.num_layers, config.num_heads
  block_name, head_name = _NAMES[layout]

  def of_blocks(ending: str, shape: tuple[int, ...]) -> Iterator[hf_tensors.Part]:
    for head in range(heads):
      for block in range(blocks):
        name = block_name.format(head=head, block=block)
        yield hf_tensors.Part(f'{name}.{ending}', shape, hf_tensors.at(block, head))

  weights, biases = of_blocks('weight', (width, width)), of_blocks('bias', (width,))
  yield hf_tensors.Parameter(('blocks',), (blocks, heads, width, width), tuple(weights))
  yield hf_tensors.Parameter(('bias',), (blocks, heads, width), tuple(biases) if with_bias else ())
  names = [f'{head_name.format(head=head, blocks=blocks)}.weight' for head in range(heads)]
  names = [_SHARED_HEAD] if config.shared_head else names
  shape = (config.draft_vocab_size, width)
  parts = [
      hf_tensors.Part(name, shape, hf_tensors.at(number)) for number, name in enumerate(names)
  ]
  yield hf_tensors.Parameter(('head',), (len(names), *shape), tuple(parts))


def load_medusa(
    folder: str | os.PathLike, target: LanguageModel, *, dtype: Any = None
) -> Medusa:
  """Loads Medusa heads in the authors' or vLLM's layout.

  Args:
    folder: with `config.json` and one of the files above.
    target: the target that the heads were made for.
    dtype: of weights and activations; None keeps that of the files, or takes float32 where they
      hold eight bits.

  Returns:
    The heads; their logits agree with the authors' code to 1e-4 in float32.

  Raises:
    FileNotFoundError: when the folder or a file is missing.
    ValueError: naming what is wrong: a tensor is missing, unexpected or of another shape,
      something in `config.json` is not supported, or heads and target do not fit.
  """
  folder = pathlib.Path(folder)
  file, where = folder / 'config.json', str(folder)
  if not file.exists():
    hf_files.refuse_adapter(folder)
    raise FileNotFoundError(f'{file} is missing: {folder} is not the folder of Medusa heads.')
  data = hf_files.read_json(file)
  tensors = _read_tensors(folder)
  layout = 'vllm' if any(name.startswith('blocks.') for name in tensors) else 'authors'
  config = _config(data, tensors, target.module.config, layout, str(file))
  token_map = tensors.pop('token_map', None)
  ids = None if token_map is None else _token_map(token_map, config, where)
  if config.shared_head and _SHARED_HEAD not in tensors:
    # Under another name, or the target's own.
    first = tensors.pop('lm_heads.0.weight', None)
    head = np.asarray(target_lib.output_head(target)) if first is None else first
    tensors[_SHARED_HEAD] = head
  elif not config.shared_head and _SHARED_HEAD in tensors:
    target_lib.check_copy(tensors.pop(_SHARED_HEAD), target, where)
  with_bias = any(name.endswith('.bias') for name in tensors)
  parameters = tuple(table(config, layout, with_bias=with_bias))
  if ids is not None:
    for part in parameters[-1].parts:
      # An output head may be stored whole and used in part.
      if part.name in tensors and tensors[part.name].shape[:1] == (config.target_vocab_size,):
        tensors[part.name] = tensors[part.name][ids]
  hf_tensors.check(tensors, parameters, where)
  kept = np.dtype(dtype or next(iter(tensors.values())).dtype)
  params = hf_tensors.load(parameters, tensors, kept)
  draft_to_target = None if ids is None else jnp.asarray(ids, jnp.int32)
  return Medusa(MedusaHeads(config, kept, kept), params, draft_to_target)


def _config(
    data: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    target: TransformerConfig,
    layout: str,
    where: str,
) -> MedusaConfig:
  """The heads' shape, from their config and, where that is wrong or incomplete, the tensors."""
  is_vllm = layout == 'vllm'
  keys = head_keys.VLLM_MEDUSA if is_vllm else head_keys.MEDUSA
  values = hf_keys.read(data, keys, where=where)
  known = set(keys) | head_keys.IDLE | head_keys.DECODER
  hf_keys.refuse_unknown(data, known, where=where)
  for key, size in (('hidden_size', target.width), ('vocab_size', target.vocab_size)):
    if values[key] not in (None, size):
      raise ValueError(
          f'{where}: the heads are for a target of {key}={values[key]}, this one has {size}. Use '
          'the heads that were made for it.'
      )
  number = re.compile(r'(?:blocks|lm_heads)\.(\d{1,3})\.' if is_vllm else r'(\d{1,3})\.')
  numbers = [int(match[1]) for match in map(number.match, tensors) if match]
  # Configs of the authors' say two heads where there are more: the tensors are counted.
  num_heads = max(numbers, default=0) + 1
  if is_vllm and values['num_heads']:
    num_heads = values['num_heads']
  vocab_size = values['truncated_vocab_size'] if 'token_map' in tensors else None
  if vocab_size == target.vocab_size:
    vocab_size = None
  if values['truncated_vocab_size'] not in (None, target.vocab_size) and vocab_size is None:
    raise ValueError(
        f'{where}: truncated_vocab_size={values["truncated_vocab_size"]} of {target.vocab_size}, '
        'but the tensor token_map, which says which tokens these are, is missing.'
    )
  has_heads = any(name.startswith('lm_heads.') for name in tensors)
  shared = values['original_lm_head'] or 'lm_head.weight' in tensors and not has_heads
  try:
    return MedusaConfig(
        num_heads=num_heads,
        num_layers=values['num_hidden_layers' if is_vllm else 'medusa_num_layers'],
        target_width=target.width,
        target_vocab_size=target.vocab_size,
        target_layers=target.num_layers,
        vocab_size=vocab_size,
        shared_head=is_vllm and bool(shared),
    )
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error


def _token_map(stored: np.ndarray, config: MedusaConfig, where: str) -> np.ndarray | None:
  """[V_draft] int64, the target's id of every draft token; None where the vocabulary is whole."""
  if config.vocab_size is None:
    return None
  size = config.vocab_size
  if stored.dtype.kind not in 'iu' or stored.shape != (size,):
    raise ValueError(
        f'{where}: token_map must be {size} integers, got {stored.dtype} of shape {stored.shape}.'
    )
  ids = np.asarray(stored, np.int64)
  if ids.min() < 0 or ids.max() >= config.target_vocab_size or len(set(ids.tolist())) != size:
    raise ValueError(
        f'{where}: token_map must name {size} different tokens of {config.target_vocab_size}.'
    )
  return ids


def save_medusa(
    heads: Medusa,
    folder: str | os.PathLike,
    *,
    layout: str = 'authors',
    dtype: Any = None,
    int8: bool = False,
    extra_files=(),
) -> None:
  """Saves Medusa heads; the folder appears complete or not at all.

  Args:
    heads: the heads.
    folder: must not exist yet, or be empty.
    layout: one of `LAYOUTS`.
    dtype: of the files; None keeps that of the parameters.
    int8: stores weights in eight bits with one float32 scale per output, which rounds them
      (`specjax.models.quantization.quantize`); biases keep `dtype`.
    extra_files: copied into the folder.

  Raises:
    FileExistsError: when the folder is not empty.
    ValueError: for an unknown layout, or heads that the layout has no place for.
  """
  if layout not in LAYOUTS:
    raise ValueError(f'layout must be one of {LAYOUTS}, got {layout!r}.')
  cfg = heads.config
  if layout == 'authors' and (cfg.shared_head or heads.draft_to_target is not None):
    raise ValueError(
        'The authors layout has no place for a shared head or a part of the vocabulary; save the '
        "heads with layout='vllm'."
    )
  kept = np.dtype(dtype or heads.params['head'].dtype)
  tensors = list(hf_tensors.unwritten(heads.params, table(cfg, layout), kept))
  if int8:
    tensors = eight_bits.rounded(tensors)
  if heads.draft_to_target is not None:
    ids = np.asarray(heads.draft_to_target, np.int64)
    tensors.append(hf_files.Unwritten('token_map', ids.shape, ids.dtype, lambda: ids))
  common = {'hidden_size': cfg.target_width, 'vocab_size': cfg.target_vocab_size}
  if layout == 'authors':
    data = common | {
        'medusa_num_heads': cfg.num_heads,
        'medusa_num_layers': cfg.num_layers,
        'base_model_name_or_path': None,
    }
    hf_files.publish(
        folder, data, tensors, extra_files=extra_files, file_name=_AUTHORS_FILE
    )
    return
  data = common | {
      'model_type': 'medusa',
      'architectures': ['MedusaModel'],
      'num_heads': cfg.num_heads,
      'num_hidden_layers': cfg.num_layers,
      'medusa_fc_bias': True,
      'truncated_vocab_size': cfg.vocab_size,
      'original_lm_head': cfg.shared_head,
  }
  hf_files.publish(folder, data, tensors, extra_files=extra_files)


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors by name, without a leading name of the whole module."""
  files = [folder / name for name in (_AUTHORS_FILE, _TORCH_FILE, hf_files.SINGLE)]
  file = next((file for file in files if file.exists()), None)
  if file is None:
    hf_files.refuse_adapter(folder)
    raise FileNotFoundError(
        f'{folder} holds none of {", ".join(file.name for file in files)}.'
    )
  if file.name == _TORCH_FILE:
    tensors = torch_files.read(file)
  else:
    dtypes = hf_files.FLOATS | hf_files.INTEGERS | hf_files.INT8
    stored = hf_files.open_file(file, dtypes=dtypes)
    tensors = {name: tensor.read() for name, tensor in stored.items()}
  short = lambda name: name.removeprefix('medusa_heads.').removeprefix('medusa_head.')
  return eight_bits.floats(folder, {short(name): value for name, value in tensors.items()})


__getattr__ = _moved.names(__name__)
