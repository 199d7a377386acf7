"""What the JSON files of a folder may say: one table of keys for each kind of file.

`read` holds a parsed file to its table. Whatever is wrong is a `ValueError` of one sentence with
the file, the key, what came and what is allowed, before anything is computed or allocated.

The tables of models are here, those of draft heads in `specjax.heads.hf.keys`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import pathlib
from typing import Any

REQUIRED = object()
# What an index of int32 reaches.
LARGEST = 2**31 - 1
# Deeper than any model by far; what grows by layer stays small before the tensors are looked at.
DEEPEST = 10_000


@dataclasses.dataclass(frozen=True)
class Key:
  """What one key may say.

  Attributes:
    parse: (key, value) -> the value, or raises `ValueError` with a sentence that names the key.
    default: the value where the key is absent; `REQUIRED` where there is none.
    null: whether null is allowed, and read as None.
  """

  parse: Callable[[str, Any], Any]
  default: Any = REQUIRED
  null: bool = False


Table = Mapping[str, Key]


def read(
    data: Mapping[str, Any], table: Table, *, where: str, defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """The values of a table's keys, each checked.

  Args:
    data: a parsed JSON object; keys that the table lacks are passed over.
    table: its keys.
    where: what the object is, for messages: the path of its file.
    defaults: of keys that are absent, before those of the table.

  Returns:
    A value for every key of the table.

  Raises:
    ValueError: for the first value that is not allowed, or is missing.
  """
  result = {}
  for name, key in table.items():
    default = (defaults or {}).get(name, key.default)
    if name not in data and default is not REQUIRED:
      result[name] = default
    elif name in data and data[name] is None and key.null:
      result[name] = None
    else:
      try:
        result[name] = key.parse(name, data.get(name))
      except ValueError as error:
        raise ValueError(f'{where}: {error}') from error
  return result


def refuse_unknown(data: Mapping[str, Any], known, *, where: str) -> None:
  """Refuses keys that are not `known`: they may change what is computed.

  Null says nothing, and names that begin with an underscore are the writer's own notes.

  Raises:
    ValueError: naming the first such key.
  """
  for name, value in data.items():
    if name not in known and value is not None and not name.startswith('_'):
      raise ValueError(
          f'{where}: {name}={shown(value)} is not known, and may change what the head computes; '
          'remove the key if it has no effect.'
      )


def shown(value: Any) -> str:
  """A value for a message; long ones are cut."""
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:59]}…'


def parse_json(text: str | bytes, broken: str) -> Any:
  """Any JSON text.

  Raises:
    ValueError: `broken`, and why.
  """
  try:
    # A byte-order mark is no part of the text.
    return json.loads(text.decode('utf-8-sig') if isinstance(text, bytes) else text)
  except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
    raise ValueError(f'{broken} ({error}): fetch it again.') from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A file with one JSON object, with or without a byte-order mark; errors name the file."""
  data = parse_json(path.read_bytes(), f'{path} is not JSON')
  if not isinstance(data, dict):
    raise ValueError(f'{path} must hold a JSON object, not {type(data).__name__}.')
  return data


def read_file(path: pathlib.Path, table: Table) -> dict[str, Any]:
  """The values of a table's keys in a file; raises as `read_json` and `read`."""
  return read(read_json(path), table, where=str(path))


def _must(allowed: str, accepts: Callable[[Any], bool]) -> Callable[[str, Any], Any]:
  def parse(name: str, value: Any) -> Any:
    if not accepts(value):
      raise ValueError(f'{name} must be {allowed}, got {shown(value)}.')
    return value

  return parse


def _is_integer(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def integer(low: int = 1, high: int = LARGEST, **kwargs) -> Key:
  """A whole number; `true` is none."""
  allowed = 'a positive integer' if low == 1 else f'an integer from {low} on'
  allowed += ' or null' if kwargs.get('null') else ''
  lowest = _must(allowed, lambda value: _is_integer(value) and value >= low)
  highest = _must(f'at most {high:,}', lambda value: value <= high)
  return Key(lambda name, value: highest(name, lowest(name, value)), **kwargs)


def even(**kwargs) -> Key:
  """An even size."""
  fits = lambda value: _is_integer(value) and 0 < value <= LARGEST and value % 2 == 0
  return Key(_must('an even integer', fits), **kwargs)


def number(high: float = 1e30, **kwargs) -> Key:
  """A positive number, whole or not; neither `true` nor NaN is one."""
  allowed = 'a positive number' + (f' of at most {high:g}' if high < 1e30 else '')
  allowed += ' or null' if kwargs.get('null') else ''

  def fits(value: Any) -> bool:
    return (_is_integer(value) or isinstance(value, float)) and 0 < value <= high

  return Key(_must(allowed, fits), **kwargs)


def flag(**kwargs) -> Key:
  return Key(_must('true or false', lambda value: isinstance(value, bool)), **kwargs)


def text(**kwargs) -> Key:
  allowed = 'a text' + (' or null' if kwargs.get('null') else '')
  return Key(_must(allowed, lambda value: isinstance(value, str)), **kwargs)


def one_of(*values: str, **kwargs) -> Key:
  """One of some texts."""

  def parse(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in values:
      raise ValueError(
          f'{name}={shown(value)} is not supported. Supported are {", ".join(values)}.'
      )
    return value

  return Key(parse, **kwargs)


def only(value: Any, *others: Any) -> Key:
  """A key of which one value is implemented, the default; null and `others` mean the same."""
  kinds = (bool, str, type(None))
  same = lambda one, other: one == other and (
      type(one) is type(other) or not isinstance(one, kinds) and not isinstance(other, kinds)
  )

  def parse(name: str, given: Any) -> Any:
    if not any(same(given, each) for each in (value, None, *others)):
      raise ValueError(f'{name}={shown(given)} is not supported (only {value!r} is).')
    return value

  return Key(parse, default=value)


def list_of(key: Key, what: str, count: int | None = None, **kwargs) -> Key:
  """A list, read as a tuple; `what` names its entries in messages."""
  allowed = f'a list of {what}'
  is_list = _must(
      allowed, lambda value: isinstance(value, list) and count in (None, len(value))
  )

  def parse(name: str, value: Any) -> tuple:
    try:
      return tuple(key.parse(name, each) for each in is_list(name, value))
    except ValueError:
      raise ValueError(f'{name} must be {allowed}, got {shown(value)}.') from None

  return Key(parse, **kwargs)


def token_ids(**kwargs) -> Key:
  """One token id or a list of them, read as a tuple."""
  fits = lambda value: _is_integer(value) and 0 <= value <= LARGEST

  def parse(name: str, value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if not all(fits(each) for each in ids):
      raise ValueError(
          f'{name} must be a token id, a list of token ids or null, got {shown(value)}.'
      )
    return tuple(ids)

  return Key(parse, **kwargs)


def record(table: Table | None = None, **kwargs) -> Key:
  """An object: as it is, or held to a table of its own."""

  def parse(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
      raise ValueError(f'{name} must be an object, got {shown(value)}.')
    return value if table is None else read(value, table, where=name)

  return Key(parse, **kwargs)


def mapping_of(key: Key, **kwargs) -> Key:
  """An object whose values are all of one kind."""

  def parse(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
      raise ValueError(f'{name} must be an object, got {shown(value)}.')
    return {each: key.parse(f'{name}.{each}', given) for each, given in value.items()}

  return Key(parse, **kwargs)


def _no_quantisation(name: str, value: Any) -> None:
  method = value.get('quant_method') if isinstance(value, Mapping) else None
  method = method if isinstance(method, str) else shown(value)
  raise ValueError(
      f'quantised weights ({name}: {method}) are not supported; take the bfloat16, '
      'float16 or float32 files of this model.'
  )


_NULL = dict(default=None, null=True)
_TYPES = one_of('float32', 'bfloat16', 'float16', 'float64', 'float', 'half', 'double', 'auto')
_DTYPE = Key(
    lambda name, value: _TYPES.parse(
        name, value.removeprefix('torch.') if isinstance(value, str) else value
    ),
    **_NULL,
)
# By their names in files, those of `TransformerConfig`.
ACTIVATIONS = {
    'silu': 'silu',
    'swish': 'silu',
    'gelu_pytorch_tanh': 'gelu_tanh',
    'gelu_new': 'gelu_tanh',
}

# `config.json` of a model: what says which it is, ...
MODEL: Table = {
    'architectures': list_of(text(), 'texts', **_NULL),
    'model_type': text(**_NULL),
    'text_config': record(**_NULL),
    'dtype': _DTYPE,
    'torch_dtype': _DTYPE,
    'bos_token_id': integer(-1, **_NULL),
    'pad_token_id': integer(-1, **_NULL),
    'eos_token_id': token_ids(**_NULL),
    # ... and what changes its results and is supported in one way alone.
    'quantization_config': Key(_no_quantisation, **_NULL),
    'attention_bias': only(False),
    'mlp_bias': only(False),
    'partial_rotary_factor': only(1.0),
    'use_bidirectional_attention': only(False),
    'is_causal': only(True),
    'num_local_experts': only(None, 0, 1),
    'num_experts': only(None, 0, 1),
}
# The decoder of every family.
DECODER: Table = {
    'vocab_size': integer(),
    'hidden_size': integer(),
    'intermediate_size': integer(),
    'num_hidden_layers': integer(high=DEEPEST),
    'num_attention_heads': integer(),
    'num_key_value_heads': integer(**_NULL),
    'head_dim': even(**_NULL),
    'max_position_embeddings': integer(),
    'rms_norm_eps': number(high=1.0, default=1e-6),
    'tie_word_embeddings': flag(default=False),
    'layer_types': list_of(text(), 'texts', **_NULL),
    'rope_parameters': record(**_NULL),
    'rope_scaling': record(**_NULL),
    'rope_theta': number(**_NULL),
    'original_max_position_embeddings': integer(**_NULL),
}
# What some families read and others pass over, as `transformers` does.
WINDOWS: Table = {'sliding_window': integer(**_NULL)}
QWEN: Table = WINDOWS | {
    'use_sliding_window': flag(default=False, null=True),
    'max_window_layers': integer(0),
}
NO_GEMMA: Table = {'hidden_act': one_of(*ACTIVATIONS, default='silu')}
GEMMA: Table = WINDOWS | {
    'hidden_activation': one_of(*ACTIVATIONS),
    'query_pre_attn_scalar': number(),
    'attn_logit_softcapping': number(**_NULL),
    'final_logit_softcapping': number(**_NULL),
}
GEMMA3: Table = GEMMA | {
    'sliding_window_pattern': integer(),
    'rope_local_base_freq': number(**_NULL),
}
# One set of rotary settings, in either spelling.
ROPE: Table = {
    'rope_type': text(**_NULL),
    'type': text(**_NULL),
    'rope_theta': number(**_NULL),
    'factor': number(**_NULL),
    'low_freq_factor': number(**_NULL),
    'high_freq_factor': number(**_NULL),
    'original_max_position_embeddings': integer(**_NULL),
    'beta_fast': number(**_NULL),
    'beta_slow': number(**_NULL),
    'attention_factor': number(**_NULL),
    'mscale': number(**_NULL),
    'mscale_all_dim': number(**_NULL),
    'truncate': flag(default=None),  # null is no answer: `transformers` takes it for false
    'partial_rotary_factor': only(1.0),
}
ROPE_BY_LAYER: Table = {
    'full_attention': record(**_NULL),
    'sliding_attention': record(**_NULL),
}
# `generation_config.json`.
GENERATION: Table = {name: MODEL[name] for name in ('bos_token_id', 'pad_token_id', 'eos_token_id')}
# `tokenizer_config.json`: a token is its text, or an object that has it.
TOKENIZER: Table = {
    'eos_token': Key(
        lambda name, value: (
            value if isinstance(value, str)
            else record({'content': text()}).parse(name, value)['content']
        ),
        **_NULL,
    ),
    'added_tokens_decoder': mapping_of(record({'content': text()}), default={}, null=True),
}
# `adapter_config.json` of PEFT, which is recognised and refused.
ADAPTER: Table = {'base_model_name_or_path': text(**_NULL)}
# `model.safetensors.index.json`, whose files lie beside it.
INDEX: Table = {
    'weight_map': mapping_of(
        Key(
            _must(
                'the name of a file in the same folder',
                lambda value: isinstance(value, str)
                and pathlib.PurePosixPath(value).name == value
                and '\\' not in value and '\0' not in value,
            )
        )
    )
}
# The header of a safetensors file: the entry of a tensor, and what stands beside them.
TENSOR: Table = {
    'dtype': text(),
    'shape': list_of(integer(0, 2**62), 'sizes'),
    'data_offsets': list_of(integer(0, 2**62), 'two offsets', count=2),
}
METADATA: Table = {'__metadata__': mapping_of(text(), **_NULL)}
