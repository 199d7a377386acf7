"""Switches of EAGLE heads that add no tensor, and heads as other projects store them.

Each is held against what the definition gives in numpy (`tests.support.head_files`), for the
target's features and for the head's own output fed back.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import heads
from specjax.models.hf import files as hf_files
from tests.support import head_files

pytestmark = pytest.mark.usefixtures('compiled_fast')
TOKENS = np.asarray([3, 17, 9, 30, 22, 5])
SGLANG = head_files.DECODER | dict(
    architectures=['LlamaForCausalLMEagle3'], model_type='llama', draft_vocab_size=head_files.VOCAB
)
DEEPSPEC = head_files.DECODER | dict(
    architectures=['Qwen3Eagle3Model'], model_type='qwen3', num_target_layers=head_files.DEPTH,
    target_layer_ids=[0, 1, 3, 5, 6], ttt_length=7, step_loss_decay=0.8, draft_num_hidden_layers=1,
    layer_types=['full_attention'], target_model_name_or_path='target', use_sliding_window=False,
    max_window_layers=36, sliding_window=None,
)


def speculators(model_type='llama', **switches):
  return dict(
      architectures=['Eagle3DraftModel'], speculators_model_type='eagle3',
      transformer_layer_config=head_files.DECODER | dict(model_type=model_type),
      draft_vocab_size=head_files.VOCAB, target_hidden_size=None, embed_requires_grad=False,
      speculators_config=dict(algorithm='eagle3'), speculators_version='0.5.0',
  ) | switches


CASES = {
    'plain': (SGLANG, {}, {}),
    'norm_output': (SGLANG | dict(norm_output=True), {}, dict(norm_output=True)),
    'fc_norm': (SGLANG | dict(fc_norm=True), dict(fuse_norm='each'), {}),
    'EAGLE-3.1': (
        SGLANG | dict(eagle_config=dict(fc_norm=True, norm_output=True)),
        dict(fuse_norm='each'),
        dict(norm_output=True),
    ),
    'nested norm_before_fc': (
        SGLANG | dict(eagle_config=dict(norm_before_fc=True)), dict(fuse_norm='joint'), {},
    ),
    'speculators': (
        speculators(
            norm_before_fc=True, norm_before_residual=True, norm_output=True, fc_norm=False
        ),
        dict(prefix='layers.0.', fuse_norm='joint'),
        dict(norm_output=True, norm_before_residual=True),
    ),
    'speculators of Qwen3': (
        speculators('qwen3', fc_norm=True),
        dict(prefix='layers.0.', fuse_norm='each', qk_norm=True),
        {},
    ),
    'DeepSpec': (DEEPSPEC, dict(prefix='layers.0.', count=5, qk_norm=True), {}),
}


@functools.partial(jax.jit, static_argnums=0)
def passes(module, params, embedded, features):
  """What the head feeds back and its logits, as `head_files.reference` gives them."""
  apply = functools.partial(module.apply, {'params': params})
  cache = module.init_cache(batch_size=1, cache_length=8, max_append=8)
  first = apply(embedded[:, :-1], features, None, cache)
  last = apply(embedded[:, -1:], first.hidden[:, -1:], None, first.cache, own_features=True)
  hidden = jnp.concatenate([first.hidden, last.hidden], axis=1)
  return hidden[0], apply(hidden, method='logits')[0]


def compare(head, values, **switches):
  count = len(head.config.feature_layers)
  features = np.random.default_rng(5).normal(size=(len(TOKENS) - 1, count * head_files.WIDTH))
  # Layers of different size, which is what the norms are for.
  features *= np.repeat([3.0, 0.2, 1.0, 7.0, 0.5][:count], head_files.WIDTH)
  embedded, rows = head.embedding[TOKENS][None], jnp.asarray(features[None], jnp.float32)
  found = passes(head.module, head.params, embedded, rows)
  wanted = head_files.reference(values, TOKENS, features, **switches)
  for mine, its in zip(found, wanted):
    np.testing.assert_allclose(mine, its, atol=1e-4, rtol=1e-4)
  return wanted[1]


@pytest.mark.parametrize('case', CASES)
def test_a_head_computes_what_its_definition_says(case, tmp_path):
  config, shape, switches = CASES[case]
  values = head_files.tensors(**shape)
  head = heads.load_eagle(
      head_files.write(tmp_path / 'head', config, values), head_files.target()
  )
  logits = compare(head, values, **switches)
  # The switches are seen in what is drafted on the head's own output, or the test shows nothing.
  if switches:
    plain = head_files.reference(
        values, TOKENS, np.ones((len(TOKENS) - 1, values['fc.weight'].shape[1]))
    )
    other = head_files.reference(
        values, TOKENS, np.ones((len(TOKENS) - 1, values['fc.weight'].shape[1])), **switches
    )
    assert np.abs(plain[1][-1] - other[1][-1]).max() > 0.1
  assert logits.std() > 0.5
  if case == 'DeepSpec':
    assert head.config.feature_layers == (1, 2, 4, 6, 7)
  # And it is saved, in the layout that has a place for all of it.
  heads.save_eagle(head, tmp_path / 'again', layout='speculators')
  again = heads.load_eagle(tmp_path / 'again', head_files.target())
  assert again.config == head.config
  jax.tree.map(np.testing.assert_array_equal, again.params, head.params)
  if not (head.config.decoder.qk_norm or head.config.norm_before_residual):
    heads.save_eagle(head, tmp_path / 'third', layout='sglang')
    assert heads.load_eagle(tmp_path / 'third', head_files.target()).config == head.config
  if head.config.fuse_norm or head.config.norm_output or head.config.decoder.qk_norm:
    with pytest.raises(ValueError, match='layout has no place for'):
      heads.save_eagle(head, tmp_path / 'other', layout='authors')


def test_parameters_are_counted_with_the_new_norms(tmp_path):
  for case in ('DeepSpec', 'speculators', 'EAGLE-3.1'):
    config, shape, _ = CASES[case]
    folder = head_files.write(tmp_path / case, config, head_files.tensors(**shape))
    head = heads.load_eagle(folder, head_files.target())
    count = sum(leaf.size for leaf in jax.tree.leaves(head.params))
    assert head.config.num_parameters == count


def test_a_vocabulary_map_over_the_whole_vocabulary_is_read(tmp_path):
  ids = np.random.default_rng(0).permutation(head_files.VOCAB)
  marks = np.ones(head_files.VOCAB, bool)
  values = head_files.tensors() | {'d2t': ids - np.arange(len(ids)), 't2d': marks}
  head = heads.load_eagle(head_files.write(tmp_path / 'head', SGLANG, values), head_files.target())
  np.testing.assert_array_equal(head.draft_to_target, ids)
  drafter = drafters.eagle(head, head_files.target())
  np.testing.assert_array_equal(drafter.target_to_draft, np.argsort(ids))
  heads.save_eagle(head, tmp_path / 'again')
  again = heads.load_eagle(tmp_path / 'again', head_files.target())
  np.testing.assert_array_equal(again.draft_to_target, ids)
  # One that moves nothing is as good as none.
  values['d2t'] *= 0
  head = heads.load_eagle(head_files.write(tmp_path / 'same', SGLANG, values), head_files.target())
  assert head.draft_to_target is None


@pytest.mark.parametrize('changes, message', [
    (dict(fc_norm=True, norm_before_fc=True), 'fc_norm and norm_before_fc are both true'),
    (dict(fc_norm=True), 'missing: fc_norm.0.weight, fc_norm.1.weight, fc_norm.2.weight'),
    (dict(fc_norm='yes'), "fc_norm must be true or false, got 'yes'"),
    (dict(query_scale=3.0), 'query_scale=3.0 is not known, and may change what the head computes'),
    (dict(final_logit_softcapping=30.0), 'final_logit_softcapping=30.0 is not known'),
    (dict(parallel_drafting=True), r'parallel_drafting=True is not supported \(only False is'),
    (dict(logit_scale=0.5), r'logit_scale=0.5 is not supported \(only 1.0 is'),
    (dict(model_type='gemma2'), "model_type='gemma2' is not supported. Supported are llama"),
    (dict(layer_types=['sliding_attention']), 'heads with a window are not supported'),
    (dict(model_type='qwen3', use_sliding_window=True, sliding_window=8, max_window_layers=0),
     'heads with a window are not supported'),
    (dict(eagle_config=dict(use_aux_hidden_state=False)),
     r'eagle_config: use_aux_hidden_state=False is not supported \(only True is'),
    (dict(eagle_config=dict(use_mtp_layernorm=True)), 'use_mtp_layernorm=True is not supported'),
    (dict(eagle_config=dict(surprise=1)), 'eagle_config: surprise=1 is not known'),
    (dict(eagle_config=[1]), r'eagle_config must be an object, got \[1\]'),
    (dict(eagle_aux_hidden_state_layer_ids='x'), "must be a list of layer numbers, got 'x'"),
    (dict(num_target_layers=4), 'num_target_layers=4, the target has 8'),
    (dict(num_aux_hidden_states=5), 'num_aux_hidden_states=5, but 3 layers are read'),
    (dict(layernorms=True), 'extra_norms are for heads of version 1'),
    (dict(num_hidden_layers=10**12), 'num_hidden_layers must be at most 10,000'),
    (dict(vocab_size=10**9, draft_vocab_size=None), 'a target of vocabulary 1000000000'),
    (dict(draft_vocab_size=50), 'draft vocabulary has 50 tokens, more than the target'),
])
def test_every_key_is_implemented_idle_or_refused_by_name(changes, message, tmp_path):
  folder = head_files.write(tmp_path / 'head', SGLANG | changes, head_files.tensors())
  with pytest.raises(ValueError, match=message):
    heads.load_eagle(folder, head_files.target())


def test_keys_without_effect_are_passed_over(tmp_path):
  notes = dict(
      transformers_version='4.57', torch_dtype='bfloat16', use_cache=True, pad_token_id=0,
      initializer_range=0.02, surprise=None, _name_or_path='x', tie_word_embeddings=False,
      eagle_config=dict(next_layer_regular=True, use_aux_hidden_state=True, parallel_draft_step=1),
  )
  folder = head_files.write(tmp_path / 'head', SGLANG | notes, head_files.tensors())
  plain = head_files.write(tmp_path / 'plain', SGLANG, head_files.tensors())
  load = lambda path: heads.load_eagle(path, head_files.target())
  assert load(folder).config == load(plain).config


def test_what_is_written_says_what_the_head_is(tmp_path):
  config, shape, _ = CASES['EAGLE-3.1']
  folder = head_files.write(tmp_path / 'head', config, head_files.tensors(**shape))
  head = heads.load_eagle(folder, head_files.target())
  heads.save_eagle(head, tmp_path / 'saved', layout='sglang')
  data = json.loads((tmp_path / 'saved' / 'config.json').read_text())
  assert data['fc_norm'] and data['norm_output'] and not data['norm_before_fc']
  names = set(hf_files.open_folder(tmp_path / 'saved'))
  assert {f'fc_norm.{number}.weight' for number in range(3)} <= names
