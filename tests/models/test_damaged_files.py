"""Damaged files, tried systematically: a clear error, or a load that is right; no weight is read.

Right are, for a key that is taken out, what `transformers` takes in its place; for another value of
the right kind, that value; and else the model as it was, where nothing is computed from the key.
"""

import json
import pathlib
import random
import shutil

import numpy as np
import pytest

from specjax import heads
from specjax import models
from specjax.models.hf import files as hf_files
from tests.support import head_files

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
FAMILIES = ('gemma2', 'gemma3', 'llama2', 'llama3', 'mistral', 'qwen2', 'qwen3')
GONE = 'gone'
WRONG = (
    None, True, False, 0, -1, 3, 2.5, 10**12, 10**400, 1e40, float('nan'), float('inf'), 'x', '',
    [], ['x'], [None], {}, {'x': 1}, GONE,
)
# Notes, from which nothing is computed.
IDLE = ('attention_dropout', 'initializer_range', 'transformers_version', 'use_cache',
        'pretraining_tp', '_sliding_window_pattern')
IDS = ('bos_token_id', 'pad_token_id', 'eos_token_id')
# Keys that decide nothing where `layer_types` says all, or where no layer has a window.
UNUSED = {
    'sliding_window_pattern': FAMILIES,
    'max_window_layers': FAMILIES,
    'sliding_window': ('qwen3',),
    'use_sliding_window': ('qwen3',),
}
# Fields of the configuration that a key is, and what is left without it where that differs.
FIELDS = {
    'rms_norm_eps': ('norm_epsilon', lambda family: 1e-6),
    'max_position_embeddings': ('max_positions', lambda family: {
        'llama2': 2048, 'llama3': 2048, 'mistral': 131072, 'qwen2': 32768, 'qwen3': 32768,
        'gemma2': 8192, 'gemma3': 131072,
    }[family]),
    'sliding_window': ('sliding_window', lambda family: 4096),
    'attn_logit_softcapping': ('attention_soft_cap', lambda family: 50.0),
    'final_logit_softcapping': ('logit_soft_cap', lambda family: 30.0),
}
# What a size or a name is found to contradict.
OTHERS = ('layer_types', 'head_dim', 'num_kv_heads', 'sliding_window')


class Read(Exception):
  """A tensor was asked for: every check was passed."""


@pytest.fixture
def unread(monkeypatch):
  def read(self):
    raise Read

  monkeypatch.setattr(hf_files.StoredTensor, 'read', read)


def is_right(family: str, key: str, value, before, after) -> bool:
  """Whether a file that loads with this change gives the model that it describes."""
  changed = {name: new for name, new in vars(after).items() if new != vars(before)[name]}
  gone = value in (GONE, None, [], {})
  if key in IDLE or key in UNUSED and family in UNUSED[key]:
    return not changed
  if key in IDS:
    return not changed and (gone or isinstance(value, int))
  if key in FIELDS and changed:
    field, default = FIELDS[key]
    return changed == {field: default(family) if value == GONE else value}
  if key == 'query_pre_attn_scalar':
    wanted = (256 if value == GONE else value) ** -0.5
    return set(changed) == {'query_scale'} and np.isclose(changed['query_scale'], wanted)
  if key == 'rope_parameters':
    theta = 1e6 if family == 'gemma3' else 1e4
    return gone and (after.rope_theta, after.rope_scaling) == (theta, None)
  if key == 'tie_word_embeddings' and value is True:
    return True  # whether it holds is known by comparing lm_head.weight, which is read
  # Without it the default, the architecture or the other keys say the same; false says no.
  return not changed and (gone or value is False)


def damaged(data: dict):
  """A file with one key taken out or of another value: the key, the value and the file."""
  for key, old in data.items():
    for value in WRONG:
      if value == old and isinstance(value, bool) == isinstance(old, bool):
        continue
      yield key, value, {
          name: value if name == key else each
          for name, each in data.items()
          if name != key or value != GONE
      }


@pytest.mark.parametrize('family', FAMILIES)
def test_every_key_of_a_config_with_every_wrong_value(family, tmp_path, unread):
  folder = tmp_path / 'model'
  shutil.copytree(GOLDEN / 'models' / family, folder)
  data = json.loads((folder / 'config.json').read_text())
  before = models.load_config(folder)
  wrong = []
  for key, value, new in damaged(data):
    (folder / 'config.json').write_text(json.dumps(new))
    try:
      models.load_hf(folder)
    except Read:
      if not is_right(family, key, value, before, models.load_config(folder)):
        wrong.append((key, value, 'loads'))
    except ValueError as error:
      # What contradicts another key or a tensor is said with the name of that one.
      if str(folder) not in str(error) or not any(
          name in str(error) for name in (key, 'tensor', *OTHERS)
      ):
        wrong.append((key, value, str(error)))
  assert not wrong


def damaged_headers(header: dict, rng: random.Random, count: int):
  """Headers with one thing wrong, and what it is."""
  names = [name for name in header if name != '__metadata__']
  for _ in range(count):
    name = rng.choice(names)
    entry = dict(header[name])
    kind = rng.choice(['gone', 'value', 'item', 'entry', 'twin', 'metadata'])
    key = rng.choice(sorted(entry))
    value = rng.choice([each for each in WRONG if each != GONE])
    new = dict(header)
    if kind == 'gone':
      del entry[key]
    elif kind == 'value':
      entry[key] = value
    elif kind == 'item':
      key = rng.choice(['shape', 'data_offsets'])
      items = list(entry[key])
      items[rng.randrange(len(items))] = value
      entry[key] = items
    elif kind == 'twin':
      new[f'{name}.twin'] = entry  # two tensors in one place
    new[name] = entry
    if kind == 'entry':
      new[name] = value
    if kind == 'metadata':
      new['__metadata__'] = value
    yield (kind, name, key, value), new


def test_damaged_headers_of_safetensors_files(tmp_path, unread):
  folder = tmp_path / 'model'
  shutil.copytree(GOLDEN / 'models' / 'qwen2', folder)
  whole = (folder / 'model.safetensors').read_bytes()
  length = int.from_bytes(whole[:8], 'little')
  header, rest = json.loads(whole[8 : 8 + length]), whole[8 + length :]
  wrong = []
  for what, new in damaged_headers(header, random.Random(0), 300):
    text = json.dumps(new).encode()
    (folder / 'model.safetensors').write_bytes(len(text).to_bytes(8, 'little') + text + rest)
    try:
      models.load_hf(folder)
    except Read:
      # What was written is what was there, or a note that nothing reads.
      if new != header and not (what[0] == 'metadata' and what[3] in (None, {})):
        wrong.append((*what, 'loads'))
    except ValueError as error:
      if 'model.safetensors' not in str(error):
        wrong.append((*what, str(error)))
  assert not wrong


@pytest.mark.parametrize('text', [
    b'[' * 100_000, b'{"a":' * 50_000, b'1' * 5_000, b'\xff\xfe{}', b'', b'null', b'"x"', b'[]',
])
def test_json_of_another_kind_is_refused_with_the_name_of_the_file(text, tmp_path):
  folder = tmp_path / 'model'
  shutil.copytree(GOLDEN / 'models' / 'llama2', folder)
  whole = (folder / 'model.safetensors').read_bytes()
  (folder / 'model.safetensors').write_bytes(len(text).to_bytes(8, 'little') + text + whole)
  with pytest.raises(ValueError, match='model.safetensors is not a safetensors file: its header'):
    models.load_hf(folder)
  (folder / 'config.json').write_bytes(text)
  with pytest.raises(ValueError, match='config.json (is not JSON|must hold a JSON object)'):
    models.load_config(folder)
  (folder / 'generation_config.json').write_bytes(text)
  with pytest.raises(ValueError, match='generation_config.json (is not JSON|must hold a JSON ob)'):
    models.load_eos_ids(folder)


def test_sizes_are_held_against_the_tensors_before_anything_is_made(tmp_path, unread):
  folder = tmp_path / 'model'
  shutil.copytree(GOLDEN / 'models' / 'llama2', folder)
  data = json.loads((folder / 'config.json').read_text())
  for changes, message in (
      (dict(num_hidden_layers=9_999), 'num_hidden_layers=9999, the tensors are those of 2 layers'),
      (dict(num_hidden_layers=1), 'num_hidden_layers=1, the tensors are those of 2 layers'),
      (dict(vocab_size=2**31 - 1), r'embed_tokens.weight has shape \(96, 32\), but config.json'),
      (dict(intermediate_size=2**31 - 1), r'gate_proj.weight has shape \(56, 32\), but config'),
      (dict(num_key_value_heads=1), r'k_proj.weight has shape \(32, 32\), but config.json'),
  ):
    (folder / 'config.json').write_text(json.dumps(data | changes))
    with pytest.raises(ValueError, match=message):
      models.load_hf(folder)


FOLDERS = {
    'EAGLE-3': (
        head_files.DECODER | dict(
            architectures=['LlamaForCausalLMEagle3'], draft_vocab_size=head_files.VOCAB,
            norm_output=False, fc_norm=False, norm_before_fc=False, norm_before_residual=False,
            target_hidden_size=head_files.WIDTH, eagle_config={'use_aux_hidden_state': True},
            target_layer_ids=[0, 3, 5], num_target_layers=head_files.DEPTH, logit_scale=1.0,
        ),
        head_files.tensors(),
        heads.load_eagle,
    ),
    'speculators': (
        dict(
            speculators_model_type='eagle3', transformer_layer_config=head_files.DECODER,
            draft_vocab_size=head_files.VOCAB, eagle_aux_hidden_state_layer_ids=[1, 4, 6],
        ),
        head_files.tensors('layers.0.'),
        heads.load_eagle,
    ),
    'Medusa': (
        dict(num_heads=1, num_hidden_layers=1, hidden_size=head_files.WIDTH, original_lm_head=False,
             vocab_size=head_files.VOCAB, truncated_vocab_size=head_files.VOCAB,
             medusa_fc_bias=False),
        {'blocks.0.layers.0.weight': np.ones((head_files.WIDTH,) * 2, np.float32),
         'lm_heads.0.weight': np.ones((head_files.VOCAB, head_files.WIDTH), np.float32)},
        heads.load_medusa,
    ),
}
# Keys whose absence says the same: by default, or because the tensors say it.
SAME = {
    'architectures', 'hidden_act', 'attention_bias', 'draft_vocab_size', 'norm_output', 'fc_norm',
    'norm_before_fc', 'norm_before_residual', 'target_hidden_size', 'eagle_config', 'logit_scale',
    'num_target_layers', 'head_dim', 'num_heads', 'num_hidden_layers', 'hidden_size', 'vocab_size',
    'truncated_vocab_size', 'medusa_fc_bias', 'original_lm_head', 'num_key_value_heads',
    'speculators_model_type',
}
# Keys of which the tensors are believed: of any right kind, they change nothing.
BELIEVED = {
    'EAGLE-3': ('architectures', 'num_hidden_layers', 'attention_bias'),
    'speculators': (),
    'Medusa': ('medusa_fc_bias',),
}
# Fields that a key may change, to its value or to its default.
CHANGES = {
    'target_layer_ids': {'feature_layers'},
    'eagle_aux_hidden_state_layer_ids': {'feature_layers'},
    'rms_norm_eps': {'decoder'},
    'rope_theta': {'decoder'},
    'max_position_embeddings': {'decoder'},
    'norm_output': {'norm_output'},
    'norm_before_residual': {'norm_before_residual'},
    'original_lm_head': {'shared_head'},
}


@pytest.mark.parametrize('kind', FOLDERS)
def test_every_key_of_a_heads_config_with_every_wrong_value(kind, tmp_path):
  data, tensors, load = FOLDERS[kind]
  folder = head_files.write(tmp_path / 'head', data, tensors)
  before = load(folder, head_files.target()).config
  wrong = []
  for key, value, new in damaged(data):
    (folder / 'config.json').write_text(json.dumps(new))
    try:
      after = load(folder, head_files.target()).config
    except ValueError as error:
      if str(folder) not in str(error) and 'The head' not in str(error):
        wrong.append((key, value, str(error)))
      continue
    changed = {name for name, new in vars(after).items() if new != vars(before)[name]}
    right = changed == CHANGES.get(key)
    right |= not changed and (value in (GONE, None, [], {}, data[key]) and key in SAME)
    right |= not changed and key in BELIEVED[kind]
    if not right:
      wrong.append((key, value, changed))
  assert not wrong
