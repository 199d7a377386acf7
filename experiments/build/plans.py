"""From a plan's config to the cases that are compiled and predicted (`experiments.runs.plans`)."""

import dataclasses
import functools
import importlib.util
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments.build import values
from experiments.runs import plans
from specjax import drafters
from specjax import heads
from specjax import models
from specjax import sharding
from specjax import verify
from specjax.heads import dflash as heads_dflash
from specjax.heads import eagle as heads_eagle
from specjax.planning import ahead
from specjax.planning import chips

ConfigDict = ml_collections.ConfigDict

# Where the set-up scripts put the TPU's compiler: beside the environment's packages, for among them
# every run of JAX would look for a TPU (`MARKS` in scripts/python_env.sh).
TPU_COMPILER = pathlib.Path(sys.prefix, '.specjax', 'tpu-aot')


def plan(config: ConfigDict) -> list[plans.Case]:
  """What a config means on each of its slices.

  Raises:
    ValueError: for a slice, model or layout that does not exist or does not go together.
    FileNotFoundError: where TPU slices are to be compiled for and their compiler is not installed.
  """
  names = (config.topology,) if config.topology else tuple(config.topologies)
  if not names:
    raise ValueError('Name a slice: --config.topology=v5p:2x2x2, or several in config.topologies.')
  return [case(config, name) for name in names]


def case(config: ConfigDict, name: str) -> plans.Case:
  """What `config` means on one slice.

  Raises:
    ValueError: see `specjax.sharding`.
  """
  where = chips.slice_of(name)
  compiled = where.chip.is_tpu and config.compile
  if compiled:
    _find_tpu_compiler()
  values.choice('drafter.kind', config.drafter.kind, ('model', *_HEADS))
  values.choice('rule.name', config.rule.name, verify.NAMES)
  target, kind = _preset(config.target), jnp.dtype(config.dtype)
  head_of = _HEADS.get(config.drafter.kind)
  head = None if head_of is None else head_of(config, target)
  draft = _preset(config.drafter) if head is None else head.decoder
  devices = ahead.devices(name) if compiled else sharding.counted_devices(where.num_chips)
  layouts = values.layouts(config.mesh, devices=devices, draft_heads=draft.num_kv_heads)
  module = lambda shape, layout: models.Transformer(
      sharding.fitted(shape, layout), dtype=kind, param_dtype=kind, layout=layout
  )
  if head is None:
    draft_module = module(draft, layouts.draft)
    make = functools.partial(_model, config.int8)
  else:
    kind_of = heads.DFlashHead if isinstance(head, heads.DFlashConfig) else heads.EagleHead
    draft_module = kind_of(head, dtype=kind, param_dtype=kind, layout=layouts.draft)
    make = _with_head
  shape = _shape(config)
  drafts = dict(num_speculative_tokens=config.drafter.num_speculative_tokens)
  if config.drafter.tree:
    drafts = dict(tree=shape)
  fields = (
      'name', 'int8', 'batch_size', 'context', 'prefill_chunk', 'compile', 'compile_prefill',
      'published_step_ms',
  )
  return plans.Case(
      settings=plans.Settings(
          dtype=kind,
          rule=verify.named(config.rule.name),
          drafter=config.drafter.kind,
          tree=config.drafter.tree,
          acceptances=tuple(config.acceptances),
          max_num_speculative_tokens=min(
              config.max_num_speculative_tokens, getattr(head, 'depth', sys.maxsize)
          ),
          **{field: config[field] for field in fields},
      ),
      where=where,
      layouts=layouts,
      target=module(target, layouts.target),
      draft=draft_module,
      drafter=functools.partial(make, draft_module, drafts),
      depth=shape.depth,
      num_nodes=shape.num_nodes,
  )


def _find_tpu_compiler() -> None:
  """Has Python find the TPU's compiler where the set-up scripts put it.

  Raises:
    FileNotFoundError: if it is nowhere.
  """
  if importlib.util.find_spec('libtpu') is not None:
    return
  if not (TPU_COMPILER / 'libtpu').is_dir():
    raise FileNotFoundError(
        "Slices of TPUs are compiled for by the TPU's own compiler, which needs no TPU and is not "
        f'installed: python -m pip install --no-deps --target={TPU_COMPILER} libtpu, or take the '
        'roofline alone with --config.compile=False.'
    )
  sys.path.append(str(TPU_COMPILER))


def _shape(config: ConfigDict) -> Any:
  """The tree that is drafted; a chain is one with a single branch."""
  if not config.drafter.tree:
    return drafters.static_tree(widths=(1,) * config.drafter.num_speculative_tokens)
  if not verify.named(config.rule.name).handles_trees:
    raise ValueError(
        f'The {config.rule.name} rule verifies chains only: for config.drafter.tree='
        f'{config.drafter.tree!r} take --config.rule.name=traversal, recursive, greedy or coupled.'
    )
  return values.tree(config.drafter.tree)


def _preset(settings: ConfigDict) -> models.TransformerConfig:
  shape = models.presets.get(settings.name)
  if not settings.num_layers:
    return shape
  return dataclasses.replace(shape, num_layers=settings.num_layers)


def _eagle(config: ConfigDict, target: models.TransformerConfig) -> heads.EagleConfig:
  """An EAGLE-3 head of the target, whose layers may be fewer than published."""
  shape = heads.presets.eagle3(config.target.name)
  layers = heads_eagle.default_layers(target.num_layers)
  return dataclasses.replace(shape, feature_layers=layers)


def _dflash(config: ConfigDict, target: models.TransformerConfig) -> heads.DFlashConfig:
  """A DFlash head of blocks of K, or a DSpark head; its layers may be fewer than published."""
  shape = heads.presets.dflash(
      config.target.name,
      block_size=config.drafter.num_speculative_tokens,
      markov_rank=config.drafter.markov_rank,
  )
  if not config.target.num_layers:
    return shape
  layers = tuple(layer for layer in shape.feature_layers if layer <= target.num_layers)
  return dataclasses.replace(shape, feature_layers=layers or (target.num_layers,))


# Shapes of heads by the kind of drafter.
_HEADS = {'eagle': _eagle, 'dflash': _dflash}


def _model(int8: bool, module: models.Transformer, drafts: dict[str, Any], target: Any):
  """The drafter of an abstract draft model, and the shapes of its weights."""
  del target
  draft = ahead.abstract_model(module, int8=int8)
  make = drafters.model_tree if 'tree' in drafts else drafters.model
  return make(draft, step_width=1, **drafts), draft.params


def _with_head(module: Any, drafts: dict[str, Any], target: models.LanguageModel):
  """The drafter of an abstract head, and the shapes of its weights."""
  is_block = isinstance(module, heads.DFlashHead)
  init = heads_dflash.init_params if is_block else heads_eagle.init_params
  params = models.abstract_params(module, init=init)
  vocab_size, ids = module.config.decoder.vocab_size, None
  if vocab_size < module.config.target_vocab_size:
    ids = jax.ShapeDtypeStruct((vocab_size,), jnp.int32)

  def make(params, ids, target):
    if is_block:
      return drafters.dflash(heads.DFlash(module, params, None, ids), target, **drafts)
    return drafters.eagle(heads.Eagle(module, params, None, ids), target, step_width=1, **drafts)

  drafter = jax.eval_shape(make, params, ids, target)
  # Shapes that were traced have lost where they lie; these are the arrays that they stand for.
  return drafter.replace(head=drafter.head.replace(params=params, draft_to_target=ids)), params
