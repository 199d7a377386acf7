"""From a training config to a `Task`: one for each kind of drafter."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import ml_collections

from experiments.build import values
from experiments.runs import training as training_lib
from specjax import drafters
from specjax import heads
from specjax import models
from specjax import sharding
from specjax.heads import eagle
from specjax.heads import early_exit
from specjax.heads import medusa
from specjax.heads import target as target_lib
from specjax.models import loading
from specjax.training import drafts as draft_losses
from specjax.training import heads as head_losses
from specjax.training import losses

ConfigDict = ml_collections.ConfigDict

# As config.drafter.kind has them.
KINDS = ('model', 'eagle', 'medusa', 'early_exit')


def task(config: ConfigDict) -> training_lib.Task:
  """The task of `config.kind`.

  Raises:
    ValueError: for an unknown kind, or a head and a target that do not fit.
  """
  values.choice('kind', config.kind, KINDS)
  if config.kind == 'model':
    return _model(config)
  if not config.target.path:
    raise ValueError(
        f'config.kind={config.kind!r} trains a head of a target: give '
        '--config.target.path=FOLDER, a Hugging Face folder.'
    )
  layouts = values.layouts(config.get('mesh'))
  layout = layouts and layouts.target
  target = loading.load_model(
      config.target.path, dtype=values.dtype(config.dtype), layout=layout
  )
  make = {'eagle': _eagle3, 'medusa': _medusa, 'early_exit': _early_exit}[config.kind]
  return dataclasses.replace(make(config, target), layout=layout)


def module_of(config: ConfigDict) -> models.Transformer:
  """The model that `config.model` describes, with float32 weights and `config.dtype`."""
  shape = models.TransformerConfig(**config.model.to_dict())
  layouts = values.layouts(config.get('mesh'))
  layout = None if layouts is None else layouts.target
  shape = sharding.fitted(shape, layout)
  return models.Transformer(shape, dtype=values.dtype(config.dtype), layout=layout)


def _distillation_target(config: ConfigDict) -> models.LanguageModel | None:
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
  shape = loading.read_config(config.target.path)
  if shape.vocab_size != config.model.vocab_size:
    raise ValueError(
        f'The target in {config.target.path} has a vocabulary of {shape.vocab_size} tokens, '
        f'the draft of {config.model.vocab_size}. Set --config.model.vocab_size='
        f'{shape.vocab_size}.'
    )
  layouts = values.layouts(config.get('mesh'))
  return loading.load_model(
      config.target.path, dtype=values.dtype(config.dtype), layout=layouts and layouts.target
  )


def _loss(config: ConfigDict, model: models.Transformer, target: models.LanguageModel | None):
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


def _model(config: ConfigDict) -> training_lib.Task:
  module = module_of(config)
  target = _distillation_target(config)
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


def _saver(config: ConfigDict, save: Callable[..., None], of_params: Callable[[Any], Any]):
  """`Task.save` of a head, which has no stop tokens: `save` writes what `of_params` makes."""

  def write(params, folder, *, extra_files, eos_ids):
    del eos_ids
    dtype = values.dtype(config.export_dtype)
    save(of_params(params), folder, dtype=dtype, extra_files=extra_files)

  return write


def _eagle3(config: ConfigDict, target: models.LanguageModel) -> training_lib.Task:
  cfg = target.module.config
  settings = config.head
  shape = models.TransformerConfig(**config.model.to_dict())
  chosen = tuple(settings.feature_layers) or eagle.default_layers(cfg.num_layers)
  head_config = heads.EagleConfig(
      decoder=shape,
      target_width=cfg.width,
      target_vocab_size=cfg.vocab_size,
      feature_layers=chosen,
  )
  module = heads.EagleHead(head_config, dtype=values.dtype(config.dtype), layout=target.layout)
  loss_fn = head_losses.eagle3(
      module,
      target,
      num_steps=settings.num_steps,
      decay=settings.decay,
      kind=settings.loss,
      num_chunks=settings.num_chunks,
  )

  def init(key):
    params = dict(eagle.init_params(module, key))
    if shape.width == cfg.width and shape.vocab_size == cfg.vocab_size:
      params['head'] = target_lib.head_kernel(target).astype(jnp.float32)
    return params

  def drafter(params, num_tokens):
    return drafters.eagle(
        heads.Eagle(module, params), target, num_speculative_tokens=num_tokens
    )

  return training_lib.Task(
      init=init,
      loss_fn=loss_fn,
      num_parameters=head_config.num_parameters,
      target=target,
      feature_layers=(*chosen, cfg.num_layers),
      drafter=drafter,
      save=_saver(config, heads.save_eagle, functools.partial(heads.Eagle, module)),
  )


def _medusa(config: ConfigDict, target: models.LanguageModel) -> training_lib.Task:
  cfg, settings = target.module.config, config.head
  head_config = heads.MedusaConfig(
      num_heads=settings.num_heads,
      num_layers=settings.num_layers,
      target_width=cfg.width,
      target_vocab_size=cfg.vocab_size,
      target_layers=cfg.num_layers,
  )
  save = functools.partial(heads.save_medusa, int8=settings.int8)
  module = heads.MedusaHeads(
      head_config, values.dtype(config.dtype), jnp.float32, target.layout
  )
  loss_fn = head_losses.medusa(
      module,
      target,
      decay=settings.decay,
      kind=settings.loss,
      num_chunks=settings.num_chunks,
  )

  def drafter(params, num_tokens):
    return drafters.medusa(
        heads.Medusa(module, params), target, num_speculative_tokens=num_tokens
    )

  return training_lib.Task(
      init=functools.partial(
          medusa.init_params, module, head=target_lib.head_kernel(target)
      ),
      loss_fn=loss_fn,
      num_parameters=head_config.num_parameters,
      target=target,
      feature_layers=(cfg.num_layers,),
      drafter=drafter,
      save=_saver(config, save, functools.partial(heads.Medusa, module)),
  )


def _early_exit(config: ConfigDict, target: models.LanguageModel) -> training_lib.Task:
  cfg, settings = target.module.config, config.head
  head_config = heads.ExitConfig(
      exit_layer=settings.exit_layer, target=cfg, mlp_width=settings.mlp_width
  )
  module = heads.ExitAdapter(
      head_config, values.dtype(config.dtype), jnp.float32, target.layout
  )
  if not head_config.mlp_width:
    raise ValueError('config.head.mlp_width=0 leaves nothing to train; set the adapter\'s width.')
  loss_fn = head_losses.early_exit(
      module, target, kind=settings.loss, num_chunks=settings.num_chunks
  )

  def drafter(params, num_tokens):
    return drafters.early_exit(
        heads.EarlyExit(module, params), target, num_speculative_tokens=num_tokens
    )

  return training_lib.Task(
      init=functools.partial(early_exit.init_params, module, target=target),
      loss_fn=loss_fn,
      num_parameters=head_config.num_parameters,
      target=target,
      feature_layers=(head_config.exit_layer, cfg.num_layers),
      drafter=drafter,
      save=_saver(config, heads.save_early_exit, functools.partial(heads.EarlyExit, module)),
  )
