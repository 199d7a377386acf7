"""Metadata of GGUF files: which model it is, and what is refused by name."""

import dataclasses

import numpy as np
import pytest

from specjax import models
from specjax.models import gguf
from specjax.models import layers
from specjax.models import presets
from specjax.models.hf import config as hf_config
from tests.support import gguf_files

write = gguf_files.write_changed

# What decides a published model in the metadata of its file, and the preset that it is.
PUBLISHED = {
    'Llama-3.2-1B': dict(architecture='llama', rope=(32.0, 64), tied=True, keys={
        'vocab_size': 128256, 'context_length': 131072, 'embedding_length': 2048,
        'block_count': 16, 'feed_forward_length': 8192, 'attention.head_count': 32,
        'attention.head_count_kv': 8, 'rope.freq_base': 500000.0, 'rope.dimension_count': 64,
        'attention.layer_norm_rms_epsilon': 1e-5, 'attention.key_length': 64,
        'attention.value_length': 64}),
    'Llama-3.1-8B': dict(architecture='llama', rope=(8.0, 128), keys={
        'vocab_size': 128256, 'context_length': 131072, 'embedding_length': 4096,
        'block_count': 32, 'feed_forward_length': 14336, 'attention.head_count': 32,
        'attention.head_count_kv': 8, 'rope.freq_base': 500000.0, 'rope.dimension_count': 128,
        'attention.layer_norm_rms_epsilon': 1e-5}),
    'Mistral-7B-v0.3': dict(architecture='llama', keys={
        'vocab_size': 32768, 'context_length': 32768, 'embedding_length': 4096,
        'block_count': 32, 'feed_forward_length': 14336, 'attention.head_count': 32,
        'attention.head_count_kv': 8, 'rope.freq_base': 1000000.0, 'rope.dimension_count': 128,
        'attention.layer_norm_rms_epsilon': 1e-5}),
    'Qwen2.5-0.5B': dict(architecture='qwen2', tied=True, keys={
        'vocab_size': 151936, 'context_length': 32768, 'embedding_length': 896,
        'block_count': 24, 'feed_forward_length': 4864, 'attention.head_count': 14,
        'attention.head_count_kv': 2, 'rope.freq_base': 1000000.0,
        'attention.layer_norm_rms_epsilon': 1e-6}),
    'Qwen3-8B': dict(architecture='qwen3', keys={
        'vocab_size': 151936, 'context_length': 40960, 'embedding_length': 4096,
        'block_count': 36, 'feed_forward_length': 12288, 'attention.head_count': 32,
        'attention.head_count_kv': 8, 'rope.freq_base': 1000000.0,
        'attention.layer_norm_rms_epsilon': 1e-6, 'attention.key_length': 128,
        'attention.value_length': 128}),
    'Gemma-2-27B': dict(architecture='gemma2', tied=True, keys={
        'vocab_size': 256000, 'context_length': 8192, 'embedding_length': 4608,
        'block_count': 46, 'feed_forward_length': 36864, 'attention.head_count': 32,
        'attention.head_count_kv': 16, 'attention.layer_norm_rms_epsilon': 1e-6,
        'attention.key_length': 128, 'attention.value_length': 128,
        'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0,
        'attention.sliding_window': 4096}),
    'Gemma-3-1B': dict(architecture='gemma3', tied=True, keys={
        'vocab_size': 262144, 'context_length': 32768, 'embedding_length': 1152,
        'block_count': 26, 'feed_forward_length': 6912, 'attention.head_count': 4,
        'attention.head_count_kv': 1, 'attention.layer_norm_rms_epsilon': 1e-6,
        'attention.key_length': 256, 'attention.value_length': 256, 'rope.freq_base': 1000000.0,
        'attention.sliding_window': 512}),
    'Gemma-3-27B': dict(architecture='gemma3', tied=True, keys={
        'vocab_size': 262208, 'context_length': 131072, 'embedding_length': 5376,
        'block_count': 62, 'feed_forward_length': 21504, 'attention.head_count': 32,
        'attention.head_count_kv': 16, 'attention.layer_norm_rms_epsilon': 1e-6,
        'attention.key_length': 128, 'attention.value_length': 128, 'rope.freq_base': 1000000.0,
        'rope.scaling.type': 'linear', 'rope.scaling.factor': 8.0,
        'attention.sliding_window': 1024}),
}


def llama3_factors(factor: float, head_dim: int) -> np.ndarray:
  """`rope_freqs.weight` as the converter makes it, in float32."""
  inverse = 1 / np.float32(5e5) ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
  result = []
  for wavelength in 2 * np.pi / inverse:
    kept = (8192 / wavelength - 1) / 3
    result.append(1.0 if kept > 1 else factor if kept < 0 else 1 / ((1 - kept) / factor + kept))
  return np.asarray(result, np.float32)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_files_give_the_preset(name, tmp_path):
  model = PUBLISHED[name]
  keys = {f'{model["architecture"]}.{key}': value for key, value in model['keys'].items()}
  tensors = {} if 'tied' in model else {'output.weight': (np.zeros((1, 1), np.float32), 'F32')}
  if 'rope' in model:
    tensors['rope_freqs.weight'] = llama3_factors(*model['rope']), 'F32'
  path = gguf_files.write(tmp_path / 'model.gguf', keys, tensors)
  config = gguf.load_gguf_config(path)
  wanted = hf_config.canonical(presets.get(name))
  assert config == dataclasses.replace(wanted, max_positions=config.max_positions)


def test_other_factors_are_kept_as_they_are(tmp_path):
  config = gguf.load_gguf_config(write(tmp_path, 'llama factors'))
  factors = gguf_files.factors(gguf_files.CASES['llama factors'])
  plain = layers.rope_frequencies(16, 500.0, None)
  np.testing.assert_array_equal(
      layers.rope_frequencies(16, 500.0, config.rope_scaling), plain / factors
  )
  with pytest.raises(ValueError, match='No supported Hugging Face architecture divides every'):
    hf_config.write(config)
  ones = {'rope_freqs.weight': (np.ones(8, np.float32), 'F32')}
  assert gguf.load_gguf_config(write(tmp_path, more=ones)).rope_scaling is None


@pytest.mark.parametrize('keys, wanted', [
    ({'rope.scaling.type': 'none', 'rope.scaling.factor': 4.0}, None),
    ({'rope.scaling.factor': 4.0}, models.RopeScaling('linear', 4.0)),
    ({'rope.scale_linear': 2.0}, models.RopeScaling('linear', 2.0)),
    ({'rope.scaling.type': 'linear', 'rope.scaling.factor': 1.0}, None),
    ({'rope.scaling.type': 'linear', 'rope.scaling.finetuned': True}, None),
    ({'rope.scaling.type': 'yarn', 'rope.scaling.factor': 2.0},
     models.RopeScaling('yarn', 2.0, original_max_positions=32)),
    ({'rope.scaling.type': 'yarn', 'rope.scaling.factor': 2.0,
      'rope.scaling.yarn_attn_factor': 1.25},
     models.RopeScaling('yarn', 2.0, original_max_positions=32, attention_factor=1.25)),
])
def test_rotary_scaling(keys, wanted, tmp_path):
  assert gguf.load_gguf_config(write(tmp_path, **keys)).rope_scaling == wanted


def test_windows(tmp_path):
  flags = [True, False]
  keys = {'attention.sliding_window_pattern': flags}
  assert gguf.load_gguf_config(write(tmp_path, 'gemma2', **keys)).local_layers == tuple(flags)
  keys = {'attention.sliding_window_pattern': None, 'attention.sliding_window': None}
  config = gguf.load_gguf_config(write(tmp_path, 'gemma2', **keys))
  assert (config.sliding_window, config.local_layers) == (4096, (True, False))
  config = gguf.load_gguf_config(write(tmp_path, 'gemma3', **{
      'attention.sliding_window_pattern': None, 'rope.freq_base_swa': 77.0}))
  assert config.local_rope_theta == 77.0 and config.local_layers == ()


def test_the_vocabulary_is_as_large_as_the_list_of_tokens_where_no_key_says(tmp_path):
  path = write(tmp_path, vocab_size=None)
  with pytest.raises(ValueError, match='neither llama.vocab_size nor a list tokenizer.ggml.tok'):
    gguf.load_gguf_config(path)
  case = gguf_files.CASES['llama']
  values = gguf_files.metadata(case) | {'tokenizer.ggml.tokens': ['x'] * 64}
  path = gguf_files.write(tmp_path / 'model.gguf', values, gguf_files.tensors(case))
  assert gguf.load_gguf_config(path).vocab_size == 64
  values |= {'tokenizer.ggml.tokens': ['x'] * 65}
  path = gguf_files.write(tmp_path / 'model.gguf', values, gguf_files.tensors(case))
  with pytest.raises(ValueError, match='has 65 tokens, but llama.vocab_size is 64'):
    gguf.load_gguf_config(path)


@pytest.mark.parametrize('name, keys, message', [
    ('llama', {'expert_count': 8}, r'llama.expert_count=8 is not supported \(only 0 is\)'),
    ('llama', {'attention.causal': False}, 'llama.attention.causal=False is not supported'),
    ('llama', {'attention.value_length': 8}, 'llama.attention.value_length=8 is not supported'),
    ('llama', {'rope.dimension_count': 8}, 'llama.rope.dimension_count=8 is not supported: only'),
    ('llama', {'attention.key_length': 7}, 'key_length must be an even integer, got 7'),
    ('llama', {'attention.sliding_window': 8}, 'llama.attention.sliding_window=8 is not known'),
    ('llama', {'logit_scale': 0.5}, 'llama.logit_scale=0.5 is not known, and may'),
    ('llama', {'tensor_data_layout': 'other'}, "llama.tensor_data_layout='other' is not supp"),
    ('llama', {'block_count': None}, 'llama.block_count must be a positive integer, got None'),
    ('llama', {'block_count': 10**6}, 'llama.block_count must be at most 10,000'),
    ('llama', {'attention.head_count': [4, 4]}, 'attention.head_count must be a positive int'),
    ('llama', {'attention.head_count_kv': 3}, 'num_heads must be a multiple of num_kv_heads'),
    ('llama', {'rope.scaling.type': 'longrope'},
     "llama.rope.scaling.type='longrope' is not supported. Supported are none, linear, yarn"),
    ('llama', {'rope.scaling.type': 'yarn'}, "'yarn' needs llama.rope.scaling.factor"),
    ('llama', {'rope.scaling.attn_factor': 2.0}, 'rope.scaling.attn_factor=2.0 is not supp'),
    ('llama', {'rope.scaling.yarn_ext_factor': 0.5}, 'yarn_ext_factor=0.5 is not supported'),
    ('llama', {'rope.scaling.yarn_log_multiplier': 0.1}, 'yarn_log_multiplier=0.1 is not supp'),
    ('llama yarn', {'rope.scaling.yarn_beta_slow': 32.0}, 'yarn_beta_fast must be above'),
    ('llama factors', {'rope.scaling.factor': 2.0}, 'rope_freqs.weight beside llama.rope.sca'),
    ('qwen2', {'rope.freq_base_swa': 10.0}, 'qwen2.rope.freq_base_swa=10.0 is not supported'),
    ('gemma3', {'rope.scaling.type': 'yarn', 'rope.scaling.factor': 2.0},
     "gemma3.rope.scaling.type='yarn' is not supported"),
    ('gemma3', {'attention.sliding_window': None},
     'gemma3.attention.sliding_window must be a positive integer'),
    ('gemma3', {'attention.sliding_window_pattern': [True]}, 'has 1 entries for 2 layers'),
    ('gemma3', {'attention.sliding_window_pattern': ['x', 'y']}, 'a list of truth values'),
    ('gemma2', {'attn_logit_softcapping': -1.0}, 'must be a positive number, got -1.0'),
])
def test_what_is_not_supported_is_refused_by_name(name, keys, message, tmp_path):
  path = write(tmp_path, name, **keys)
  for load in (gguf.load_gguf, gguf.load_gguf_config):
    with pytest.raises(ValueError, match=message) as info:
      load(path)
    assert str(path) in str(info.value)
