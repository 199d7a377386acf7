"""GGUF files: the models in them, tensors that are refused by name, and memory."""

import dataclasses
import functools
import json
import os
import pathlib
import sys
import weakref

import gguf as package
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from specjax import models
from specjax import sharding
from specjax.models import gguf
from specjax.models import quantization
from specjax.models.gguf import files as gguf_files_lib
from specjax.models.gguf import weights as gguf_weights
from tests.support import gguf_files
from tests.support import tolerance

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'gguf'
SMOLLM2 = 'SPECJAX_SMOLLM2'
write = gguf_files.write_changed
logits = jax.jit(lambda model, tokens: model(tokens).logits)


@pytest.fixture(scope='module', autouse=True)
def fast(compiled_fast):
  yield


@functools.cache
def golden():
  return np.load(GOLDEN / 'logits.npz')


class TestModels:

  @pytest.mark.parametrize('name', gguf_files.CASES)
  def test_logits_agree_with_transformers(self, name, tmp_path):
    path = gguf_files.write_case(tmp_path / 'model.gguf', name)
    model = gguf.load_gguf(path, dtype=jnp.float32)
    wanted = golden()[name]
    tolerated = tolerance.of_logits(
        model.module.config, size=tolerance.largest(wanted), positions=gguf_files.LENGTH
    )
    tolerance.assert_close(
        logits(model, gguf_files.tokens()), wanted, min(tolerated, 1e-4)
    )

  def test_every_type_that_the_package_knows_is_read_row_by_row(self, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_weights, '_BLOCK', 256 * 3)  # blocks of three rows
    case = dataclasses.replace(gguf_files.CASES['llama Q4_K'], tied=True)
    read = []
    for kind in package.GGMLQuantizationType:
      if gguf_weights._sizes(kind.value, package) is None:
        continue
      own = dataclasses.replace(case, kind=kind.name)
      tensors = gguf_files.tensors(own)
      path = gguf_files.write(tmp_path / 'model.gguf', gguf_files.metadata(own), tensors)
      params = gguf.load_gguf(path, dtype=jnp.float32).params
      numbers = {name: package.dequantize(data, package.GGMLQuantizationType[kind_])
                 for name, (data, kind_) in tensors.items()}
      qkv = np.asarray(params['layer_0']['attention']['qkv'])
      heads = lambda name: numbers[f'blk.0.{name}.weight'].reshape(-1, 64, 256)
      np.testing.assert_array_equal(qkv[:, :2].reshape(4, 64, 256), heads('attn_q'), kind.name)
      np.testing.assert_array_equal(qkv[:, 2], heads('attn_k'), kind.name)
      np.testing.assert_array_equal(qkv[:, 3], heads('attn_v'), kind.name)
      np.testing.assert_array_equal(params['embedding'], numbers['token_embd.weight'], kind.name)
      read.append(kind.name)
    assert {'F32', 'F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'Q2_K', 'Q3_K', 'Q4_K',
            'Q5_K', 'Q6_K', 'IQ4_NL', 'IQ4_XS', 'IQ2_XXS', 'IQ3_S', 'IQ1_S', 'TQ1_0',
            'TQ2_0'} <= set(read)

  def test_dtypes(self, tmp_path):
    dtypes = lambda model: (
        model.module.dtype,
        model.params['embedding'].dtype,
        model.params['final_norm']['scale'].dtype,
    )
    for kind, wanted in (
        ('F32', np.float32), ('F16', np.float16), ('BF16', ml_dtypes.bfloat16),
        ('Q8_0', ml_dtypes.bfloat16),
    ):
      case = dataclasses.replace(gguf_files.CASES['llama'], kind=kind)
      path = gguf_files.write(
          tmp_path / 'model.gguf', gguf_files.metadata(case), gguf_files.tensors(case)
      )
      assert dtypes(gguf.load_gguf(path)) == (wanted, wanted, np.float32), kind
      assert dtypes(gguf.load_gguf(path, dtype='float16')) == (np.float16,) * 3, kind

  def test_on_a_mesh_and_in_eight_bits(self, tmp_path):
    path = gguf_files.write_case(tmp_path / 'model.gguf', 'qwen2 Q5_0')
    plain = gguf.load_gguf(path)
    layout = sharding.make('tensor', model=1, devices=jax.devices()[:1]).target
    same = lambda one, other: jax.tree.map(np.testing.assert_array_equal, one, other)
    for int8 in (False, True):
      split = gguf.load_gguf(path, layout=layout, int8=int8)
      assert split.layout is layout
      same(split.params, quantization.quantize_params(plain.params) if int8 else plain.params)
      same(split.params, gguf.load_gguf(path, int8=int8).params)

  def test_a_saved_folder_is_the_same_model(self, tmp_path):
    model = gguf.load_gguf(gguf_files.write_case(tmp_path / 'model.gguf', 'qwen2 yarn'))
    models.save_hf(model, tmp_path / 'folder')
    again = models.load_hf(tmp_path / 'folder')
    assert again.module == model.module
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)

  def test_one_tensor_is_dequantised_at_a_time(self, tmp_path, monkeypatch):
    path = gguf_files.write_case(tmp_path / 'model.gguf', 'llama Q4_1')
    held, most = set(), []
    read = gguf_weights._Tensor.read

    def counted(self):
      assert not held  # what was read before has been let go
      value = read(self)
      value = value.view()  # an array of its own, whose end is told
      held.add(id(value))
      weakref.finalize(value, held.discard, id(value))
      most.append(len(held))
      return value

    monkeypatch.setattr(gguf_weights._Tensor, 'read', counted)
    gguf.load_gguf(path)
    assert len(most) == len(gguf_files.tensors(gguf_files.CASES['llama Q4_1']))


class TestRefused:

  @pytest.mark.parametrize('keys, message', [
      ({'general.architecture': 'mamba'},
       "general.architecture='mamba' is not supported. Supported are llama, qwen2, qwen3, gemma2"),
      ({'general.architecture': 'llama', 'general.type': 'adapter'},
       "holds no model: general.type is 'adapter'"),
      ({'general.architecture': 'llama', 'split.count': 3},
       'is one of 3 parts of a model: merge them with `llama-gguf-split --merge'),
  ])
  def test_other_files(self, keys, message, tmp_path):
    case = gguf_files.CASES['llama']
    path = gguf_files.write(tmp_path / 'model.gguf', gguf_files.metadata(case) | keys, {})
    with pytest.raises(ValueError, match=message):
      gguf.load_gguf(path)

  @pytest.mark.parametrize('name, without, more, message', [
      ('llama', ['blk.1.attn_k.weight', 'output_norm.weight'], {},
       'its metadata asks for; missing: blk.1.attn_k.weight, output_norm.weight.$'),
      ('llama', [], {'blk.0.attn_q.bias': (64,)}, '; unexpected: blk.0.attn_q.bias.$'),
      ('qwen2', ['blk.0.attn_v.bias'], {'rope_freqs.weight': (8,)},
       'missing: blk.0.attn_v.bias; unexpected: rope_freqs.weight'),
      ('gemma3', ['blk.0.post_ffw_norm.weight'], {'v.blk.0.ln1.weight': (4,)},
       'missing: blk.0.post_ffw_norm.weight; unexpected: v.blk.0.ln1.weight'),
      ('llama', ['output_norm.weight'], {'output_norm.weight': (31,)},
       r'output_norm.weight has shape \(31,\), but metadata makes it \(32,\)'),
      ('llama factors', ['rope_freqs.weight'], {'rope_freqs.weight': (7,)},
       r'rope_freqs.weight must be float32 of shape \(8,\), got type 0 of shape \(7,\)'),
      ('llama factors', ['rope_freqs.weight'], {'rope_freqs.weight': np.zeros(8, np.float32)},
       'rope_freqs.weight must hold positive numbers'),
  ])
  def test_tensors(self, name, without, more, message, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_weights._Tensor, 'read', None)
    more = {
        key: (np.ones(value, np.float32) if isinstance(value, tuple) else value, 'F32')
        for key, value in more.items()
    }
    path = write(tmp_path, name, without=without, more=more)
    with pytest.raises(ValueError, match=message):
      gguf.load_gguf(path)

  @pytest.mark.parametrize('kind, message', [
      ('I32', r'tensor output_norm.weight has type I32, of which the package gguf \S+ makes no'),
      ('F64', 'has type F64, of which'),
  ])
  def test_types(self, kind, message, tmp_path):
    dtype = {'I32': np.int32, 'F64': np.float64}[kind]
    more = {'output_norm.weight': (np.ones(32, dtype), kind)}
    with pytest.raises(ValueError, match=message):
      gguf.load_gguf(write(tmp_path, without=['output_norm.weight'], more=more))

  def test_the_package_is_missing(self, tmp_path, monkeypatch):
    path = write(tmp_path)
    monkeypatch.setitem(sys.modules, 'gguf', None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'specjax\[gguf\]'"):
      gguf.load_gguf(path)
    assert gguf.load_gguf_config(path).num_layers == 2  # headers are read without it


def test_the_header_is_what_the_package_reads(tmp_path):
  path = write(tmp_path, 'gemma2 Q6_K')
  header, reader = gguf_files_lib.read_header(path), package.GGUFReader(path)
  assert {tensor.name: (tuple(tensor.shape.tolist()[::-1]), tensor.tensor_type.value,
                        tensor.data_offset) for tensor in reader.tensors} == {
      name: (tensor.shape, tensor.kind, tensor.offset) for name, tensor in header.tensors.items()}
  for key, value in header.metadata.items():
    theirs = reader.fields[key].contents()
    assert np.float32(value) == np.float32(theirs) if isinstance(value, float) else value == theirs


def test_smollm2_continues_prompts_as_in_transformers():
  if not os.environ.get(SMOLLM2):
    pytest.skip(f'NOT TESTED: {SMOLLM2} names no SmolLM2-135M-Instruct.Q4_1.gguf')
  model = gguf.load_gguf(os.environ[SMOLLM2], dtype=jnp.float32)
  data = json.loads((GOLDEN / 'smollm2.json').read_text(encoding='utf-8'))
  for prompt in data['prompts']:
    tokens = jnp.asarray([prompt['ids'] + prompt['next']])
    found = np.asarray(logits(model, tokens)[0, len(prompt['ids']) - 1 : -1])
    assert found.argmax(-1).tolist() == prompt['next'], prompt['text']
    ids, values = zip(*prompt['top'])
    np.testing.assert_allclose(found[0, list(ids)], values, atol=1e-3)
