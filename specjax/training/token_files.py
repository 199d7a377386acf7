"""Token files: ids one after the other in a `.npy`, and which of them a loss counts in another.

    with writing('train.npy', vocab_size=49152, with_mask=True) as file:
      file.add(ids, counts)
      file.info['chats'] = 1
    tokens = open_tokens('train.npy')
    tokens.ids  # uint16 [tokens], memory-mapped; uint32 where the vocabulary needs it
    tokens.mask  # bool [tokens], memory-mapped, or None

Beside `train.npy` lie its description, `train.json`, and the mask, `train.mask.npy`.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any, BinaryIO

import numpy as np

from specjax import atomic


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Tokens:
  """A token file.

  Attributes:
    ids: unsigned integers [tokens].
    mask: bool [tokens], True where a token is one that a draft has to foretell, such as those of
      an answer; None where all are.
    info: what the writer said of it.
  """

  ids: np.ndarray
  mask: np.ndarray | None
  info: dict[str, Any]

  def __len__(self) -> int:
    return len(self.ids)

  def counts(self, vocab_size: int) -> np.ndarray:
    """How often each token is one that counts, int64 [vocab_size]."""
    total = np.zeros(vocab_size, np.int64)
    for start in range(0, len(self.ids), 1 << 24):
      here = slice(start, start + (1 << 24))
      ids = self.ids[here] if self.mask is None else self.ids[here][self.mask[here]]
      total += np.bincount(ids, minlength=vocab_size)
    return total


def dtype_of(vocab_size: int) -> np.dtype:
  """uint16, or uint32 for a vocabulary of more than 65,536 tokens."""
  return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def mask_file(path: pathlib.Path) -> pathlib.Path:
  """Where the mask of a token file lies."""
  return path.with_suffix('.mask.npy')


def open_tokens(path: str | os.PathLike) -> Tokens:
  """Opens a token file, memory-mapped.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is not whole, or its mask is that of another one.
  """
  path = pathlib.Path(path)
  ids = np.load(path, mmap_mode='r')
  mask = np.load(mask_file(path), mmap_mode='r') if mask_file(path).exists() else None
  if mask is not None and mask.shape != ids.shape:
    raise ValueError(
        f'{mask_file(path)} has {mask.shape} entries, {path} has {ids.shape}: they do not belong '
        'together. Remove both, and encode the text again.'
    )
  described = path.with_suffix('.json')
  text = described.read_text(encoding='utf-8-sig') if described.exists() else '{}'
  return Tokens(ids, mask, json.loads(text))


class Writer:
  """Takes tokens text by text; memory holds one of them at a time.

  Attributes:
    num_tokens: written so far.
    num_counted: of these, those that the mask has.
    info: what the description will say.
  """

  def __init__(self, ids: BinaryIO, mask: BinaryIO | None, dtype: np.dtype):
    self._ids, self._mask, self._dtype = ids, mask, dtype
    self.num_tokens = self.num_counted = 0
    self.info: dict[str, Any] = {}

  def add(self, ids: Sequence[int], mask: Sequence[bool] | None = None) -> None:
    """Adds the tokens of a text.

    Args:
      ids: token ids.
      mask: of the same length, in a file with a mask.

    Raises:
      ValueError: for a mask of another length.
    """
    array = np.asarray(ids, np.int64)
    if array.size and not 0 <= array.min() <= array.max() <= np.iinfo(self._dtype).max:
      raise ValueError(f'Token ids must fit in {self._dtype}, got {array.min()} … {array.max()}.')
    if self._mask is not None:
      counted = np.asarray(mask, np.bool_)
      if counted.shape != array.shape:
        raise ValueError(f'expected a mask of {array.shape} entries, got {counted.shape}')
      self._mask.write(counted.tobytes())
      self.num_counted += int(counted.sum())
    self._ids.write(array.astype(self._dtype).tobytes())
    self.num_tokens += len(array)


@contextlib.contextmanager
def writing(
    out: str | os.PathLike, *, vocab_size: int, with_mask: bool = False
) -> Iterator[Writer]:
  """Writes a token file, which appears with its description when the block ends without an error.

  Args:
    out: path that ends in `.npy`, in a folder that exists.
    vocab_size: that ids are below.
    with_mask: whether every `add` says which of its tokens count.

  Yields:
    The `Writer`.

  Raises:
    ValueError: for another name.
    FileNotFoundError: if there is no such folder.
    OSError: if the disk is full; what stood there before is as it was.
  """
  out = pathlib.Path(out)
  if out.suffix != '.npy':
    raise ValueError(f'expected out= to end in .npy, got {out}')
  if not out.parent.is_dir():
    raise FileNotFoundError(
        f'expected the folder of out= to exist, got {out}; create {out.parent} first'
    )
  dtype = dtype_of(vocab_size)
  # The tokens last: where they are new, their description and mask are too.
  names = [out.with_suffix('.json'), *([mask_file(out)] if with_mask else []), out]
  with atomic.replacing(*names) as temporary:
    raw = [path.with_suffix('.raw') for path in temporary[1:]]
    with contextlib.ExitStack() as stack:
      files = [stack.enter_context(open(path, 'wb')) for path in raw]
      writer = Writer(files[-1], files[0] if with_mask else None, dtype)
      yield writer
    for path, source in zip(temporary[1:], raw):
      _finish(path, source, writer.num_tokens, dtype if path == temporary[-1] else np.dtype(bool))
    temporary[0].write_text(json.dumps(writer.info, indent=2) + '\n', encoding='utf-8')
  if not with_mask:
    mask_file(out).unlink(missing_ok=True)


def _finish(path: pathlib.Path, raw: pathlib.Path, count: int, dtype: np.dtype) -> None:
  """Puts the header of a `.npy` before an array's bytes, which are removed."""
  header = dict(descr=np.lib.format.dtype_to_descr(dtype), fortran_order=False, shape=(count,))
  with open(path, 'wb') as file, open(raw, 'rb') as content:
    np.lib.format.write_array_header_1_0(file, header)
    shutil.copyfileobj(content, file, 1 << 24)
  raw.unlink()
