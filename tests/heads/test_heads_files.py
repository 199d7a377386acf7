"""Published heads: the authors' own outputs, and every layout out and in again."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from specjax import heads
from specjax.heads import target as target_lib
from specjax.heads.hf import eagle_config
from specjax.heads.hf import torch_files
from specjax.models.hf import files as hf_files
from tests.support import tiny
from tests.support import tiny_heads
from tests.support import tolerance
from tests.support.head_goldens import GOLDEN, golden, same

# The heads' goldens were made for no target in particular: one of their width and vocabulary.
WIDTH, VOCAB = 32, 96
DTYPES = hf_files.FLOATS | hf_files.INTEGERS


def target():
  return tiny.model(0, num_layers=6, width=WIDTH, vocab_size=VOCAB)


@pytest.mark.parametrize('name', ['eagle1', 'eagle3'])
def test_an_eagle_head_agrees_with_its_authors_code(name):
  """A causal pass over pairs, then three siblings after it by the tree mask."""
  head, arrays = heads.load_eagle(GOLDEN / name, target()), golden(name)
  assert head.config.version == int(name[-1]) and head.embedding is not None
  apply = lambda *args, **kw: head.module.apply({'params': head.params}, *args, **kw)
  cache = head.module.init_cache(batch_size=1, cache_length=32, max_append=16)
  out = apply(head.embedding[arrays['tokens']], jnp.asarray(arrays['features']), None, cache)
  width = arrays['level_tokens'].shape[0]
  length = arrays['features'].shape[1]
  level = apply(
      head.embedding[arrays['level_tokens']][None],
      jnp.broadcast_to(out.hidden[:, -1:], (1, width, WIDTH)),
      jnp.full((1, width), length),
      out.cache,
      tree_mask=jnp.asarray(arrays['level_mask'], bool)[None],
      own_features=True,
  )

  def logits(hidden):
    if head.config.version == 3:
      return apply(hidden, method='logits')
    return apply(hidden, method='output') @ arrays['head'].T

  for mine, theirs in (
      (out.hidden, 'hidden'), (logits(out.hidden), 'logits'),
      (level.hidden, 'level'), (logits(level.hidden), 'level_logits'),
  ):
    tolerated = tolerance.of_logits(
        head.config.decoder, size=tolerance.largest(arrays[theirs]), positions=length + width
    )
    tolerance.assert_close(mine, arrays[theirs], tolerated, theirs)
  assert arrays['logits'].std() > 0.5


def test_the_authors_vocabulary_map_is_read():
  head = heads.load_eagle(GOLDEN / 'eagle3', target())
  ids = np.asarray(head.draft_to_target)
  assert len(ids) == head.config.decoder.vocab_size == 40 and (np.diff(ids) > 0).all()
  assert head.config.feature_layers == (2, 3, 3)


def test_medusa_heads_agree_with_their_authors_code():
  loaded, arrays = heads.load_medusa(GOLDEN / 'medusa', target()), golden('medusa')
  # Their config says two.
  assert loaded.config.num_heads == 3
  logits = loaded.module.apply({'params': loaded.params}, jnp.asarray(arrays['features']))
  # A block of one product each, and the vocabulary's.
  tolerated = tolerance.of_sum(
      2 * arrays['features'].shape[-1], size=tolerance.largest(arrays['logits'])
  )
  tolerance.assert_close(logits, arrays['logits'], tolerated)


def test_the_golden_heads_draft_in_the_engine():
  from specjax import drafters
  from specjax import generation

  prompts, options = [[1, 2, 3, 4, 5], [7]], dict(max_new_tokens=8)
  plain = generation.decode(target(), prompts, width=4, **options)
  head = heads.load_eagle(GOLDEN / 'eagle1', target())
  drafter = drafters.eagle(head, target(), num_speculative_tokens=3)
  output = generation.generate(target(), prompts, drafter=drafter, **options)
  np.testing.assert_array_equal(output.tokens, plain.tokens)


@pytest.mark.parametrize(
    'kind, layout',
    [
        ('eagle1', 'authors'), ('eagle1', 'speculators'), ('eagle3', 'authors'),
        ('reduced', 'sglang'), ('reduced', 'speculators'),
    ],
)
def test_a_head_comes_back_the_same(kind, layout, tmp_path):
  head = {'eagle1': tiny_heads.head(1), 'eagle3': tiny_heads.head(),
          'reduced': tiny_heads.head(3, 24)}[kind]
  heads.save_eagle(head, tmp_path / 'head', layout=layout)
  again = heads.load_eagle(tmp_path / 'head', tiny.target())
  assert again.config == head.config and again.embedding is None
  assert same(again.params, head.params)
  if kind == 'reduced':
    np.testing.assert_array_equal(again.draft_to_target, head.draft_to_target)
  names = set(hf_files.open_folder(tmp_path / 'head', dtypes=DTYPES))
  first = {'speculators': 'layers.0.' if kind != 'eagle1' else 'transformer.'}.get(
      layout, 'midlayer.' if kind != 'eagle1' else 'layers.0.'
  )
  assert f'{first}self_attn.q_proj.weight' in names
  assert ('d2t' in names) == (kind == 'reduced')


def test_a_target_s_embedding_is_stored_on_request_and_shared_again(tmp_path):
  embedding = tiny.target().params['embedding']
  heads.save_eagle(tiny_heads.head(), tmp_path / 'head', embedding=embedding)
  assert 'embed_tokens.weight' in hf_files.open_folder(tmp_path / 'head')
  assert heads.load_eagle(tmp_path / 'head', tiny.target()).embedding is None


def test_an_output_head_that_is_the_targets_is_not_stored(tmp_path):
  head, target = tiny_heads.head(3, 24), tiny.target()
  with pytest.raises(ValueError, match='is not that of the target'):
    heads.save_eagle(head, tmp_path / 'head', shared_with=target)
  rows = target_lib.output_head(target)[head.draft_to_target]
  head = head.replace(params=head.params | {'head': rows})
  heads.save_eagle(head, tmp_path / 'head', shared_with=target)
  assert 'lm_head.weight' not in hf_files.open_folder(tmp_path / 'head', dtypes=DTYPES)
  again = heads.load_eagle(tmp_path / 'head', target)
  assert again.config == head.config and same(again.params, head.params)


def test_switches_of_speculators_survive_their_layout_alone(tmp_path):
  import dataclasses
  head = tiny_heads.head()
  changed = dataclasses.replace(head.config, norm_before_residual=True)
  head = head.replace(module=head.module.clone(config=changed))
  heads.save_eagle(head, tmp_path / 'head', layout='speculators')
  assert heads.load_eagle(tmp_path / 'head', tiny.target()).config.norm_before_residual
  with pytest.raises(ValueError, match="save the head with layout='speculators'"):
    heads.save_eagle(head, tmp_path / 'other', layout='sglang')
  with pytest.raises(ValueError, match='layout must be one of'):
    heads.save_eagle(head, tmp_path / 'other', layout='other')
  one = tiny_heads.head(1)
  decoder = dataclasses.replace(one.config.decoder, num_layers=2)
  config = dataclasses.replace(one.config, decoder=decoder)
  two = one.replace(module=one.module.clone(config=config))
  with pytest.raises(ValueError, match='has a place for one layer, the head has 2'):
    heads.save_eagle(two, tmp_path / 'other', layout='speculators')


def rewrite(folder, change):
  """Applies `change` to the tensors of a folder."""
  stored = hf_files.open_folder(folder, dtypes=DTYPES)
  tensors = {name: np.array(tensor.read()) for name, tensor in stored.items()}
  change(tensors)
  data = json.loads((folder / 'config.json').read_text())
  shutil.rmtree(folder)
  hf_files.publish(folder, data, [
      hf_files.Unwritten(name, value.shape, value.dtype, lambda v=value: v)
      for name, value in tensors.items()
  ])


@pytest.mark.parametrize('change, message', [
    (lambda t: t.pop('fc.weight'), 'missing: fc.weight'),
    (lambda t: t.update(surprise=np.zeros(3, np.float32)), 'unexpected: surprise'),
    (lambda t: t.update({'norm.weight': np.zeros(3, np.float32)}), r'norm.weight has shape \(3,\)'),
    (lambda t: t.pop('d2t'), 'd2t, which maps them, is missing'),
    (lambda t: t.update(d2t=t['d2t'] * 0 + 60), 'to different ones of 64'),
    (lambda t: t.update(t2d=~t['t2d']), 't2d does not mark'),
])
def test_a_wrong_tensor_is_named(change, message, tmp_path):
  heads.save_eagle(tiny_heads.head(3, 24), tmp_path / 'head')
  rewrite(tmp_path / 'head', change)
  with pytest.raises(ValueError, match=message):
    heads.load_eagle(tmp_path / 'head', tiny.target())


def test_layers_are_counted_as_each_engine_counts_them():
  assert eagle_config.feature_layers({}, 32) == (2, 16, 29)
  ids = {'eagle_aux_hidden_state_layer_ids': [2, 9, 13]}
  assert eagle_config.feature_layers(ids, 16) == (2, 9, 13)
  nested = {'eagle_config': {'eagle_aux_hidden_state_layer_ids': [1, 8, 12]}}
  assert eagle_config.feature_layers(nested, 16) == (2, 9, 13)


@pytest.mark.parametrize('layout', heads.MEDUSA_LAYOUTS)
def test_medusa_heads_and_exits_come_back_the_same(layout, tmp_path):
  heads.save_medusa(tiny_heads.medusa(), tmp_path / 'medusa', layout=layout)
  again = heads.load_medusa(tmp_path / 'medusa', tiny.target())
  assert again.config == tiny_heads.medusa().config
  assert same(again.params, tiny_heads.medusa().params)
  heads.save_early_exit(tiny_heads.adapter(), tmp_path / 'exit')
  again = heads.load_early_exit(tmp_path / 'exit', tiny.target())
  assert again.config == tiny_heads.adapter().config
  assert same(again.params, tiny_heads.adapter().params)
  rewrite(tmp_path / 'exit', lambda tensors: tensors.pop('norm.weight'))
  with pytest.raises(ValueError, match='missing: norm.weight'):
    heads.load_early_exit(tmp_path / 'exit', tiny.target())
  if layout == 'vllm':
    rewrite(tmp_path / 'medusa', lambda tensors: tensors.pop('blocks.1.layers.0.weight'))
    with pytest.raises(ValueError, match='missing: blocks.1.layers.0.weight'):
      heads.load_medusa(tmp_path / 'medusa', tiny.target())


def test_a_torch_file_that_runs_code_is_refused(tmp_path):
  import pickle
  import zipfile

  class Evil:
    def __reduce__(self):
      return (print, ('ran',))

  with zipfile.ZipFile(tmp_path / 'evil.bin', 'w') as archive:
    archive.writestr('archive/data.pkl', pickle.dumps({'x': Evil()}))
  with pytest.raises(ValueError, match='holds more than tensors.*print'):
    torch_files.read(tmp_path / 'evil.bin')
  (tmp_path / 'cut.bin').write_bytes((GOLDEN / 'eagle1' / 'pytorch_model.bin').read_bytes()[:999])
  with pytest.raises(ValueError, match='is damaged'):
    torch_files.read(tmp_path / 'cut.bin')
