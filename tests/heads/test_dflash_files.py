"""Files of DFlash and DSpark heads: their authors' own code, layouts, and what is refused."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from specjax import heads
from specjax.heads import dflash
from specjax.heads import target as target_lib
from tests.support.head_goldens import GOLDEN, golden, same
from tests.support import tiny
from tests.support import tiny_heads
from tests.support import tolerance

WIDTH, VOCAB = 32, 96
GOLDENS = ('dflash', 'deepspec_dflash', 'dspark', 'dspark_gated', 'dspark_rnn')


def target(arrays=None):
  """A target of the goldens' sizes, with their embedding and output head where given."""
  model = tiny.model(0, num_layers=6, width=WIDTH, vocab_size=VOCAB)
  if arrays is None:
    return model
  shared = {name: jnp.asarray(arrays[name]) for name in ('embedding', 'head')}
  return model.replace(params=model.params | shared)


@pytest.mark.parametrize('name', GOLDENS)
def test_a_head_agrees_with_its_authors_code(name):
  """Two rounds, the second after more context; then the tokens of a block one after the other."""
  arrays = golden(name)
  head = heads.load_dflash(GOLDEN / name, target(arrays))
  config = head.config
  # What is stored is the target's.
  assert not config.has_head and head.embedding is None
  assert config.shift == (dflash.MASKS if name == 'dflash' else dflash.NEXT)
  assert config.feature_layers == ((2, 4) if name == 'dflash' else (0, 4))
  apply = lambda *args, **kw: head.module.apply({'params': head.params}, *args, **kw)
  cache = head.module.init_cache(batch_size=1, cache_length=24, max_append=16)
  length, outputs, begin = arrays['features'].shape[1], [], 0
  tolerated = tolerance.of_logits(
      config.decoder, size=tolerance.largest(arrays['hidden']),
      positions=length + config.block_size,
  )
  for root, end in zip(arrays['roots'], (length - 4, length)):
    features = jnp.asarray(arrays['features'][:, begin:end])
    cache = apply(features, cache, jnp.asarray([end - begin]), method='context')
    block = np.full((1, config.block_size), config.mask_token)
    block[0, 0] = root
    hidden, cache = apply(jnp.asarray(arrays['embedding'][block]), cache)
    outputs.append(hidden)
    begin = end
  tolerance.assert_close(jnp.stack(outputs), arrays['hidden'], tolerated)
  if name == 'dflash':
    return
  hidden = jnp.asarray(arrays['hidden'][:, 0])
  base = target_lib.output_logits(target(arrays), hidden)
  state, before = jnp.zeros((2, config.markov_rank)), jnp.asarray(arrays['roots'])
  for slot in range(config.block_size):
    logits = base[:, slot]
    if config.markov:
      bias, state_after = apply(before, hidden[:, slot], state, method='markov_bias')
      logits = logits + bias
      confidence = apply(before, hidden[:, slot], method='confidence')
      expected = 1 / (1 + np.exp(-arrays['confidence'][:, slot]))
      tolerance.assert_close(confidence, expected, tolerance.of_sum(WIDTH + 8, size=4.0))
      state = state_after
    tolerated = tolerance.of_sum(2 * WIDTH, size=tolerance.largest(arrays['logits']))
    tolerance.assert_close(logits, arrays['logits'][:, slot], tolerated)
    before = jnp.asarray(arrays['tokens'][:, slot])


def whole(kind):
  """A tiny head without local layers, which two layouts have no place for as they are."""
  head = tiny_heads.block(*kind)
  decoder = dataclasses.replace(head.config.decoder, sliding_window=None, local_layers=())
  module = head.module.clone(config=dataclasses.replace(head.config, decoder=decoder))
  return head.replace(module=module)


@pytest.mark.parametrize(
    'kind, layout, changes',
    [
        (('dflash',), 'z-lab', {}),
        (('dspark',), 'deepspec', {}),
        (('dflash',), 'speculators', dict(window_from_root=True, causal_windows=True)),
        (('dspark', 24), 'speculators', dict(window_from_root=True)),
    ],
)
def test_a_head_comes_back_the_same(kind, layout, changes, tmp_path):
  head = tiny_heads.block(*kind)
  config = dataclasses.replace(head.config, **changes)
  head = head.replace(module=head.module.clone(config=config))
  heads.save_dflash(head, tmp_path / 'head', layout=layout)
  again = heads.load_dflash(tmp_path / 'head', tiny.target())
  assert again.config == head.config and again.embedding is None
  assert same(again.params, head.params)
  if len(kind) > 1:
    np.testing.assert_array_equal(again.draft_to_target, head.draft_to_target)
  small = tmp_path / 'small'
  heads.save_dflash(head, small, layout=layout, int8=True, dtype=jnp.bfloat16)
  size = lambda path: (path / 'model.safetensors').stat().st_size
  assert size(small) < 0.5 * size(tmp_path / 'head')
  assert heads.load_dflash(small, tiny.target()).config == head.config


def test_what_readers_need_is_stored_where_it_is_asked_for(tmp_path):
  head = whole(('dspark',))
  heads.save_dflash(head, tmp_path / 'head', target=tiny.target())
  again = heads.load_dflash(tmp_path / 'head', tiny.target())
  assert again.config == head.config and again.embedding is None
  # Of another target they are the head's own.
  other = heads.load_dflash(tmp_path / 'head', tiny.model(1))
  assert other.config.has_head and other.embedding is not None


@pytest.mark.parametrize(
    'kind, layout, message',
    [
        (('dspark',), 'z-lab', 'no place for a Markov or confidence head'),
        (('dflash',), 'deepspec', "no place for a block whose root drafts nothing; .*'z-lab'"),
        (('dspark', 24), 'deepspec', "a part of the vocabulary; .*'speculators'"),
        (('dflash',), 'nobody', 'layout must be one of'),
    ],
)
def test_layouts_without_a_place(kind, layout, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    heads.save_dflash(whole(kind), tmp_path / 'head', layout=layout)
  assert not (tmp_path / 'head').exists()


@pytest.mark.parametrize('in_root, causal', [(False, False), (True, True), (True, False)])
def test_windows_by_their_definition(in_root, causal):
  config = dataclasses.replace(
      tiny_heads.block().config, window_from_root=in_root, causal_windows=causal
  )
  window, size, length = 4, config.block_size, 9
  module = heads.DFlashHead(config)
  cache = module.init_cache(batch_size=1, cache_length=16, max_append=8)
  cache = cache.replace(lengths=jnp.asarray([length]))
  mask = np.asarray(dflash.block_view(config, cache, size, window).mask)[0]
  for slot in range(size):
    for key in range(length + size):
      if key >= length:
        expected = not causal or key - length <= slot
      elif in_root:
        expected = key >= length - window
      else:
        expected = length + slot - key < window
      assert mask[slot, key] == expected, (slot, key)
  assert not mask[:, length + size :].any()


def changed(tmp_path, name, change):
  """A copy of a golden with another config."""
  shutil.copytree(GOLDEN / name, tmp_path / 'head')
  file = tmp_path / 'head' / 'config.json'
  data = json.loads(file.read_text())
  change(data)
  file.write_text(json.dumps(data))
  return tmp_path / 'head'


@pytest.mark.parametrize(
    'name, change, message',
    [
        ('dflash', lambda d: d.pop('block_size'), 'does not say block_size'),
        ('dflash', lambda d: d['dflash_config'].pop('mask_token_id'), 'does not say mask_token_id'),
        ('dflash', lambda d: d['dflash_config'].update(causal=True), 'causal=True is not known'),
        ('dflash', lambda d: d.pop('dflash_config'), 'is of no DFlash or DSpark head'),
        ('dflash', lambda d: d['dflash_config'].update(target_layer_ids=[1, 5]), 'final norm'),
        ('dflash', lambda d: d['dflash_config'].update(target_layer_ids=[3, 1]), 'must increase'),
        ('dflash', lambda d: d['dflash_config'].update(mask_token_id=96), 'none of the 96 tokens'),
        ('dflash', lambda d: d.update(num_target_layers=7), 'num_target_layers=7, the target has'),
        ('dflash', lambda d: d.update(layer_types=['full_attention']), 'layer_types has 1 entries'),
        ('dspark', lambda d: d.pop('target_layer_ids'), 'does not say which layers'),
        ('dspark', lambda d: d.update(markov_head_type='lstm'), "must be one of vanilla, gated"),
        ('dspark', lambda d: d.update(markov_rank=0), 'unexpected: markov_head.markov_w1'),
        ('dspark', lambda d: d.update(attention_bias=True), 'missing: .*q_proj.bias'),
        ('dspark', lambda d: d.update(temperature_head=1), 'temperature_head=1 is not known'),
        ('dspark', lambda d: d.update(model_type='gemma4'), "model_type='gemma4' is not supported"),
    ],
)
def test_what_is_wrong_is_named(name, change, message, tmp_path):
  folder = changed(tmp_path, name, change)
  with pytest.raises(ValueError, match=message):
    heads.load_dflash(folder, target())


def test_traps_are_decided_by_the_config(tmp_path):
  block = lambda d: (d['dflash_config'].update(block_size=d.pop('block_size')))
  nested = heads.load_dflash(changed(tmp_path / 'a', 'dflash', block), target())
  assert nested.config.block_size == 4 and nested.config.depth == 3
  # No list of layers: that of the authors' own code.
  layers = lambda d: d['dflash_config'].pop('target_layer_ids')
  default = heads.load_dflash(changed(tmp_path / 'b', 'dflash', layers), target())
  assert default.config.feature_layers == (2, 4)
  windows = lambda d: d.update(
      layer_types=['sliding_attention', 'full_attention'], sliding_window=5
  )
  local = heads.load_dflash(changed(tmp_path / 'c', 'dflash', windows), target())
  assert [local.config.decoder.window(i) for i in range(2)] == [5, None]
  assert not local.config.causal_windows and not local.config.window_from_root
