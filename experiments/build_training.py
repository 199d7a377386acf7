"""From a training config to the objects of the library (see `experiments.build`)."""

import pathlib

import ml_collections

from experiments import build
from specjax import models
from specjax import sharding
from specjax.training import drafts as draft_losses
from specjax.training import losses
from specjax.training import optimizers

ConfigDict = ml_collections.ConfigDict


def module(config: ConfigDict) -> models.Transformer:
  """The model that `config.model` describes, with float32 weights and `config.dtype`."""
  shape = models.TransformerConfig(**config.model.to_dict())
  layouts = build.layouts(config.get('mesh'))
  layout = None if layouts is None else layouts.target
  shape = sharding.fitted(shape, layout)
  return models.Transformer(shape, dtype=build.dtype(config.dtype), layout=layout)


def optimizer(config: ConfigDict):
  """The optimiser of `config.optimizer` for `config.num_steps` steps."""
  settings = config.optimizer
  schedule = optimizers.warmup_stable_decay(
      peak=settings.learning_rate,
      num_steps=config.num_steps,
      warmup_steps=settings.warmup_steps,
      decay_fraction=settings.decay_fraction,
  )
  return optimizers.muon(schedule, weight_decay=settings.weight_decay)


def distillation_target(config: ConfigDict) -> models.LanguageModel | None:
  """The target that a draft is distilled from, or None where `config.target.path` is empty.

  Raises:
    ValueError: if its vocabulary is not the draft's.
  """
  if not config.target.path:
    if config.distillation.kl_weight:
      raise ValueError(
          'config.distillation.kl_weight is set, but there is no target to distil from: give '
          '--config.target.path=FOLDER, a Hugging Face folder.'
      )
    return None
  found = models.load_config(config.target.path, **build.TEXT)
  if found.vocab_size != config.model.vocab_size:
    raise ValueError(
        f'The target in {config.target.path} has a vocabulary of {found.vocab_size} tokens, '
        f'the draft of {config.model.vocab_size}. Set --config.model.vocab_size='
        f'{found.vocab_size}.'
    )
  layouts = build.layouts(config.get('mesh'))
  return models.load_hf(
      config.target.path,
      dtype=build.dtype(config.dtype),
      layout=layouts and layouts.target,
      **build.TEXT,
  )


def target_tokenizer_file(config: ConfigDict) -> pathlib.Path | None:
  """The tokenizer to encode with: the one named, else the target's, else None.

  Raises:
    FileNotFoundError: if there is a target but no tokenizer in or beside its folder.
  """
  if config.corpus.tokenizer:
    return pathlib.Path(config.corpus.tokenizer)
  if not config.target.path:
    return None
  folder = pathlib.Path(config.target.path)
  for candidate in (folder / 'tokenizer.json', folder.parent / 'tokenizer.json'):
    if candidate.exists():
      return candidate
  raise FileNotFoundError(
      f'There is no tokenizer.json in {folder} or beside it; a draft must read the tokens of '
      'its target. Give --config.corpus.tokenizer=FILE.'
  )


def loss(config: ConfigDict, model: models.Transformer, target: models.LanguageModel | None):
  """The loss of `config.distillation`: of the text alone, where there is no target."""
  settings = config.distillation
  losses.check_kind(settings.loss)
  if not 0.0 <= settings.kl_weight <= 1.0:
    raise ValueError(
        f'config.distillation.kl_weight must be in [0, 1], got {settings.kl_weight}.'
    )
  if target is None:
    return draft_losses.language_model(model, num_chunks=settings.num_chunks)
  return draft_losses.distilled(
      model,
      target,
      weight=settings.kl_weight,
      kind=settings.loss,
      num_chunks=settings.num_chunks,
  )
