"""Compiles a run for accelerators that are not here; its memory, its collectives, its times."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax.numpy as jnp

from specjax import heads
from specjax import models
from specjax import sharding
from specjax.planning import ahead
from specjax.planning import chips
from specjax.planning import roofline
from specjax.planning import times

_SLOWEST = 8  # instructions of each part of a round that a row names


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is to run on each slice, and what is asked of it.

  Attributes:
    name: of the plan.
    dtype: of weights and activations.
    rule: the verification rule.
    drafter: kind of drafter.
    tree: that is drafted, in words; '' for a chain.
    int8: weights in eight bits.
    batch_size: rows.
    context: tokens of prompt and output, at most.
    prefill_chunk: tokens of a prefill pass.
    compile: whether TPU slices are compiled for.
    compile_prefill: the program that reads prompts, too.
    published_step_ms: of a plain step, to compare with; 0 for none.
    acceptances: acceptance rates to predict speed-ups for.
    max_num_speculative_tokens: the largest K to predict for.
  """

  name: str
  dtype: Any
  rule: Any
  drafter: str
  tree: str
  int8: bool
  batch_size: int
  context: int
  prefill_chunk: int
  compile: bool
  compile_prefill: bool
  published_step_ms: float
  acceptances: tuple[float, ...]
  max_num_speculative_tokens: int


@dataclasses.dataclass(frozen=True)
class Case:
  """One slice and what is to run on it.

  Attributes:
    settings: the same on all slices.
    where: the slice.
    layouts: of target and draft.
    target: the target's module.
    draft: the draft model's, or a head.
    drafter: abstract target -> the drafter, and the shapes of its weights.
    depth: tokens of the longest branch: K of a chain.
    num_nodes: drafted tokens per round.
  """

  settings: Settings
  where: chips.Slice
  layouts: sharding.Layouts
  target: models.Transformer
  draft: Any
  drafter: Callable[[models.LanguageModel], tuple[Any, Any]]
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


def row(case: Case) -> dict[str, Any]:
  """Compiles where it can be, and returns the row of `metrics.jsonl`."""
  settings = case.settings
  target = ahead.abstract_model(case.target, int8=settings.int8)
  drafter, draft_params = case.drafter(target)
  setup, state = ahead.abstract_run(
      target,
      drafter=drafter,
      rule=settings.rule,
      batch_size=settings.batch_size,
      context=settings.context,
      prefill_chunk=settings.prefill_chunk,
  )
  draft_cache = getattr(state.drafter, 'cache', state.drafter)
  size = ahead.bytes_a_device
  sizes = _Sizes(
      weights=size(setup.target),
      draft_weights=size(sharding.abstract(draft_params, case.layouts.target)),
      cache=size((state.target_cache.keys, state.target_cache.values)),
      draft_cache=size((draft_cache.keys, draft_cache.values)),
  )
  compiled, prefill, message = _compile(case, setup, state)
  arguments = size((setup, state)) if compiled is None else compiled.argument_bytes
  return {
      'name': settings.name,
      'topology': case.where.name,
      'chips': case.where.num_chips,
      'chip_source': case.where.chip.source,
      'mesh': mesh_text(case.layouts),
      'layout': case.layouts.target.name,
      'kv_repeats': case.target.config.kv_repeats,
      'batch_size': settings.batch_size,
      'context': settings.context,
      'num_speculative_tokens': case.depth,
      'tree': settings.tree or None,
      'num_nodes': case.num_nodes,
      'drafter': settings.drafter,
      'rule': settings.rule.name,
      'int8': settings.int8,
      **_memory(case, sizes, arguments, compiled, prefill, message),
      **_collectives(compiled, case),
      **_times(case, sizes, compiled),
  }


def _compile(case: Case, setup, state):
  """The compiled loop and prefill, or None; and the compiler's refusal, if any."""
  settings = case.settings
  if not (case.where.chip.is_tpu and settings.compile):
    return None, None, None
  compiled = prefill = None
  try:
    compiled = ahead.compile_run(setup, state)
    if settings.compile_prefill:
      prefill = ahead.compile_prefill(setup, state, prefill_chunk=settings.prefill_chunk)
  except ahead.DoesNotFit as error:
    return compiled, prefill, str(error).strip().splitlines()[0]
  return compiled, prefill, None


def _memory(case: Case, sizes: _Sizes, arguments, compiled, prefill, message):
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
      'advice': None if fits else advice(case, -free, sizes, message),
      'largest_fitting_batch': int(0.95 * room // (sizes.caches / case.settings.batch_size)),
  }


def _times(case: Case, sizes: _Sizes, compiled: ahead.Compiled | None) -> dict[str, Any]:
  """Times of a round: of the compiled program, where there is one, and by roofline."""
  settings, where, context = case.settings, case.where, case.settings.context
  target, draft = _models(case, sizes)
  by_roofline = functools.partial(roofline.costs, target, draft, where, context=context)
  limit = by_roofline(batch_size=settings.batch_size)
  found = None if compiled is None else times.walk(
      compiled.program, where, kernels=compiled.kernels
  )
  costs = limit if found is None else _costs(found, limit, case)
  ask = dict(max_num_speculative_tokens=settings.max_num_speculative_tokens)
  predict = functools.partial(
      roofline.predict, batch_size=settings.batch_size, acceptances=settings.acceptances, **ask
  )
  as_rows = lambda made: [dataclasses.asdict(each) for each in made]
  chunk = settings.prefill_chunk
  prefill = sum(
      roofline.step(
          model, where, batch_size=settings.batch_size, width=chunk, context=context
      ).seconds
      for model in (target, draft)
  )
  return {
      # Of one drafted token, or of a block.
      'draft_step_ms': 1e3 * (limit.draft + limit.overhead),
      'target_step_ms': 1e3 * limit.target(1),
      'target_pass_ms': 1e3 * limit.target(case.num_nodes + 1),
      'published_step_ms': settings.published_step_ms or None,
      'prefill_chunk': chunk,
      'prefill_seconds': -(-context // chunk) * prefill,
      **_round(found),
      'plain_step_ms': 1e3 * costs.target(1),
      'predictions': as_rows(predict(costs)),
      'roofline_predictions': as_rows(predict(limit)),
      'largest_paying_batch': roofline.largest_paying_batch(
          lambda batch_size: by_roofline(batch_size=batch_size),
          acceptance=settings.acceptances[len(settings.acceptances) // 2],
          **ask,
      ),
  }


def _round(found: times.Times | None) -> dict[str, Any]:
  """A round of the compiled program: its parts in milliseconds, and what takes longest."""
  parts = ('draft', 'score', 'verify', 'commit')
  names = ('round_ms', *(f'round_{part}_ms' for part in parts), 'round_bytes_ms')
  if found is None:
    return dict.fromkeys((*names, 'round_errors', 'slowest'))
  values = (found.seconds, *map(found.of, parts), found.least_seconds)
  return {
      **{name: 1e3 * value for name, value in zip(names, values)},
      'round_errors': list(times.ERRORS),
      'slowest': {
          part: [
              dict(
                  name=each.name, op_name=each.op_name, ms=1e3 * each.seconds, trips=each.trips,
                  num_bytes=each.num_bytes, bound=each.bound,
              )
              for each in found.largest(_SLOWEST, part)
          ]
          for part in parts
      },
  }


def _costs(found: times.Times, limit: roofline.Costs, case: Case) -> roofline.Costs:
  """Costs by the compiled program, which has one width: others as the roofline scales them.

  Plain decoding is its pass at width 1, without what comes after it: rather too fast.
  """
  width = case.num_nodes + 1
  drafting, overhead = found.of('draft'), found.of('verify', 'commit', 'other')
  if limit.overhead:  # the draft reads a whole block, however much is drafted
    drafting, overhead = 0.0, overhead + drafting
  return roofline.Costs(
      draft=drafting / case.depth,
      target=lambda other: found.of('score') * limit.target(other) / limit.target(width),
      overhead=overhead,
  )


def _models(case: Case, sizes: _Sizes) -> tuple[roofline.Model, roofline.Model]:
  """Target and draft as the roofline sees them."""
  settings = case.settings
  target = _model(case.target.config, case.layouts.target, sizes.weights, sizes.cache, settings)
  layout = case.layouts.draft
  if settings.drafter == 'model':
    return target, _model(
        case.draft.config, layout, sizes.draft_weights, sizes.draft_cache, settings
    )
  shape = case.draft.config
  is_block = isinstance(shape, heads.DFlashConfig)
  return target, roofline.Model(
      config=shape.decoder,
      num_parameters=shape.num_parameters + (_multiplied_by_a_block(shape) if is_block else 0),
      weight_bytes=sizes.draft_weights + (_read_by_a_block(case) if is_block else 0),
      block_size=shape.block_size if is_block else None,
      cache_bytes=sizes.draft_cache / (settings.batch_size / layout.ways('batch')),
      ways=layout.ways('heads'),
      rows_ways=layout.ways('batch'),
  )


def _multiplied_by_a_block(shape: heads.DFlashConfig) -> int:
  """Parameters in products beside the head's own, less those that are only looked up."""
  shared = 0 if shape.has_head else shape.target_vocab_size * shape.target_width
  return shared - shape.target_vocab_size * shape.markov_rank


def _read_by_a_block(case: Case) -> float:
  """Bytes per chip that drafting a block reads beside the head's weights, each once."""
  shape, item = case.draft.config, jnp.dtype(case.settings.dtype).itemsize
  # The Markov head adds to the logits of one token after the other; what it looks up is not read.
  row = (case.depth - 1) * shape.decoder.vocab_size - shape.target_vocab_size
  read = row * shape.markov_rank * item / case.layouts.draft.ways('vocab')
  if not shape.has_head:
    head = shape.target_vocab_size * shape.target_width
    weight = 1 if case.settings.int8 else item
    read += head * weight / case.layouts.target.ways('vocab')
  return read


def mesh_text(layouts: sharding.Layouts) -> str:
  """The mesh in words, its axes of more than one device."""
  sizes = [f'{name}={size}' for name, size in layouts.mesh.shape.items() if size > 1]
  return ' x '.join(sizes) or 'one device'


def _model(shape, layout, weights: int, cache: int, settings: Settings) -> roofline.Model:
  item = jnp.dtype(settings.dtype).itemsize
  if not shape.tie_embeddings:
    # Rows are looked up; the table is not read.
    weights -= shape.vocab_size * shape.width * item // layout.ways('vocab')
  rows_ways = layout.ways('batch')
  return roofline.Model(
      config=shape,
      weight_bytes=weights,
      cache_bytes=cache / (settings.batch_size / rows_ways),
      ways=layout.ways('heads'),
      rows_ways=rows_ways,
      collectives_a_layer=6.0 if layout.ways('slots') > 1 else 2.0,
  )


def _collectives(compiled: ahead.Compiled | None, case: Case) -> dict[str, Any]:
  """Collectives of the target's layers, per layer, and the largest array that is gathered."""
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


def advice(case: Case, missing: float, sizes: _Sizes, message: str | None) -> str:
  """By how much it does not fit, and what would."""
  settings = case.settings
  where, weights, caches = case.where, sizes.weights + sizes.draft_weights, sizes.caches
  parts = []
  if missing > 0:
    parts.append(f'it lacks {missing / 1e9:.2f} GB per chip')
  if message:
    parts.append(f'the compiler says: {message}')
  room = where.chip.hbm_bytes - (weights + 0.02 * where.chip.hbm_bytes)
  slots = settings.batch_size * settings.context * room / (1.05 * caches)
  if slots >= 256:
    rows, length = int(slots // settings.context), int(slots // settings.batch_size)
    parts.append(
        f'weights leave room for a batch of {rows} at context {settings.context}, or for context '
        f'{length} at batch {settings.batch_size}'
    )
  else:
    more = -(-where.num_chips * (weights + caches) * 1.05 // where.chip.hbm_bytes)
    parts.append(f'take at least {int(more)} chips of this kind, or int8 weights')
  return '; '.join(parts) + '.'
