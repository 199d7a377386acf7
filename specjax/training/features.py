"""Target features of a corpus, stored once and read memory-mapped, or computed in the step.

A head is trained on the target's residual streams. Storing them spares the target's pass in
every later step and every later run; it costs disk, which `disk_bytes` says before anything
is written. `FeatureBatches` and `TokenBatches` with the target's pass in the loss are the two
ways; the first serves windows at fixed places, the second windows at random offsets.

    store = write(folder, target=target, tokens=tokens, seq_len=256, layers=(2, 7, 11, 14))
    batches = FeatureBatches(store, batch_size=16, seed=0)
    batches.batch(step)  # {'tokens': int32 [16, 257], 'features': [16, 256, F]}

With a mask of the tokens that count, batches have `mask`, bool [16, 257], too.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (makes numpy know 'bfloat16')
import numpy as np

from specjax import atomic
from specjax import models

Array = jax.Array

_FEATURES, _TOKENS, _MASK, _DESCRIPTION, _PARTIAL = (
    'features.bin', 'tokens.npy', 'mask.npy', 'features.json', 'features.partial.json'
)
# Windows between two notes of how far a store has come.
_NOTE_EVERY = 64


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureStore:
  """Windows of a corpus with the target's features of them.

  Attributes:
    tokens: [W, T + 1] int32, windows one after the other, each beginning with the last
      token of the one before.
    features: [W, T, F] in the target's dtype, memory-mapped; F is the sum over `layers`.
    layers: which residual streams, as `feature_layers` of `Transformer.__call__`.
    mask: [W, T + 1] bool, which tokens count in a loss; None for all.
  """

  tokens: np.ndarray
  features: np.ndarray
  layers: tuple[int, ...]
  mask: np.ndarray | None = None

  def columns(self, layers: tuple[int, ...]) -> slice | np.ndarray:
    """Columns of `features` that hold `layers`, in increasing order of layer.

    Raises:
      ValueError: if one of them was not stored.
    """
    missing = sorted(set(layers) - set(self.layers))
    if missing:
      raise ValueError(
          f'The stored features are of layers {self.layers}; layers {missing} are not among '
          'them. Store them anew with the layers that the head reads.'
      )
    width = self.features.shape[-1] // len(self.layers)
    wanted = [self.layers.index(layer) for layer in sorted(set(layers))]
    return np.concatenate([np.arange(i * width, (i + 1) * width) for i in wanted])


def disk_bytes(*, num_tokens: int, seq_len: int, width: int, num_layers: int, dtype: Any) -> int:
  """Bytes that `write` takes for a corpus of `num_tokens`."""
  windows = max((num_tokens - 1) // seq_len, 0)
  return windows * seq_len * width * num_layers * jnp.dtype(dtype).itemsize


def fingerprint(target: models.LanguageModel) -> str:
  """A short name of a target's weights: a hash of the beginning of every array."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(target.params):
    digest.update(f'{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}'.encode())
    digest.update(np.asarray(jnp.ravel(leaf)[:1024]).tobytes())
  return digest.hexdigest()[:16]


def write(
    folder: str | os.PathLike,
    *,
    target: models.LanguageModel,
    tokens: np.ndarray,
    seq_len: int,
    layers: tuple[int, ...],
    batch_size: int = 16,
    mask: np.ndarray | None = None,
    say: Callable[[str], None] = print,
) -> FeatureStore:
  """Stores the target's features of every whole window, or opens what is there already.

  A run that was stopped goes on where it was. The description is written last, so a folder
  that has one is complete.

  Args:
    folder: where to; made if missing.
    target: the target; its own dtype is stored.
    tokens: [n] integers.
    seq_len: T, tokens of a window.
    layers: residual streams to keep.
    batch_size: windows per pass.
    mask: [n] bool, which tokens count in a loss, kept beside them; None for all.
    say: told the disk cost before anything is written, and progress.

  Returns:
    The store.

  Raises:
    ValueError: if the corpus is shorter than a window, or the folder holds the features of
      another target, corpus or layers.
    OSError: if the disk lacks the room, before anything is computed.
  """
  folder = pathlib.Path(folder)
  layers = tuple(sorted(set(layers)))
  num_windows = (len(tokens) - 1) // seq_len
  if num_windows < 1:
    raise ValueError(
        f'Features need at least seq_len + 1 = {seq_len + 1} tokens, the corpus has '
        f'{len(tokens)}. Lower seq_len or give a longer corpus.'
    )
  config, dtype = target.module.config, jnp.dtype(target.module.dtype)
  described = dict(
      layers=list(layers),
      windows=num_windows,
      seq_len=seq_len,
      width=config.width * len(layers),
      dtype=dtype.name,
      target=fingerprint(target),
      tokens=hashlib.sha256(np.ascontiguousarray(tokens)).hexdigest()[:16],
  )
  if mask is not None:
    described['mask'] = hashlib.sha256(np.ascontiguousarray(mask)).hexdigest()[:16]
  if (folder / _DESCRIPTION).exists():
    _check_same(folder / _DESCRIPTION, described)
    return open_store(folder)
  need = disk_bytes(
      num_tokens=len(tokens),
      seq_len=seq_len,
      width=config.width,
      num_layers=len(layers),
      dtype=dtype,
  )
  folder.mkdir(parents=True, exist_ok=True)
  first = _begun(folder, described)
  written = first * need // num_windows
  free = shutil.disk_usage(folder).free
  say(
      f'Storing features of {num_windows * seq_len:,} tokens in {folder}: {need / 1e9:.2f} GB, '
      f'{free / 1e9:.1f} GB are free.'
  )
  if free < need - written + 2**26:
    raise OSError(
        f'The features need {(need - written) / 1e9:.2f} GB more in {folder}, and '
        f'{free / 1e9:.1f} GB are free. Make room, give another folder, keep fewer layers, or '
        'compute features in the step.'
    )
  windows = _windows(tokens, seq_len).astype(np.int32)
  np.save(folder / _TOKENS, windows)
  if mask is not None:
    np.save(folder / _MASK, _windows(mask, seq_len))
  mode = 'r+' if first else 'w+'
  shape = (num_windows, seq_len, described['width'])
  stored = np.memmap(folder / _FEATURES, dtype=dtype, mode=mode, shape=shape)
  _fill(stored, folder, described, target, windows, layers, first, batch_size, say)
  stored.flush()
  _write_json(folder / _DESCRIPTION, described)
  (folder / _PARTIAL).unlink(missing_ok=True)
  return open_store(folder)


def _fill(stored, folder, described, target, windows, layers, first, batch_size, say) -> None:
  @jax.jit
  def read(target, batch):
    return target(batch, feature_layers=layers, with_logits=False).features

  started = time.perf_counter()
  noted = first
  for start in range(first, len(windows), batch_size):
    # The last batch reaches back, so that one program serves all.
    start = max(min(start, len(windows) - batch_size), 0)
    batch = windows[start : start + batch_size, :-1]
    stored[start : start + len(batch)] = np.asarray(read(target, batch))
    done = start + len(batch)
    if done - noted >= _NOTE_EVERY or done == len(windows):
      stored.flush()
      _write_json(folder / _PARTIAL, described | {'done': done})
      left = (time.perf_counter() - started) / (done - first) * (len(windows) - done)
      say(f'{done} of {len(windows)} windows, {left:.0f} s left.')
      noted = done


def open_store(folder: str | os.PathLike) -> FeatureStore:
  """Opens what `write` completed.

  Raises:
    FileNotFoundError: if there is no complete store.
    ValueError: if the file is shorter than it should be.
  """
  folder = pathlib.Path(folder)
  if not (folder / _DESCRIPTION).exists():
    raise FileNotFoundError(
        f'{folder} holds no complete features ({_DESCRIPTION} is missing); store them first.'
    )
  described = json.loads((folder / _DESCRIPTION).read_text(encoding='utf-8-sig'))
  shape = (described['windows'], described['seq_len'], described['width'])
  dtype = jnp.dtype(described['dtype'])
  size = (folder / _FEATURES).stat().st_size
  if size != np.prod(shape) * dtype.itemsize:
    raise ValueError(
        f'{folder / _FEATURES} has {size:,} bytes, its description says {shape} of {dtype}. '
        'Remove the folder and store the features again.'
    )
  return FeatureStore(
      tokens=np.load(folder / _TOKENS, mmap_mode='r'),
      features=np.memmap(folder / _FEATURES, dtype=dtype, mode='r', shape=shape),
      layers=tuple(described['layers']),
      mask=np.load(folder / _MASK, mmap_mode='r') if 'mask' in described else None,
  )


def _windows(tokens: np.ndarray, seq_len: int) -> np.ndarray:
  count = (len(tokens) - 1) // seq_len
  index = np.arange(count)[:, None] * seq_len + np.arange(seq_len + 1)
  return np.asarray(tokens)[index]


def _begun(folder: pathlib.Path, described: dict) -> int:
  """Windows that an interrupted run has stored."""
  if not (folder / _PARTIAL).exists() or not (folder / _FEATURES).exists():
    return 0
  partial = json.loads((folder / _PARTIAL).read_text(encoding='utf-8-sig'))
  done = partial.pop('done')
  return done if partial == described else 0


def _check_same(file: pathlib.Path, described: dict) -> None:
  stored = json.loads(file.read_text(encoding='utf-8-sig'))
  other = sorted(key for key in described if stored.get(key) != described[key])
  if other:
    raise ValueError(
        f'{file.parent} holds other features: {", ".join(other)} differ (found '
        f'{ {key: stored.get(key) for key in other} }, wanted '
        f'{ {key: described[key] for key in other} }). Give another folder, or remove it.'
    )


def _write_json(path: pathlib.Path, content: dict) -> None:
  atomic.write(path, json.dumps(content, indent=2) + '\n')


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureBatches:
  """Batches of stored windows as a function of the step, every window once an epoch.

  Attributes:
    store: the windows.
    batch_size: windows per batch.
    layers: which of the stored layers; None for all.
    seed: of the orders.

  Raises:
    ValueError: if there are fewer windows than `batch_size`, or a layer was not stored.
  """

  store: FeatureStore
  _: dataclasses.KW_ONLY
  batch_size: int
  layers: tuple[int, ...] | None = None
  seed: int = 0

  def __post_init__(self):
    if self.layers is not None:
      self.store.columns(self.layers)
    if not 1 <= self.batch_size <= len(self.store.tokens):
      raise ValueError(
          f'batch_size must be 1 … {len(self.store.tokens)}, the stored windows; got '
          f'{self.batch_size}.'
      )

  @property
  def batches_per_epoch(self) -> int:
    """Batches in an epoch; the windows short of a full batch are left out."""
    return len(self.store.tokens) // self.batch_size

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """`tokens` int32 [batch_size, T + 1] and `features` [batch_size, T, F] of a step.

    Where the store has a mask, `mask` bool [batch_size, T + 1] too.
    """
    epoch, index = divmod(step, self.batches_per_epoch)
    order = np.random.default_rng([self.seed, epoch]).permutation(len(self.store.tokens))
    return self.take(np.sort(order[index * self.batch_size :][: self.batch_size]))

  def take(self, windows: np.ndarray) -> dict[str, np.ndarray]:
    """The windows with these numbers."""
    features = self.store.features[windows]
    if self.layers is not None and tuple(sorted(set(self.layers))) != self.store.layers:
      features = features[..., self.store.columns(self.layers)]
    batch = {'tokens': self.store.tokens[windows].astype(np.int32), 'features': features}
    return batch if self.store.mask is None else batch | {'mask': self.store.mask[windows]}
