"""Tensors of `pytorch_model.bin` and `*.pt` files, read without torch.

Many heads are published in this format alone: a zip archive with one pickle, which describes the
tensors, and one member for the bytes of each storage
(https://docs.pytorch.org/docs/stable/notes/serialization.html). torch is no dependency of this
library, and `safetensors` does not read the format. Only what describes tensors is unpickled: a
file that names any other class or function is refused, because a pickle can run code.
"""

import collections
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np

_STORAGES = {
    'FloatStorage': np.dtype(np.float32),
    'HalfStorage': np.dtype(np.float16),
    'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'LongStorage': np.dtype(np.int64),
    'IntStorage': np.dtype(np.int32),
    'BoolStorage': np.dtype(np.bool_),
}


class _Unpickler(pickle.Unpickler):
  """Builds a NumPy array for each tensor that the file describes, and nothing else."""

  def __init__(self, file, archive: zipfile.ZipFile, root: str, path: pathlib.Path):
    super().__init__(file)
    self._archive, self._root, self._path = archive, root, path

  def find_class(self, module: str, name: str):
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return _rebuild
    if module == 'torch' and name in _STORAGES:
      return name
    raise ValueError(
        f'{self._path} holds more than tensors of known dtypes ({module}.{name}): convert it to '
        'safetensors.'
    )

  def persistent_load(self, reference) -> np.ndarray:
    _, storage, key, _, count = reference
    data = self._archive.read(f'{self._root}/data/{key}')
    return np.frombuffer(data, _STORAGES[storage], count=count)


def _rebuild(storage, offset, shape, strides, *unused) -> np.ndarray:
  """A copy of a tensor, which torch describes as a strided view of a storage."""
  del unused
  last = -1 if 0 in shape else sum((n - 1) * stride for n, stride in zip(shape, strides))
  if min((*strides, 0)) < 0 or offset < 0 or offset + last >= storage.size:
    raise pickle.UnpicklingError('a tensor reaches beyond its storage')
  steps = [stride * storage.itemsize for stride in strides]
  return np.array(np.lib.stride_tricks.as_strided(storage[offset:], shape, steps))


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a file by name.

  Raises:
    ValueError: when the file is not such an archive, is damaged, or holds anything but tensors.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      names = [name for name in archive.namelist() if name.endswith('/data.pkl')]
      if len(names) != 1:
        raise ValueError(f'{path} is not a file of tensors saved by torch.')
      root = names[0].removesuffix('/data.pkl')
      with archive.open(names[0]) as file:
        tensors = _Unpickler(file, archive, root, path).load()
  except (zipfile.BadZipFile, KeyError, pickle.UnpicklingError, EOFError) as error:
    raise ValueError(
        f'{path} is damaged, or older than torch 1.6 ({error}): fetch it again, or convert it to '
        'safetensors.'
    ) from error
  if not isinstance(tensors, dict) or not all(
      isinstance(value, np.ndarray) for value in tensors.values()
  ):
    raise ValueError(
        f'{path} must hold tensors by name and nothing else: convert it to safetensors.'
    )
  return dict(tensors)
