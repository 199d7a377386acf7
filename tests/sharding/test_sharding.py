"""Layouts: specs as pinned, refusals by name, trees, and optimisers that follow them."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import optax
import pytest

from scripts import make_golden_sharding
from specjax import heads
from specjax import models
from specjax import sharding
from specjax.sharding import layout as layout_lib

LLAMA = models.presets.get('Llama-3.1-70B')


def layouts(preset='tensor', **sizes):
  count = sizes.get('data', 1) * sizes.get('model', 1) * sizes.get('sequence', 1)
  return sharding.make(preset, **sizes, devices=sharding.counted_devices(count))


def module(config, layout):
  return models.Transformer(
      sharding.fitted(config, layout),
      dtype=jnp.bfloat16,
      param_dtype=jnp.bfloat16,
      layout=layout,
  )


def test_every_presets_specs_are_those_of_the_golden_file():
  wanted = make_golden_sharding.GOLDEN.read_text(encoding='utf-8')
  assert make_golden_sharding.make() == wanted, (
      'Specs differ from tests/golden/sharding.txt. If that is meant, run '
      'scripts/make_golden_sharding.py and commit the difference.'
  )


def test_a_preset_splits_all_big_arrays_and_loses_nothing():
  for sizes in (dict(model=8), dict(model=64), dict(preset='sequence', model=8, sequence=8)):
    layout = layouts(**sizes).target
    made = module(LLAMA, layout)
    for path, leaf in jax.tree_util.tree_flatten_with_path(models.abstract_params(made))[0]:
      parts = leaf.size // jnp.prod(jnp.asarray(leaf.sharding.shard_shape(leaf.shape)))
      assert parts == (1 if path[-1].key == 'scale' else layout.mesh.size), path


def test_two_dimensions_on_one_mesh_axis_are_refused():
  layout = layouts(model=8).target
  rules = tuple((a, ('model',) if a == 'embed' else names) for a, names in layout.rules)
  layout = dataclasses.replace(layout, rules=rules)
  with pytest.raises(ValueError, match=r"head: layout tensor splits both 'vocab' and 'embed'"):
    layout.parameter_spec(('head',), (128, 64))


def test_a_rule_for_a_mesh_axis_that_does_not_exist_is_refused():
  layout = layouts(model=8).target
  with pytest.raises(ValueError, match=r"'vocab' is to be split over \['rows'\]"):
    dataclasses.replace(layout, rules=(('vocab', ('rows',)),))


@pytest.mark.parametrize(
    'change, sizes, message',
    [
        (dict(mlp_width=28_670), dict(model=8), r"mlp.* 28670 .* 8 devices.*1, 2, 5, 10"),
        (dict(vocab_size=32_001), dict(model=8), r"vocab.* 32001 .* 8 devices.*1, 3, 10667|1, 3"),
        ({}, dict(model=128), r'8 key-value heads \(and 64 query heads\).*1, 2, 4, 8, 16, 32, 64'),
        ({}, dict(model=12), r'8 key-value heads'),
    ],
)
def test_what_does_not_divide_is_refused_with_sizes_that_would(change, sizes, message):
  with pytest.raises(ValueError, match=message):
    sharding.fitted(dataclasses.replace(LLAMA, **change), layouts(**sizes).target)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(preset='pipeline'), "must be one of tensor, sequence, fsdp; got 'pipeline'"),
        (dict(preset='tensor', sequence=2), "sequence=2 needs the layout 'sequence'"),
        (dict(preset='tensor', model=8, draft=3), r'draft=3 must divide model=8.*1, 2, 4, 8'),
        (dict(preset='tensor', model=3), 'has 3 devices, but there are 8'),
        (dict(preset='tensor', model=0), 'model must be at least 1'),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    sharding.make(**options, devices=sharding.counted_devices(8))


def test_key_value_heads_are_repeated_only_where_they_must_be():
  for size, repeats in ((4, 1), (8, 1), (16, 2), (64, 8)):
    assert sharding.fitted(LLAMA, layouts(model=size).target).kv_repeats == repeats
  split = layouts('sequence', model=8, sequence=8).target
  assert sharding.fitted(LLAMA, split).kv_repeats == 1


def test_a_batch_that_does_not_divide_is_refused_by_name():
  layout = layouts(data=8).target
  small = dataclasses.replace(LLAMA, num_layers=1, vocab_size=64, width=64, mlp_width=64)
  with pytest.raises(ValueError, match=r"the cache: the axis 'batch' of size 3 .* 8 devices"):
    module(small, layout).init_cache(batch_size=3, cache_length=16, max_append=1)


def test_a_head_that_cannot_be_split_is_refused_with_sizes_that_would():
  cfg = models.presets.get('Llama-3.2-1B')
  head = heads.Eagle(heads.EagleHead(heads.presets.eagle3('Llama-3.2-1B')), {})
  assert cfg.num_kv_heads == 8
  layout = layouts(model=16, draft=16).draft
  with pytest.raises(ValueError, match='key-value heads of the head: .* 8 .* 16 devices.*1, 2, 4'):
    sharding.place_head(head, layout)
  assert sharding.place_head(head, None) is head


def test_an_optimisers_state_lies_as_its_parameters_do():
  layout = layouts('fsdp', data=4).target
  small = dataclasses.replace(
      LLAMA, num_layers=1, vocab_size=64, width=64, mlp_width=96, num_heads=4, num_kv_heads=2
  )
  params = models.abstract_params(module(small, layout))
  state = jax.eval_shape(optax.adam(1e-3).init, params)
  placed = sharding.like_params(state, params, layout)
  assert placed[0].mu['layer_0']['mlp']['down'].spec == PartitionSpec('data', None)
  assert placed[0].nu['embedding'].spec == PartitionSpec(None, 'data')
  assert placed[0].count.spec == PartitionSpec()


def test_a_weight_is_whole_along_the_gathered_axis_where_it_is_used():
  layout = layouts('fsdp', data=4, model=2).target
  stored = layout.spec(layout_lib.PARAMETERS['down'])
  used = layout.spec(layout_lib.PARAMETERS['down'], at_use=True)
  assert (stored, used) == (PartitionSpec('data', 'model'), PartitionSpec(None, 'model'))
