"""The decoder: logits of every family as in `transformers`, through every use of the cache."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import models
from specjax.cache import kv_cache
from specjax.models import layers
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'models'
FAMILIES = ('gemma2', 'gemma3', 'llama2', 'llama3', 'mistral', 'qwen2', 'qwen3')
# What a switch that is wrong changes at least; rounding is a hundredth of it.
SEEN = 3e-3
CHUNK = 6
# Compiling is most of these tests' time, and half of it is spent on speed.
FAST_COMPILE = {'xla_backend_optimization_level': 0}


@functools.cache
def load(family):
  """Model, tokens [2, 48] and the logits that `transformers` computes."""
  golden = np.load(GOLDEN / family / 'golden.npz')
  return models.load_hf(GOLDEN / family), golden['tokens'], golden['logits']


@functools.cache
def tolerated(family) -> float:
  """Of a family's logits, by another program."""
  model, _, golden = load(family)
  return tolerance.of_logits(
      model.module.config, size=tolerance.largest(golden), positions=golden.shape[1]
  )


@functools.cache
def stepper(family):
  """`apply` of a family, compiled once a width."""
  module = load(family)[0].module

  @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
  def step(params, tokens, cache, num_new, positions=None, tree_mask=None):
    return module.apply(
        {'params': params}, tokens, positions, cache, num_new=num_new, tree_mask=tree_mask
    )

  return functools.partial(step, load(family)[0].params)


def poison(cache, config):
  """Fills every slot that no later query may see: keys with NaN, values with 1e30.

  A masked score is replaced, so a key may be anything; a masked value is multiplied by a
  weight of zero, so it must be finite, which what a model writes is.
  """

  lengths = np.asarray(cache.lengths)[:, None]

  def fill(buffers, value):
    filled = []
    for layer, buffer in enumerate(buffers):
      slots = np.arange(buffer.shape[2])
      if cache.rings[layer]:
        # The position that each slot holds, and whether the next query still sees it.
        position = (lengths - 1) - (lengths - 1 - slots) % buffer.shape[2]
        stale = (position < 0) | (position <= lengths - config.window(layer))
      else:
        stale = slots >= lengths
      buffer = np.where(stale[:, None, :, None], np.float32(value), np.asarray(buffer))
      filled.append(jnp.asarray(buffer))
    return tuple(filled)

  return cache.replace(keys=fill(cache.keys, np.nan), values=fill(cache.values, 1e30))


def held(cache, config):
  """Visible entries of a cache, by layer and row, in the order of their positions."""
  entries = []
  for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
    for row, length in enumerate(np.asarray(cache.lengths)):
      first = 0 if config.window(layer) is None else max(0, length - config.window(layer) + 1)
      slots = np.arange(first, length) % keys.shape[2]
      entries += [np.asarray(keys)[row, :, slots], np.asarray(values)[row, :, slots]]
  return entries


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_agree_with_transformers(family):
  model, tokens, golden = load(family)
  tolerance.assert_close(model(tokens).logits, golden, tolerated(family))


# What a family's switches change; each must show in the logits, or the agreement above
# would not speak for it.
SCALED = models.RopeScaling('llama3', 8.0, 1.0, 4.0, 32)
SWITCHES = {
    'gemma2': [
        dict(attention_soft_cap=None),
        dict(logit_soft_cap=None),
        dict(sliding_window=7),
        dict(local_layers=(False, True, False, True)),
        dict(query_scale=None),
        dict(norm_offset=0.0),
        dict(embedding_scale=1.0),
        dict(activation='silu'),
        dict(post_norms=False),
        dict(norm_epsilon=1e-6),
    ],
    'gemma3': [
        dict(local_rope_theta=None),
        dict(rope_scaling=None),
        dict(rope_scaling=models.RopeScaling('linear', 3.0)),
        dict(rope_theta=5000.0),
        dict(qk_norm=False),
        dict(sliding_window=9),
        dict(local_layers=(True, True, True, True)),
        dict(query_scale=None),
    ],
    'llama2': [dict(rope_theta=10_000.0), dict(norm_epsilon=1e-6), dict(tie_embeddings=True)],
    'llama3': [
        dict(rope_scaling=None),
        dict(rope_scaling=models.RopeScaling('linear', 8.0)),
        dict(rope_scaling=dataclasses.replace(SCALED, factor=4.0)),
        dict(rope_scaling=dataclasses.replace(SCALED, low_freq_factor=2.0)),
        dict(rope_scaling=dataclasses.replace(SCALED, high_freq_factor=8.0)),
        dict(rope_scaling=dataclasses.replace(SCALED, original_max_positions=64)),
    ],
    'mistral': [dict(sliding_window=8), dict(sliding_window=None)],
    'qwen2': [dict(qkv_bias=False), dict(local_layers=(True,) * 4), dict(sliding_window=10)],
    'qwen3': [dict(qk_norm=False), dict(rope_theta=1000.0), dict(activation='gelu_tanh')],
}


@pytest.mark.parametrize('family', FAMILIES)
def test_every_switch_changes_the_logits(family):
  model, tokens, golden = load(family)
  for changes in SWITCHES[family]:
    config = dataclasses.replace(model.module.config, **changes)
    changed = model.replace(module=models.Transformer(config))
    difference = np.abs(np.asarray(changed(tokens).logits) - golden).max()
    assert difference > max(SEEN, 30 * tolerated(family)), (changes, difference)


@pytest.mark.parametrize('family', FAMILIES)
def test_chunks_rows_of_different_lengths_and_rollback(family):
  """Chunks and single tokens; every step follows a rejected one whose slots are poisoned."""
  model, tokens, golden = load(family)
  config = model.module.config
  step = stepper(family)
  ends = np.array([48, 23])
  cache = model.init_cache(batch_size=2, cache_length=48, max_append=CHUNK)
  assert any(cache.rings) == (config.sliding_window is not None)
  lengths = np.zeros(2, int)
  for number, width in enumerate([CHUNK] * 3 + [1] * 12 + [CHUNK] * 3):
    rejected = (tokens[:, :CHUNK] + 1 + number) % config.vocab_size
    wasted = step(rejected, cache, jnp.full(2, CHUNK)).cache
    cache = poison(kv_cache.roll_back(wasted, cache.lengths), config)
    num_new = np.clip(ends - lengths, 0, width)
    chunk = np.zeros((2, width), np.int32)
    for row in range(2):
      chunk[row, : num_new[row]] = tokens[row, lengths[row] :][: num_new[row]]
    output = step(chunk, cache, jnp.asarray(num_new))
    cache = output.cache
    assert np.isfinite(output.logits).all()
    for row in range(2):
      wanted = golden[row, lengths[row] :][: num_new[row]]
      tolerance.assert_close(output.logits[row, : num_new[row]], wanted, tolerated(family))
    lengths += num_new
    np.testing.assert_array_equal(cache.lengths, lengths)
  assert (lengths == ends).all()


@pytest.mark.parametrize('family', FAMILIES)
def test_a_tree_and_the_path_that_is_kept(family):
  model, tokens, golden = load(family)
  config = model.module.config
  step = stepper(family)
  start = 24
  cache = model.init_cache(batch_size=2, cache_length=48, max_append=CHUNK)
  for first in range(0, start, CHUNK):
    cache = step(tokens[:, first : first + CHUNK], cache, jnp.full(2, CHUNK)).cache
  # Nodes: 0 the root, 1 its right child, 2 a wrong one, 3 below it; 4 below 1, 5 below 4.
  parents = [None, 0, 0, 2, 1, 4]
  wrong = (tokens[:, start : start + 2] + 1) % config.vocab_size
  right = tokens[:, start : start + 4]
  nodes = np.stack(
      [right[:, 0], right[:, 1], wrong[:, 0], wrong[:, 1], right[:, 2], right[:, 3]], axis=1
  )
  mask = np.eye(CHUNK, dtype=bool)
  depths = np.zeros(CHUNK, int)
  for node, parent in enumerate(parents[1:], start=1):
    mask[node] |= mask[parent]
    depths[node] = depths[parent] + 1
  output = step(
      nodes,
      poison(cache, config),
      jnp.full(2, CHUNK),
      jnp.broadcast_to(start + depths, (2, CHUNK)),
      jnp.broadcast_to(mask, (2, CHUNK, CHUNK)),
  )
  path = np.asarray(output.logits)[:, [0, 1, 4, 5]]
  tolerance.assert_close(path, golden[:, start : start + 4], tolerated(family))
  # The other branch is what its own chain gives.
  chain = np.concatenate([nodes[:, [0, 2, 3]], np.zeros((2, 3), np.int32)], axis=1)
  branch = step(chain, cache, jnp.full(2, 3)).logits[:, 1:3]
  tolerance.assert_close(output.logits[:, [2, 3]], branch, tolerated(family))

  # Row 0 keeps the whole path, row 1 its first node.
  kept = np.array([3, 1])
  cache = jax.jit(functools.partial(kv_cache.keep_path, num_nodes=5))(
      output.cache, jnp.full(2, start), jnp.array([[1, 4, 5], [1, 0, 0]]), jnp.asarray(kept)
  )
  np.testing.assert_array_equal(cache.lengths, start + 1 + kept)
  scratch = model.init_cache(batch_size=2, cache_length=48, max_append=CHUNK)
  for first in range(0, start + CHUNK, CHUNK):
    num_new = np.clip(start + 1 + kept - first, 0, CHUNK)
    scratch = step(tokens[:, first : first + CHUNK], scratch, jnp.asarray(num_new)).cache
  pairs = zip(held(cache, config), held(scratch, config), strict=True)
  for ours, theirs in pairs:
    entries = tolerance.of_logits(config, size=tolerance.largest(theirs), positions=48)
    tolerance.assert_close(ours, theirs, entries)
  chunk = np.stack([tokens[row, start + 1 + kept[row] :][:CHUNK] for row in range(2)])
  logits = step(chunk, poison(cache, config), jnp.full(2, CHUNK)).logits
  for row in range(2):
    wanted = golden[row, start + 1 + kept[row] :][:CHUNK]
    tolerance.assert_close(logits[row], wanted, tolerated(family))


@pytest.mark.parametrize('family', ['mistral', 'qwen2'])
def test_padding_longer_than_the_window_leaves_no_nan(family):
  """A row of two tokens in a chunk of 24, windows of 7 and 9: padding sees no real token."""
  model, tokens, golden = load(family)
  cache = model.init_cache(batch_size=2, cache_length=48, max_append=24)
  assert any(cache.rings)
  step = stepper(family)
  output = step(tokens[:, :24], cache, jnp.array([24, 2]))
  rest = np.stack([tokens[0, 24:], tokens[1, 2:26]])
  output = step(rest, output.cache, jnp.array([24, 3]))
  assert np.isfinite(output.logits).all()
  for entry in jax.tree.leaves(output.cache):
    assert np.isfinite(entry).all()
  tolerance.assert_close(output.logits[0], golden[0, 24:], tolerated(family))
  tolerance.assert_close(output.logits[1, :3], golden[1, 2:5], tolerated(family))


def test_a_large_batch_is_written_by_a_scatter_with_the_same_result():
  model, tokens, golden = load('qwen2')
  rows = 9
  cache = model.init_cache(batch_size=rows, cache_length=48, max_append=24)
  repeat = lambda x: np.tile(x, (5, *[1] * (x.ndim - 1)))[:rows]
  for first in (0, 24):
    output = stepper('qwen2')(repeat(tokens[:, first : first + 24]), cache, jnp.full(rows, 24))
    cache = output.cache
    wanted = repeat(golden[:, first : first + 24])
    tolerance.assert_close(output.logits, wanted, tolerated('qwen2'))


def test_a_row_does_not_depend_on_the_others():
  model, tokens, _ = load('mistral')
  other = np.stack([tokens[0], (tokens[1] + 5) % model.vocab_size])
  np.testing.assert_array_equal(model(tokens).logits[0], model(other).logits[0])


@pytest.mark.parametrize('family', ['llama3', 'gemma3'])
def test_positions_given_without_a_tree_keep_the_pass_causal(family):
  """Rotary positions are relative, so a shift of all of them changes nothing."""
  model, tokens, golden = load(family)
  logits = model(tokens, jnp.broadcast_to(jnp.arange(48) + 9, (2, 48))).logits
  # Rotary angles go up to 57: they are rounded by so many units of one.
  angles = tolerance.chained(57**2, size=tolerance.largest(golden))
  tolerance.assert_close(logits, golden, tolerated(family) + angles)


def test_features_are_the_residual_stream_after_the_layers_asked_for():
  model, tokens, golden = load('gemma3')
  config = model.module.config
  output = model(tokens, feature_layers=(4, 0))
  first, last = np.split(np.asarray(output.features), 2, axis=-1)
  embedding = np.asarray(model.params['embedding'])[tokens]
  scaled = embedding * config.embedding_scale
  tolerance.assert_close(first, scaled, tolerance.chained(1, size=scaled))
  normed = last / np.sqrt((last**2).mean(-1, keepdims=True) + config.norm_epsilon)
  normed *= 1 + np.asarray(model.params['final_norm']['scale'])
  tolerance.assert_close(
      normed @ np.asarray(model.params['embedding']).T, golden, tolerated('gemma3')
  )
  assert model(tokens).features.shape == (2, 48, 0)
  with pytest.raises(ValueError, match=r'feature_layers must lie in 0 … 4, got \(5,\)'):
    model(tokens, feature_layers=(5,))


def test_prefill_without_logits_fills_the_same_cache():
  model, tokens, _ = load('llama2')
  cache = model.init_cache(batch_size=2, cache_length=16, max_append=16)
  with_logits, without = (
      jax.jit(
          functools.partial(model, with_logits=flag), compiler_options=FAST_COMPILE
      )(tokens[:, :16], None, cache)
      for flag in (True, False)
  )
  assert with_logits.logits.shape == (2, 16, model.vocab_size)
  assert without.logits.shape == (2, 16, 0)
  jax.tree.map(np.testing.assert_array_equal, without.cache, with_logits.cache)


def test_a_call_longer_than_the_cache_was_made_for_is_refused():
  model, tokens, _ = load('llama2')
  cache = model.init_cache(batch_size=2, cache_length=16, max_append=4)
  with pytest.raises(ValueError, match='5 tokens in one call.*max_append=4'):
    model(tokens[:, :5], None, cache)


@pytest.mark.parametrize('total', [0, 1, 4, 6, 11])
def test_slot_positions_say_what_a_ring_holds(total):
  slots = np.full(4, -1)
  for position in range(total):
    slots[position % 4] = position
  found = np.asarray(kv_cache.slot_positions(jnp.array([total]), 4))[0]
  np.testing.assert_array_equal(np.maximum(found, -1), slots)


def test_rope_scaling_keeps_short_wavelengths_and_stretches_long_ones():
  plain = layers.rope_frequencies(64, 500_000.0, None)
  scaled = layers.rope_frequencies(64, 500_000.0, models.RopeScaling('llama3', 8.0, 1.0, 4.0, 8192))
  wavelengths = 2 * np.pi / plain
  short, long = wavelengths < 2048, wavelengths > 8192
  np.testing.assert_array_equal(scaled[short], plain[short])
  tolerance.assert_close(scaled[long], plain[long] / 8, tolerance.chained(2, size=plain[long] / 8))
  between = ~short & ~long
  assert between.any()
  assert ((scaled < plain) & (scaled > plain / 8))[between].all()
  linear = layers.rope_frequencies(64, 500_000.0, models.RopeScaling('linear', 4.0))
  tolerance.assert_close(linear, plain / 4, tolerance.chained(2, size=plain / 4))


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(num_kv_heads=3), 'num_heads must be a multiple of num_kv_heads, got 4 and 3'),
        (dict(local_layers=(True,)), 'one flag per layer: 2 layers, 1 flags'),
        (dict(local_layers=(True, False)), 'local_layers are given but sliding_window is None'),
        (dict(activation='relu'), "not 'relu'"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(load('llama2')[0].module.config, **changes)
