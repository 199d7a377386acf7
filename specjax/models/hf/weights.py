"""Hugging Face folders in and out.

The tensors of a folder, which `table` lists, are fused on the way in and taken apart on the way
out, one at a time (`specjax.models.hf.tensors`): the memory needed is that of the model and one
tensor. `specjax.models.hf.config` reads and writes the `config.json`, `specjax.models.hf.files` the
safetensors files.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np

from specjax.models import quantization
from specjax.models.config import TransformerConfig
from specjax.models.hf import config as hf_config
from specjax.models.hf import files as hf_files
from specjax.models.hf import tensors as hf_tensors
from specjax.models.language_model import LanguageModel
from specjax.models.transformer import Transformer
from specjax.sharding import layout as layout_lib

# Buffers that older releases stored, and the parts beside a Gemma 3's language model.
_IGNORED = ('rotary_emb.inv_freq',)
_VISION = ('vision_tower.', 'multi_modal_projector.')


def load_hf(
    folder: str | os.PathLike,
    *,
    dtype: Any = None,
    text_only: bool = False,
    layout: layout_lib.Layout | None = None,
    int8: bool = False,
) -> LanguageModel:
  """Loads a Hugging Face folder: `config.json` and one or many safetensors files.

  Supported are Llama 2 to 3.3, Mistral, Qwen2, Qwen2.5, Qwen3, Gemma 2 and the text models
  of Gemma 3; whatever differs from these is refused by name. Everything is checked before
  the first weight is read.

  Args:
    folder: a local folder.
    dtype: of weights, activations and cache; None keeps the dtype of the files (that of the
      embedding, where they are mixed).
    text_only: load the language model of a Gemma 3 with a vision tower, without the tower.
    layout: how the model is split over devices (`specjax.sharding.make`). Every device's part
      is read by itself: beside the weights, memory holds one tensor at most. Key-value heads
      are repeated where the layout needs it.
    int8: round the layers' weights and the head to eight bits (`specjax.models.quantization`),
      each as soon as it is read. It is another model then, and lossless means: like that one.

  Returns:
    The model; its logits agree with `transformers` to 1e-4 in float32.

  Raises:
    FileNotFoundError: when the folder, its `config.json` or a shard is missing.
    ValueError: when the model is not supported, a file is damaged, or tensors are missing,
      unexpected or of another shape than `config.json` makes them.
  """
  folder = pathlib.Path(folder)
  config = load_config(folder, text_only=text_only)
  stored = _strip(hf_files.open_folder(folder), text_only)
  _check_depth(stored, config, folder)
  config = layout_lib.fitted(config, layout)
  if config.tie_embeddings:
    stored = _without_copy(stored, folder)
  parameters = list(table(config))
  hf_tensors.check(stored, parameters, str(folder))
  params = load_params(
      parameters,
      lambda parameter: _open(parameter, stored, dtype),
      layout=layout,
      int8=int8,
  )
  compute = np.dtype(dtype or params['embedding'].dtype)
  module = Transformer(config, dtype=compute, param_dtype=compute, layout=layout)
  return LanguageModel(module, params)


def load_params(
    parameters: Iterable[hf_tensors.Parameter],
    open_parameter: Callable[[hf_tensors.Parameter], hf_tensors.ReadPart],
    *,
    layout: layout_lib.Layout | None,
    int8: bool,
) -> dict[str, Any]:
  """The parameter tree of a table, each parameter where it belongs.

  Args:
    parameters: the table.
    open_parameter: given a parameter, returns what reads a part of it; called when its turn comes.
    layout: how the model is split over devices, or None.
    int8: whether kernels are quantised, each as soon as it is read.
  """
  params: dict[str, Any] = {}
  for parameter in parameters:
    value = _place(parameter, open_parameter(parameter), layout)
    if int8 and parameter.path[-1] in quantization.KERNELS:
      value = _quantize(value, parameter.path, layout)
    hf_tensors.insert(params, parameter.path, value)
  return params


def _open(parameter: hf_tensors.Parameter, stored, dtype) -> hf_tensors.ReadPart:
  """What reads a part of a parameter from mapped files."""
  tensors = [stored[part.name].read() for part in parameter.parts]
  kept = np.dtype(dtype or np.result_type(*(tensor.dtype for tensor in tensors)))
  return lambda index=None: hf_tensors.read(parameter, tensors, kept, index)


def _place(parameter: hf_tensors.Parameter, read: hf_tensors.ReadPart, layout) -> jax.Array:
  """One parameter, where it belongs."""
  if layout is None:
    return jnp.asarray(read())
  spec = layout.parameter_spec(parameter.path, parameter.shape)
  value = jax.make_array_from_callback(parameter.shape, NamedSharding(layout.mesh, spec), read)
  # Waited for, so that only the parts of one tensor are in flight.
  return jax.block_until_ready(value)


def _quantize(value: jax.Array, path: tuple[str, ...], layout) -> quantization.Quantized:
  """A quantised parameter, split as the parameter is."""
  if layout is None:
    return jax.jit(quantization.quantize)(value)
  place = lambda name, shape: NamedSharding(
      layout.mesh, layout.parameter_spec((*path, name), shape)
  )
  shardings = quantization.Quantized(
      place('values', value.shape), place('scales', value.shape[:-1])
  )
  quantized = jax.jit(quantization.quantize, out_shardings=shardings)(value)
  return jax.block_until_ready(quantized)


def load_config(folder: str | os.PathLike, *, text_only: bool = False) -> TransformerConfig:
  """The `TransformerConfig` of a folder; raises as `load_hf`, and reads no weights."""
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(
        f'{folder} is not a folder. Models are read from local folders: fetch one first, for '
        'instance with `hf download ORGANISATION/MODEL --local-dir FOLDER`.'
    )
  file = folder / 'config.json'
  if not file.exists():
    hf_files.refuse_adapter(folder)
    raise FileNotFoundError(f'{file} is missing: {folder} is not a Hugging Face model folder.')
  return hf_config.read(hf_files.read_json(file), where=str(file), text_only=text_only)


def save_hf(
    model: LanguageModel,
    folder: str | os.PathLike,
    *,
    dtype: Any = None,
    max_shard_bytes: int = 5_000_000_000,
    bos_id: int | None = None,
    eos_ids: Sequence[int] = (),
    extra_files: Sequence[str | os.PathLike] = (),
) -> None:
  """Saves a model as a Hugging Face folder that `load_hf` and `transformers` load.

  The folder appears complete or not at all: it is written beside its place and renamed.

  Args:
    model: a `LanguageModel` whose module is a `Transformer`.
    folder: must not exist yet, or be empty.
    dtype: of the files; None keeps that of each parameter, so that loading gives the same
      bits.
    max_shard_bytes: size from which the weights are split into several files.
    bos_id: the token that begins a text, for `config.json`.
    eos_ids: the tokens that end a text, likewise.
    extra_files: copied into the folder (a tokenizer.json, say).

  Raises:
    FileExistsError: when the folder holds something.
    ValueError: when no supported architecture computes this model, or its parameters are
      not those of its configuration.
  """
  if not isinstance(model.module, Transformer):
    raise TypeError(f'save_hf writes models of specjax.models, not {type(model.module).__name__}.')
  config = model.module.config
  # Copies of heads are a matter of one mesh; files hold every head once.
  data = hf_config.write(dataclasses.replace(config, kv_repeats=1))
  tensors = list(hf_tensors.unwritten(model.params, table(config), dtype))
  kinds = sorted({str(tensor.dtype) for tensor in tensors})
  data |= {
      'dtype': str(np.dtype(dtype or model.module.dtype)) if len(kinds) > 1 else kinds[0],
      'bos_token_id': bos_id,
      'eos_token_id': list(eos_ids) if len(eos_ids) != 1 else int(eos_ids[0]),
  }
  data['torch_dtype'] = data['dtype']  # the name before transformers 4.56
  if not eos_ids:
    data['eos_token_id'] = None  # written, for the default of Llama is token 2
  hf_files.publish(
      folder, data, tensors, extra_files=extra_files, max_shard_bytes=max_shard_bytes
  )


def table(config: TransformerConfig) -> Iterator[hf_tensors.Parameter]:
  """Every parameter of a model and the tensors that `transformers` stores it as."""
  width, vocab = config.width, config.vocab_size
  yield hf_tensors.whole(('embedding',), 'model.embed_tokens.weight', (vocab, width))
  if not config.tie_embeddings:
    yield hf_tensors.whole(('head',), 'lm_head.weight', (vocab, width))
  yield hf_tensors.norm(('final_norm',), 'model.norm', width)
  norms = {'attention_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}
  if config.post_norms:
    norms = {
        'attention_norm': 'input_layernorm',
        'post_attention_norm': 'post_attention_layernorm',
        'mlp_norm': 'pre_feedforward_layernorm',
        'post_mlp_norm': 'post_feedforward_layernorm',
    }
  for number in range(config.num_layers):
    layer, name = f'layer_{number}', f'model.layers.{number}'
    for ours, theirs in norms.items():
      yield hf_tensors.norm((layer, ours), f'{name}.{theirs}', width)
    path, attention = (layer, 'attention'), f'{name}.self_attn'
    yield from hf_tensors.attention(config, path, attention, fan_in=width)
    out_shape = (width, config.num_heads * config.head_dim)
    yield hf_tensors.whole((*path, 'out'), f'{attention}.o_proj.weight', out_shape)
    yield from hf_tensors.gated_mlp(
        (layer, 'mlp'), f'{name}.mlp', width=width, mlp_width=config.mlp_width
    )


def _strip(
    stored: Mapping[str, hf_files.StoredTensor], text_only: bool
) -> dict[str, hf_files.StoredTensor]:
  """The tensors of the language model, under the names of a text-only folder."""
  result = {}
  for name, tensor in stored.items():
    if text_only:
      # Names of a multimodal folder: language_model.model.X or model.language_model.X.
      if name.removeprefix('model.').startswith(_VISION):
        continue
      name = name.replace('model.language_model.', 'model.', 1).removeprefix('language_model.')
    if not name.endswith(_IGNORED):
      result[name] = tensor
  return result


def _check_depth(
    stored: Mapping[str, hf_files.StoredTensor], config: TransformerConfig, folder: pathlib.Path
) -> None:
  """Raises unless there are tensors of as many layers as the configuration has."""
  numbers = (re.match(r'model\.layers\.(\d{1,9})\.', name) for name in stored)
  depth = max((int(number[1]) + 1 for number in numbers if number), default=0)
  if depth != config.num_layers:
    raise ValueError(
        f'{folder}: config.json says num_hidden_layers={config.num_layers}, the tensors are '
        f'those of {depth} layers.'
    )


def _without_copy(
    stored: Mapping[str, hf_files.StoredTensor], folder: pathlib.Path
) -> dict[str, hf_files.StoredTensor]:
  """The tensors of a tied model without the copy of the embedding that some are published with."""
  names = head, embedding = 'lm_head.weight', 'model.embed_tokens.weight'
  if all(name in stored for name in names) and not _same(stored[head], stored[embedding]):
    raise ValueError(
        f'{folder}: config.json says tie_word_embeddings, but lm_head.weight differs from the '
        'embedding. Set tie_word_embeddings to false there if the head is its own.'
    )
  return {name: tensor for name, tensor in stored.items() if name != head}


def _same(one: hf_files.StoredTensor, other: hf_files.StoredTensor) -> bool:
  """Whether two stored tensors are equal; rows in blocks, for memory."""
  if (one.shape, one.dtype) != (other.shape, other.dtype):
    return False
  one, other = one.read(), other.read()
  blocks = range(0, len(one), 4096)
  return all(np.array_equal(one[i : i + 4096], other[i : i + 4096]) for i in blocks)
