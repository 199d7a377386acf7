"""Single values of a config: names to choose from, dtypes, trees, layouts over devices."""

from collections.abc import Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from specjax import drafters
from specjax import models
from specjax import sharding

ConfigDict = ml_collections.ConfigDict

DTYPES = ('auto', 'bfloat16', 'float32', 'float16')


def choice(field: str, value: Any, choices: Sequence[Any]) -> None:
  """Refuses a value that does not exist, and lists those that do.

  Raises:
    ValueError: if `value` is none of `choices`.
  """
  if value not in choices:
    known = ', '.join(repr(each) for each in choices)
    raise ValueError(f'config.{field} must be one of {known}; got {value!r}.')


def at_least(config: ConfigDict, least: int, *fields: str) -> None:
  """Refuses fields of `config` that are smaller than `least`.

  Raises:
    ValueError: naming the field and its value.
  """
  for field in fields:
    if config[field] < least:
      raise ValueError(f'config.{field} must be at least {least}, got {config[field]}.')


def dtype(name: str) -> Any:
  """The dtype of a name; 'auto' is the fast one on this machine (`models.fast_dtype`)."""
  choice('dtype', name, DTYPES)
  return models.fast_dtype() if name == 'auto' else jnp.dtype(name)


def tree(text: str):
  """The shape that `config.drafter.tree` describes.

  '3,2,1': children of every node, by depth. '0 1 0.0 0.1': paths, 0.1 being the second child of
  the first. 'dynamic 60,6,10': nodes kept, depth, width. 'best_first 60,6,10': the same of a
  best-first tree.

  Raises:
    ValueError: if it is none of these.
  """
  words = text.split()
  try:
    if words[:1] in (['dynamic'], ['best_first']):
      num_nodes, depth, width = (int(number) for number in ''.join(words[1:]).split(','))
      make = getattr(drafters, f'{words[0]}_tree')
      return make(num_nodes=num_nodes, depth=depth, width=width)
    if ',' in text or len(words) == 1:
      return drafters.static_tree(widths=[int(number) for number in text.split(',')])
    return drafters.static_tree(paths=[tuple(map(int, word.split('.'))) for word in words])
  except ValueError as error:
    raise ValueError(
        f"config.drafter.tree must be children by depth ('3,2,1'), paths ('0 1 0.0 0.1'), or "
        f"'dynamic NODES,DEPTH,WIDTH' or 'best_first NODES,DEPTH,WIDTH'; got {text!r}: {error}"
    ) from error


def layouts(
    mesh: ConfigDict | None, *, devices: Sequence[Any] | None = None, draft_heads: int = 0
) -> sharding.Layouts | None:
  """The layouts of `config.mesh`; None where no preset is named and one device is used.

  Args:
    mesh: `preset`, `data`, `model` (0: what data and sequence leave), `sequence`, and `draft`
      (0: as many parts as the draft has key-value heads and the model axis allows).
    devices: to use; None takes all of `jax.devices()`.
    draft_heads: key-value heads of the draft, 0 where there is none.

  Raises:
    ValueError: see `specjax.sharding.make`.
  """
  if mesh is None or not mesh.preset:
    return None
  devices = jax.devices() if devices is None else devices
  model = mesh.model or max(len(devices) // (mesh.data * mesh.sequence), 1)
  draft = mesh.draft or math.gcd(model, draft_heads or 1)
  return sharding.make(
      mesh.preset, data=mesh.data, model=model, sequence=mesh.sequence, draft=draft, devices=devices
  )
