"""From a training config to a `Task`: one for each kind of drafter."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments.build import drafters as build_drafters
from experiments.build import targets
from experiments.build import values
from experiments.runs import corpus as corpus_lib
from experiments.runs import training as training_lib
from specjax import drafters
from specjax import heads
from specjax import models
from specjax import sharding
from specjax.heads import dflash
from specjax.heads import eagle
from specjax.heads import early_exit
from specjax.heads import medusa
from specjax.heads import target as target_lib
from specjax.models import loading
from specjax.training import blocks
from specjax.training import chats
from specjax.training import drafts as draft_losses
from specjax.training import heads as head_losses
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
  start = _start(config, target) if config.start else None
  if config.kind in ('eagle', 'dflash'):
    vocabulary = _draft_vocabulary(config, target, corpus, start)
    make = {
        'eagle': functools.partial(_eagle3, vocabulary=vocabulary),
        'dflash': functools.partial(_dflash, vocabulary=vocabulary, corpus=corpus),
    }[config.kind]
  else:
    make = {'model': _model, 'medusa': _medusa, 'early_exit': _early_exit}[config.kind]
  made = dataclasses.replace(make(config, target), layout=layout)
  return made if start is None else _started(made, start.params, config.start)


def _start(config: ConfigDict, target: models.LanguageModel | None) -> Any:
  """The model or head in `config.start`, of the kind that is trained."""
  if config.kind == 'model':
    return loading.load_model(config.start, dtype=jnp.float32)
  return build_drafters.read_head(config.start, config.kind, target, dtype=jnp.float32)


def _started(made: training_lib.Task, params: Any, where: str) -> training_lib.Task:
  """The task, which begins with the parameters of `where` that it trains.

  Raises:
    ValueError: naming the parameters that are not the same in both.
  """
  named = lambda tree: {
      jax.tree_util.keystr(path): leaf.shape
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  wanted = jax.eval_shape(made.init, jax.random.key(0))
  # An output head that is the target's is neither trained nor one of the task's parameters.
  found = {name: params[name] for name in params if name in wanted or name != 'head'}
  one, other = named(wanted), named(found)
  if differing := sorted(set(one.items()) ^ set(other.items())):
    name, _ = differing[0]
    raise ValueError(
        f'config.start={where!r} is of another shape than what the config describes: {name} is '
        f'{other.get(name, "missing")}, and {one.get(name, "not wanted")} is trained. Give the '
        'config of that head or model, or leave config.start out.'
    )
  return dataclasses.replace(made, init=lambda key: found)


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
    shape = _like(
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


def _eagle3(
    config: ConfigDict, target: models.LanguageModel, *, vocabulary: jax.Array | None
) -> training_lib.Task:
  cfg = target.module.config
  settings = config.head
  shape = _decoder(config, cfg, vocab_size=settings.get('vocab_size', 0) or cfg.vocab_size)
  chosen = tuple(settings.feature_layers) or eagle.default_layers(cfg.num_layers)
  head_config = heads.EagleConfig(
      decoder=shape,
      target_width=cfg.width,
      target_vocab_size=cfg.vocab_size,
      feature_layers=chosen,
      fuse_norm=settings.fuse_norm or None,
      norm_output=settings.norm_output,
  )
  module = heads.EagleHead(head_config, dtype=values.dtype(config.dtype), layout=target.layout)
  rows = target_lib.head_kernel(target)
  rows = rows if vocabulary is None else rows[vocabulary]
  fits = rows.shape == (shape.vocab_size, shape.width)
  shared = {} if settings.get('own_output', True) else {'head': rows}
  if shared and jax.process_count() > 1:
    raise ValueError(
        'config.head.own_output=False compares the output head with that of the target when it is '
        'saved, for which one process must have both: train with one process, or with own_output.'
    )
  if shared and not fits:
    raise ValueError(
        f"config.head.own_output=False takes the target's output head, {rows.shape}, which does "
        f'not fit a head of width {shape.width}: leave config.model.width to the target.'
    )
  loss_fn = head_losses.eagle3(
      module,
      target,
      num_steps=settings.num_steps,
      decay=settings.decay,
      kind=settings.loss,
      num_chunks=settings.num_chunks,
      draft_to_target=vocabulary,
      output_head=shared.get('head'),
  )
  head = lambda params: heads.Eagle(module, {**params, **shared}, draft_to_target=vocabulary)
  save = functools.partial(
      heads.save_eagle, int8=settings.int8, shared_with=target if shared else None
  )

  def init(key):
    params = dict(eagle.init_params(module, key))
    if fits:
      # The output head starts as the target's rows, and so does the norm before it.
      params['head'] = rows.astype(jnp.float32)
      params['final_norm'] = {'scale': target_lib.norm_scale(target)}
    if shared:
      del params['head']
    return params

  def drafter(params, num_tokens):
    return drafters.eagle(head(params), target, num_speculative_tokens=num_tokens)

  return training_lib.Task(
      init=init,
      loss_fn=loss_fn,
      num_parameters=head_config.num_parameters - sum(each.size for each in shared.values()),
      target=target,
      feature_layers=(*chosen, cfg.num_layers),
      drafter=drafter,
      save=_saver(config, save, head),
  )


def _draft_vocabulary(config: ConfigDict, target: models.LanguageModel, corpus, start):
  """[V_draft] int32, the tokens that are most frequent in the corpus, or None for all.

  Where a head is trained on, it is that head's.

  Raises:
    ValueError: if that is not as large as the config says.
  """
  size = config.head.get('vocab_size', 0)
  if start is not None:
    ids = start.draft_to_target
    found = target.vocab_size if ids is None else len(ids)
    if found != (size or target.vocab_size):
      raise ValueError(
          f'config.start={config.start!r} drafts {found} tokens: set '
          f'--config.head.vocab_size={0 if ids is None else found}, not {size}.'
      )
    return ids
  if not size:
    return None
  counts = corpus.train.counts(target.vocab_size)
  return jnp.asarray(chats.draft_vocabulary(counts, size, always=corpus.end_tokens))


def _dflash(
    config: ConfigDict,
    target: models.LanguageModel,
    *,
    vocabulary: jax.Array | None,
    corpus: corpus_lib.Corpus,
) -> training_lib.Task:
  """A DFlash head, or with `config.head.markov` a DSpark head."""
  cfg, settings = target.module.config, config.head
  decoder = dataclasses.replace(
      _decoder(config, cfg, vocab_size=settings.vocab_size or cfg.vocab_size),
      num_layers=settings.num_layers, qk_norm=True,
  )
  layers = tuple(settings.feature_layers)
  head_config = heads.DFlashConfig(
      decoder=decoder,
      target_width=cfg.width,
      target_vocab_size=cfg.vocab_size,
      feature_layers=layers or dflash.default_layers(cfg.num_layers, settings.num_features),
      block_size=settings.block_size,
      mask_token=_mask_token(settings, cfg.vocab_size, corpus),
      shift=settings.shift,
      has_head=vocabulary is not None,
      markov=settings.markov or None,
      markov_rank=settings.markov_rank if settings.markov else 0,
      has_confidence=settings.confidence,
      confidence_sees_token=bool(settings.confidence and settings.markov),
  )
  module = heads.DFlashHead(
      head_config, dtype=values.dtype(config.dtype), layout=target.layout
  )
  loss_fn = blocks.dflash(
      module, target, num_roots=settings.num_roots, kind=settings.loss,
      gamma=settings.gamma or None, num_chunks=settings.num_chunks, draft_to_target=vocabulary,
  )
  head = lambda params: heads.DFlash(module, params, draft_to_target=vocabulary)

  def init(key):
    params = dict(dflash.init_params(module, key))
    # Its laws are from the target's output head, or from one that starts as the target's rows.
    params['final_norm'] = {'scale': target_lib.norm_scale(target)}
    if vocabulary is not None:
      params['head'] = target_lib.head_kernel(target)[vocabulary].astype(jnp.float32)
    return params

  def drafter(params, num_tokens):
    count = min(num_tokens, head_config.depth)
    return drafters.dflash(head(params), target, num_speculative_tokens=count)

  return training_lib.Task(
      init=init,
      loss_fn=loss_fn,
      num_parameters=head_config.num_parameters,
      target=target,
      feature_layers=(*head_config.feature_layers, cfg.num_layers),
      drafter=drafter,
      save=_saver(config, functools.partial(heads.save_dflash, int8=settings.int8), head),
  )


def _mask_token(settings: ConfigDict, vocab_size: int, corpus: corpus_lib.Corpus) -> int:
  """The token whose embedding fills a block: the one given, or one that no text has.

  Where the embeddings are padded beyond the tokenizer's tokens that is the first of the others, as
  DeepSpec takes it; else the first end of a text, after which nothing is drafted.
  """
  if settings.mask_token >= 0:
    return settings.mask_token
  known = corpus.tokenizer.get_vocab_size()
  return known if known < vocab_size else corpus.end_tokens[0]


def _decoder(
    config: ConfigDict, target: models.TransformerConfig, *, vocab_size: int
) -> models.TransformerConfig:
  """The head's layer: that of `config.model`; one of the target's sizes where this is empty."""
  if fields := config.model.to_dict():
    return models.TransformerConfig(**{'vocab_size': vocab_size} | fields)
  return _like(target, vocab_size=vocab_size, num_layers=1, tie_embeddings=False)


def _like(target: models.TransformerConfig, **fields: Any) -> models.TransformerConfig:
  """A Llama of the target's sizes, whatever the target's family: what other engines load too."""
  names = ('width', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_width', 'max_positions')
  return models.TransformerConfig(**{name: getattr(target, name) for name in names}, **fields)


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
  save = functools.partial(heads.save_early_exit, int8=settings.int8)
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
      save=_saver(config, save, functools.partial(heads.EarlyExit, module)),
  )
