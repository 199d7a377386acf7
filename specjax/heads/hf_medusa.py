"""Medusa heads and early exits in and out.

- `authors` (FasterDecoding/Medusa): `medusa_lm_head.safetensors` or `.pt` with
  `{head}.{block}.linear.weight` and `.bias`, and `{head}.{blocks}.weight`;
- `vllm`: `model.safetensors` with `blocks.{head}.layers.{block}.weight` and perhaps `.bias`, and
  `lm_heads.{head}.weight`.
"""

import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from specjax.heads import torch_files
from specjax.heads.early_exit import EarlyExit, ExitAdapter, ExitConfig
from specjax.heads.medusa import Medusa, MedusaConfig, MedusaHeads
from specjax.models import hf_files
from specjax.models import LanguageModel

LAYOUTS = ('authors', 'vllm')
_AUTHORS_FILE = 'medusa_lm_head.safetensors'
_TORCH_FILE = 'medusa_lm_head.pt'


def load_medusa(
    folder: str | os.PathLike, target: LanguageModel, *, dtype: Any = None
) -> Medusa:
  """Loads Medusa heads in the authors' or vLLM's layout.

  Args:
    folder: with `config.json` and one of the files above.
    target: the target that they were made for.
    dtype: of weights and activations; None keeps that of the files.

  Returns:
    The heads; their logits agree with the authors' code to 1e-4 in float32.

  Raises:
    FileNotFoundError: when the folder or a file is missing.
    ValueError: when a tensor is missing, superfluous or of another shape, naming it.
  """
  folder = pathlib.Path(folder)
  if not (folder / 'config.json').exists():
    raise FileNotFoundError(f'{folder / "config.json"} is missing: no folder of Medusa heads.')
  data = hf_files.read_json(folder / 'config.json')
  tensors = _read(folder)
  is_vllm = any(name.startswith('blocks.') for name in tensors)
  num_heads = data.get('num_heads' if is_vllm else 'medusa_num_heads')
  num_layers = data.get('num_hidden_layers' if is_vllm else 'medusa_num_layers', 1)
  cfg = target.module.config
  # Files of the authors' say two heads where there are more: the tensors count.
  found = {int(name.split('.')[1 if is_vllm else 0]) for name in tensors}
  num_heads = max(found) + 1 if not is_vllm else num_heads or max(found) + 1
  config = MedusaConfig(
      num_heads=num_heads,
      num_layers=num_layers,
      target_width=cfg.width,
      target_vocab_size=cfg.vocab_size,
      target_layers=cfg.num_layers,
  )
  layout = 'vllm' if is_vllm else 'authors'
  has_bias = any(name.endswith('.bias') for name in tensors)
  names = _names(config, layout, has_bias=has_bias)
  missing, extra = sorted(set(names) - set(tensors)), sorted(set(tensors) - set(names))
  if missing or extra:
    raise ValueError(
        f'{folder} does not hold {num_heads} heads of {num_layers} blocks: missing are '
        f'{", ".join(missing) or "none"}; superfluous are {", ".join(extra) or "none"}.'
    )
  kept = np.dtype(dtype or next(iter(tensors.values())).dtype)
  params = {}
  width, vocab_size = cfg.width, cfg.vocab_size
  params['blocks'] = np.zeros((num_layers, num_heads, width, width), kept)
  params['bias'] = np.zeros((num_layers, num_heads, width), kept)
  params['head'] = np.zeros((num_heads, vocab_size, width), kept)
  for name, (key, index) in names.items():
    wanted = params[key][index].shape
    if tensors[name].shape != wanted:
      raise ValueError(f'{folder}: {name} has shape {tensors[name].shape}, expected {wanted}.')
    params[key][index] = tensors[name].astype(kept)
  module = MedusaHeads(config, kept, kept)
  return Medusa(module, {key: jnp.asarray(value) for key, value in params.items()})


def save_medusa(
    heads: Medusa,
    folder: str | os.PathLike,
    *,
    layout: str = 'authors',
    dtype: Any = None,
    extra_files=(),
) -> None:
  """Saves Medusa heads; the folder appears complete or not at all.

  Args:
    heads: the heads.
    folder: must not exist yet, or be empty.
    layout: one of `LAYOUTS`.
    dtype: of the files; None keeps that of the parameters.
    extra_files: copied into the folder.

  Raises:
    FileExistsError: when the folder holds something.
    ValueError: for an unknown layout.
  """
  if layout not in LAYOUTS:
    raise ValueError(f'layout must be one of {LAYOUTS}, got {layout!r}.')
  cfg = heads.config
  kept = np.dtype(dtype or heads.params['head'].dtype)
  tensors = []
  for name, (key, index) in _names(cfg, layout, has_bias=True).items():
    value = np.asarray(heads.params[key])[index].astype(kept)
    tensors.append(hf_files.Unwritten(name, value.shape, kept, lambda v=value: v))
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
      'truncated_vocab_size': None,
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
    last = f'lm_heads.{head}' if layout == 'vllm' else f'{head}.{config.num_layers}'
    names[f'{last}.weight'] = ('head', (head,))
  return names


def _read(folder: pathlib.Path) -> dict[str, np.ndarray]:
  if (folder / _AUTHORS_FILE).exists():
    stored = hf_files.open_file(folder / _AUTHORS_FILE)
  elif (folder / _TORCH_FILE).exists():
    tensors = torch_files.read(folder / _TORCH_FILE)
    return {name.removeprefix('medusa_head.'): value for name, value in tensors.items()}
  elif (folder / hf_files.SINGLE).exists():
    stored = hf_files.open_file(folder / hf_files.SINGLE)
  else:
    raise FileNotFoundError(
        f'{folder} holds none of {_AUTHORS_FILE}, {_TORCH_FILE} and {hf_files.SINGLE}.'
    )
  return {name.removeprefix('medusa_head.'): value.read() for name, value in stored.items()}


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
  data = hf_files.read_json(folder / 'config.json')
  if data.get('model_type') != 'specjax_early_exit':
    raise ValueError(f'{folder} is not an early exit: model_type={data.get("model_type")!r}.')
  cfg = target.module.config
  wanted = {'hidden_size': cfg.width, 'vocab_size': cfg.vocab_size}
  for key, value in (*wanted.items(), ('num_target_layers', cfg.num_layers)):
    if data[key] != value:
      raise ValueError(f'{folder} is for a target of {key}={data[key]}, this one has {value}.')
  config = ExitConfig(
      exit_layer=data['exit_layer'], target=cfg, mlp_width=data['intermediate_size']
  )
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
