"""From a plan's config to layouts, abstract models, compiled programs and predictions."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import ml_collections

from experiments import build
from specjax import drafters
from specjax import models
from specjax import sharding
from specjax import verify
from specjax.sharding import ahead
from specjax.sharding import chips
from specjax.sharding import roofline

ConfigDict = ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Case:
  """One slice and what is to run on it.

  Attributes:
    where: the slice.
    layouts: of target and draft.
    target: the target's module.
    draft: the draft's.
  """

  where: chips.Slice
  layouts: sharding.Layouts
  target: models.Transformer
  draft: models.Transformer


def case(config: ConfigDict, name: str) -> Case:
  """What `config` means on one slice.

  Raises:
    ValueError: see `specjax.sharding`.
  """
  where = chips.slice_of(name)
  compiled = where.chip.is_tpu and config.compile
  devices = ahead.devices(name) if compiled else sharding.counted_devices(where.num_chips)
  target, draft = _preset(config.target), _preset(config.drafter)
  layouts = build.layouts(config.mesh, devices=devices, draft_heads=draft.num_kv_heads)
  kind = jnp.dtype(config.dtype)
  module = lambda shape, layout: models.Transformer(
      sharding.fitted(shape, layout), dtype=kind, param_dtype=kind, layout=layout
  )
  return Case(where, layouts, module(target, layouts.target), module(draft, layouts.draft))


def _preset(settings: ConfigDict) -> models.TransformerConfig:
  shape = models.presets.get(settings.name)
  if not settings.num_layers:
    return shape
  return dataclasses.replace(shape, num_layers=settings.num_layers)


def row(config: ConfigDict, case: Case) -> dict[str, Any]:
  """Compiles where it can be, and returns the row of `metrics.jsonl`."""
  where, batch_size, context = case.where, config.batch_size, config.context
  k = config.drafter.num_speculative_tokens
  setup, state = ahead.abstract_run(
      ahead.abstract_model(case.target, int8=config.int8),
      drafter=drafters.model(
          ahead.abstract_model(case.draft, int8=config.int8),
          num_speculative_tokens=k,
          step_width=1,
      ),
      rule=getattr(verify, config.rule.name)(),
      batch_size=batch_size,
      context=context,
      prefill_chunk=config.prefill_chunk,
  )
  size = ahead.bytes_a_device
  weights, draft_weights = size(setup.target), size(setup.drafter)
  caches = [size((cache.keys, cache.values)) for cache in (state.target_cache, state.drafter)]
  compiled = prefill = message = None
  if where.chip.is_tpu and config.compile:
    try:
      compiled = ahead.compile_run(setup, state, loops={'draft': k - 1})
      if config.compile_prefill:
        prefill = ahead.compile_prefill(setup, state, prefill_chunk=config.prefill_chunk)
    except ahead.DoesNotFit as error:
      message = str(error).strip().splitlines()[0]
  target = _model(case.target, case.layouts.target, weights, caches[0], config)
  draft = _model(case.draft, case.layouts.draft, draft_weights, caches[1], config)
  arguments = size((setup, state)) if compiled is None else compiled.argument_bytes
  # Where nothing was compiled: what the compiled loops of this model need, and a little.
  temporary = 0.05 * sum(caches) if compiled is None else compiled.temporary_bytes
  if prefill is not None:
    temporary = max(temporary, prefill.temporary_bytes)
  free = where.chip.hbm_bytes - arguments - temporary
  fits = message is None and free >= 0
  chunks = -(-context // config.prefill_chunk)
  seconds = lambda model, width: 1e3 * roofline.step(
      model, where, batch_size=batch_size, width=width, context=context
  ).seconds
  common = dict(context=context, max_num_speculative_tokens=config.max_num_speculative_tokens)
  predictions = roofline.predict(
      target, draft, where, batch_size=batch_size, acceptances=config.acceptances, **common
  )
  middle = config.acceptances[len(config.acceptances) // 2]
  return {
      'name': config.name,
      'topology': where.name,
      'chips': where.num_chips,
      'chip_source': where.chip.source,
      'mesh': mesh_text(case.layouts),
      'layout': case.layouts.target.name,
      'kv_repeats': case.target.config.kv_repeats,
      'batch_size': batch_size,
      'context': context,
      'num_speculative_tokens': k,
      'rule': config.rule.name,
      'compiled': compiled is not None,
      'fits': fits,
      'advice': None if fits else advice(config, case, -free, weights, sum(caches), message),
      'hbm_bytes': where.chip.hbm_bytes,
      'weight_bytes': weights + draft_weights,
      'draft_weight_bytes': draft_weights,
      'cache_bytes': sum(caches),
      'temporary_bytes': temporary if compiled is None else compiled.temporary_bytes,
      'prefill_temporary_bytes': prefill and prefill.temporary_bytes,
      'prefill_compile_seconds': prefill and prefill.compile_seconds,
      'prefill_chunk': config.prefill_chunk,
      'prefill_seconds': 1e-3 * chunks * sum(
          seconds(model, config.prefill_chunk) for model in (target, draft)
      ),
      'free_bytes': free,
      'compile_seconds': compiled and compiled.compile_seconds,
      'aliased_bytes': compiled and compiled.aliased_bytes,
      **_collectives(compiled, case),
      **_cycles(compiled, where),
      'draft_step_ms': seconds(draft, 1),
      'target_step_ms': seconds(target, 1),
      'target_pass_ms': seconds(target, k + 1),
      'int8': config.int8,
      'published_step_ms': config.published_step_ms or None,
      'predictions': [dataclasses.asdict(each) for each in predictions],
      'largest_fitting_batch': int(
          0.95 * max(where.chip.hbm_bytes - weights - draft_weights, 0)
          // (sum(caches) / batch_size)
      ),
      'largest_paying_batch': roofline.largest_paying_batch(
          target, draft, where, acceptance=middle, **common
      ),
  }


def mesh_text(layouts: sharding.Layouts) -> str:
  """The mesh in words, its axes of more than one device."""
  sizes = [f'{name}={size}' for name, size in layouts.mesh.shape.items() if size > 1]
  return ' x '.join(sizes) or 'one device'


def _model(module, layout, weights: int, cache: int, config: ConfigDict) -> roofline.Model:
  shape = module.config
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
  gathered = [each for each in compiled.collectives if each.kind != 'all-reduce']
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


def advice(config, case: Case, missing: float, weights, caches, message: str | None) -> str:
  """By how much it does not fit, and what would."""
  where = case.where
  parts = []
  if missing > 0:
    parts.append(f'it lacks {missing / 1e9:.2f} GB a chip')
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
