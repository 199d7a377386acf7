"""From a training config to what the train loop needs: one `Task` for each kind of drafter."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments import build
from experiments import build_training
from specjax import drafters
from specjax import heads
from specjax import models
from specjax import sharding
from specjax.heads import eagle
from specjax.heads import early_exit
from specjax.heads import medusa
from specjax.heads import target as target_lib
from specjax.training import heads as head_losses

ConfigDict = ml_collections.ConfigDict

KINDS = ('model', 'eagle3', 'medusa', 'early_exit')


@dataclasses.dataclass(frozen=True)
class Task:
  """What is trained and how it is saved.

  Attributes:
    init: key -> fresh parameters.
    loss_fn: (params, batch) -> (loss, metrics).
    num_parameters: of what is trained.
    target: the frozen target, or None.
    feature_layers: residual streams that the loss reads; () where it reads tokens alone.
    drafter: (params, K) -> a drafter with these weights, for measuring; None without target.
    save: (params, folder, extra_files, eos_ids) -> None.
    train_metrics: metrics that a training step computes; None for all.
    layout: how parameters and batches are split over devices, or None.
  """

  init: Callable[[jax.Array], Any]
  loss_fn: Any
  num_parameters: int
  target: models.LanguageModel | None
  feature_layers: tuple[int, ...]
  drafter: Callable[[Any, int], Any] | None
  save: Callable[..., None]
  train_metrics: tuple[str, ...] | None = ('loss',)
  layout: sharding.Layout | None = None


def task(config: ConfigDict) -> Task:
  """The task of `config.kind`.

  Raises:
    ValueError: for an unknown kind, or a head and a target that do not fit.
  """
  build.choice('kind', config.kind, KINDS)
  if config.kind == 'model':
    return _model(config)
  if not config.target.path:
    raise ValueError(
        f'config.kind={config.kind!r} trains a head of a target: give '
        '--config.target.path=FOLDER, a Hugging Face folder.'
    )
  layouts = build.layouts(config.get('mesh'))
  layout = layouts and layouts.target
  target = models.load_hf(
      config.target.path, dtype=build.dtype(config.dtype), layout=layout, **build.TEXT
  )
  make = {'eagle3': _eagle3, 'medusa': _medusa, 'early_exit': _early_exit}[config.kind]
  return dataclasses.replace(make(config, target), layout=layout)


def _model(config: ConfigDict) -> Task:
  module = build_training.module(config)
  target = build_training.distillation_target(config)
  loss_fn = build_training.loss(config, module, target)

  def drafter(params, num_tokens):
    draft = models.LanguageModel(module, params)
    return drafters.model(draft, num_speculative_tokens=num_tokens)

  def save(params, folder, *, extra_files, eos_ids):
    models.save_hf(
        models.LanguageModel(module, params),
        folder,
        dtype=build.dtype(config.export_dtype),
        eos_ids=eos_ids,
        extra_files=extra_files,
    )

  return Task(
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
    dtype = build.dtype(config.export_dtype)
    save(of_params(params), folder, dtype=dtype, extra_files=extra_files)

  return write


def _eagle3(config: ConfigDict, target: models.LanguageModel) -> Task:
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
  module = heads.EagleHead(head_config, dtype=build.dtype(config.dtype), layout=target.layout)
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

  return Task(
      init=init,
      loss_fn=loss_fn,
      num_parameters=head_config.num_parameters,
      target=target,
      feature_layers=(*chosen, cfg.num_layers),
      drafter=drafter,
      save=_saver(config, heads.save_eagle, functools.partial(heads.Eagle, module)),
  )


def _medusa(config: ConfigDict, target: models.LanguageModel) -> Task:
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
      head_config, build.dtype(config.dtype), jnp.float32, target.layout
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

  return Task(
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


def _early_exit(config: ConfigDict, target: models.LanguageModel) -> Task:
  cfg, settings = target.module.config, config.head
  head_config = heads.ExitConfig(
      exit_layer=settings.exit_layer, target=cfg, mlp_width=settings.mlp_width
  )
  module = heads.ExitAdapter(
      head_config, build.dtype(config.dtype), jnp.float32, target.layout
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

  return Task(
      init=functools.partial(early_exit.init_params, module, target=target),
      loss_fn=loss_fn,
      num_parameters=head_config.num_parameters,
      target=target,
      feature_layers=(head_config.exit_layer, cfg.num_layers),
      drafter=drafter,
      save=_saver(config, heads.save_early_exit, functools.partial(heads.EarlyExit, module)),
  )
