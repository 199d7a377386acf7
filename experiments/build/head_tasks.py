"""From a training config to the `Task` of a head, one for each kind."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments.build import values
from experiments.runs import corpus as corpus_lib
from experiments.runs import training as training_lib
from specjax import drafters
from specjax import heads
from specjax import models
from specjax.heads import dflash as dflash_lib
from specjax.heads import eagle as eagle_lib
from specjax.heads import early_exit as early_exit_lib
from specjax.heads import medusa as medusa_lib
from specjax.heads import target as target_lib
from specjax.training import blocks
from specjax.training import chats
from specjax.training import heads as head_losses

ConfigDict = ml_collections.ConfigDict


def task(
    config: ConfigDict, target: models.LanguageModel, corpus: corpus_lib.Corpus, start: Any
) -> training_lib.Task:
  """The task of a head of `config.kind`.

  Args:
    config: of the training.
    target: that the head drafts for.
    corpus: chooses the draft vocabulary, and knows which tokens no text has.
    start: the head that training begins with, or None.

  Raises:
    ValueError: for a head and a target that do not fit.
  """
  if config.kind == 'medusa':
    return _medusa(config, target)
  if config.kind == 'early_exit':
    return _early_exit(config, target)
  vocabulary = _draft_vocabulary(config, target, corpus, start)
  if config.kind == 'eagle':
    return _eagle3(config, target, vocabulary)
  return _dflash(config, target, vocabulary, corpus)


def _eagle3(
    config: ConfigDict, target: models.LanguageModel, vocabulary: jax.Array | None
) -> training_lib.Task:
  cfg = target.module.config
  settings = config.head
  shape = _decoder(config, cfg, vocab_size=settings.get('vocab_size', 0) or cfg.vocab_size)
  chosen = tuple(settings.feature_layers) or eagle_lib.default_layers(cfg.num_layers)
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
    params = dict(eagle_lib.init_params(module, key))
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
      config=head_config,
      init=init,
      loss_fn=loss_fn,
      num_parameters=head_config.num_parameters - sum(each.size for each in shared.values()),
      target=target,
      feature_layers=(*chosen, cfg.num_layers),
      drafter=drafter,
      save=_saver(config, save, head),
  )


def _dflash(
    config: ConfigDict,
    target: models.LanguageModel,
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
      feature_layers=layers or dflash_lib.default_layers(cfg.num_layers, settings.num_features),
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
    params = dict(dflash_lib.init_params(module, key))
    # Its laws are from the target's output head, or from one that starts as the target's rows.
    params['final_norm'] = {'scale': target_lib.norm_scale(target)}
    if vocabulary is not None:
      params['head'] = target_lib.head_kernel(target)[vocabulary].astype(jnp.float32)
    return params

  def drafter(params, num_tokens):
    count = min(num_tokens, head_config.depth)
    return drafters.dflash(head(params), target, num_speculative_tokens=count)

  return training_lib.Task(
      config=head_config,
      init=init,
      loss_fn=loss_fn,
      num_parameters=head_config.num_parameters,
      target=target,
      feature_layers=(*head_config.feature_layers, cfg.num_layers),
      drafter=drafter,
      save=_saver(config, functools.partial(heads.save_dflash, int8=settings.int8), head),
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
      config=head_config,
      init=functools.partial(
          medusa_lib.init_params, module, head=target_lib.head_kernel(target)
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
      config=head_config,
      init=functools.partial(early_exit_lib.init_params, module, target=target),
      loss_fn=loss_fn,
      num_parameters=head_config.num_parameters,
      target=target,
      feature_layers=(head_config.exit_layer, cfg.num_layers),
      drafter=drafter,
      save=_saver(config, save, functools.partial(heads.EarlyExit, module)),
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


def _mask_token(settings: ConfigDict, vocab_size: int, corpus: corpus_lib.Corpus) -> int:
  """The token whose embedding fills a block: the one given, or one that no text has.

  Where the embeddings are padded beyond the tokenizer's tokens that is the first of the others, as
  DeepSpec takes it; else the first end of a text, after which nothing is drafted.
  """
  if settings.mask_token >= 0:
    return settings.mask_token
  known = 1 + max(corpus.tokenizer.get_vocab().values())
  if known < vocab_size:
    return known
  if not corpus.end_tokens:
    raise ValueError(
        'The target has no token that no text has, neither beyond its tokenizer nor as its end: '
        'set --config.head.mask_token.'
    )
  return corpus.end_tokens[0]


def _decoder(
    config: ConfigDict, target: models.TransformerConfig, *, vocab_size: int
) -> models.TransformerConfig:
  """The head's layer: that of `config.model`; one of the target's sizes where this is empty."""
  if fields := config.model.to_dict():
    return models.TransformerConfig(**{'vocab_size': vocab_size} | fields)
  return like(target, vocab_size=vocab_size, num_layers=1, tie_embeddings=False)


def _saver(config: ConfigDict, save: Callable[..., None], of_params: Callable[[Any], Any]):
  """`Task.save` of a head, which has no stop tokens: `save` writes what `of_params` makes."""

  def write(params, folder, *, extra_files, eos_ids):
    del eos_ids
    dtype = values.dtype(config.export_dtype)
    save(of_params(params), folder, dtype=dtype, extra_files=extra_files)

  return write


def like(target: models.TransformerConfig, **fields: Any) -> models.TransformerConfig:
  """A Llama of the target's sizes, whatever the target's family: what other engines load too."""
  names = ('width', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_width', 'max_positions')
  return models.TransformerConfig(**{name: getattr(target, name) for name in names}, **fields)
