"""From a config to a drafter that is a head of the target (see `experiments.build`)."""

import pathlib
from typing import Any

import ml_collections

from specjax import drafters
from specjax import heads
from specjax import sharding

ConfigDict = ml_collections.ConfigDict

# Kinds of drafters that are heads: what ships under which name, and how it is loaded.
HEADS = {
    'eagle': ('eagle3', heads.load_eagle, drafters.eagle),
    'medusa': ('medusa', heads.load_medusa, drafters.medusa),
    'early_exit': ('early_exit', heads.load_early_exit, drafters.early_exit),
}
KINDS = (*HEADS, *(f'{kind}_tree' for kind in HEADS))


def num_kv_heads(config: ConfigDict, target: Any, pair: Any) -> int:
  """Into how many parts a head may be split: by the key-value heads of its layer.

  Those of the shipped head, where it is the drafter, else the target's, which most heads share.

  Args:
    config: the config.
    target: the target's configuration.
    pair: of the zoo, or None.
  """
  name = HEADS[config.drafter.kind.removesuffix('_tree')][0]
  if pair is not None and not config.drafter.path:
    target = getattr(pair.head(name).config, 'decoder', target)
  return target.num_kv_heads


def drafter(config: ConfigDict, loaded: Any, tree: Any):
  """The drafter of `config.drafter.kind`: a head of the pair, or of `config.drafter.path`.

  Args:
    config: the config.
    loaded: the target and its pair.
    tree: the shape of a tree, for the kinds that end in `_tree`.

  Raises:
    ValueError: if there is no head, or it is of another target.
  """
  settings = config.drafter
  name, load, make = HEADS[settings.kind.removesuffix('_tree')]
  if settings.path:
    dtype = loaded.target.module.dtype
    head = load(pathlib.Path(settings.path).expanduser(), loaded.target, dtype=dtype)
  elif loaded.pair is not None:
    head = loaded.pair.head(name)
  else:
    raise ValueError(
        f'The target in {config.target.path} comes without a head: give '
        '--config.drafter.path=FOLDER.'
    )
  head = sharding.place_head(head, loaded.layouts and loaded.layouts.draft)
  if settings.kind.endswith('_tree'):
    return make(head, loaded.target, tree=tree, siblings=settings.siblings or None)
  return make(head, loaded.target, num_speculative_tokens=settings.num_speculative_tokens)
