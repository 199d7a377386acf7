"""From a plan's config to layouts, abstract models, compiled programs and predictions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments import build
from specjax import drafters
from specjax import models
from specjax import sharding
from specjax import verify
from specjax.heads import eagle as heads_eagle
from specjax.heads import presets as heads_presets
from specjax.planning import ahead
from specjax.planning import chips
from specjax.planning import roofline

ConfigDict = ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Case:
  """One slice and what is to run on it.

  Attributes:
    where: the slice.
    layouts: of target and draft.
    target: the target's module.
    draft: the draft model's, or an EAGLE head.
    depth: tokens of the longest branch: K of a chain.
    num_nodes: drafted tokens per round.
  """

  where: chips.Slice
  layouts: sharding.Layouts
  target: models.Transformer
  draft: Any
  depth: int
  num_nodes: int


@dataclasses.dataclass(frozen=True)
class _Sizes:
  """Bytes per chip."""

  weights: int
  draft_weights: int
  cache: int
  draft_cache: int

  @property
  def caches(self) -> int:
    return self.cache + self.draft_cache


def case(config: ConfigDict, name: str) -> Case:
  """What `config` means on one slice.

  Raises:
    ValueError: see `specjax.sharding`.
  """
  where = chips.slice_of(name)
  compiled = where.chip.is_tpu and config.compile
  build.choice('drafter.kind', config.drafter.kind, ('model', 'eagle3'))
  target, kind = _preset(config.target), jnp.dtype(config.dtype)
  is_head = config.drafter.kind == 'eagle3'
  head = _head(config, target) if is_head else None
  draft = head.decoder if is_head else _preset(config.drafter)
  devices = ahead.devices(name) if compiled else sharding.counted_devices(where.num_chips)
  layouts = build.layouts(config.mesh, devices=devices, draft_heads=draft.num_kv_heads)
  module = lambda shape, layout: models.Transformer(
      sharding.fitted(shape, layout), dtype=kind, param_dtype=kind, layout=layout
  )
  if is_head:
    made = heads_eagle.EagleHead(
        head, dtype=kind, param_dtype=kind, layout=layouts.draft
    )
  else:
    made = module(draft, layouts.draft)
  shape = _shape(config)
  return Case(where, layouts, module(target, layouts.target), made, shape.depth, shape.num_nodes)


def _shape(config: ConfigDict) -> Any:
  """The tree that is drafted; a chain is one with a single branch."""
  if not config.drafter.tree:
    return drafters.static_tree(widths=(1,) * config.drafter.num_speculative_tokens)
  if not getattr(verify, config.rule.name)().handles_trees:
    raise ValueError(
        f'The {config.rule.name} rule verifies chains only: for config.drafter.tree='
        f'{config.drafter.tree!r} take --config.rule.name=traversal, recursive, greedy or coupled.'
    )
  return build.tree(config.drafter.tree)


def _preset(settings: ConfigDict) -> models.TransformerConfig:
  shape = models.presets.get(settings.name)
  if not settings.num_layers:
    return shape
  return dataclasses.replace(shape, num_layers=settings.num_layers)


def _head(config: ConfigDict, target: models.TransformerConfig):
  """The EAGLE-3 head of the target, whose layers may be fewer than published."""
  shape = heads_presets.eagle3(config.target.name)
  layers = heads_eagle.default_layers(target.num_layers)
  return dataclasses.replace(shape, feature_layers=layers)


def _drafter(config: ConfigDict, case: Case, target: models.LanguageModel):
  """The drafter, its weights shapes, and those shapes alone."""
  drafts = dict(num_speculative_tokens=config.drafter.num_speculative_tokens)
  if config.drafter.tree:
    drafts = dict(tree=_shape(config))
  if config.drafter.kind == 'model':
    draft = ahead.abstract_model(case.draft, int8=config.int8)
    make = drafters.model_tree if config.drafter.tree else drafters.model
    return make(draft, step_width=1, **drafts), draft.params
  shape = case.draft.config
  params = models.abstract_params(case.draft, init=heads_eagle.init_params)
  ids = jax.ShapeDtypeStruct((shape.decoder.vocab_size,), jnp.int32)

  def make(params, ids, target):
    head = heads_eagle.Eagle(case.draft, params, draft_to_target=ids)
    return drafters.eagle(head, target, step_width=1, **drafts)

  drafter = jax.eval_shape(make, params, ids, target)
  # Shapes that were traced have lost where they lie; these are the arrays that they stand for.
  head = heads_eagle.Eagle(case.draft, params, draft_to_target=ids)
  return drafter.replace(head=head), params


def row(config: ConfigDict, case: Case) -> dict[str, Any]:
  """Compiles where it can be, and returns the row of `metrics.jsonl`."""
  target = ahead.abstract_model(case.target, int8=config.int8)
  drafter, draft_params = _drafter(config, case, target)
  setup, state = ahead.abstract_run(
      target,
      drafter=drafter,
      rule=getattr(verify, config.rule.name)(),
      batch_size=config.batch_size,
      context=config.context,
      prefill_chunk=config.prefill_chunk,
  )
  draft_cache = getattr(state.drafter, 'cache', state.drafter)
  size = ahead.bytes_a_device
  sizes = _Sizes(
      weights=size(setup.target),
      draft_weights=size(sharding.abstract(draft_params, case.layouts.target)),
      cache=size((state.target_cache.keys, state.target_cache.values)),
      draft_cache=size((draft_cache.keys, draft_cache.values)),
  )
  compiled, prefill, message = _compile(config, case, setup, state)
  arguments = size((setup, state)) if compiled is None else compiled.argument_bytes
  return {
      'name': config.name,
      'topology': case.where.name,
      'chips': case.where.num_chips,
      'chip_source': case.where.chip.source,
      'mesh': mesh_text(case.layouts),
      'layout': case.layouts.target.name,
      'kv_repeats': case.target.config.kv_repeats,
      'batch_size': config.batch_size,
      'context': config.context,
      'num_speculative_tokens': case.depth,
      'tree': config.drafter.tree or None,
      'num_nodes': case.num_nodes,
      'drafter': config.drafter.kind,
      'rule': config.rule.name,
      'int8': config.int8,
      **_memory(config, case, sizes, arguments, compiled, prefill, message),
      **_collectives(compiled, case),
      **_cycles(compiled, case.where),
      **_times(config, case, sizes),
  }


def _compile(config, case: Case, setup, state):
  """The compiled loop and prefill, or None; and the compiler's refusal, if any."""
  if not (case.where.chip.is_tpu and config.compile):
    return None, None, None
  # A chain's draft steps are a loop; the levels of a tree or of a head's chain are unrolled.
  looped = config.drafter.kind == 'model' and not config.drafter.tree
  loops = {'draft': case.depth - 1} if looped else {}
  compiled = prefill = None
  try:
    compiled = ahead.compile_run(setup, state, loops=loops)
    if config.compile_prefill:
      prefill = ahead.compile_prefill(setup, state, prefill_chunk=config.prefill_chunk)
  except ahead.DoesNotFit as error:
    return compiled, prefill, str(error).strip().splitlines()[0]
  return compiled, prefill, None


def _memory(config, case: Case, sizes: _Sizes, arguments, compiled, prefill, message):
  """Bytes per chip: what is used, what is left, and what to do where that is less than nothing."""
  hbm = case.where.chip.hbm_bytes
  # Where nothing was compiled: what the compiled loops of this model need, and a little.
  loop = 0.05 * sizes.caches if compiled is None else compiled.temporary_bytes
  free = hbm - arguments - max(loop, prefill.temporary_bytes if prefill else 0)
  fits = message is None and free >= 0
  room = max(hbm - sizes.weights - sizes.draft_weights, 0)
  return {
      'compiled': compiled is not None,
      'compile_seconds': compiled and compiled.compile_seconds,
      'hbm_bytes': hbm,
      'weight_bytes': sizes.weights + sizes.draft_weights,
      'draft_weight_bytes': sizes.draft_weights,
      'cache_bytes': sizes.caches,
      'temporary_bytes': loop,
      'aliased_bytes': compiled and compiled.aliased_bytes,
      'prefill_temporary_bytes': prefill and prefill.temporary_bytes,
      'prefill_compile_seconds': prefill and prefill.compile_seconds,
      'free_bytes': free,
      'fits': fits,
      'advice': None if fits else advice(config, case, -free, sizes, message),
      'largest_fitting_batch': int(0.95 * room // (sizes.caches / config.batch_size)),
  }


def _times(config, case: Case, sizes: _Sizes) -> dict[str, Any]:
  """Steps and tokens per second by roofline."""
  where, context = case.where, config.context
  target = _model(case.target.config, case.layouts.target, sizes.weights, sizes.cache, config)
  layout = case.layouts.draft
  if config.drafter.kind == 'model':
    draft = _model(case.draft.config, layout, sizes.draft_weights, sizes.draft_cache, config)
  else:
    shape = case.draft.config
    draft = roofline.Model(
        config=shape.decoder,
        num_parameters=shape.num_parameters,
        weight_bytes=sizes.draft_weights,
        cache_bytes=sizes.draft_cache / (config.batch_size / layout.ways('batch')),
        ways=layout.ways('heads'),
        rows_ways=layout.ways('batch'),
    )
  milliseconds = lambda model, width: 1e3 * roofline.step(
      model, where, batch_size=config.batch_size, width=width, context=context
  ).seconds
  chunk = config.prefill_chunk
  common = dict(context=context, max_num_speculative_tokens=config.max_num_speculative_tokens)
  predictions = roofline.predict(
      target, draft, where, batch_size=config.batch_size, acceptances=config.acceptances, **common
  )
  middle = config.acceptances[len(config.acceptances) // 2]
  return {
      'draft_step_ms': milliseconds(draft, 1),
      'target_step_ms': milliseconds(target, 1),
      'target_pass_ms': milliseconds(target, case.num_nodes + 1),
      'published_step_ms': config.published_step_ms or None,
      'prefill_chunk': chunk,
      'prefill_seconds': 1e-3 * -(-context // chunk) * sum(
          milliseconds(model, chunk) for model in (target, draft)
      ),
      'predictions': [dataclasses.asdict(each) for each in predictions],
      'largest_paying_batch': roofline.largest_paying_batch(
          target, draft, where, acceptance=middle, **common
      ),
  }


def mesh_text(layouts: sharding.Layouts) -> str:
  """The mesh in words, its axes of more than one device."""
  sizes = [f'{name}={size}' for name, size in layouts.mesh.shape.items() if size > 1]
  return ' x '.join(sizes) or 'one device'


def _model(shape, layout, weights: int, cache: int, config: ConfigDict) -> roofline.Model:
  item = jnp.dtype(config.dtype).itemsize
  if not shape.tie_embeddings:
    # Rows are looked up; the table is not read.
    weights -= shape.vocab_size * shape.width * item // layout.ways('vocab')
  rows_ways = layout.ways('batch')
  return roofline.Model(
      config=shape,
      weight_bytes=weights,
      cache_bytes=cache / (config.batch_size / rows_ways),
      ways=layout.ways('heads'),
      rows_ways=rows_ways,
      collectives_a_layer=6.0 if layout.ways('slots') > 1 else 2.0,
  )


def _collectives(compiled: ahead.Compiled | None, case: Case) -> dict[str, Any]:
  """Collectives of the target's layers, a layer, and the largest array that is gathered."""
  if compiled is None:
    names = ('all_reduces_per_layer', 'collectives_per_layer', 'collective_bytes_per_layer')
    return dict.fromkeys((*names, 'largest_gathered_elements', 'collectives'))
  layers = case.target.config.num_layers
  inside = [each for each in compiled.collectives if each.scope == 'score']
  inside = [each for each in inside if each.layer is not None]
  # Of a round: what is gathered once, when the loop is over, stands in the entry computation.
  gathered = [
      each for each in compiled.collectives
      if each.kind != 'all-reduce' and not each.computation.startswith('main')
  ]
  counts: dict[tuple[str, str, int], int] = {}
  for each in compiled.collectives:
    key = (each.scope, each.kind, each.num_bytes)
    counts[key] = counts.get(key, 0) + 1
  return {
      'all_reduces_per_layer': sum(each.kind == 'all-reduce' for each in inside) / layers,
      'collectives_per_layer': len(inside) / layers,
      'collective_bytes_per_layer': sum(each.num_bytes for each in inside) / layers,
      'largest_gathered_elements': max((each.largest for each in gathered), default=0),
      'collectives': [
          dict(scope=scope, kind=kind, num_bytes=num_bytes, count=count)
          for (scope, kind, num_bytes), count in sorted(counts.items())
      ],
  }


def _cycles(compiled: ahead.Compiled | None, where: chips.Slice) -> dict[str, float | None]:
  """The compiler's own estimate of a round's parts, in milliseconds."""
  names = ('compiler_draft_ms', 'compiler_target_ms', 'compiler_rest_ms')
  if compiled is None:
    return dict.fromkeys(names)
  ms = lambda *scopes: sum(compiled.cycles.get(s, 0.0) for s in scopes) / where.chip.clock * 1e3
  return dict(zip(names, (ms('draft'), ms('score'), ms('verify', 'commit', 'other'))))


def advice(config, case: Case, missing: float, sizes: _Sizes, message: str | None) -> str:
  """By how much it does not fit, and what would."""
  where, weights, caches = case.where, sizes.weights + sizes.draft_weights, sizes.caches
  parts = []
  if missing > 0:
    parts.append(f'it lacks {missing / 1e9:.2f} GB per chip')
  if message:
    parts.append(f'the compiler says: {message}')
  room = where.chip.hbm_bytes - (weights + 0.02 * where.chip.hbm_bytes)
  slots = config.batch_size * config.context * room / (1.05 * caches)
  if slots >= 256:
    rows, length = int(slots // config.context), int(slots // config.batch_size)
    parts.append(
        f'weights leave room for a batch of {rows} at context {config.context}, or for context '
        f'{length} at batch {config.batch_size}'
    )
  else:
    more = -(-where.num_chips * (weights + caches) * 1.05 // where.chip.hbm_bytes)
    parts.append(f'take at least {int(more)} chips of this kind, or int8 weights')
  return '; '.join(parts) + '.'
