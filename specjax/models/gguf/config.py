"""Metadata of a GGUF file to `TransformerConfig`.

Keys and their defaults are those of llama.cpp, which computes what they say; where it drops
something (the windows of a Mistral), so does the file. What changes the computation and is not
implemented is refused by name, and so is every key of the architecture that is not known.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
from typing import Any

from specjax.models.config import TransformerConfig
from specjax.models.gguf import files
from specjax.models.gguf import rope as gguf_rope
from specjax.models.hf import config as hf_config
from specjax.models.hf import keys as hf_keys


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One value of `general.architecture`.

  Attributes:
    switches: fields of `TransformerConfig` that it fixes.
    keys: what it reads beside `_DECODER` and `gguf_rope.KEYS`.
    interleaves_heads: whether the rows of a query or key head, whose first and second halves
      rotate together, are stored alternately: row i of either half at 2 i and 2 i + 1.
    window: default of `attention.sliding_window`.
    pattern: default of `attention.sliding_window_pattern`: of so many layers the last is global.
    num_layers_27b: the depth whose queries are scaled by (width / heads) ** -0.5: no key says so.
  """

  switches: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  keys: hf_keys.Table = dataclasses.field(default_factory=dict)
  interleaves_heads: bool = False
  window: int | None = None
  pattern: int = 1
  num_layers_27b: int = 0

  @property
  def is_gemma(self) -> bool:
    return 'post_norms' in self.switches


def _pattern(name: str, value: Any) -> int | tuple[bool, ...]:
  """Every how manyth layer is global, or a flag per layer, true where it is local."""
  if isinstance(value, list):
    return _FLAGS.parse(name, value)
  return _EVERY.parse(name, value)


_EVERY = hf_keys.integer()
_FLAGS = hf_keys.list_of(hf_keys.flag(), 'truth values')
_NULL = dict(default=None, null=True)
_DECODER: hf_keys.Table = {
    'vocab_size': hf_keys.integer(**_NULL),
    'context_length': hf_keys.integer(),
    'embedding_length': hf_keys.integer(),
    'block_count': hf_keys.integer(high=hf_keys.DEEPEST),
    'feed_forward_length': hf_keys.integer(),
    'attention.head_count': hf_keys.integer(),
    'attention.head_count_kv': hf_keys.integer(**_NULL),
    'attention.key_length': hf_keys.even(**_NULL),
    'attention.value_length': hf_keys.even(**_NULL),
    'attention.layer_norm_rms_epsilon': hf_keys.number(high=1.0),
    # What is supported in one way alone.
    'attention.causal': hf_keys.only(True),
    'expert_count': hf_keys.only(0),
    'expert_used_count': hf_keys.only(0),
    'pooling_type': hf_keys.only(0),
    'use_parallel_residual': hf_keys.only(False),
    'tensor_data_layout': hf_keys.only('reference', 'Meta AI original pth'),
}
_WINDOWS: hf_keys.Table = {
    'attention.sliding_window': hf_keys.integer(**_NULL),
    'attention.sliding_window_pattern': hf_keys.Key(_pattern, **_NULL),
    'final_logit_softcapping': hf_keys.number(**_NULL),
}
_GEMMA = dict(post_norms=True, norm_offset=1.0, activation='gelu_tanh')
ARCHITECTURES = {
    'llama': Architecture(interleaves_heads=True),  # Llama, Mistral, SmolLM
    'qwen2': Architecture(dict(qkv_bias=True)),
    'qwen3': Architecture(dict(qk_norm=True)),
    'gemma2': Architecture(
        _GEMMA,
        _WINDOWS
        | {
            'attn_logit_softcapping': hf_keys.number(default=50.0),
            'final_logit_softcapping': hf_keys.number(default=30.0),
        },
        window=4096,
        pattern=2,
        num_layers_27b=46,
    ),
    'gemma3': Architecture(
        _GEMMA | dict(qk_norm=True), _WINDOWS, pattern=6, num_layers_27b=62
    ),
}


def load_gguf_config(path: str | os.PathLike) -> TransformerConfig:
  """The `TransformerConfig` of a GGUF file; raises as `load_gguf`, and reads no weights."""
  return read(files.read_header(path))


def architecture(header: files.Header) -> str:
  """The architecture of a file.

  Raises:
    ValueError: when it is not supported, or the file holds something else than a model.
  """
  kind = header.metadata.get('general.type', 'model')
  if kind != 'model':
    raise ValueError(
        f'{header.path} holds no model: general.type is {hf_keys.shown(kind)}. Give the file of '
        'the model that it belongs to.'
    )
  name = header.metadata.get('general.architecture')
  if not isinstance(name, str) or name not in ARCHITECTURES:
    raise ValueError(
        f'{header.path}: general.architecture={hf_keys.shown(name)} is not supported. Supported '
        f'are {", ".join(ARCHITECTURES)}.'
    )
  return name


def read(header: files.Header) -> TransformerConfig:
  """The `TransformerConfig` of a file.

  Raises:
    ValueError: for what is not supported, or missing, naming it and what is supported.
  """
  name = architecture(header)
  family, where = ARCHITECTURES[name], str(header.path)
  values = _values(header, name, _DECODER | gguf_rope.KEYS | family.keys)
  width, heads = values['embedding_length'], values['attention.head_count']
  head_dim = _head_dim(values, name, where)
  theta, scaling, local_theta = gguf_rope.read(values, header, name, head_dim)
  window, local_layers = _windows(values, name, where)
  gemma = {}
  if family.is_gemma:
    is_27b = values['block_count'] == family.num_layers_27b
    gemma = dict(
        embedding_scale=math.sqrt(width),
        query_scale=(width // heads if is_27b else head_dim) ** -0.5,
        attention_soft_cap=values.get('attn_logit_softcapping'),
        logit_soft_cap=values['final_logit_softcapping'],
    )
  try:
    config = TransformerConfig(
        vocab_size=_vocab_size(values, header, name),
        width=width,
        num_layers=values['block_count'],
        num_heads=heads,
        num_kv_heads=values['attention.head_count_kv'] or heads,
        head_dim=head_dim,
        mlp_width=values['feed_forward_length'],
        rope_theta=theta,
        rope_scaling=scaling,
        local_rope_theta=local_theta,
        norm_epsilon=values['attention.layer_norm_rms_epsilon'],
        tie_embeddings='output.weight' not in header.tensors,
        sliding_window=window,
        local_layers=local_layers,
        max_positions=values['context_length'],
        **family.switches,
        **gemma,
    )
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error
  return hf_config.canonical(config)


def _values(header: files.Header, name: str, table: hf_keys.Table) -> dict[str, Any]:
  """The values of an architecture's keys, without its name before them."""
  prefix, where = f'{name}.', str(header.path)
  for key, value in header.metadata.items():
    if key.startswith(prefix) and key.removeprefix(prefix) not in table:
      raise ValueError(
          f'{where}: {key}={hf_keys.shown(value)} is not known, and may change what the model '
          f'computes; `gguf-new-metadata --remove-metadata {key} INPUT OUTPUT` (of the package '
          'gguf) leaves it out, if it has no effect.'
      )
  full = {prefix + key: entry for key, entry in table.items()}
  values = hf_keys.read(header.metadata, full, where=where)
  return {key.removeprefix(prefix): value for key, value in values.items()}


def _head_dim(values: Mapping[str, Any], name: str, where: str) -> int:
  width, heads = values['embedding_length'], values['attention.head_count']
  head_dim = values['attention.key_length'] or width // heads
  if head_dim < 2 or head_dim % 2:
    raise ValueError(
        f'{where}: the size of a head must be even, got {head_dim} ({name}.embedding_length='
        f'{width} / {name}.attention.head_count={heads}).'
    )
  for key in ('attention.value_length', 'rope.dimension_count'):
    if values[key] not in (None, head_dim):
      raise ValueError(
          f'{where}: {name}.{key}={values[key]} is not supported: only the size of a head '
          f'({head_dim}) is.'
      )
  return head_dim


def _vocab_size(values: Mapping[str, Any], header: files.Header, name: str) -> int:
  tokens = header.metadata.get('tokenizer.ggml.tokens')
  count = len(tokens) if isinstance(tokens, list) and tokens else None
  size = values['vocab_size'] or count
  if size is None:
    raise ValueError(
        f'{header.path}: there is neither {name}.vocab_size nor a list tokenizer.ggml.tokens: the '
        'size of the vocabulary is not known.'
    )
  if count is not None and count > size:
    raise ValueError(
        f'{header.path}: tokenizer.ggml.tokens has {count:,} tokens, but {name}.vocab_size is '
        f'{size:,}.'
    )
  return size


def _windows(
    values: Mapping[str, Any], name: str, where: str
) -> tuple[int | None, tuple[bool, ...]]:
  """`sliding_window` and `local_layers` of the record."""
  family, depth = ARCHITECTURES[name], values['block_count']
  if not family.is_gemma:
    return None, ()
  pattern = values['attention.sliding_window_pattern'] or family.pattern
  if isinstance(pattern, int):
    pattern = tuple(layer % pattern < pattern - 1 for layer in range(depth))
  if len(pattern) != depth:
    raise ValueError(
        f'{where}: {name}.attention.sliding_window_pattern has {len(pattern)} entries for {depth} '
        'layers.'
    )
  window = values['attention.sliding_window'] or family.window
  if any(pattern) and window is None:
    raise ValueError(f'{where}: {name}.attention.sliding_window must be a positive integer.')
  return (window, pattern) if any(pattern) else (None, ())
