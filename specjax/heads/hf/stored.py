"""The tensors of a head's folder, as they are stored."""

import pathlib
from typing import Any

import numpy as np

from specjax.heads.hf import eight_bits
from specjax.heads.hf import torch_files
from specjax.models.hf import files as hf_files

TORCH_FILE = 'pytorch_model.bin'
# The target's own, which training code of speculators leaves in its files; and old buffers.
_IGNORED = ('verifier_norm.weight', 'verifier_lm_head.weight', 'rotary_emb.inv_freq')


def read(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors by name, without a leading `model.` and without those that no head uses."""
  if (folder / TORCH_FILE).exists() and not (folder / hf_files.SINGLE).exists():
    tensors = torch_files.read(folder / TORCH_FILE)
  else:
    dtypes = hf_files.FLOATS | hf_files.INTEGERS | hf_files.INT8
    stored = hf_files.open_folder(folder, dtypes=dtypes)
    tensors = eight_bits.floats(folder, {n: tensor.read() for n, tensor in stored.items()})
  stripped = {name.removeprefix('model.'): value for name, value in tensors.items()}
  return {name: value for name, value in stripped.items() if not name.endswith(_IGNORED)}


def is_copy(stored: np.ndarray, shared: Any) -> bool:
  """Whether a stored array is the target's, up to the rounding to the target's dtype."""
  shared = np.asarray(shared)
  return stored.shape == shared.shape and np.array_equal(stored.astype(shared.dtype), shared)
