"""Targets and draft models of a config: a pair of the zoo by name, or Hugging Face folders."""

import pathlib
from typing import Any

import ml_collections

from experiments.build import drafters as drafters_lib
from experiments.build import values
from experiments.runs import records
from specjax import models
from specjax import zoo

ConfigDict = ml_collections.ConfigDict


def load(config: ConfigDict) -> records.Loaded:
  """The target of `config.target`: a pair of the zoo by name, or a Hugging Face folder.

  Raises:
    ValueError: if there is no such pair, or the folder's weights or vocabulary do not fit.
    FileNotFoundError: if there is no such folder, or a file is missing in it.
  """
  dtype = values.dtype(config.dtype)
  if not config.target.path:
    pair = zoo.load(config.target.name, dtype=dtype)
    draft_heads = _draft_heads(config, pair.target.module.config, pair)
    split = values.layouts(config.mesh, draft_heads=draft_heads)
    target = models.place(pair.target, split and split.target, int8=config.int8)
    return records.Loaded(
        target, pair.tokenizer, (pair.end_of_text,), pair.held_out, pair, split
    )
  folder = pathlib.Path(config.target.path).expanduser()
  # A folder that is no model is refused as such.
  shape = models.load_config(folder, **drafters_lib.TEXT)
  tokenizer = models.load_tokenizer(folder)
  drafters_lib.check_draft_vocabulary(config, shape.vocab_size, tokenizer)
  split = values.layouts(config.mesh, draft_heads=_draft_heads(config, shape, None))
  target = models.load_hf(
      folder, dtype=dtype, layout=split and split.target, int8=config.int8, **drafters_lib.TEXT
  )
  return records.Loaded(target, tokenizer, models.load_eos_ids(folder), (), None, split)


def _draft_heads(config: ConfigDict, target: models.TransformerConfig, pair: Any) -> int:
  """Key-value heads of what drafts, into which a mesh may split it; 0 where nobody asks."""
  if not config.mesh.preset:
    return 0  # a head's file would be read for nothing
  head = drafters_lib.head_name(config.drafter.kind)
  if head:
    if pair is not None and not config.drafter.path:
      target = getattr(drafters_lib.shipped_head(pair, head).config, 'decoder', target)
    # Most heads have the target's key-value heads.
    return target.num_kv_heads
  if pair is not None:
    return pair.draft.module.config.num_kv_heads
  if config.drafter.kind == 'model' and config.drafter.path:
    folder = pathlib.Path(config.drafter.path).expanduser()
    return models.load_config(folder, **drafters_lib.TEXT).num_kv_heads
  return 0
