"""GGUF files in: a model from one file, of floats or quantised.

The table of tensors is that of Hugging Face folders (`specjax.models.hf.weights`) under the names
of GGUF. The package `gguf` makes numbers of quantised blocks, a few rows at a time: beside the
model, memory holds one parameter and one tensor. What llama.cpp's converter does to weights is
undone on the way: Llama's query and key rows are put back in order, Gemma's norm scales are
stored minus one.
"""

from collections.abc import Iterator
import dataclasses
import importlib.metadata
import os
import re
import types
from typing import Any

import ml_dtypes
import numpy as np

from specjax.models.config import TransformerConfig
from specjax.models.gguf import config as gguf_config
from specjax.models.gguf import files
from specjax.models.gguf import rope as gguf_rope
from specjax.models.hf import tensors as hf_tensors
from specjax.models.hf import weights as hf_weights
from specjax.models.language_model import LanguageModel
from specjax.models.transformer import Transformer
from specjax.sharding import layout as layout_lib

# Names of tensors, those of `transformers` to those of GGUF: of the model, and within a layer.
_MODEL = {
    'model.embed_tokens.weight': 'token_embd.weight',
    'model.norm.weight': 'output_norm.weight',
    'lm_head.weight': 'output.weight',
}
_LAYER = {
    'input_layernorm': 'attn_norm',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'self_attn.q_norm': 'attn_q_norm',
    'self_attn.k_norm': 'attn_k_norm',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
}
_NORMS = {'post_attention_layernorm': 'ffn_norm'}
_POST_NORMS = {
    'post_attention_layernorm': 'post_attention_norm',
    'pre_feedforward_layernorm': 'ffn_norm',
    'post_feedforward_layernorm': 'post_ffw_norm',
}
# Tensors of these types keep their dtype where none is asked for.
_FLOATS = {
    'F32': np.dtype(np.float32),
    'F16': np.dtype(np.float16),
    'BF16': np.dtype(ml_dtypes.bfloat16),
}
# Numbers that are dequantised at a time.
_BLOCK = 2**22


def load_gguf(
    path: str | os.PathLike,
    *,
    dtype: Any = None,
    layout: layout_lib.Layout | None = None,
    int8: bool = False,
) -> LanguageModel:
  """Loads a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

  Supported are the architectures llama (Llama, Mistral, SmolLM), qwen2, qwen3, gemma2 and gemma3
  with tensors of every type that the package `gguf` makes numbers of; whatever differs from
  these is refused by name. Everything is checked before the first weight is read. Quantised
  weights are turned into floats, and those floats are the model.

  Args:
    path: the file.
    dtype: of weights, activations and cache; None keeps that of float32, float16 and bfloat16
      tensors, and makes bfloat16 of quantised ones. float32 holds their numbers without rounding.
    layout: how the model is split over devices (`specjax.sharding.make`). Key-value heads are
      repeated where the layout needs it.
    int8: round the layers' weights and the head to eight bits (`specjax.models.quantization`),
      each as soon as it is read. It is another model then, and lossless means: like that one.

  Returns:
    The model; its logits agree with those of `transformers` to 1e-4 in float32.

  Raises:
    ModuleNotFoundError: when the package `gguf` is missing.
    FileNotFoundError: when there is no such file.
    ValueError: when the model is not supported, the file is damaged, or tensors are missing,
      unexpected or of another shape than the metadata makes them.
  """
  package = _package()
  header = files.read_header(path)
  config = layout_lib.fitted(gguf_config.read(header), layout)
  _check_tensors(header, package)
  stored = _tensors(header, config, package, dtype)
  parameters = list(table(config))
  hf_tensors.check(stored, parameters, str(header.path), source='metadata')

  def open_parameter(parameter: hf_tensors.Parameter) -> hf_tensors.ReadPart:
    parts = [stored[part.name] for part in parameter.parts]
    common = np.dtype(dtype or np.result_type(*(part.dtype for part in parts)))
    # Whole, whatever part a device asks for: dequantising is the expense.
    value = hf_tensors.read(parameter, (part.read() for part in parts), common)
    return lambda index=...: value[index]

  params = hf_weights.load_params(parameters, open_parameter, layout=layout, int8=int8)
  compute = np.dtype(dtype or params['embedding'].dtype)
  module = Transformer(config, dtype=compute, param_dtype=compute, layout=layout)
  return LanguageModel(module, params)


def _tensors(
    header: files.Header, config: TransformerConfig, package: types.ModuleType, dtype: Any
) -> dict[str, '_Tensor']:
  """The tensors of a file by name, as its model's own files hold them."""
  architecture = gguf_config.ARCHITECTURES[gguf_config.architecture(header)]
  tensors = dict(header.tensors)
  if architecture.interleaves_heads:
    tensors.pop(gguf_rope.FACTORS, None)  # the configuration has them
  return {
      name: _Tensor(
          tensor=tensor,
          package=package,
          dtype=_dtype(tensor, package, dtype),
          interleaved_heads=_heads(name, config) if architecture.interleaves_heads else 0,
          offset=config.norm_offset if name.endswith('norm.weight') else 0.0,
      )
      for name, tensor in tensors.items()
  }


def table(config: TransformerConfig) -> Iterator[hf_tensors.Parameter]:
  """Every parameter of a model and the tensors that a GGUF file stores it as."""
  for parameter in hf_weights.table(config):
    parts = tuple(
        dataclasses.replace(part, name=_name(part.name, config)) for part in parameter.parts
    )
    yield dataclasses.replace(parameter, parts=parts)


def _name(name: str, config: TransformerConfig) -> str:
  """The name in GGUF of a tensor of `transformers`."""
  match = re.fullmatch(r'model\.layers\.(\d+)\.(.+)\.(weight|bias)', name)
  if match is None:
    return _MODEL[name]
  layer = _LAYER | (_POST_NORMS if config.post_norms else _NORMS)
  return f'blk.{match[1]}.{layer[match[2]]}.{match[3]}'


def _heads(name: str, config: TransformerConfig) -> int:
  """How many heads the rows of a query or key tensor are; 0 for other tensors."""
  if '.attn_q.' in name:
    return config.num_heads
  return config.num_kv_heads if '.attn_k.' in name else 0


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A tensor as the model's own files hold it, dequantised when it is read.

  Attributes:
    tensor: where it is stored.
    package: `gguf`.
    dtype: of what is read.
    interleaved_heads: how many heads' rows are put back in order; 0 for none.
    offset: what is subtracted.
  """

  tensor: files.StoredTensor
  package: types.ModuleType
  dtype: np.dtype
  interleaved_heads: int
  offset: float

  @property
  def shape(self) -> tuple[int, ...]:
    return self.tensor.shape

  def read(self) -> np.ndarray:
    """Its numbers, made a block of rows at a time."""
    kind = self.package.GGMLQuantizationType(self.tensor.kind)
    rows = self.tensor.rows(self.tensor.num_bytes(*self.package.GGML_QUANT_SIZES[kind]))
    result = np.empty((len(rows), self.shape[-1]), self.dtype)
    order = _order(len(rows), self.interleaved_heads)
    step = max(1, _BLOCK // self.shape[-1])
    for start in range(0, len(rows), step):
      block = slice(start, start + step)
      data = np.ascontiguousarray(rows[block] if order is None else rows[order[block]])
      result[block] = self.package.dequantize(data, kind) - np.float32(self.offset)
    return result.reshape(self.shape)


def _order(num_rows: int, heads: int) -> np.ndarray | None:
  """For every row of a tensor of `transformers`, its row in the file; None where it is the same.

  Two heads of six rows are stored as 0 3 1 4 2 5 | 6 9 7 10 8 11: so row 1 is the file's row 2,
  and the order 0 2 4 1 3 5 | 6 8 10 7 9 11.
  """
  if not heads:
    return None
  return np.arange(num_rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _dtype(tensor: files.StoredTensor, package: types.ModuleType, dtype: Any) -> np.dtype:
  kind = package.GGMLQuantizationType(tensor.kind)
  return np.dtype(dtype or _FLOATS.get(kind.name, ml_dtypes.bfloat16))


def _check_tensors(header: files.Header, package: types.ModuleType) -> None:
  """Checks that the tensors' types are supported, and that the file holds their bytes.

  Raises:
    ValueError: naming the first tensor of which that does not hold.
  """
  kinds: dict[int, tuple[int, int] | None] = {}
  end = header.start
  for name, tensor in header.tensors.items():
    where = f'{header.path}: tensor {name}'
    if tensor.kind not in kinds:
      kinds[tensor.kind] = _sizes(tensor.kind, package)
    sizes = kinds[tensor.kind]
    if sizes is None:
      names = {each.value: each.name for each in package.GGMLQuantizationType}
      version = importlib.metadata.version('gguf')
      raise ValueError(
          f'{where} has type {names.get(tensor.kind, tensor.kind)}, of which the package gguf '
          f'{version} makes no numbers: install its newest release, or take a file of another type '
          '(such as Q8_0 or F16).'
      )
    if tensor.shape[-1] % sizes[0]:
      raise ValueError(
          f'{where} has rows of {tensor.shape[-1]}, but its type has blocks of {sizes[0]}: the '
          'file is damaged, fetch it again.'
      )
    # Tensors follow each other, with nothing but padding in between.
    if tensor.offset != end:
      raise ValueError(f'{header.path} is damaged at tensor {name}: fetch it again.')
    last = tensor.offset + tensor.num_bytes(*sizes)
    end = last + -last % header.alignment
    if last > header.size:
      raise ValueError(
          f'{header.path} is truncated: tensor {name} ends at byte {last:,}, and it has '
          f'{header.size:,}. Fetch it again.'
      )


def _sizes(kind: int, package: types.ModuleType) -> tuple[int, int] | None:
  """Numbers and bytes of a block of a type; None where it is not supported."""
  try:
    named = package.GGMLQuantizationType(kind)
    sizes = package.GGML_QUANT_SIZES[named]
    package.dequantize(np.zeros((1, sizes[1]), np.uint8), named)
  except (KeyError, NotImplementedError, ValueError):
    return None
  return sizes


def _package() -> types.ModuleType:
  """The package `gguf`, which only this needs."""
  try:
    import gguf
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Loading GGUF files needs the package gguf: pip install 'specjax[gguf]'.", name='gguf'
    ) from error
  return gguf

