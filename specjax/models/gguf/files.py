"""The header of a GGUF file: its metadata, and where its tensors lie.

The format, versions 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): the
letters GGUF, the version, the numbers of tensors and of metadata pairs; the pairs; name, shape,
type and offset of every tensor; then the tensors, each aligned. All is little-endian.

The package `gguf` makes numbers of quantised tensors (`specjax.models.gguf.weights`); headers are
read here. Its reader makes arrays of every token, merge and score of a vocabulary one by one, which
takes far longer than this; an array that claims more entries than a damaged file has makes it go
on for ever; and its errors name neither the file nor the remedy.
"""

from collections.abc import Mapping
import dataclasses
import math
import mmap
import os
import pathlib
import struct
from typing import Any

import numpy as np

MAGIC = b'GGUF'
VERSIONS = (2, 3)
_TEXT, _ARRAY = 8, 9
# Types of metadata by their numbers in files.
_SCALARS = {
    number: np.dtype(name)
    for number, name in enumerate(('<u1', '<i1', '<u2', '<i2', '<u4', '<i4', '<f4', '?'))
} | {10: np.dtype('<u8'), 11: np.dtype('<i8'), 12: np.dtype('<f8')}
_U32, _U64 = struct.Struct('<I'), struct.Struct('<Q')
# ggml has tensors of at most so many dimensions, and nothing nests arrays deeper.
_MOST_DIMENSIONS = 4
_DEEPEST = 4
_ALIGNMENT = 32


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """Where a tensor is stored.

  Attributes:
    path: its file.
    offset: of its first byte in the file.
    shape: its shape, of numbers; the last axis lies together.
    kind: number of its type, in ggml.
  """

  path: pathlib.Path
  offset: int
  shape: tuple[int, ...]
  kind: int

  def num_bytes(self, block: int, block_bytes: int) -> int:
    """Its size, given how many numbers a block of its type has, and how many bytes."""
    return math.prod(self.shape) // block * block_bytes

  def rows(self, num_bytes: int) -> np.ndarray:
    """A read-only view of the mapped file, uint8 [product of all but the last axis, bytes]."""
    count = math.prod(self.shape[:-1])
    flat = np.memmap(self.path, np.uint8, mode='r', offset=self.offset, shape=(num_bytes,))
    return flat.reshape(count, -1)


@dataclasses.dataclass(frozen=True)
class Header:
  """What a file holds.

  Attributes:
    path: the file.
    size: its bytes.
    metadata: values by key: integers, floats, truth values, texts, and lists of them.
    tensors: by name, in the order in which they are stored.
    start: offset of the first tensor.
    alignment: that tensors are padded to.
  """

  path: pathlib.Path
  size: int
  metadata: Mapping[str, Any]
  tensors: Mapping[str, StoredTensor]
  start: int
  alignment: int


def read_header(path: str | os.PathLike) -> Header:
  """The header of a file; no tensor is read.

  A float32 is read as the shortest decimal that is nearest to it: 1e-05, not
  9.999999747378752e-06. Rounded to float32 again, both are the same.

  Raises:
    FileNotFoundError: when there is no such file.
    ValueError: when it is no GGUF file, is of another version or byte order, is one part of
      several, or is truncated or damaged.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    names = sorted(file.name for file in path.glob('*.gguf'))
    hint = f', such as {path / names[0]}' if names else ''
    raise ValueError(f'{path} is a folder: give the path of a GGUF file{hint}.')
  if not path.exists():
    raise FileNotFoundError(f'{path} does not exist.')
  size = path.stat().st_size
  with path.open('rb') as file:
    _check_start(path, file.read(8))
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
      header = _Reader(path, data, size).header()
  parts = header.metadata.get('split.count', 1)
  if parts not in (0, 1):
    raise ValueError(
        f'{path} is one of {parts} parts of a model: merge them with `llama-gguf-split --merge '
        'FIRST_PART OUTPUT` and load the output.'
    )
  return header


def _check_start(path: pathlib.Path, start: bytes) -> None:
  """Checks the eight bytes that a file begins with."""
  if start == b'version ':
    raise ValueError(f'{path} is a Git LFS pointer, not the model: run `git lfs pull`.')
  if start[:4] != MAGIC[: len(start)]:
    raise ValueError(
        f'{path} is not a GGUF file: it begins with {start[:4]!r}, where {MAGIC!r} was expected.'
    )
  if len(start) < 8:
    raise ValueError(f'{path} is truncated: it has {len(start)} bytes. Fetch it again.')
  version, swapped = struct.unpack('<I', start[4:])[0], struct.unpack('>I', start[4:])[0]
  if version in VERSIONS:
    return
  if swapped in (1, *VERSIONS):
    raise ValueError(
        f'{path} is big-endian, which is not supported: convert a copy of it with '
        '`gguf-convert-endian COPY little` (of the package gguf).'
    )
  raise ValueError(
      f'{path} has version {version} of the format, which is not supported: convert the model '
      f'again, to version {" or ".join(map(str, VERSIONS))}.'
  )


class _Reader:
  """Reads a header from its first byte to its last."""

  def __init__(self, path: pathlib.Path, data: mmap.mmap, size: int):
    self._path, self._data, self._size = path, data, size
    self._at = 8

  def header(self) -> Header:
    num_tensors, num_pairs = self._u64(), self._u64()
    metadata: dict[str, Any] = {}
    for _ in range(num_pairs):
      key = self._text('a key of its metadata')
      if key in metadata:
        raise self._damaged(f'it has {key} twice')
      metadata[key] = self._value(key, self._u32())
    entries = [self._tensor() for _ in range(num_tensors)]
    alignment = metadata.get('general.alignment', _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
      raise self._damaged(f'general.alignment must be a power of two, got {alignment!r}')
    start = self._at + -self._at % alignment
    tensors: dict[str, StoredTensor] = {}
    for name, shape, kind, offset in entries:
      if name in tensors:
        raise self._damaged(f'it has tensor {name} twice')
      tensors[name] = StoredTensor(self._path, start + offset, shape, kind)
    return Header(self._path, self._size, metadata, tensors, start, alignment)

  def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
    name = self._text('the name of a tensor')
    count = self._u32()
    if not 1 <= count <= _MOST_DIMENSIONS:
      raise self._damaged(f'tensor {name} has {count} dimensions')
    # ggml lists the axis that lies together first.
    shape = tuple(self._u64() for _ in range(count))[::-1]
    if not 0 < math.prod(shape) < 2**62:
      raise self._damaged(f'tensor {name} has shape {shape}')
    return name, shape, self._u32(), self._u64()

  def _value(self, key: str, kind: int, depth: int = 0) -> Any:
    if kind in _SCALARS:
      return self._scalars(key, kind, 1)[0]
    if kind == _TEXT:
      return self._text(key)
    if kind != _ARRAY or depth == _DEEPEST:
      raise self._damaged(f'{key} has type {kind}, which is none')
    kind, count = self._u32(), self._u64()
    if kind in _SCALARS:
      return self._scalars(key, kind, count)
    # A count that is damaged ends where the file does: an entry has at least its length.
    if kind == _TEXT:
      return [self._text(key) for _ in range(count)]
    return [self._value(key, kind, depth + 1) for _ in range(count)]

  def _scalars(self, key: str, kind: int, count: int) -> list:
    dtype = _SCALARS[kind]
    data = np.frombuffer(self._take(count * dtype.itemsize), np.uint8 if kind == 7 else dtype)
    if kind == 7:
      if data.max(initial=0) > 1:
        raise self._damaged(f'{key} is neither true nor false')
      return data.astype(bool).tolist()
    if kind == 6 and count == 1:
      return [float(str(data[0]))]
    return data.tolist()

  def _text(self, what: str) -> str:
    data = self._take(self._u64())
    try:
      return data.decode()
    except UnicodeDecodeError as error:
      raise self._damaged(f'{what} is not UTF-8') from error

  def _u32(self) -> int:
    return _U32.unpack(self._take(4))[0]

  def _u64(self) -> int:
    return _U64.unpack(self._take(8))[0]

  def _take(self, count: int) -> bytes:
    self._need(count)
    self._at += count
    return self._data[self._at - count : self._at]

  def _need(self, count: int) -> None:
    if count > self._size - self._at:
      raise ValueError(
          f'{self._path} is truncated or damaged: its header goes on beyond its end at byte '
          f'{self._size:,}. Fetch it again.'
      )

  def _damaged(self, what: str) -> ValueError:
    return ValueError(f'{self._path} is damaged: {what}. Fetch it again.')
