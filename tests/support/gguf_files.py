"""GGUF files of tiny random models and vocabularies, as llama.cpp's converter writes them.

For tests, and for the script that makes their goldens (`scripts/make_golden_gguf.py`): this needs
NumPy and the package `gguf` alone. Weights are those of a generator whose stream never changes.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any
import zlib

import gguf
import numpy as np

VOCAB, LENGTH = 64, 24
# Where the numbers of a block lie that scale all of it: half floats, at these bytes.
_SCALES = {'Q2_K': (80, 82), 'Q3_K': (108,), 'Q4_K': (0, 2), 'Q5_K': (0, 2), 'Q6_K': (208,)}


@dataclasses.dataclass(frozen=True)
class Case:
  """A model.

  Attributes:
    architecture: its name in GGUF.
    metadata: its keys beside the sizes, without the architecture's name before them.
    kind: type of its matrices.
    width: of the residual stream, and of the MLP; K-quants have blocks of 256.
    head_dim: size of a head.
    num_layers: how many layers.
    tied: whether the head is the embedding.
    factors: whether there is a tensor of Llama 3.1's factors.
  """

  architecture: str
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  kind: str = 'F32'
  width: int = 32
  head_dim: int = 16
  num_layers: int = 2
  tied: bool = False
  factors: bool = False


_YARN = {
    'rope.scaling.type': 'yarn',
    'rope.scaling.factor': 4.0,
    'rope.scaling.original_context_length': 8,
}
_LINEAR = {'rope.scaling.type': 'linear', 'rope.scaling.factor': 4.0}
_GEMMA = {'attention.sliding_window': 8, 'attention.sliding_window_pattern': 2}
_SOFT_CAPS = {'attn_logit_softcapping': 3.0, 'final_logit_softcapping': 4.0}
CASES = {
    'llama': Case('llama'),
    'llama linear': Case('llama', _LINEAR),
    'llama yarn': Case('llama', _YARN),
    'llama factors': Case('llama', tied=True, factors=True),
    'qwen2': Case('qwen2', head_dim=8, tied=True),
    'qwen2 yarn': Case(
        'qwen2',
        _YARN | {
            'rope.scaling.yarn_attn_factor': 1.5, 'rope.scaling.yarn_beta_fast': 4.0,
            'rope.scaling.yarn_beta_slow': 2.0,
        },
        head_dim=8,
    ),
    'qwen3': Case('qwen3'),
    'gemma2': Case('gemma2', _GEMMA | _SOFT_CAPS, tied=True),
    'gemma3': Case('gemma3', _GEMMA, tied=True),
    'gemma3 linear': Case('gemma3', _GEMMA | _LINEAR, tied=True),
    'llama F16': Case('llama', kind='F16'),
    'qwen3 BF16': Case('qwen3', kind='BF16'),
    'gemma3 Q8_0': Case('gemma3', _GEMMA, kind='Q8_0', tied=True),
    'llama Q4_1': Case('llama', kind='Q4_1'),
    'qwen2 Q5_0': Case('qwen2', kind='Q5_0', head_dim=8),
    'llama Q4_K': Case('llama', kind='Q4_K', width=256, head_dim=64, num_layers=1),
    'gemma2 Q6_K': Case(
        'gemma2', _GEMMA | _SOFT_CAPS, kind='Q6_K', width=256, head_dim=64, num_layers=1, tied=True
    ),
}
HEADS, KV_HEADS = 4, 2


def tokens() -> np.ndarray:
  """A prompt [1, LENGTH] int32."""
  return np.random.RandomState(0).randint(VOCAB, size=(1, LENGTH)).astype(np.int32)


def metadata(case: Case) -> dict[str, Any]:
  """All keys of a case that say what is computed."""
  prefix = f'{case.architecture}.'
  values = {
      'vocab_size': VOCAB,
      'context_length': 32,
      'embedding_length': case.width,
      'block_count': case.num_layers,
      'feed_forward_length': case.width,
      'attention.head_count': HEADS,
      'attention.head_count_kv': KV_HEADS,
      'attention.layer_norm_rms_epsilon': 3e-3,
      'attention.key_length': case.head_dim,
      'attention.value_length': case.head_dim,
      'rope.freq_base': 500.0,
  }
  if case.architecture == 'llama':
    values['rope.dimension_count'] = case.head_dim
  return {prefix + key: value for key, value in (values | case.metadata).items()}


def tensors(case: Case) -> dict[str, tuple[np.ndarray, str]]:
  """Tensors and their types: numbers, or for quantised ones bytes [rows, bytes]."""
  result = {}
  for name, shape in _shapes(case).items():
    is_matrix = len(shape) == 2
    kind = case.kind if is_matrix else 'F32'
    result[name] = packed(name, shape, kind), kind
  if case.factors:
    result['rope_freqs.weight'] = factors(case), 'F32'
  return result


def packed(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
  """A tensor's numbers or bytes: of a type that `gguf` cannot quantise to, random blocks."""
  try:
    return gguf.quantize(numbers(name, shape), gguf.GGMLQuantizationType[kind])
  except NotImplementedError:
    return blocks(name, shape, kind)


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Float32 numbers, widely spread; norm scales lie around 1."""
  draw = np.random.RandomState(zlib.crc32(name.encode())).randint(-(2**20), 2**20, size=shape)
  values = draw.astype(np.float32) / np.float32(2**20)
  if 'norm' in name:
    return 1 + np.float32(0.6) * values
  if name.endswith('bias') or name.startswith('token_embd'):
    return np.float32(0.5) * values
  return values * np.float32(2 / shape[-1] ** 0.5)


def blocks(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
  """Random blocks of a type, uint8 [rows, bytes], which stand for moderate numbers.

  No byte is above 0x3f, so that whatever is read as a half float is below 2.
  """
  size, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
  generator = np.random.RandomState(zlib.crc32(name.encode()))
  data = generator.randint(0x40, size=(*shape[:-1], shape[-1] // size, num_bytes))
  data = data.astype(np.uint8)
  for place in _SCALES.get(kind, ()):
    scale = np.float16(2**-14 if kind == 'Q6_K' else 2**-11)
    data[..., place : place + 2] = np.frombuffer(scale.tobytes(), np.uint8)
  return data.reshape(*shape[:-1], -1)


def factors(case: Case) -> np.ndarray:
  """Llama 3.1's factors of the frequencies, for an original context of 8 positions."""
  inverse = 500.0 ** -(np.arange(0, case.head_dim, 2) / case.head_dim)
  rotations = 8 * inverse / (2 * np.pi)
  kept = np.clip((rotations - 1) / 3, 0, 1)
  return (1 / (kept + (1 - kept) / 4)).astype(np.float32)


def write(
    path: pathlib.Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[np.ndarray, str]],
    *,
    big_endian: bool = False,
) -> pathlib.Path:
  """Writes a file; integers become uint32, floats float32, and lists arrays.

  Args:
    path: of the file.
    metadata: its keys; `general.architecture` is that before the first dot unless it is given.
    tensors: numbers or bytes, and the type's name, as in the model's own files: a Llama's query
      and key rows are put in the order of GGUF here.
    big_endian: the other byte order.
  """
  architecture = metadata.get('general.architecture', next(iter(metadata), 'llama').split('.')[0])
  order = gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
  writer = gguf.GGUFWriter(path, architecture, endianess=order)
  for key, value in metadata.items():
    if key != 'general.architecture':
      writer.add_key_value(key, value, _value_type(value))
  for name, (data, kind) in tensors.items():
    if architecture == 'llama' and '.attn_q.' in name:
      data = interleaved(data, HEADS)
    if architecture == 'llama' and '.attn_k.' in name:
      data = interleaved(data, KV_HEADS)
    writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def write_case(path: pathlib.Path, name: str) -> pathlib.Path:
  """Writes the file of one of `CASES`."""
  case = CASES[name]
  return write(path, metadata(case), tensors(case))


def write_changed(
    folder: pathlib.Path,
    name: str = 'llama',
    *,
    without: Sequence[str] = (),
    more: Mapping[str, tuple[np.ndarray, str]] | None = None,
    **keys: Any,
) -> pathlib.Path:
  """Writes a case's file as `model.gguf` of a folder, with other metadata and tensors.

  Args:
    folder: where to.
    name: of the case.
    without: tensors that are left out.
    more: tensors that are added.
    **keys: metadata, without the architecture's name before it; None leaves a key out.
  """
  case = CASES[name]
  values = metadata(case)
  for key, value in keys.items():
    values[f'{case.architecture}.{key}'] = value
  values = {key: value for key, value in values.items() if value is not None}
  kept = {key: value for key, value in tensors(case).items() if key not in without}
  return write(folder / 'model.gguf', values, kept | dict(more or {}))


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
  """Rows of heads in the order of GGUF, by the rule in its specification (for LLaMA)."""
  shape = (heads, 2, len(rows) // heads // 2, *rows.shape[1:])
  return rows.reshape(shape).swapaxes(1, 2).reshape(rows.shape)


def _shapes(case: Case) -> dict[str, tuple[int, ...]]:
  width, queries, keys = case.width, HEADS * case.head_dim, KV_HEADS * case.head_dim
  shapes: dict[str, tuple[int, ...]] = {
      'token_embd.weight': (VOCAB, width), 'output_norm.weight': (width,)
  }
  if not case.tied:
    shapes['output.weight'] = (VOCAB, width)
  for layer in range(case.num_layers):
    own = {
        'attn_norm.weight': (width,),
        'attn_q.weight': (queries, width),
        'attn_k.weight': (keys, width),
        'attn_v.weight': (keys, width),
        'attn_output.weight': (width, queries),
        'ffn_norm.weight': (width,),
        'ffn_gate.weight': (width, width),
        'ffn_up.weight': (width, width),
        'ffn_down.weight': (width, width),
    }
    if case.architecture == 'qwen2':
      own |= {'attn_q.bias': (queries,), 'attn_k.bias': (keys,), 'attn_v.bias': (keys,)}
    if case.architecture in ('qwen3', 'gemma3'):
      own |= {'attn_q_norm.weight': (case.head_dim,), 'attn_k_norm.weight': (case.head_dim,)}
    if case.architecture in ('gemma2', 'gemma3'):
      own |= {'post_attention_norm.weight': (width,), 'post_ffw_norm.weight': (width,)}
    shapes |= {f'blk.{layer}.{name}': shape for name, shape in own.items()}
  return shapes


def _value_type(value: Any) -> gguf.GGUFValueType:
  if isinstance(value, bool):
    return gguf.GGUFValueType.BOOL
  if isinstance(value, list):
    return gguf.GGUFValueType.ARRAY
  kinds = {int: 'UINT32', float: 'FLOAT32', str: 'STRING'}
  return gguf.GGUFValueType[kinds[type(value)]]
