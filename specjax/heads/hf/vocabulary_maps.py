"""The maps of a draft vocabulary that is a part of the target's: the tensors `d2t` and `t2d`.

`d2t` [V_draft] holds the distance from each draft token to the target's token, `t2d` [V] marks the
target's tokens that have a draft token (EAGLE-3's files, and those of vLLM's speculators).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from specjax.models.hf import files as hf_files


def tensors(draft_to_target: jax.Array, target_vocab_size: int) -> list[hf_files.Unwritten]:
  """What the target's ids of all draft tokens [V_draft] are stored as."""
  ids = np.asarray(draft_to_target, np.int64)
  maps = {'d2t': ids - np.arange(len(ids)), 't2d': _marks(ids, target_vocab_size)}
  return [
      hf_files.Unwritten(name, value.shape, value.dtype, lambda v=value: v)
      for name, value in maps.items()
  ]


def _marks(ids: np.ndarray, target_vocab_size: int) -> np.ndarray:
  marks = np.zeros(target_vocab_size, bool)
  marks[ids] = True
  return marks


def read(
    maps: Mapping[str, np.ndarray], size: int, target_size: int, where: str
) -> jax.Array | None:
  """[V_draft] int32, the target's id of every draft token; None where all keep their ids.

  Args:
    maps: those of `d2t` and `t2d` that the files hold.
    size: V_draft.
    target_size: V.
    where: the folder, for messages.

  Raises:
    ValueError: if `d2t` is missing for a part of the vocabulary, is no such map, or contradicts
      `t2d`.
  """
  is_reduced = size < target_size
  if 'd2t' not in maps:
    if is_reduced:
      raise ValueError(
          f'{where}: the draft vocabulary has {size} of {target_size} tokens, but the tensor d2t, '
          'which maps them, is missing.'
      )
    return None
  stored = maps['d2t']
  if stored.dtype.kind not in 'iu':
    raise ValueError(f'{where}: d2t has dtype {stored.dtype}, expected integers.')
  if stored.shape != (size,):
    raise ValueError(f'{where}: d2t has shape {stored.shape}, expected ({size},).')
  offsets = np.asarray(stored, np.int64)
  ids = offsets + np.arange(size)
  if ids.min() < 0 or ids.max() >= target_size or len(set(ids.tolist())) != size:
    raise ValueError(
        f'{where}: d2t must send the {size} draft tokens to different ones of {target_size}.'
    )
  if 't2d' in maps and not np.array_equal(np.asarray(maps['t2d'], bool), _marks(ids, target_size)):
    raise ValueError(f'{where}: t2d does not mark the tokens that d2t leads to.')
  return jnp.asarray(ids, jnp.int32) if is_reduced or offsets.any() else None
