"""Medusa heads and early exits in and out.

- `authors` (FasterDecoding/Medusa): `medusa_lm_head.safetensors` or `.pt` with
  `{head}.{block}.linear.weight` and `.bias`, and `{head}.{blocks}.weight`;
- `vllm`: `model.safetensors` with `blocks.{head}.layers.{block}.weight` and perhaps `.bias`, and
  `lm_heads.{head}.weight`, or with `original_lm_head` one `lm_head.weight` for all heads, or none
  for the target's. `token_map` lists the tokens of a vocabulary that is a part of the target's.

In either, a `.weight` may be int8 with a `.weight_scale` [out, 1] beside it, as compressed-tensors
stores integers of one scale per output.

Every tensor and every key of `config.json` (`specjax.heads.hf.keys`) is accounted for.
"""

from collections.abc import Mapping
import os
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from specjax.heads import target as target_lib
from specjax.heads.early_exit import EarlyExit, ExitAdapter, ExitConfig
from specjax.heads.hf import keys as head_keys
from specjax.heads.hf import torch_files
from specjax.heads.medusa import Medusa, MedusaConfig, MedusaHeads
from specjax.models import LanguageModel
from specjax.models import quantization
from specjax.models.config import TransformerConfig
from specjax.models.hf import files as hf_files
from specjax.models.hf import keys as hf_keys

LAYOUTS = ('authors', 'vllm')
_AUTHORS_FILE = 'medusa_lm_head.safetensors'
_TORCH_FILE = 'medusa_lm_head.pt'
_DTYPES = hf_files.FLOATS | hf_files.INTEGERS | hf_files.INT8
_SCALE = '_scale'


def load_medusa(
    folder: str | os.PathLike, target: LanguageModel, *, dtype: Any = None
) -> Medusa:
  """Loads Medusa heads in the authors' or vLLM's layout.

  Args:
    folder: with `config.json` and one of the files above.
    target: the target that they were made for.
    dtype: of weights and activations; None keeps that of the files, and takes float32 where they
      hold eight bits.

  Returns:
    The heads; their logits agree with the authors' code to 1e-4 in float32.

  Raises:
    FileNotFoundError: when the folder or a file is missing.
    ValueError: when a tensor is missing, superfluous or of another shape, `config.json` says
      what is not supported, or heads and target do not fit; naming them.
  """
  folder = pathlib.Path(folder)
  file = folder / 'config.json'
  if not file.exists():
    hf_files.refuse_adapter(folder)
    raise FileNotFoundError(f'{file} is missing: no folder of Medusa heads.')
  data = hf_files.read_json(file)
  tensors = _read(folder)
  is_vllm = any(name.startswith('blocks.') for name in tensors)
  layout = 'vllm' if is_vllm else 'authors'
  cfg = target.module.config
  config = _config(data, tensors, cfg, layout, str(file))
  token_map = tensors.pop('token_map', None)
  ids = None if token_map is None else _token_map(token_map, config, str(folder))
  if config.shared_head and 'lm_head.weight' not in tensors:
    # Under another name, or the target's own.
    first = tensors.pop('lm_heads.0.weight', None)
    head = np.asarray(target_lib.output_head(target)) if first is None else first
    tensors['lm_head.weight'] = head
  has_bias = any(name.endswith('.bias') for name in tensors)
  names = _names(config, layout, has_bias=has_bias)
  if 'lm_head.weight' in set(tensors) - set(names):
    target_lib.check_copy(tensors.pop('lm_head.weight'), target, str(folder))
  missing, extra = sorted(set(names) - set(tensors)), sorted(set(tensors) - set(names))
  if missing or extra:
    raise ValueError(
        f'{folder} does not hold {config.num_heads} heads of {config.num_layers} blocks: missing '
        f'are {", ".join(missing) or "none"}; superfluous are {", ".join(extra) or "none"}.'
    )
  kept = np.dtype(dtype or next(iter(tensors.values())).dtype)
  wanted = {
      'blocks': (config.target_width, config.target_width),
      'bias': (config.target_width,),
      'head': (config.draft_vocab_size, config.target_width),
  }
  # Every shape, before anything is allocated.
  for name, (key, _) in names.items():
    value = tensors[name]
    if key == 'head' and ids is not None and value.shape[:1] == (config.target_vocab_size,):
      value = tensors[name] = value[ids]  # stored whole, and used in part
    if value.shape != wanted[key]:
      raise ValueError(f'{folder}: {name} has shape {value.shape}, expected {wanted[key]}.')
    if value.dtype.kind in 'biu':
      raise ValueError(f'{folder}: {name} has dtype {value.dtype}, expected floats.')
  params = {
      'blocks': np.zeros((config.num_layers, config.num_heads, *wanted['blocks']), kept),
      'bias': np.zeros((config.num_layers, config.num_heads, *wanted['bias']), kept),
      'head': np.zeros((config.num_output_heads, *wanted['head']), kept),
  }
  for name, (key, index) in names.items():
    params[key][index] = tensors[name].astype(kept)
  module = MedusaHeads(config, kept, kept)
  return Medusa(
      module,
      {key: jnp.asarray(value) for key, value in params.items()},
      None if ids is None else jnp.asarray(ids, jnp.int32),
  )


def _config(
    data: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    target: TransformerConfig,
    layout: str,
    where: str,
) -> MedusaConfig:
  """The heads' shape, from their config and where that is wrong or silent from the tensors."""
  is_vllm = layout == 'vllm'
  table = head_keys.VLLM_MEDUSA if is_vllm else head_keys.MEDUSA
  values = hf_keys.read(data, table, where=where)
  known = set(table) | head_keys.IDLE | head_keys.DECODER
  hf_keys.refuse_unknown(data, known, where=where)
  for key, size in (('hidden_size', target.width), ('vocab_size', target.vocab_size)):
    if values[key] not in (None, size):
      raise ValueError(
          f'{where}: the heads are for a target of {key}={values[key]}, this one has {size}. Use '
          'the heads that were made for it.'
      )
  number = re.compile(r'(?:blocks|lm_heads)\.(\d{1,3})\.' if is_vllm else r'(\d{1,3})\.')
  found = [int(match[1]) for match in map(number.match, tensors) if match]
  # Files of the authors' say two heads where there are more: the tensors count.
  num_heads = max(found, default=0) + 1
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
    FileExistsError: when the folder holds something.
    ValueError: for an unknown layout.
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
  tensors = []
  for name, (key, index) in _names(cfg, layout, has_bias=True).items():
    value = np.asarray(heads.params[key])[index]
    if int8 and name.endswith('.weight'):
      rounded = quantization.quantize(jnp.asarray(value))
      stored = {name: rounded.values, f'{name}{_SCALE}': rounded.scales[:, None]}
    else:
      stored = {name: value.astype(kept)}
    for each, array in stored.items():
      array = np.asarray(array)
      tensors.append(hf_files.Unwritten(each, array.shape, array.dtype, lambda a=array: a))
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


def _names(config: MedusaConfig, layout: str, *, has_bias: bool) -> dict[str, tuple[str, Any]]:
  """Every tensor, and the parameter and index that it is."""
  names: dict[str, tuple[str, Any]] = {}
  for head in range(config.num_heads):
    for layer in range(config.num_layers):
      block = f'blocks.{head}.layers.{layer}' if layout == 'vllm' else f'{head}.{layer}.linear'
      names[f'{block}.weight'] = ('blocks', (layer, head))
      if has_bias:
        names[f'{block}.bias'] = ('bias', (layer, head))
    if config.shared_head:
      names['lm_head.weight'] = ('head', (0,))
      continue
    last = f'lm_heads.{head}' if layout == 'vllm' else f'{head}.{config.num_layers}'
    names[f'{last}.weight'] = ('head', (head,))
  return names


def _read(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors by name, without a leading name of the whole."""
  if (folder / _AUTHORS_FILE).exists():
    stored = hf_files.open_file(folder / _AUTHORS_FILE, dtypes=_DTYPES)
  elif (folder / _TORCH_FILE).exists():
    stored = torch_files.read(folder / _TORCH_FILE)
  elif (folder / hf_files.SINGLE).exists():
    stored = hf_files.open_file(folder / hf_files.SINGLE, dtypes=_DTYPES)
  else:
    hf_files.refuse_adapter(folder)
    raise FileNotFoundError(
        f'{folder} holds none of {_AUTHORS_FILE}, {_TORCH_FILE} and {hf_files.SINGLE}.'
    )
  short = lambda name: name.removeprefix('medusa_heads.').removeprefix('medusa_head.')
  tensors = {
      short(name): value if isinstance(value, np.ndarray) else value.read()
      for name, value in stored.items()
  }
  return _dequantized(folder, tensors)


def _dequantized(folder: pathlib.Path, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors, every int8 one times its scales."""
  result = {}
  rounded = {name for name, value in tensors.items() if value.dtype == np.int8}
  for name, value in tensors.items():
    if name.removesuffix(_SCALE) in rounded - {name}:
      continue
    if name in rounded:
      scales = tensors.get(f'{name}{_SCALE}')
      if scales is None or scales.shape != (value.shape[0], 1):
        raise ValueError(
            f'{folder}: {name} is int8 and needs {name}{_SCALE} of shape {(value.shape[0], 1)}, '
            f'found {"none" if scales is None else scales.shape}. Export the heads again with one '
            'scale per output.'
        )
      value = value.astype(np.float32) * scales.astype(np.float32)
    result[name] = value
  return result


# The adapter of an early exit: a layout of our own, for nobody publishes them in another.
_EXIT_NAMES = {
    'mlp_norm.weight': ('mlp_norm', 'scale'),
    'norm.weight': ('final_norm', 'scale'),
    'mlp.down_proj.weight': ('mlp', 'down'),
}


def load_early_exit(
    folder: str | os.PathLike, target: LanguageModel, *, dtype: Any = None
) -> EarlyExit:
  """Loads an early exit that `save_early_exit` wrote.

  Raises:
    FileNotFoundError: when a file is missing.
    ValueError: when a tensor is missing, superfluous or of another shape, or the target is
      not as wide or deep as the exit needs.
  """
  folder = pathlib.Path(folder)
  if not (folder / 'config.json').exists():
    raise FileNotFoundError(f'{folder / "config.json"} is missing: no folder of an early exit.')
  file = folder / 'config.json'
  data = hf_files.read_json(file)
  if data.get('model_type') != 'specjax_early_exit':
    raise ValueError(f'{folder} is not an early exit: model_type={data.get("model_type")!r}.')
  values = hf_keys.read(data, head_keys.EXIT, where=str(file))
  hf_keys.refuse_unknown(data, set(head_keys.EXIT), where=str(file))
  cfg = target.module.config
  wanted = {'hidden_size': cfg.width, 'vocab_size': cfg.vocab_size}
  for key, value in (*wanted.items(), ('num_target_layers', cfg.num_layers)):
    if values[key] != value:
      raise ValueError(f'{folder} is for a target of {key}={values[key]}, this one has {value}.')
  try:
    config = ExitConfig(
        exit_layer=values['exit_layer'], target=cfg, mlp_width=values['intermediate_size']
    )
  except ValueError as error:
    raise ValueError(f'{file}: {error}') from error
  stored = hf_files.open_folder(folder)
  width, mlp = cfg.width, config.mlp_width
  shapes = {
      'mlp_norm.weight': (width,), 'norm.weight': (width,),
      'mlp.down_proj.weight': (width, mlp), 'mlp.gate_proj.weight': (mlp, width),
      'mlp.up_proj.weight': (mlp, width),
  }
  found = {name: tensor.shape for name, tensor in stored.items()}
  if found != shapes:
    wrong = sorted(name for name in set(found) | set(shapes) if found.get(name) != shapes.get(name))
    raise ValueError(f'{folder}: {", ".join(wrong)} are missing, superfluous or misshapen.')
  kept = np.dtype(dtype or stored['norm.weight'].dtype)
  read = lambda name: np.asarray(stored[name].read()).astype(kept)
  params: dict[str, Any] = {}
  for name, (outer, inner) in _EXIT_NAMES.items():
    params.setdefault(outer, {})[inner] = jnp.asarray(read(name))
  gate_up = np.stack([read('mlp.gate_proj.weight'), read('mlp.up_proj.weight')])
  params['mlp']['gate_up'] = jnp.asarray(gate_up)
  return EarlyExit(ExitAdapter(config, kept, kept), params)


def save_early_exit(
    exit: EarlyExit, folder: str | os.PathLike, *, dtype: Any = None, extra_files=()
) -> None:
  """Saves an early exit with an adapter; the folder appears complete or not at all.

  Raises:
    FileExistsError: when the folder holds something.
    ValueError: when there is no adapter to save.
  """
  cfg = exit.config
  if not cfg.mlp_width:
    raise ValueError('This exit has no adapter: there is nothing to save.')
  values = {
      name: np.asarray(exit.params[outer][inner]) for name, (outer, inner) in _EXIT_NAMES.items()
  }
  gate, up = np.asarray(exit.params['mlp']['gate_up'])
  values |= {'mlp.gate_proj.weight': gate, 'mlp.up_proj.weight': up}
  tensors = []
  for name, value in values.items():
    kept = np.dtype(dtype or value.dtype)
    tensors.append(
        hf_files.Unwritten(name, value.shape, kept, lambda v=value, k=kept: v.astype(k))
    )
  data = {
      'model_type': 'specjax_early_exit',
      'exit_layer': cfg.exit_layer,
      'intermediate_size': cfg.mlp_width,
      'hidden_size': cfg.target.width,
      'vocab_size': cfg.target.vocab_size,
      'num_target_layers': cfg.target.num_layers,
  }
  hf_files.publish(folder, data, tensors, extra_files=extra_files)
