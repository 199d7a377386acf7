"""Files of heads that other engines accept, and those that are refused with what is wrong."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from specjax import drafters
from specjax import heads
from specjax.heads import target as target_lib
from specjax.models import quantization
from tests.support import head_files

EAGLE3 = head_files.DECODER | dict(architectures=['LlamaForCausalLMEagle3'])
WIDTH, VOCAB = head_files.WIDTH, head_files.VOCAB


def target(**changes):
  return head_files.target().replace(**changes)


def eagle1(**more):
  """The tensors of an EAGLE-1 head: no norm before the first layer, no output head."""
  third = head_files.tensors('layers.0.', count=2)
  names = {name: value for name, value in third.items() if 'norm' not in name}
  for name in ('q', 'k', 'v'):
    key = f'layers.0.self_attn.{name}_proj.weight'
    names[key] = np.ascontiguousarray(names[key][:, :WIDTH])
  key = 'layers.0.post_attention_layernorm.weight'
  return {**names, key: third[key]} | more


@pytest.mark.parametrize('stored', ['float32', 'float16'])
def test_an_eagle_1_head_may_carry_a_copy_of_the_targets_output_head(stored, tmp_path):
  own = np.asarray(target().params['head'])
  config = head_files.DECODER | dict(architectures=['LlamaForCausalLM'], bias=False)
  values = eagle1(**{'lm_head.weight': own.astype(stored)})
  head = heads.load_eagle(head_files.write(tmp_path / 'copy', config, values), target())
  del values['lm_head.weight']
  plain = heads.load_eagle(head_files.write(tmp_path / 'plain', config, values), target())
  assert head.config == plain.config and head.config.version == 1
  jax.tree.map(np.testing.assert_array_equal, head.params, plain.params)
  values['lm_head.weight'] = own[::-1].copy()
  with pytest.raises(ValueError, match="lm_head.weight is not the target's output head"):
    heads.load_eagle(head_files.write(tmp_path / 'other', config, values), target())


@pytest.mark.parametrize('kind', ['its own', 'rounded', 'tied'])
def test_an_eagle_3_head_over_the_whole_vocabulary_borrows_the_targets_output_head(kind, tmp_path):
  values = head_files.tensors()
  del values['lm_head.weight']
  folder = head_files.write(tmp_path / 'head', EAGLE3, values)
  model = target()
  wanted = model.params['head']
  if kind == 'rounded':
    rounded = quantization.quantize(wanted)
    model = target(params=model.params | {'head': rounded})
    wanted = quantization.dequantize(rounded)
  if kind == 'tied':
    (folder / 'config.json').write_text(json.dumps(EAGLE3 | dict(tie_word_embeddings=True)))
    wanted = values['embed_tokens.weight']
  head = heads.load_eagle(folder, model)
  np.testing.assert_allclose(head.params['head'], wanted, atol=1e-6)
  # The drafter has the arrays of the head, and none of the target.
  leaves = lambda tree: list(map(id, jax.tree.leaves(tree)))
  assert leaves(drafters.eagle(head, model)) == leaves(head)


def test_a_head_without_output_head_over_a_part_of_the_vocabulary_is_refused(tmp_path):
  values = head_files.tensors(vocab_size=24) | {'d2t': np.zeros(24, np.int64)}
  del values['lm_head.weight']
  folder = head_files.write(tmp_path / 'head', EAGLE3 | dict(draft_vocab_size=24), values)
  with pytest.raises(ValueError, match='missing: lm_head.weight'):
    heads.load_eagle(folder, target())


def test_a_head_of_another_width_needs_an_embedding(tmp_path):
  values = head_files.tensors()
  values['fc.weight'] = np.ones((WIDTH, 3 * 24), np.float32)
  config = EAGLE3 | dict(target_hidden_size=24)
  wide = head_files.target(24)
  folder = head_files.write(tmp_path / 'head', config, values)
  assert heads.load_eagle(folder, wide).embedding.shape == (VOCAB, WIDTH)
  del values['embed_tokens.weight']
  with pytest.raises(ValueError, match='the head has width 16 and no embed_tokens.weight; the tar'):
    heads.load_eagle(head_files.write(tmp_path / 'none', config, values), wide)
  values = head_files.tensors()
  del values['lm_head.weight']
  values['fc.weight'] = np.ones((WIDTH, 3 * 24), np.float32)
  with pytest.raises(ValueError, match=r"target's output head, of shape \(40, 24\), does not take"):
    heads.load_eagle(head_files.write(tmp_path / 'borrows', config, values), wide)


@pytest.mark.parametrize('change, message', [
    (lambda t: t.update({'norm.weight': t['norm.weight'].astype(np.int32)}),
     'norm.weight has dtype int32, expected floats'),
    (lambda t: t.update(d2t=np.zeros(VOCAB, np.float32)), 'd2t has dtype float32, expected integ'),
    (lambda t: t.update(d2t=np.full(VOCAB, 2**62)), 'd2t must send the 40 draft tokens'),
    (lambda t: t.update(d2t=np.zeros((0,), np.int64)), r'd2t has shape \(0,\), expected \(40,\)'),
])
def test_tensors_of_the_wrong_kind_are_named(change, message, tmp_path):
  values = head_files.tensors()
  change(values)
  with pytest.raises(ValueError, match=message):
    heads.load_eagle(head_files.write(tmp_path / 'head', EAGLE3, values), target())


MEDUSA = dict(
    model_type='medusa', architectures=['MedusaModel'], num_heads=2, num_hidden_layers=1,
    hidden_size=WIDTH, vocab_size=VOCAB, medusa_fc_bias=False, truncated_vocab_size=VOCAB,
    max_paths=64, topk=10, max_seq_len=2**20,
)


def medusa(vocab_size=VOCAB, **more):
  rng = np.random.default_rng(1)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  names = {}
  for head in range(2):
    names[f'blocks.{head}.layers.0.weight'] = draw(WIDTH, WIDTH)
    names[f'lm_heads.{head}.weight'] = draw(vocab_size, WIDTH)
  return names | more


def logits_of(values, feature, kernels):
  """What the definition says: a block with a residual, then a head."""
  result = []
  for head in range(2):
    inner = values[f'blocks.{head}.layers.0.weight'] @ feature
    result.append(kernels[head] @ (feature + inner / (1 + np.exp(-inner))))
  return np.stack(result)


def draft_logits(loaded, model, feature):
  """[2, V] logits of the drafter's heads in the target's vocabulary."""
  drafter = drafters.medusa(loaded, model)
  logits = loaded.module.apply({'params': loaded.params}, jnp.asarray(feature))
  return target_lib.to_target(logits, drafter.target_to_draft)


FEATURE = np.random.default_rng(3).normal(size=WIDTH).astype(np.float32)


@pytest.mark.parametrize('name', ['lm_head.weight', 'lm_heads.0.weight', 'of the target'])
def test_one_output_head_for_all_medusa_heads(name, tmp_path):
  values = medusa()
  shared = values.pop('lm_heads.0.weight')
  del values['lm_heads.1.weight']
  if name != 'of the target':
    values[name] = shared
  else:
    shared = np.asarray(target().params['head'])
  config = MEDUSA | dict(original_lm_head=True)
  loaded = heads.load_medusa(head_files.write(tmp_path / 'head', config, values), target())
  assert loaded.params['head'].shape == (1, VOCAB, WIDTH)
  assert loaded.config.num_parameters == 2 * (WIDTH * (WIDTH + 1)) + VOCAB * WIDTH
  wanted = logits_of(values, FEATURE, [shared] * 2)
  np.testing.assert_allclose(draft_logits(loaded, target(), FEATURE), wanted, atol=1e-4)
  heads.save_medusa(loaded, tmp_path / 'again', layout='vllm')
  again = heads.load_medusa(tmp_path / 'again', target())
  assert again.config == loaded.config
  np.testing.assert_array_equal(again.params['head'], loaded.params['head'])
  with pytest.raises(ValueError, match='authors layout has no place for a shared head'):
    heads.save_medusa(loaded, tmp_path / 'authors')


def test_a_copy_of_the_targets_output_head_beside_medusa_heads_is_passed_over(tmp_path):
  own = np.asarray(target().params['head'])
  values = medusa(**{'lm_head.weight': own})
  loaded = heads.load_medusa(head_files.write(tmp_path / 'head', MEDUSA, values), target())
  wanted = logits_of(values, FEATURE, [values[f'lm_heads.{head}.weight'] for head in range(2)])
  np.testing.assert_allclose(draft_logits(loaded, target(), FEATURE), wanted, atol=1e-4)
  values['lm_head.weight'] = own * 2
  with pytest.raises(ValueError, match="lm_head.weight is not the target's"):
    heads.load_medusa(head_files.write(tmp_path / 'other', MEDUSA, values), target())


@pytest.mark.parametrize('stored', [12, VOCAB])
def test_medusa_heads_over_a_part_of_the_vocabulary(stored, tmp_path):
  ids = np.random.default_rng(2).permutation(VOCAB)[:12]
  values = medusa(stored, token_map=ids)
  config = MEDUSA | dict(truncated_vocab_size=12)
  loaded = heads.load_medusa(head_files.write(tmp_path / 'head', config, values), target())
  kernels = [values[f'lm_heads.{head}.weight'] for head in range(2)]
  kernels = [kernel if stored == 12 else kernel[ids] for kernel in kernels]
  wanted = np.full((2, VOCAB), -np.inf, np.float32)
  wanted[:, ids] = logits_of(values, FEATURE, kernels)
  np.testing.assert_allclose(draft_logits(loaded, target(), FEATURE), wanted, atol=1e-4)
  heads.save_medusa(loaded, tmp_path / 'again', layout='vllm')
  again = heads.load_medusa(tmp_path / 'again', target())
  np.testing.assert_array_equal(again.draft_to_target, ids)


@pytest.mark.parametrize('change, tensors, message', [
    ({}, dict(surprise=np.ones(3, np.float32)), 'unexpected: surprise'),
    (dict(num_heads=10**12), {}, 'num_heads must be at most 1,000, got 1000000000000'),
    (dict(num_heads='2'), {}, "num_heads must be a positive integer or null, got '2'"),
    (dict(num_hidden_layers=-1), {}, 'num_hidden_layers must be an integer from 0 on, got -1'),
    (dict(vocab_size=41), {}, 'for a target of vocab_size=41, this one has 40'),
    (dict(truncated_vocab_size=12), {}, 'truncated_vocab_size=12 of 40, but the tensor token_map'),
    (dict(truncated_vocab_size=12), dict(token_map=np.zeros(12, np.int64)), '12 different tokens'),
    (dict(truncated_vocab_size=12), dict(token_map=np.ones(5, np.int64)), 'must be 12 integers'),
    (dict(logit_scale=2.0), {}, 'logit_scale=2.0 is not supported'),
    (dict(surprise=True), {}, 'surprise=True is not known'),
])
def test_what_is_wrong_with_medusa_files_is_said(change, tensors, message, tmp_path):
  folder = head_files.write(tmp_path / 'head', MEDUSA | change, medusa(**tensors))
  with pytest.raises(ValueError, match=message):
    heads.load_medusa(folder, target())


def test_the_authors_medusa_file_with_a_foreign_tensor_is_refused_by_name(tmp_path):
  names = {'0.0.linear.weight': np.ones((WIDTH, WIDTH), np.float32),
           '0.1.weight': np.ones((VOCAB, WIDTH), np.float32),
           'surprise.weight': np.ones(3, np.float32)}
  folder = head_files.write(tmp_path / 'head', dict(medusa_num_heads=1), names)
  (folder / 'model.safetensors').rename(folder / 'medusa_lm_head.safetensors')
  with pytest.raises(ValueError, match='unexpected: surprise.weight'):
    heads.load_medusa(folder, target())


def test_an_adapter_is_named_as_one(tmp_path):
  (tmp_path / 'adapter_config.json').write_text('{"base_model_name_or_path": "org/base"}')
  safetensors.numpy.save_file(
      {'lora': np.ones(3, np.float32)}, tmp_path / 'adapter_model.safetensors'
  )
  for load in (heads.load_eagle, heads.load_medusa):
    with pytest.raises(FileNotFoundError, match=r'is an adapter \(PEFT\) of org/base'):
      load(tmp_path, target())


def test_a_wrong_value_of_an_early_exit_is_said(tmp_path):
  data = dict(model_type='specjax_early_exit', exit_layer=2, intermediate_size=8,
              hidden_size=WIDTH, vocab_size=VOCAB, num_target_layers=head_files.DEPTH)
  for change, message in (
      (dict(exit_layer='2'), "exit_layer must be a positive integer, got '2'"),
      (dict(exit_layer=9), 'config.json: exit_layer must be 1 … 7, got 9'),
      (dict(hidden_size=None), 'hidden_size must be a positive integer, got None'),
      (dict(surprise=1), 'surprise=1 is not known'),
  ):
    folder = head_files.write(tmp_path / 'exit', data | change, {'x': np.ones(1, np.float32)})
    with pytest.raises(ValueError, match=message):
      heads.load_early_exit(folder, target())
    shutil.rmtree(folder)
