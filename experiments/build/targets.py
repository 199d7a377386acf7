"""Targets of a config: a pair of the zoo by name, or a folder, hub id or `.gguf` file."""

import pathlib
from typing import Any

import ml_collections

from experiments.build import drafters as drafters_lib
from experiments.build import values
from experiments.runs import records
from specjax import models
from specjax import zoo
from specjax.models import loading

ConfigDict = ml_collections.ConfigDict


def load(config: ConfigDict) -> records.Loaded:
  """The target of `config.target`.

  Raises:
    ValueError: if there is no such pair, or weights or vocabulary do not fit.
    FileNotFoundError: if there is no such model, or a file is missing in it.
    PermissionError: if a model on the hub is gated.
  """
  dtype = values.dtype(config.dtype)
  template_text = template(config)
  if not config.target.path:
    pair = zoo.load(config.target.name, dtype=dtype)
    draft_heads = _draft_heads(config, pair.target.module.config, pair)
    split = values.layouts(config.mesh, draft_heads=draft_heads)
    target = models.place(pair.target, split and split.target, int8=config.int8)
    return records.Loaded(
        target,
        pair.tokenizer,
        pair.end_tokens or (pair.end_of_text,),
        pair.held_out,
        pair,
        split,
        name=pair.name,
        chat_template=template_text or pair.chat_template,
        special_tokens=pair.special_tokens,
    )
  path = config.target.path
  # A source that is no model is refused as such, before weights are fetched.
  shape = loading.read_config(path)
  about = loading.describe(path, chat_template=template_text)
  drafters_lib.check_draft_vocabulary(config, shape.vocab_size, about.tokenizer)
  split = values.layouts(config.mesh, draft_heads=_draft_heads(config, shape, None))
  model = loading.load_model(
      path, dtype=dtype, layout=split and split.target, int8=config.int8
  )
  return records.Loaded(
      model,
      about.tokenizer,
      about.end_tokens,
      (),
      None,
      split,
      name=name(config),
      chat_template=about.chat_template,
      special_tokens=about.special_tokens,
  )


def name(config: ConfigDict) -> str:
  """The target's name, for people."""
  path = config.target.path
  return pathlib.Path(path).name if path else config.target.name


def source(config: ConfigDict) -> str | pathlib.Path:
  """The folder, hub id or `.gguf` file of the target, whichever way it is named; '' for none.

  Raises:
    ValueError: for a name that no pair has.
    FileNotFoundError: if a named one cannot be fetched.
  """
  if config.target.path or not config.target.name:
    return config.target.path
  return zoo.source(config.target.name)


def template(config: ConfigDict) -> str | None:
  """The template of `config.target.chat_template`, a file, or None."""
  file = config.target.chat_template
  if not file:
    return None
  path = pathlib.Path(file).expanduser()
  if not path.is_file():
    raise FileNotFoundError(f'config.target.chat_template={file} is no file.')
  return path.read_text(encoding='utf-8-sig')


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
  if config.drafter.kind == 'model' and config.drafter.path:
    return loading.read_config(config.drafter.path).num_kv_heads
  if pair is not None and pair.drafts:
    return pair.draft.module.config.num_kv_heads
  return 0
