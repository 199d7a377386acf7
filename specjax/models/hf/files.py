"""safetensors files, one or many, read and written one tensor at a time.

The format (https://github.com/huggingface/safetensors): eight bytes with the length of a
JSON header, the header with dtype, shape and offsets of every tensor, then the tensors.
Reading maps the files, so that nothing is held but what is being copied; writing needs
one tensor at a time. Every header is checked before any tensor is touched.

The package `safetensors` (0.8) could only replace `StoredTensor.read`. Its errors name neither the
file nor the remedy (a Git LFS pointer is "header too large", a truncated download "incomplete
metadata, file not fully covered"), so headers would be checked here all the same; and `save_file`
takes all tensors at once, so they would be written here as well. What is left is better served by
a view of the mapped file: `get_tensor` and `get_slice` return copies, `get_slice` takes ranges of
the axes as stored but not of reshaped ones (some entries of every attention head), and bfloat16
is known to its NumPy reader only once `ml_dtypes` has been imported.
"""

from collections.abc import Callable, Collection, Iterable
import dataclasses
import json
import math
import os
import pathlib
import shutil

import ml_dtypes
import numpy as np

from specjax import atomic
from specjax.models.hf import keys as hf_keys
from specjax.models.hf.keys import read_json as read_json

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
ADAPTER = 'adapter_config.json'
# dtypes by their names in files.
_DTYPES = {
    'F32': np.dtype(np.float32),
    'F16': np.dtype(np.float16),
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'I64': np.dtype(np.int64),
    'I32': np.dtype(np.int32),
    'BOOL': np.dtype(np.bool_),
    'I8': np.dtype(np.int8),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# What the tensors of a file may be: the weights of any model or head, ...
FLOATS = frozenset(_DTYPES[name] for name in ('F32', 'F16', 'BF16'))
# ... the vocabulary maps of draft heads, and weights beside which there are tensors of scales.
INTEGERS = frozenset(_DTYPES[name] for name in ('I64', 'I32', 'BOOL'))
INT8 = frozenset({_DTYPES['I8']})


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """Where a tensor is stored.

  Attributes:
    path: its file.
    offset: of its first byte in the file.
    shape: its shape.
    dtype: its dtype.
  """

  path: pathlib.Path
  offset: int
  shape: tuple[int, ...]
  dtype: np.dtype

  def read(self) -> np.ndarray:
    """A read-only view of the mapped file."""
    size = math.prod(self.shape) * self.dtype.itemsize
    if not size:
      return np.zeros(self.shape, self.dtype)  # there is nothing to map
    # Bytes first: `memmap` knows no bfloat16.
    flat = np.memmap(self.path, np.uint8, mode='r', offset=self.offset, shape=(size,))
    return flat.view(self.dtype).reshape(self.shape)


def open_folder(
    folder: pathlib.Path, *, dtypes: Collection[np.dtype] = FLOATS
) -> dict[str, StoredTensor]:
  """All tensors of a folder's safetensors file or files, by name.

  Where an index lists the tensors, each is taken from the file that the index names; other
  tensors of the files are passed over.

  Args:
    folder: the folder.
    dtypes: that tensors may have, of `FLOATS`, `INTEGERS` and `INT8`.

  Raises:
    FileNotFoundError: when there is no such file, or a shard of the index is missing.
    ValueError: when a file is truncated or not safetensors, or a tensor has another dtype.
  """
  if (folder / SINGLE).exists():
    return open_file(folder / SINGLE, dtypes=dtypes)
  index = folder / INDEX
  if not index.exists():
    refuse_adapter(folder)
    names = lambda *suffixes: ', '.join(
        sorted(file.name for file in folder.iterdir() if file.suffix in suffixes)
    )
    hint = ''
    if others := names('.gguf'):
      hint = f' It holds {others}: load that file with specjax.models.load_gguf.'
    elif others := names('.bin', '.pth'):
      hint = f' It holds {others}: convert these to safetensors first.'
    raise FileNotFoundError(f'{folder} holds neither {SINGLE} nor {INDEX}.{hint}')
  data = read_json(index)
  if 'weight_map' not in data:
    raise ValueError(f'{index} has no weight_map: it is damaged, fetch it again.')
  weight_map = hf_keys.read(data, hf_keys.INDEX, where=str(index))['weight_map']
  shards = sorted(set(weight_map.values()))
  missing = [shard for shard in shards if not (folder / shard).exists()]
  if missing:
    raise FileNotFoundError(
        f'{folder} lacks {len(missing)} of {len(shards)} shards that {INDEX} lists: '
        f'{", ".join(missing)}. Fetch them again.'
    )
  tensors = {shard: open_file(folder / shard, dtypes=dtypes) for shard in shards}
  absent = sorted(name for name, shard in weight_map.items() if name not in tensors[shard])
  if absent:
    raise ValueError(
        f'{index} lists tensors that its shards do not hold: {", ".join(absent[:5])}'
        f'{" …" if len(absent) > 5 else ""}. Fetch the folder again.'
    )
  return {name: tensors[shard][name] for name, shard in weight_map.items()}


def refuse_adapter(folder: pathlib.Path) -> None:
  """Raises `FileNotFoundError` if a folder is an adapter of PEFT, saying how to merge it."""
  file = folder / ADAPTER
  if not file.exists():
    return
  base = hf_keys.read_file(file, hf_keys.ADAPTER)['base_model_name_or_path']
  raise FileNotFoundError(
      f'{folder} is an adapter (PEFT){f" of {base}" if base else ""}, not a model: merge it into '
      'its model first, with `merge_and_unload()` and `save_pretrained(FOLDER)`.'
  )


def open_file(
    path: pathlib.Path, *, dtypes: Collection[np.dtype] = FLOATS
) -> dict[str, StoredTensor]:
  """The tensors of one file, by name, in the order in which they are stored.

  Args:
    path: the file; its header is checked against its size.
    dtypes: that tensors may have, of `FLOATS`, `INTEGERS` and `INT8`.

  Raises:
    ValueError: as `open_folder`.
  """
  header, start = _read_header(path)
  entries = {}
  for name, entry in header.items():
    where = f'{path}: tensor {name}'
    if not isinstance(entry, dict):
      raise ValueError(f'{where} must be an object, got {hf_keys.shown(entry)}: fetch it again.')
    entries[name] = hf_keys.read(entry, hf_keys.TENSOR, where=where)
  end = 0
  tensors = {}
  for name, entry in sorted(entries.items(), key=lambda item: item[1]['data_offsets']):
    dtype = _DTYPES.get(entry['dtype'])
    if dtype is None or dtype not in dtypes:
      supported = ', '.join(name for name, each in _DTYPES.items() if each in dtypes)
      raise ValueError(
          f'{path}: tensor {name} has dtype {entry["dtype"]}, which is not supported. '
          f'Supported are {supported}; quantised models are not.'
      )
    shape = entry['shape']
    begin, stop = entry['data_offsets']
    if begin != end or stop - begin != math.prod(shape) * dtype.itemsize:
      raise ValueError(f'{path} is damaged at tensor {name}: fetch it again.')
    end = stop
    tensors[name] = StoredTensor(path, start + begin, shape, dtype)
  size = path.stat().st_size
  if size != start + end:
    raise ValueError(
        f'{path} is truncated: its header announces {start + end:,} bytes and it has {size:,}. '
        'Fetch it again.'
    )
  return tensors


def _read_header(path: pathlib.Path) -> tuple[dict, int]:
  """The unchecked entries of a file's header, by tensor, and the offset at which tensors begin."""
  size = path.stat().st_size
  with path.open('rb') as file:
    start = file.read(8)
    if start == b'version ':
      raise ValueError(f'{path} is a Git LFS pointer, not the weights: run `git lfs pull`.')
    length = int.from_bytes(start, 'little')
    if len(start) < 8 or length > size - 8:
      raise ValueError(f'{path} is truncated or not a safetensors file: fetch it again.')
    broken = f'{path} is not a safetensors file: its header is not JSON'
    header = hf_keys.parse_json(file.read(length), broken)
  if not isinstance(header, dict):
    raise ValueError(
        f'{path} is not a safetensors file: its header must be a JSON object, not '
        f'{type(header).__name__}.'
    )
  hf_keys.read(header, hf_keys.METADATA, where=str(path))
  header.pop('__metadata__', None)
  return header, 8 + length


@dataclasses.dataclass(frozen=True)
class Unwritten:
  """A tensor to write.

  Attributes:
    name: its name in the file.
    shape: its shape.
    dtype: its dtype.
    make: gives its value, of this shape and of any dtype, when its turn comes.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  make: Callable[[], np.ndarray]

  @property
  def num_bytes(self) -> int:
    return int(np.prod(self.shape)) * self.dtype.itemsize


def write_folder(
    folder: pathlib.Path, tensors: Iterable[Unwritten], *, max_shard_bytes: int
) -> None:
  """Writes tensors as one file, or as shards with an index where they exceed one shard."""
  shards: list[list[Unwritten]] = [[]]
  for tensor in tensors:
    used = sum(other.num_bytes for other in shards[-1])
    if shards[-1] and used + tensor.num_bytes > max_shard_bytes:
      shards.append([])
    shards[-1].append(tensor)
  if len(shards) == 1:
    _write_file(folder / SINGLE, shards[0])
    return
  weight_map = {}
  for number, shard in enumerate(shards, start=1):
    name = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    _write_file(folder / name, shard)
    weight_map |= {tensor.name: name for tensor in shard}
  total = sum(tensor.num_bytes for shard in shards for tensor in shard)
  index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + '\n', encoding='utf-8')


def publish(
    folder: str | os.PathLike,
    config: dict,
    tensors: Iterable[Unwritten],
    *,
    extra_files: Iterable[str | os.PathLike] = (),
    max_shard_bytes: int = 5_000_000_000,
    file_name: str = SINGLE,
) -> None:
  """Writes a whole folder, `config.json` included; it appears complete or not at all.

  Args:
    folder: must not exist yet, or be empty.
    config: the content of `config.json`.
    tensors: to write.
    extra_files: copied into the folder.
    max_shard_bytes: size from which the weights are split into several files.
    file_name: of the weights where they are not split.

  Raises:
    FileExistsError: when the folder holds something.
  """
  folder = pathlib.Path(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise FileExistsError(f'{folder} exists and is not empty: remove it or choose another.')
  folder.parent.mkdir(parents=True, exist_ok=True)
  with atomic.replacing(folder) as (temporary,):
    temporary.mkdir()
    text = json.dumps(config, indent=2, sort_keys=True) + '\n'
    (temporary / 'config.json').write_text(text, encoding='utf-8')
    for file in extra_files:
      shutil.copy(file, temporary)
    write_folder(temporary, tensors, max_shard_bytes=max_shard_bytes)
    if file_name != SINGLE:
      (temporary / SINGLE).rename(temporary / file_name)


def _write_file(path: pathlib.Path, tensors: list[Unwritten]) -> None:
  # Readers of transformers' files ask for this mark.
  header = {'__metadata__': {'format': 'pt'}}
  offset = 0
  for tensor in tensors:
    header[tensor.name] = {
        'dtype': _NAMES[tensor.dtype],
        'shape': list(tensor.shape),
        'data_offsets': [offset, offset + tensor.num_bytes],
    }
    offset += tensor.num_bytes
  text = json.dumps(header, separators=(',', ':')).encode()
  # Tensors begin at a multiple of eight bytes, as the format asks.
  text += b' ' * (-len(text) % 8)
  with path.open('wb') as file:
    file.write(len(text).to_bytes(8, 'little'))
    file.write(text)
    for tensor in tensors:
      value = np.ascontiguousarray(tensor.make(), dtype=tensor.dtype)
      assert value.shape == tensor.shape, (tensor.name, value.shape, tensor.shape)
      file.write(value.reshape(-1).view(np.uint8).data)
