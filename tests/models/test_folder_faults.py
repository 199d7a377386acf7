"""Folders of models as they are met: what is read from where, and what is said of the rest."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from experiments import build
from specjax import models
from specjax.models.hf import files as hf_files

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'models'
BOM = '\ufeff'


def copy(family, folder, **changes):
  shutil.copytree(GOLDEN / family, folder)
  data = json.loads((folder / 'config.json').read_text()) | changes
  (folder / 'config.json').write_text(json.dumps(data))
  return folder


def shard(folder):
  """Splits a folder's tensors over two files and an index, layer 1 in the second."""
  tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  place = lambda name: f'model-{2 if "layers.1." in name else 1:05d}-of-00002.safetensors'
  index = {name: place(name) for name in tensors}
  parts = {file: {name: value for name, value in tensors.items() if index[name] == file}
           for file in index.values()}
  write_index(folder, index)
  return index, parts


def write_index(folder, index):
  path = folder / 'model.safetensors.index.json'
  path.write_text(json.dumps({'metadata': {}, 'weight_map': index}))


def write_parts(folder, parts):
  for file, tensors in parts.items():
    safetensors.numpy.save_file(tensors, folder / file)


def same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_each_tensor_is_that_of_the_file_that_the_index_names(tmp_path):
  folder = copy('llama2', tmp_path / 'model')
  index, parts = shard(folder)
  first, second = sorted(parts)
  assert index['lm_head.weight'] == first
  # A stale copy where the index does not point, and a tensor that it does not name.
  parts[second]['lm_head.weight'] = parts[first]['lm_head.weight'] * -3
  parts[second]['left.over'] = np.ones(4, np.float32)
  write_parts(folder, parts)
  same(models.load_hf(folder), models.load_hf(GOLDEN / 'llama2'))
  # Pointed to, it is read.
  write_index(folder, index | {'lm_head.weight': second})
  found = models.load_hf(folder).params['head']
  np.testing.assert_array_equal(found, parts[second]['lm_head.weight'])
  # And one that is pointed to where it is not.
  write_index(folder, index | {'model.norm.weight': second})
  with pytest.raises(ValueError, match='lists tensors that its shards do not hold: model.norm.we'):
    models.load_hf(folder)


@pytest.mark.parametrize('index, message', [
    ({}, 'index.json has no weight_map'),
    ({'weight_map': []}, r'weight_map must be an object, got \[\]'),
    ({'weight_map': None}, 'weight_map must be an object, got None'),
    ({'weight_map': {'a': 1}}, 'weight_map.a must be the name of a file in the same folder, got 1'),
    ({'weight_map': {'a': None}}, 'weight_map.a must be the name of a file'),
    ({'weight_map': {'a': '../a.safetensors'}}, r"same folder, got '\.\./a.safetensors'"),
    ({'weight_map': {'a': '/etc/passwd'}}, 'weight_map.a must be the name of a file'),
    ([], 'must hold a JSON object, not list'),
])
def test_an_index_of_the_wrong_type_is_an_error_that_says_so(index, message, tmp_path):
  folder = copy('llama2', tmp_path / 'model')
  (folder / 'model.safetensors').unlink()
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  with pytest.raises(ValueError, match=message):
    models.load_hf(folder)


@pytest.mark.parametrize('generation, config, tokenizer, wanted', [
    ([], 5, None, (5,)),
    (None, [5, 6], None, (5, 6)),
    (0, 5, None, (0,)),
    ([], [], '<end>', (2,)),
    (None, None, {'content': '<end>', 'lstrip': False}, (2,)),
    (None, None, 'word', (1,)),  # of tokenizer.json alone
    (None, None, None, ()),
])
def test_end_tokens_are_those_of_the_first_file_that_names_any(
    generation, config, tokenizer, wanted, tmp_path
):
  folder = copy('llama2', tmp_path / 'model', eos_token_id=config)
  (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': generation}))
  vocabulary = tokenizers.models.WordLevel({'?': 0, 'word': 1}, unk_token='?')
  tokenizers.Tokenizer(vocabulary).save(str(folder / 'tokenizer.json'))
  added = {'2': {'content': '<end>', 'special': True}}
  data = {'eos_token': tokenizer, 'added_tokens_decoder': added, 'chat_template': [1]}
  (folder / 'tokenizer_config.json').write_text(json.dumps(data))
  assert models.load_eos_ids(folder) == wanted


@pytest.mark.parametrize('file, data, message', [
    ('generation_config.json', {'eos_token_id': [2, None]},
     r'must be a token id, a list of token ids or null, got \[2, None\]'),
    ('generation_config.json', {'eos_token_id': 'x'}, "or null, got 'x'"),
    ('generation_config.json', {'eos_token_id': True}, 'or null, got True'),
    ('generation_config.json', {'eos_token_id': -1}, 'or null, got -1'),
    ('tokenizer_config.json', {'eos_token': 7}, 'eos_token must be an object, got 7'),
    ('tokenizer_config.json', {'eos_token': {}}, 'eos_token: content must be a text, got None'),
    ('tokenizer_config.json', {'eos_token': '<x>'}, "eos_token='<x>' has no id in added_tokens"),
    ('tokenizer_config.json', {'added_tokens_decoder': {'2': 'x'}}, "decoder.2 must be an object"),
])
def test_end_tokens_of_the_wrong_type_are_errors_that_say_so(file, data, message, tmp_path):
  folder = copy('llama2', tmp_path / 'model', eos_token_id=None)
  (folder / 'generation_config.json').unlink()
  (folder / file).write_text(json.dumps(data))
  with pytest.raises(ValueError, match=message) as info:
    models.load_eos_ids(folder)
  assert file in str(info.value)


@pytest.mark.parametrize('rope, message', [
    (dict(rope_scaling={'factor': 4}), 'rope_scaling has factor but no rope_type: add the kind'),
    (dict(rope_scaling={'type': None, 'factor': 4}), 'rope_scaling has factor but no rope_type'),
    (dict(rope_scaling={'short_factor': [1.0]}), 'rope_scaling has short_factor but no rope_type'),
    (dict(rope_parameters={'rope_theta': 1e4, 'factor': 2.0}), 'rope_parameters has factor but no'),
    (dict(rope_scaling={'type': 'linear', 'factor': '4'}),
     "rope_scaling: factor must be a positive number or null, got '4'"),
    (dict(rope_scaling={'type': 'linear', 'factor': 0}), 'factor must be a positive number'),
    (dict(rope_scaling={'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 4.0,
                        'high_freq_factor': 4.0}), 'needs low_freq_factor < high_freq_factor'),
])
def test_a_scaling_that_would_scale_nothing_is_refused(rope, message, tmp_path):
  folder = copy('llama2', tmp_path / 'model', **dict(rope_parameters=None) | rope)
  with pytest.raises(ValueError, match=message):
    models.load_config(folder)


@pytest.mark.parametrize('has_config', [False, True])
def test_an_adapter_is_named_as_one(has_config, tmp_path):
  folder = copy('llama2', tmp_path / 'model')
  (folder / 'model.safetensors').rename(folder / 'adapter_model.safetensors')
  (folder / 'adapter_config.json').write_text('{"base_model_name_or_path": "org/base"}')
  if not has_config:
    (folder / 'config.json').unlink()
  with pytest.raises(FileNotFoundError, match=r'is an adapter \(PEFT\) of org/base.*merge it into'):
    models.load_hf(folder)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
  folder = copy('llama3', tmp_path / 'model')
  for file in folder.glob('*.json'):
    file.write_text(BOM + file.read_text(), encoding='utf-8')
  assert models.load_config(folder) == models.load_config(GOLDEN / 'llama3')
  assert models.load_eos_ids(folder) == (2, 3)
  index, parts = shard(folder)
  write_parts(folder, parts)
  file = folder / 'model.safetensors.index.json'
  file.write_text(BOM + file.read_text(), encoding='utf-8')
  assert set(hf_files.open_folder(folder)) == set(index)


def test_the_command_line_loads_the_language_model_of_a_gemma_3(tmp_path):
  from configs import zoo

  folder = copy('gemma3', tmp_path / 'model')
  text = json.loads((folder / 'config.json').read_text())
  text.pop('architectures')
  data = {'architectures': ['Gemma3ForConditionalGeneration'], 'model_type': 'gemma3',
          'text_config': text}
  (folder / 'config.json').write_text(json.dumps(data))
  tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
  tensors = {f'language_{name}' if name.startswith('model.') else name: value
             for name, value in tensors.items()}
  tensors = {name.replace('language_model.', 'language_model.model.', 1): value
             for name, value in tensors.items()}
  tower = {'vision_tower.vision_model.post_layernorm.weight': np.ones(3, np.float32)}
  safetensors.numpy.save_file(tensors | tower, folder / 'model.safetensors')
  vocabulary = tokenizers.models.WordLevel({'?': 0}, unk_token='?')
  tokenizers.Tokenizer(vocabulary).save(str(folder / 'tokenizer.json'))
  config = zoo.get_config()
  config.target.path, config.dtype = str(folder), 'float32'
  same(build.load(config).target, models.load_hf(GOLDEN / 'gemma3'))
