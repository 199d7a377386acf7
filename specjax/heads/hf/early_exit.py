"""The adapter of an early exit in and out: a layout of our own, for nobody publishes another."""

from collections.abc import Iterator
import os
import pathlib
from typing import Any

import numpy as np

from specjax.heads.early_exit import EarlyExit, ExitAdapter, ExitConfig
from specjax.heads.hf import eight_bits
from specjax.heads.hf import keys as head_keys
from specjax.models import LanguageModel
from specjax.models.config import TransformerConfig
from specjax.models.hf import files as hf_files
from specjax.models.hf import keys as hf_keys
from specjax.models.hf import tensors as hf_tensors


def table(config: ExitConfig) -> Iterator[hf_tensors.Parameter]:
  """Every parameter of an adapter and the tensors that it is stored as."""
  width = config.target.width
  yield hf_tensors.norm(('mlp_norm',), 'mlp_norm', width)
  yield hf_tensors.norm(('final_norm',), 'norm', width)
  yield from hf_tensors.gated_mlp(('mlp',), 'mlp', width=width, mlp_width=config.mlp_width)


def load_early_exit(
    folder: str | os.PathLike, target: LanguageModel, *, dtype: Any = None
) -> EarlyExit:
  """Loads an early exit that `save_early_exit` wrote.

  Args:
    folder: with `config.json` and `model.safetensors`.
    target: the target that the exit was made for.
    dtype: of weights and activations; None keeps that of the files.

  Raises:
    FileNotFoundError: when a file is missing.
    ValueError: when a tensor is missing, unexpected or of another shape, or the exit was made
      for a target of another shape.
  """
  folder = pathlib.Path(folder)
  file = folder / 'config.json'
  if not file.exists():
    raise FileNotFoundError(f'{file} is missing: {folder} is not the folder of an early exit.')
  config = _read_config(file, target.module.config)
  stored = hf_files.open_folder(folder, dtypes=hf_files.FLOATS | hf_files.INT8)
  tensors = eight_bits.floats(folder, {name: tensor.read() for name, tensor in stored.items()})
  hf_tensors.check(tensors, table(config), str(folder))
  kept = np.dtype(dtype or stored['norm.weight'].dtype)
  params = hf_tensors.load(table(config), tensors, kept)
  return EarlyExit(ExitAdapter(config, kept, kept), params)


def _read_config(file: pathlib.Path, target: TransformerConfig) -> ExitConfig:
  data = hf_files.read_json(file)
  if data.get('model_type') != 'specjax_early_exit':
    raise ValueError(
        f'{file.parent} is not an early exit: model_type={data.get("model_type")!r}.'
    )
  values = hf_keys.read(data, head_keys.EXIT, where=str(file))
  hf_keys.refuse_unknown(data, set(head_keys.EXIT), where=str(file))
  for key, value in (
      ('hidden_size', target.width),
      ('vocab_size', target.vocab_size),
      ('num_target_layers', target.num_layers),
  ):
    if values[key] != value:
      raise ValueError(
          f'{file.parent} is for a target of {key}={values[key]}, this one has {value}.'
      )
  try:
    return ExitConfig(
        exit_layer=values['exit_layer'], target=target, mlp_width=values['intermediate_size']
    )
  except ValueError as error:
    raise ValueError(f'{file}: {error}') from error


def save_early_exit(
    exit: EarlyExit,
    folder: str | os.PathLike,
    *,
    dtype: Any = None,
    int8: bool = False,
    extra_files=(),
) -> None:
  """Saves an early exit with an adapter; the folder appears complete or not at all.

  Args:
    exit: the exit.
    folder: must not exist yet, or be empty.
    dtype: of the files; None keeps that of the parameters.
    int8: stores weights in eight bits (`specjax.heads.hf.eight_bits`), which rounds them.
    extra_files: copied into the folder.

  Raises:
    FileExistsError: when the folder is not empty.
    ValueError: when there is no adapter to save.
  """
  cfg = exit.config
  if not cfg.mlp_width:
    raise ValueError('This exit has no adapter: there is nothing to save.')
  data = {
      'model_type': 'specjax_early_exit',
      'exit_layer': cfg.exit_layer,
      'intermediate_size': cfg.mlp_width,
      'hidden_size': cfg.target.width,
      'vocab_size': cfg.target.vocab_size,
      'num_target_layers': cfg.target.num_layers,
  }
  tensors = list(hf_tensors.unwritten(exit.params, table(cfg), dtype))
  if int8:
    tensors = eight_bits.rounded(tensors)
  hf_files.publish(folder, data, tensors, extra_files=extra_files)
