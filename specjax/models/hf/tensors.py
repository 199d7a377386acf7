"""Tables of tensors: what every parameter is stored as.

A table lists the parameters of a model or a draft head, each with the stored tensors that it is
made of. All that is done with files follows from it: `check` compares what a file holds with it,
`read` and `load` fuse tensors into parameters (query, key and value of each key-value group; gate
and up), and `unwritten` takes parameters apart again.

The table of models is in `specjax.models.hf.weights`, those of heads are in `specjax.heads.hf`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.models.config import TransformerConfig
from specjax.models.hf import files as hf_files


# Given slices with step 1, one per axis, reads that part of a parameter; without any, all of it.
ReadPart = Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Part:
  """A stored tensor as a part of a parameter.

  Attributes:
    name: of the tensor.
    shape: of the tensor.
    index: which entries of the parameter it holds, as slices of its first axes; all entries
      along the axes that follow.
    repeats: how many copies the parameter holds of each entry of its first axis, side by side.
  """

  name: str
  shape: tuple[int, ...]
  index: tuple[slice, ...] = ()
  repeats: int = 1

  def spans(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(start, stop) along every axis of a parameter of this shape."""
    index = (*self.index, *(slice(None),) * (len(shape) - len(self.index)))
    return [each.indices(size)[:2] for each, size in zip(index, shape, strict=True)]


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A row of a table.

  Attributes:
    path: of the parameter in the tree.
    shape: of the parameter.
    parts: the stored tensors that it is made of; entries that no part holds are zeros.
  """

  path: tuple[str, ...]
  shape: tuple[int, ...]
  parts: tuple[Part, ...]


def whole(
    path: tuple[str, ...],
    name: str,
    shape: tuple[int, ...],
    stored_shape: tuple[int, ...] | None = None,
) -> Parameter:
  """The row of a parameter that is one tensor, of the same shape or of `stored_shape`."""
  return Parameter(path, shape, (Part(name, stored_shape or shape),))


def norm(path: tuple[str, ...], name: str, size: int) -> Parameter:
  """The row of an RMS norm [size]."""
  return whole((*path, 'scale'), f'{name}.weight', (size,))


def at(*numbers: int) -> tuple[slice, ...]:
  """The `index` of a part that is one entry of the first axes."""
  return tuple(slice(number, number + 1) for number in numbers)


def attention(
    config: TransformerConfig, path: tuple[str, ...], name: str, *, fan_in: int
) -> Iterator[Parameter]:
  """The rows of an attention's queries, keys and values, but not of its output.

  Args:
    config: of the decoder.
    path: of the attention in the tree.
    name: what the names of its tensors begin with.
    fan_in: the width of what it reads.
  """
  groups, head_dim = config.num_stored_kv_heads, config.head_dim
  repeats = config.num_heads // groups
  kinds = ('qkv', 'weight', (fan_in,)), ('qkv_bias', 'bias', ())
  for ours, theirs, tail in kinds if config.qkv_bias else kinds[:1]:
    queries = (config.num_heads * head_dim, *tail)
    keys = (config.num_kv_heads * head_dim, *tail)
    # Query head h belongs to group h // R, so the queries of a group lie together.
    parts = [Part(f'{name}.q_proj.{theirs}', queries, (slice(None), slice(repeats)))]
    for kind, number in (('k', repeats), ('v', repeats + 1)):
      index = (slice(None), *at(number))
      parts.append(Part(f'{name}.{kind}_proj.{theirs}', keys, index, config.kv_repeats))
    yield Parameter((*path, ours), (groups, repeats + 2, head_dim, *tail), tuple(parts))
  if config.qk_norm:
    yield norm((*path, 'query_norm'), f'{name}.q_norm', head_dim)
    yield norm((*path, 'key_norm'), f'{name}.k_norm', head_dim)


def gated_mlp(
    path: tuple[str, ...], name: str, *, width: int, mlp_width: int
) -> Iterator[Parameter]:
  """The rows of a gated MLP."""
  hidden = (mlp_width, width)
  gate = Part(f'{name}.gate_proj.weight', hidden, at(0))
  up = Part(f'{name}.up_proj.weight', hidden, at(1))
  yield Parameter((*path, 'gate_up'), (2, *hidden), (gate, up))
  yield whole((*path, 'down'), f'{name}.down_proj.weight', (width, mlp_width))


def check(
    stored: Mapping[str, Any],
    table: Iterable[Parameter],
    where: str,
    *,
    source: str = 'config.json',
) -> None:
  """Checks that stored tensors are exactly those of a table; reads none of them.

  Args:
    stored: what has a shape and a dtype, by the names of the tensors.
    table: the parameters.
    where: the folder or file, for messages.
    source: what the table follows from, likewise.

  Raises:
    ValueError: naming the tensors that are missing or unexpected, or the first one of another
      shape or without floats.
  """
  expected = {part.name: part.shape for parameter in table for part in parameter.parts}
  differing = {
      'missing': expected.keys() - stored.keys(),
      'unexpected': stored.keys() - expected.keys(),
  }
  if any(differing.values()):
    lists = '; '.join(f'{kind}: {_listed(names)}' for kind, names in differing.items() if names)
    raise ValueError(
        f'{where} does not hold the tensors that its {source} asks for; {lists}.'
    )
  for name, shape in expected.items():
    tensor = stored[name]
    if tensor.shape != shape:
      raise ValueError(
          f'{where}: tensor {name} has shape {tensor.shape}, but {source} makes it {shape}.'
      )
    if tensor.dtype.kind in 'biu':
      raise ValueError(f'{where}: tensor {name} has dtype {tensor.dtype}, expected floats.')


def _listed(names: Iterable[str]) -> str:
  names = sorted(names)
  if len(names) <= 5:
    return ', '.join(names)
  return f'{", ".join(names[:5])} and {len(names) - 5:,} more'


def read(
    parameter: Parameter,
    tensors: Iterable[np.ndarray],
    dtype: Any,
    index: tuple[slice, ...] | None = None,
) -> np.ndarray:
  """`parameter[index]`; of mapped tensors nothing else is read.

  Args:
    parameter: what to read.
    tensors: the tensors of its parts; of those that are made one by one, one is held at a time.
    dtype: of the result.
    index: slices with step 1, one per axis of the parameter; None means all of it.
  """
  index = index or (slice(None),) * len(parameter.shape)
  bounds = [each.indices(size)[:2] for each, size in zip(index, parameter.shape, strict=True)]
  value = np.zeros([stop - start for start, stop in bounds], dtype)
  each = iter(tensors)
  for part in parameter.parts:
    # No name here holds a tensor while the next one is made.
    _read_part(value, bounds, part, next(each), parameter.shape)
  return value


def _read_part(
    value: np.ndarray,
    bounds: list[tuple[int, int]],
    part: Part,
    tensor: np.ndarray,
    parameter_shape: tuple[int, ...],
) -> None:
  """Fills in what a part holds of `value`, which lies within (start, stop) along every axis."""
  spans = part.spans(parameter_shape)
  # Where the part and the index overlap, counted from the start of either.
  common = [(max(a, b), min(c, d)) for (a, c), (b, d) in zip(bounds, spans)]
  if any(first >= last for first, last in common):
    return
  into = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(common, bounds))
  source = [slice(a - start, b - start) for (a, b), (start, _) in zip(common, spans)]
  shape = [stop - start for start, stop in spans]
  if part.repeats == 1:
    value[into] = tensor.reshape(shape)[tuple(source)]
    return
  # Entries a … b - 1 of the first axis are copies of a // n … (b - 1) // n.
  shape[0] //= part.repeats
  begin, end = source[0].start, source[0].stop
  source[0] = slice(begin // part.repeats, (end - 1) // part.repeats + 1)
  copies = np.repeat(tensor.reshape(shape)[tuple(source)], part.repeats, axis=0)
  offset = begin % part.repeats
  value[into] = copies[offset : offset + end - begin]


def load(table: Iterable[Parameter], tensors: Mapping[str, np.ndarray], dtype: Any) -> dict:
  """The parameter tree of a table, from tensors that it was checked against."""
  params: dict[str, Any] = {}
  for parameter in table:
    parts = [tensors[part.name] for part in parameter.parts]
    insert(params, parameter.path, jnp.asarray(read(parameter, parts, dtype)))
  return params


def insert(params: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
  """Puts a value into a tree of dicts."""
  for key in path[:-1]:
    params = params.setdefault(key, {})
  params[path[-1]] = value


def stored_value(value: np.ndarray, part: Part) -> np.ndarray:
  """What a part of a parameter is stored as."""
  index = [slice(*span) for span in part.spans(value.shape)]
  index[0] = slice(index[0].start, index[0].stop, part.repeats)
  return value[tuple(index)].reshape(part.shape)


def unwritten(
    params: Mapping[str, Any], table: Iterable[Parameter], dtype: Any = None
) -> Iterator[hf_files.Unwritten]:
  """What parameters are stored as; each tensor is made when it is written.

  Args:
    params: the parameter tree.
    table: its parameters.
    dtype: of the files; None keeps that of each parameter.

  Raises:
    ValueError: when the tree is not that of the table.
  """
  count = 0
  for parameter in table:
    value: Any = params
    for key in parameter.path:
      value = value.get(key) if isinstance(value, Mapping) else None
    shape = getattr(value, 'shape', None)
    if shape != parameter.shape:
      path = '/'.join(parameter.path)
      raise ValueError(f'Parameter {path} must have shape {parameter.shape}, got {shape}.')
    count += 1
    for part in parameter.parts:
      make = lambda value=value, part=part: stored_value(np.asarray(value), part)
      yield hf_files.Unwritten(part.name, part.shape, np.dtype(dtype or value.dtype), make)
  leaves = len(jax.tree.leaves(params))
  if leaves != count:
    raise ValueError(f'The tree has {leaves} parameters where its configuration has {count}.')
