"""Hugging Face folders in and out.

The tensors of a folder are fused on the way in (query, key and value of each key-value
group; gate and up) and taken apart on the way out, one at a time: the memory needed is
that of the model and one tensor. `specjax.models.hf.config` reads and writes the
`config.json`, `specjax.models.hf.files` the safetensors files.
"""

from collections.abc import Iterator, Mapping, Sequence
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
from specjax.models.language_model import LanguageModel
from specjax.models.transformer import Transformer
from specjax.sharding import layout as layout_lib

# Buffers that older releases stored, and the parts beside a Gemma 3's language model.
_IGNORED = ('rotary_emb.inv_freq',)
_VISION = ('vision_tower.', 'multi_modal_projector.')


@dataclasses.dataclass(frozen=True)
class _Part:
  """A stored tensor as a part of a parameter.

  Attributes:
    name: of the tensor.
    shape: of the tensor.
    axis: of the parameter, along which the part is `count` entries from `start` on.
    start: likewise.
    count: likewise; None for a part that is the whole parameter.
    repeats: how often the parameter holds each entry of its first axis, in a row.
  """

  name: str
  shape: tuple[int, ...]
  axis: int = 0
  start: int = 0
  count: int | None = None
  repeats: int = 1


@dataclasses.dataclass(frozen=True)
class _Parameter:
  """A parameter: its path in the tree, its shape and the stored tensors it is made of."""

  path: tuple[str, ...]
  shape: tuple[int, ...]
  parts: tuple[_Part, ...]


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
      superfluous or of another shape than `config.json` says.
  """
  folder = pathlib.Path(folder)
  config = load_config(folder, text_only=text_only)
  stored = _strip(hf_files.open_folder(folder), text_only)
  _check_depth(stored, config, folder)
  config = layout_lib.fitted(config, layout)
  parts = list(_layout(config))
  _check(stored, parts, config, folder)
  params: dict[str, Any] = {}
  for parameter in parts:
    value = _load(parameter, stored, dtype, layout)
    if int8 and parameter.path[-1] in quantization.KERNELS:
      value = _quantize(value, parameter.path, layout)
    _insert(params, parameter.path, value)
  compute = np.dtype(dtype or params['embedding'].dtype)
  module = Transformer(config, dtype=compute, param_dtype=compute, layout=layout)
  return LanguageModel(module, params)


def _load(parameter: _Parameter, stored, dtype, layout) -> jax.Array:
  """One parameter, where it belongs."""
  sources = [stored[part.name] for part in parameter.parts]
  kept = np.dtype(dtype or np.result_type(*(source.dtype for source in sources)))
  shape = parameter.shape
  if layout is None:
    return jnp.asarray(_read(parameter, sources, (slice(None),) * len(shape), kept))
  sharding = NamedSharding(layout.mesh, layout.parameter_spec(parameter.path, shape))
  read = lambda index: _read(parameter, sources, index, kept)
  # Waited for, so that the parts of one tensor alone are in flight.
  return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, read))


def _read(parameter: _Parameter, sources, index: tuple[slice, ...], dtype) -> np.ndarray:
  """`parameter[index]` from the stored tensors; nothing else of them is read."""
  bounds = [each.indices(size)[:2] for each, size in zip(index, parameter.shape)]
  value = np.empty([stop - start for start, stop in bounds], dtype)
  for part, source in zip(parameter.parts, sources, strict=True):
    shape, axis = list(parameter.shape), part.axis
    count = shape[axis] if part.count is None else part.count
    shape[axis] = count
    shape[0] //= part.repeats
    start, stop = bounds[axis]
    first, last = max(start, part.start), min(stop, part.start + count)
    if first >= last:
      continue
    where = [slice(*each) for each in bounds]
    where[axis] = slice(first - part.start, last - part.start)
    into = [slice(None)] * len(shape)
    into[axis] = slice(first - start, last - start)
    repeats = part.repeats
    if repeats > 1:  # axis is not 0: entries a … b - 1 are copies of a // n … (b - 1) // n
      begin, end = bounds[0]
      where[0] = slice(begin // repeats, (end - 1) // repeats + 1)
      found = np.repeat(source.read().reshape(shape)[tuple(where)], repeats, axis=0)
      offset = begin - begin // repeats * repeats
      value[tuple(into)] = found[offset : offset + end - begin]
    else:
      value[tuple(into)] = source.read().reshape(shape)[tuple(where)]
  return value


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
  tensors = list(_tensors(model.params, config, dtype))
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


def _layout(config: TransformerConfig) -> Iterator[_Parameter]:
  """Every parameter of a model and the tensors that `transformers` stores it as."""
  width, vocab = config.width, config.vocab_size
  single = lambda path, name, shape: _Parameter(path, shape, (_Part(name, shape),))
  yield single(('embedding',), 'model.embed_tokens.weight', (vocab, width))
  if not config.tie_embeddings:
    yield single(('head',), 'lm_head.weight', (vocab, width))
  yield single(('final_norm', 'scale'), 'model.norm.weight', (width,))
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
      yield single((layer, ours, 'scale'), f'{name}.{theirs}.weight', (width,))
    yield from _attention_layout(config, layer, f'{name}.self_attn')
    hidden = (config.mlp_width, width)
    gate = _Part(f'{name}.mlp.gate_proj.weight', hidden, axis=0, start=0, count=1)
    up = _Part(f'{name}.mlp.up_proj.weight', hidden, axis=0, start=1, count=1)
    yield _Parameter((layer, 'mlp', 'gate_up'), (2, *hidden), (gate, up))
    yield single((layer, 'mlp', 'down'), f'{name}.mlp.down_proj.weight', hidden[::-1])


def _attention_layout(config: TransformerConfig, layer: str, name: str) -> Iterator[_Parameter]:
  groups, head_dim, width = config.num_stored_kv_heads, config.head_dim, config.width
  repeats = config.num_heads // groups
  # Query head h belongs to group h // R, so the queries of a group lie together.
  ends = ((width,), 'qkv', 'weight'), ((), 'qkv_bias', 'bias')
  for tail, ours, theirs in ends if config.qkv_bias else ends[:1]:
    queries = (config.num_heads * head_dim, *tail)
    keys = (config.num_kv_heads * head_dim, *tail)
    one = lambda kind, start: _Part(
        f'{name}.{kind}_proj.{theirs}', keys, 1, start, 1, config.kv_repeats
    )
    parts = (
        _Part(f'{name}.q_proj.{theirs}', queries, axis=1, start=0, count=repeats),
        one('k', repeats),
        one('v', repeats + 1),
    )
    yield _Parameter((layer, 'attention', ours), (groups, repeats + 2, head_dim, *tail), parts)
  if config.qk_norm:
    for ours, theirs in (('query_norm', 'q_norm'), ('key_norm', 'k_norm')):
      part = _Part(f'{name}.{theirs}.weight', (head_dim,))
      yield _Parameter((layer, 'attention', ours, 'scale'), (head_dim,), (part,))
  shape = (width, config.num_heads * head_dim)
  part = _Part(f'{name}.o_proj.weight', shape)
  yield _Parameter((layer, 'attention', 'out'), shape, (part,))


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


def _check(
    stored: Mapping[str, hf_files.StoredTensor],
    layout: Sequence[_Parameter],
    config: TransformerConfig,
    folder: pathlib.Path,
) -> None:
  """Raises unless the stored tensors are exactly those of the layout."""
  expected = {part.name: part.shape for parameter in layout for part in parameter.parts}
  extra = set(stored) - set(expected)
  if config.tie_embeddings and 'lm_head.weight' in extra:
    # Some tied models are published with a copy of the embedding.
    embedding = stored.get('model.embed_tokens.weight')
    if embedding is not None and not _same(stored['lm_head.weight'], embedding):
      raise ValueError(
          f'{folder}: config.json says tie_word_embeddings, but lm_head.weight differs from '
          'the embedding. Set tie_word_embeddings to false there if the head is its own.'
      )
    extra.remove('lm_head.weight')
  missing = set(expected) - set(stored)
  if missing or extra:
    lists = [
        f'{kind} {", ".join(sorted(names)[:5])}{" …" if len(names) > 5 else ""} ({len(names)})'
        for kind, names in (('missing', missing), ('not supported', extra))
        if names
    ]
    raise ValueError(
        f'{folder}: the tensors are not those of its config.json: {"; ".join(lists)}.'
    )
  for name, shape in expected.items():
    if stored[name].shape != shape:
      raise ValueError(
          f'{folder}: tensor {name} has shape {stored[name].shape}, but config.json makes it '
          f'{shape}.'
      )


def _same(one: hf_files.StoredTensor, other: hf_files.StoredTensor) -> bool:
  """Whether two stored tensors are equal; rows in blocks, for memory."""
  if (one.shape, one.dtype) != (other.shape, other.dtype):
    return False
  one, other = one.read(), other.read()
  blocks = range(0, len(one), 4096)
  return all(np.array_equal(one[i : i + 4096], other[i : i + 4096]) for i in blocks)


def _tensors(params: Any, config: TransformerConfig, dtype: Any) -> Iterator[hf_files.Unwritten]:
  """What a model is stored as; each tensor is made when it is written."""
  count = 0
  for parameter in _layout(config):
    value = params
    for key in parameter.path:
      value = value.get(key) if isinstance(value, Mapping) else None
    shape = getattr(value, 'shape', None)
    if shape != parameter.shape:
      path = '/'.join(parameter.path)
      raise ValueError(f'Parameter {path} must have shape {parameter.shape}, got {shape}.')
    count += 1
    for part in parameter.parts:
      make = lambda value=value, part=part: _stored_value(np.asarray(value), part)
      yield hf_files.Unwritten(part.name, part.shape, np.dtype(dtype or value.dtype), make)
  leaves = len(jax.tree.leaves(params))
  if leaves != count:
    raise ValueError(f'The model has {leaves} parameters where its configuration has {count}.')


def _stored_value(value: np.ndarray, part: _Part) -> np.ndarray:
  """What a parameter's part is stored as."""
  index = [slice(None)] * value.ndim
  index[0] = slice(None, None, part.repeats)
  if part.count is not None:
    index[part.axis] = slice(part.start, part.start + part.count)
  return value[tuple(index)].reshape(part.shape)


def _insert(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value
