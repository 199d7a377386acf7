"""From a training config to a `Task`, of a draft model or of a head."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.build import drafters as build_drafters
from experiments.build import head_tasks
from experiments.build import targets
from experiments.build import values
from experiments.runs import corpus as corpus_lib
from experiments.runs import training as training_lib
from specjax import drafters
from specjax import models
from specjax import sharding
from specjax.heads import target as target_lib
from specjax.heads.hf import stored
from specjax.models import loading
from specjax.training import blocks
from specjax.training import drafts as draft_losses
from specjax.training import losses

ConfigDict = ml_collections.ConfigDict

# As config.drafter.kind has them.
KINDS = ('model', 'eagle', 'medusa', 'early_exit', 'dflash')


def check(config: ConfigDict) -> models.TransformerConfig | None:
  """Refuses what `task` would, before there is a corpus; returns the target's shape, or None.

  Raises:
    ValueError: for an unknown kind or loss, no target where one is needed, or a vocabulary that is
      not the target's.
    FileNotFoundError: if there is no such target.
  """
  values.choice('kind', config.kind, KINDS)
  settings = config.distillation if config.kind == 'model' else config.head
  (blocks if config.kind == 'dflash' else losses).check_kind(settings.loss)
  source = targets.source(config)
  if config.kind != 'model':
    if not source:
      raise ValueError(
          f'config.kind={config.kind!r} trains a head of a target: give --config.target.path=… (a '
          'Hugging Face folder, hub id or .gguf file) or --config.target.name=smollm2.'
      )
    return loading.read_config(source)
  if not 0.0 <= settings.kl_weight <= 1.0:
    raise ValueError(
        f'config.distillation.kl_weight must be in [0, 1], got {settings.kl_weight}.'
    )
  if not source:
    if not config.model:
      raise ValueError(
          'config.model is empty, which takes the sizes of a target: give --config.target.path=…, '
          'or a config.model.'
      )
    if settings.kl_weight:
      raise ValueError(
          'config.distillation.kl_weight is set, but there is no target to distil from: give '
          '--config.target.path=FOLDER, a Hugging Face folder.'
      )
    return None
  shape = loading.read_config(source)
  if config.model and shape.vocab_size != config.model.vocab_size:
    raise ValueError(
        f'The target in {source} has a vocabulary of {shape.vocab_size} tokens, the draft of '
        f'{config.model.vocab_size}. Set --config.model.vocab_size={shape.vocab_size}.'
    )
  return shape


def task(config: ConfigDict, corpus: corpus_lib.Corpus) -> training_lib.Task:
  """The task of a config that `check` let pass; a draft vocabulary is chosen by the corpus.

  Raises:
    ValueError: for a head and a target that do not fit, or `config.start` of another shape.
    FileNotFoundError: if there is no `config.start`.
  """
  layouts = values.layouts(config.get('mesh'))
  layout = layouts and layouts.target
  target = None
  if source := targets.source(config):
    target = loading.load_model(source, dtype=values.dtype(config.dtype), layout=layout)
  start = _start(config, target, layout) if config.start else None
  if config.kind == 'model':
    made = _model(config, target)
  else:
    made = head_tasks.task(config, target, corpus, start)
  made = dataclasses.replace(made, layout=layout)
  return made if start is None else _started(made, start, config.start, target)


def _start(
    config: ConfigDict, target: models.LanguageModel | None, layout: sharding.Layout | None
) -> Any:
  """The model or head in `config.start`, of the kind that is trained."""
  if config.kind == 'model':
    return loading.load_model(config.start, dtype=jnp.float32, layout=layout)
  return build_drafters.read_head(config.start, config.kind, target, dtype=jnp.float32)


def _started(
    made: training_lib.Task, start: Any, where: str, target: models.LanguageModel | None
) -> training_lib.Task:
  """The task, which begins with the parameters of `start` that it trains.

  Args:
    made: the task.
    start: a model or head.
    where: it was read from.
    target: of a head.

  Raises:
    ValueError: naming what `start` has otherwise than what is trained.
  """
  one, other = _fields(made.config), _fields(start.module.config)
  for name in one | other:
    if one.get(name) != other.get(name):
      raise ValueError(
          f'config.start={where!r} is of another shape than what the config describes: its {name} '
          f'is {other.get(name)!r}, and {one.get(name)!r} is trained. Give the config of that head '
          'or model, or leave config.start out.'
      )
  if getattr(start, 'embedding', None) is not None:
    raise ValueError(
        f'config.start={where!r} has an embedding of its own, where heads are trained on that of '
        'the target: start without it.'
    )
  params = dict(start.params)
  wanted = jax.eval_shape(made.init, jax.random.key(0))
  if 'head' in params and 'head' not in wanted:
    rows, ids = target_lib.head_kernel(target), start.draft_to_target
    if not stored.is_copy(np.asarray(params.pop('head')), rows if ids is None else rows[ids]):
      raise ValueError(
          f'config.start={where!r} has an output head of its own, where the config takes that of '
          'the target: set --config.head.own_output=True.'
      )
  return dataclasses.replace(made, init=lambda key: params)


def _fields(config: Any) -> dict[str, Any]:
  """What makes two shapes the same, by name: all but how long texts may be."""
  fields = {}
  for name, value in dataclasses.asdict(config).items():
    inner = value.items() if isinstance(value, dict) else [('', value)]
    fields |= {
        f'{name}.{field}'.strip('.'): each
        for field, each in inner
        if 'max_positions' not in (name, field)
    }
  return fields


def module_of(
    config: ConfigDict, target: models.TransformerConfig | None = None
) -> models.Transformer:
  """The model that `config.model` describes, with float32 weights and `config.dtype`.

  Where that is empty, it has the target's sizes, vocabulary and embedding, and
  `config.distillation.num_layers` layers.
  """
  if config.model:
    shape = models.TransformerConfig(**config.model.to_dict())
  else:
    shape = head_tasks.like(
        target, vocab_size=target.vocab_size, num_layers=config.distillation.num_layers,
        tie_embeddings=target.tie_embeddings,
    )
  layouts = values.layouts(config.get('mesh'))
  layout = None if layouts is None else layouts.target
  shape = sharding.fitted(shape, layout)
  return models.Transformer(shape, dtype=values.dtype(config.dtype), layout=layout)


def _loss(config: ConfigDict, model: models.Transformer, target: models.LanguageModel | None):
  """The loss of `config.distillation`: of the text alone, where there is no target."""
  settings = config.distillation
  if target is None:
    return draft_losses.language_model(model, num_chunks=settings.num_chunks)
  return draft_losses.distilled(
      model,
      target,
      weight=settings.kl_weight,
      kind=settings.loss,
      num_chunks=settings.num_chunks,
  )


def _model(config: ConfigDict, target: models.LanguageModel | None) -> training_lib.Task:
  module = module_of(config, target and target.module.config)
  loss_fn = _loss(config, module, target)

  def drafter(params, num_tokens):
    draft = models.LanguageModel(module, params)
    return drafters.model(draft, num_speculative_tokens=num_tokens)

  def save(params, folder, *, extra_files, eos_ids):
    models.save_hf(
        models.LanguageModel(module, params),
        folder,
        dtype=values.dtype(config.export_dtype),
        eos_ids=eos_ids,
        extra_files=extra_files,
    )

  return training_lib.Task(
      config=module.config,
      init=functools.partial(models.init_params, module),
      loss_fn=loss_fn,
      num_parameters=module.config.num_parameters,
      target=target,
      feature_layers=(),
      drafter=None if target is None else drafter,
      save=save,
      train_metrics=None,
      layout=module.layout,
  )
