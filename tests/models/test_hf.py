"""Hugging Face folders: what is read, what is written, and what is refused by name."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil

import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tokenizers

from specjax import models
from specjax.models import presets
from specjax.models.hf import config as hf_config
from specjax.models.hf import files as hf_files
from specjax.models.hf import weights as hf

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'models'
SCRIPTS = pathlib.Path(__file__).parents[2] / 'scripts'
FAMILIES = ('gemma2', 'gemma3', 'llama2', 'llama3', 'mistral', 'qwen2', 'qwen3')

# Parameters as the model pages count them (Gemma 3 from 4B: text model alone, the published
# total less a vision tower of 416,866,032 and a projector of 1152 * (width + 1)).
PUBLISHED = {
    'Llama-2-7B': 6_738_415_616,
    'Llama-2-13B': 13_015_864_320,
    'Llama-2-70B': 68_976_648_192,
    'Llama-3-8B': 8_030_261_248,
    'Llama-3-70B': 70_553_706_496,
    'Llama-3.1-8B': 8_030_261_248,
    'Llama-3.1-70B': 70_553_706_496,
    'Llama-3.1-405B': 405_853_388_800,
    'Llama-3.2-1B': 1_235_814_400,
    'Llama-3.2-3B': 3_212_749_824,
    'Llama-3.3-70B': 70_553_706_496,
    'Mistral-7B-v0.1': 7_241_732_096,
    'Mistral-7B-v0.3': 7_248_023_552,
    'Qwen2.5-0.5B': 494_032_768,
    'Qwen2.5-1.5B': 1_543_714_304,
    'Qwen2.5-3B': 3_085_938_688,
    'Qwen2.5-7B': 7_615_616_512,
    'Qwen2.5-14B': 14_770_033_664,
    'Qwen2.5-32B': 32_763_876_352,
    'Qwen2.5-72B': 72_706_203_648,
    'Qwen3-0.6B': 596_049_920,
    'Qwen3-1.7B': 1_720_574_976,
    'Qwen3-4B': 4_022_468_096,
    'Qwen3-8B': 8_190_735_360,
    'Qwen3-14B': 14_768_307_200,
    'Qwen3-32B': 32_762_123_264,
    'Gemma-2-2B': 2_614_341_888,
    'Gemma-2-9B': 9_241_705_984,
    'Gemma-2-27B': 27_227_128_320,
    'Gemma-3-1B': 999_885_952,
    'Gemma-3-4B': 4_300_079_472 - 416_866_032 - 1152 * 2561,
    'Gemma-3-12B': 12_187_325_040 - 416_866_032 - 1152 * 3841,
    'Gemma-3-27B': 27_432_406_640 - 416_866_032 - 1152 * 5377,
}
# What decides a model in the `config.json` that its folder has, in the older spelling.
AS_PUBLISHED = {
    'Llama-2-7B': """{"architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16",
        "vocab_size": 32000}""",
    'Llama-3.2-1B': """{"architectures": ["LlamaForCausalLM"], "attention_bias": false,
        "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
        "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": true,
        "vocab_size": 128256}""",
    'Mistral-7B-v0.1': """{"architectures": ["MistralForCausalLM"], "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "sliding_window": 4096, "tie_word_embeddings": false, "vocab_size": 32000}""",
    'Mistral-7B-v0.3': """{"architectures": ["MistralForCausalLM"], "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
        "sliding_window": null, "tie_word_embeddings": false, "vocab_size": 32768}""",
    'Qwen2.5-7B': """{"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu",
        "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 131072,
        "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": false,
        "use_mrope": false, "use_sliding_window": false, "vocab_size": 152064}""",
    'Qwen3-8B': """{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 12288, "max_position_embeddings": 40960,
        "max_window_layers": 36, "model_type": "qwen3", "num_attention_heads": 32,
        "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
        "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151936}""",
    'Gemma-2-27B': """{"architectures": ["Gemma2ForCausalLM"], "attention_bias": false,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "head_dim": 128,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 4608, "intermediate_size": 36864, "max_position_embeddings": 8192,
        "model_type": "gemma2", "num_attention_heads": 32, "num_hidden_layers": 46,
        "num_key_value_heads": 16, "query_pre_attn_scalar": 144, "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 256000}""",
    'Gemma-3-1B': """{"architectures": ["Gemma3ForCausalLM"], "attention_bias": false,
        "attn_logit_softcapping": null, "final_logit_softcapping": null, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
        "intermediate_size": 6912, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26,
        "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262144}""",
    'Gemma-3-4B': """{"architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3", "text_config": {"hidden_size": 2560,
        "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
        "vision_config": {"hidden_size": 1152}}""",
    'Gemma-3-27B': """{"architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3", "text_config": {"head_dim": 128, "hidden_size": 5376,
        "intermediate_size": 21504, "model_type": "gemma3_text", "num_attention_heads": 32,
        "num_hidden_layers": 62, "num_key_value_heads": 16, "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}}""",
}


def copy(family, folder, **changes):
  """A copy of a golden folder whose `config.json` has other entries; None removes one."""
  shutil.copytree(GOLDEN / family, folder)
  data = json.loads((folder / 'config.json').read_text())
  for key, value in changes.items():
    if value is None:
      data.pop(key)
    else:
      data[key] = value
  (folder / 'config.json').write_text(json.dumps(data))
  return folder


def rewrite(folder, change):
  """Replaces a folder's tensors by `change` of them, with the library's own writer."""
  tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
  safetensors.numpy.save_file(change(tensors), folder / 'model.safetensors')


def assert_same(one, other):
  """Same structure, dtypes and bits."""
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    assert left.dtype == right.dtype and left.shape == right.shape
    assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


class TestPresets:

  @pytest.mark.parametrize('name', sorted(PUBLISHED))
  def test_sizes_are_the_published_ones(self, name):
    assert presets.get(name).num_parameters == PUBLISHED[name]

  def test_all_are_pinned(self):
    assert set(presets.PRESETS) == set(PUBLISHED)

  def test_an_unknown_name_lists_the_known(self):
    with pytest.raises(ValueError, match='Unknown model .Llama-9.*Gemma-2-27B.*Qwen3-8B'):
      presets.get('Llama-9')

  @pytest.mark.parametrize('name', sorted(AS_PUBLISHED))
  def test_published_files_give_the_preset(self, name):
    data = json.loads(AS_PUBLISHED[name])
    config = hf_config.read(data, where='config.json', text_only=True)
    assert config == hf_config.canonical(presets.get(name))

  @pytest.mark.parametrize('name', sorted(PUBLISHED))
  def test_all_can_be_written(self, name):
    data = json.loads(json.dumps(hf_config.write(presets.get(name))))
    assert hf_config.read(data, where='here') == hf_config.canonical(presets.get(name))

  @pytest.mark.parametrize('family', FAMILIES)
  def test_counts_are_those_of_the_module(self, family):
    config = models.load_config(GOLDEN / family)
    tree = jax.eval_shape(
        models.Transformer(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
    )['params']
    shapes = {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(tree).items()}
    assert shapes == {parameter.path: parameter.shape for parameter in hf.table(config)}
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == config.num_parameters


class TestConfig:

  @pytest.mark.parametrize('family', FAMILIES)
  def test_the_older_spelling_reads_the_same(self, family, tmp_path):
    data = json.loads((GOLDEN / family / 'config.json').read_text())
    wanted = hf_config.read(data, where='here')
    rope = data.pop('rope_parameters')
    if family == 'gemma3':
      data['rope_local_base_freq'] = rope['sliding_attention']['rope_theta']
      rope = rope['full_attention']
    data['rope_theta'] = rope.pop('rope_theta')
    kind = rope.pop('rope_type')
    data['rope_scaling'] = None if kind == 'default' else {'type': kind, **rope}
    data.pop('layer_types', None)  # older files have the rule in place of the list
    assert hf_config.read(data, where='here') == wanted

  @pytest.mark.parametrize('family', FAMILIES)
  def test_what_we_write_reads_the_same(self, family):
    wanted = models.load_config(GOLDEN / family)
    written = json.loads(json.dumps(hf_config.write(wanted)))
    assert hf_config.read(written, where='here') == wanted
    for spelling in (('rope_theta', 'rope_scaling', 'rope_local_base_freq'), ('rope_parameters',)):
      half = {key: value for key, value in written.items() if key not in spelling}
      assert hf_config.read(half, where='here') == wanted

  @pytest.mark.parametrize(
      'family, changes, message',
      [
          ('llama2', dict(attention_bias=True), 'attention_bias=True is not supported'),
          ('llama2', dict(mlp_bias=True), 'mlp_bias=True is not supported'),
          ('qwen3', dict(attention_bias=True), 'attention_bias=True is not supported'),
          ('llama2', dict(hidden_act='gelu'), "hidden_act='gelu' is not supported. .*silu"),
          ('gemma2', dict(hidden_activation='relu'), "hidden_activation='relu' is not supp"),
          ('llama2', dict(partial_rotary_factor=0.5), 'partial_rotary_factor=0.5 is not'),
          ('gemma3', dict(use_bidirectional_attention=True), 'use_bidirectional_attention=T'),
          ('llama2', dict(is_causal=False), 'is_causal=False is not supported'),
          ('llama2', dict(num_local_experts=8), 'num_local_experts=8 is not supported'),
          (
              'llama2',
              dict(quantization_config={'quant_method': 'awq'}),
              r'quantised weights \(quantization_config: awq\) are not supported; take the bf',
          ),
          (
              'llama2',
              dict(architectures=['MixtralForCausalLM'], model_type='mixtral'),
              'MixtralForCausalLM.*not supported. Supported are LlamaForCausalLM, Mistral',
          ),
          ('llama2', dict(architectures=['LlamaForSequenceClassification']), 'not supported'),
          ('llama2', dict(model_type='mistral'), "model_type='mistral' is not supported"),
          ('llama2', dict(architectures=None, model_type=None), 'is not supported'),
          (
              'gemma3',
              dict(architectures=['Gemma3ForConditionalGeneration'], model_type='gemma3'),
              'vision tower, which is not supported; pass text_only=True',
          ),
          ('llama2', dict(hidden_size=None), 'hidden_size must be a positive integer, got None'),
          ('llama2', dict(num_hidden_layers='2'), 'num_hidden_layers must be a positive int'),
          ('llama2', dict(num_key_value_heads=3), 'num_heads must be a multiple of num_kv_heads'),
          ('llama2', dict(head_dim=7), 'head_dim must be an even integer, got 7'),
          ('gemma2', dict(sliding_window='all'), 'sliding_window must be a positive integer or nu'),
          ('qwen2', dict(use_sliding_window=False), 'sliding_attention need sliding_window'),
          (
              'qwen2',
              dict(layer_types=['full_attention'] * 3 + ['chunked_attention']),
              r"layer_types \['chunked_attention'\] are not supported. Supported are full_att",
          ),
          ('gemma2', dict(layer_types=['full_attention']), '1 entries for 4 layers'),
          (
              'mistral',
              dict(layer_types=['full_attention', 'sliding_attention', 'full_attention']),
              'MistralForCausalLM with mixed layer_types is not supported',
          ),
          *(
              (
                  'llama2',
                  dict(rope_parameters={'rope_type': kind, 'factor': 2.0, 'rope_theta': 1e4}),
                  f"rotary scaling '{kind}' is not supported. Supported are default, lin",
              )
              for kind in ('dynamic', 'longrope', 'mrope')
          ),
          (
              'llama2',
              dict(rope_parameters=None, rope_scaling={'type': 'dynamic', 'factor': 2.0}),
              "rotary scaling 'dynamic' is not supported",
          ),
          (
              'llama2',
              dict(rope_parameters={'rope_type': 'llama3', 'factor': 8.0}),
              'needs low_freq_factor, high_freq_factor',
          ),
          (
              'llama2',
              dict(rope_parameters={'rope_type': 'default', 'partial_rotary_factor': 0.25}),
              'partial_rotary_factor=0.25 is not supported',
          ),
          ('llama2', dict(rope_theta=5.0), 'disagree about rope_theta: 1000.0 and 5.0'),
          ('gemma3', dict(rope_parameters={'rope_type': 'default'}), 'one set for each of full'),
          (
              'gemma3',
              dict(rope_parameters={'sliding_attention': {'rope_type': 'linear', 'factor': 2.0}}),
              'scaling of sliding_attention layers is not supported',
          ),
      ],
  )
  def test_what_is_not_supported_is_refused_by_name(self, family, changes, message, tmp_path):
    folder = copy(family, tmp_path / 'model', **changes)
    # Before any weight is looked at.
    (folder / 'model.safetensors').unlink()
    with pytest.raises(ValueError, match=message) as info:
      models.load_hf(folder)
    assert 'config.json' in str(info.value)

  @pytest.mark.parametrize(
      'changes, message',
      [
          (dict(embedding_scale=2.0), 'Llama.* differs in embedding_scale=2.0'),
          (dict(logit_soft_cap=30.0), 'differs in logit_soft_cap=30.0'),
          (dict(sliding_window=8, local_layers=(True, False)), 'Mistral.* differs in local_lay'),
          (dict(post_norms=True, qkv_bias=True), 'has qkv_bias=True, qk_norm=False, post_norms'),
      ],
  )
  def test_a_model_that_no_architecture_computes_is_not_written(self, changes, message):
    config = dataclasses.replace(models.load_config(GOLDEN / 'llama2'), **changes)
    with pytest.raises(ValueError, match=message):
      hf_config.write(config)


class TestLoadAndSave:

  @pytest.mark.parametrize('family', FAMILIES)
  def test_a_round_trip_is_bit_for_bit(self, family, tmp_path):
    model = models.load_hf(GOLDEN / family)
    models.save_hf(model, tmp_path / 'saved')
    assert sorted(file.name for file in (tmp_path / 'saved').iterdir()) == [
        'config.json',
        'model.safetensors',
    ]
    again = models.load_hf(tmp_path / 'saved')
    assert again.module == model.module
    assert_same(again.params, model.params)
    # Read by the library itself, the file holds what the golden one holds.
    ours, golden = (
        safetensors.numpy.load_file(folder / 'model.safetensors')
        for folder in (tmp_path / 'saved', GOLDEN / family)
    )
    assert_same(ours, golden)

  @pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
  def test_half_precision_files(self, dtype, tmp_path):
    model = models.load_hf(GOLDEN / 'qwen2')
    models.save_hf(model, tmp_path / 'half', dtype=dtype)
    half = models.load_hf(tmp_path / 'half')
    assert half.module.dtype == half.module.param_dtype == dtype
    assert_same(half.params, jax.tree.map(lambda x: x.astype(dtype), model.params))
    assert half.init_cache(batch_size=1, cache_length=8, max_append=1).keys[0].dtype == dtype
    # Widened on the way in, as on the way out; and a save of what was loaded is the same.
    wide = models.load_hf(tmp_path / 'half', dtype=jnp.float32)
    assert wide.module.dtype == jnp.float32
    assert_same(wide.params, jax.tree.map(lambda x: x.astype(jnp.float32), half.params))
    models.save_hf(half, tmp_path / 'again')
    assert_same(models.load_hf(tmp_path / 'again').params, half.params)
    name = np.dtype(dtype).name
    config = json.loads((tmp_path / 'again' / 'config.json').read_text())
    assert config['dtype'] == config['torch_dtype'] == name
    tokens = np.load(GOLDEN / 'qwen2' / 'golden.npz')['tokens'][:, :8]
    assert half(tokens).logits.dtype == jnp.float32

  def test_mixed_dtypes_are_kept(self, tmp_path):
    folder = copy('llama3', tmp_path / 'mixed')
    rewrite(folder, lambda tensors: {
        name: value if 'norm' in name else value.astype(np.float16)
        for name, value in tensors.items()
    })
    model = models.load_hf(folder)
    assert model.module.dtype == np.float16
    assert model.params['final_norm']['scale'].dtype == np.float32
    models.save_hf(model, tmp_path / 'again')
    assert_same(models.load_hf(tmp_path / 'again').params, model.params)

  def test_shards(self, tmp_path):
    model = models.load_hf(GOLDEN / 'llama2')
    models.save_hf(model, tmp_path / 'sharded', max_shard_bytes=20_000)
    files = sorted(file.name for file in (tmp_path / 'sharded').glob('*.safetensors'))
    assert len(files) > 3 and files[0] == f'model-00001-of-{len(files):05d}.safetensors'
    assert all(
        (tmp_path / 'sharded' / file).stat().st_size < 20_000 + 4_000 for file in files
    )
    index = json.loads((tmp_path / 'sharded' / 'model.safetensors.index.json').read_text())
    assert index['metadata']['total_size'] == 4 * model.module.config.num_parameters
    assert set(index['weight_map'].values()) == set(files)
    assert_same(models.load_hf(tmp_path / 'sharded').params, model.params)

  def test_files_are_marked_as_transformers_wants_them(self, tmp_path):
    models.save_hf(models.load_hf(GOLDEN / 'llama2'), tmp_path / 'saved')
    with safetensors.safe_open(tmp_path / 'saved' / 'model.safetensors', 'numpy') as file:
      assert file.metadata() == {'format': 'pt'}

  def test_token_ids_and_files_beside(self, tmp_path):
    model = models.load_hf(GOLDEN / 'llama2')
    (tmp_path / 'tokenizer.json').write_text('{}')
    models.save_hf(
        model,
        tmp_path / 'one',
        bos_id=1,
        eos_ids=(5, 7),
        extra_files=[tmp_path / 'tokenizer.json'],
    )
    assert models.load_eos_ids(tmp_path / 'one') == (5, 7)
    assert json.loads((tmp_path / 'one' / 'config.json').read_text())['bos_token_id'] == 1
    assert (tmp_path / 'one' / 'tokenizer.json').exists()
    models.save_hf(model, tmp_path / 'none')
    assert models.load_eos_ids(tmp_path / 'none') == ()
    # Written all the same: left out, readers would take the architecture's default.
    assert json.loads((tmp_path / 'none' / 'config.json').read_text())['eos_token_id'] is None

  def test_a_failed_save_leaves_nothing(self, tmp_path, monkeypatch):
    model = models.load_hf(GOLDEN / 'llama2')

    def fail(folder, tensors, **kwargs):
      (folder / 'model.safetensors').write_bytes(b'half')
      raise OSError('No space left on device')

    monkeypatch.setattr(hf_files, 'write_folder', fail)
    with pytest.raises(OSError, match='No space left'):
      models.save_hf(model, tmp_path / 'saved')
    assert not list(tmp_path.iterdir())

  def test_a_folder_that_holds_something_is_not_touched(self, tmp_path):
    model = models.load_hf(GOLDEN / 'llama2')
    (tmp_path / 'saved').mkdir()
    models.save_hf(model, tmp_path / 'saved')  # an empty folder is as good as none
    before = (tmp_path / 'saved' / 'config.json').read_bytes()
    with pytest.raises(FileExistsError, match='exists and is not empty: remove it or choose'):
      models.save_hf(model, tmp_path / 'saved', dtype=np.float16)
    assert (tmp_path / 'saved' / 'config.json').read_bytes() == before

  def test_parameters_that_do_not_fit_are_refused(self, tmp_path):
    model = models.load_hf(GOLDEN / 'llama2')
    wrong = model.params | {'embedding': jnp.zeros((3, 32))}
    with pytest.raises(ValueError, match=r'embedding must have shape \(96, 32\), got \(3, 32\)'):
      models.save_hf(model.replace(params=wrong), tmp_path / 'saved')
    lacking = {key: value for key, value in model.params.items() if key != 'head'}
    with pytest.raises(ValueError, match=r'head must have shape \(96, 32\), got None'):
      models.save_hf(model.replace(params=lacking), tmp_path / 'saved')
    more = model.params | {'adapter': jnp.zeros(3)}
    with pytest.raises(ValueError, match='has 16 parameters where its configuration has 15'):
      models.save_hf(model.replace(params=more), tmp_path / 'saved')
    with pytest.raises(TypeError, match='save_hf writes models of specjax.models, not int'):
      models.save_hf(model.replace(module=3), tmp_path / 'saved')
    assert not list(tmp_path.iterdir())

  def test_buffers_of_old_releases_are_passed_over(self, tmp_path):
    folder = copy('llama2', tmp_path / 'old')
    buffer = {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(4, np.float32)}
    rewrite(folder, lambda tensors: tensors | buffer)
    assert_same(models.load_hf(folder).params, models.load_hf(GOLDEN / 'llama2').params)

  def test_a_tied_model_may_hold_its_head_twice(self, tmp_path):
    folder = copy('qwen2', tmp_path / 'twice')
    embedding = 'model.embed_tokens.weight'
    rewrite(folder, lambda tensors: tensors | {'lm_head.weight': tensors[embedding].copy()})
    assert_same(models.load_hf(folder).params, models.load_hf(GOLDEN / 'qwen2').params)
    rewrite(folder, lambda tensors: tensors | {'lm_head.weight': tensors[embedding] + 1})
    with pytest.raises(ValueError, match='tie_word_embeddings, but lm_head.weight differs'):
      models.load_hf(folder)

  @pytest.mark.parametrize('prefix', ['language_model.model.', 'model.language_model.'])
  def test_the_language_model_of_a_gemma_3_with_a_vision_tower(self, prefix, tmp_path):
    folder = copy('gemma3', tmp_path / 'model')
    data = json.loads((folder / 'config.json').read_text())
    data = {
        'architectures': ['Gemma3ForConditionalGeneration'],
        'model_type': 'gemma3',
        'text_config': {key: data[key] for key in data if key != 'architectures'},
    }
    (folder / 'config.json').write_text(json.dumps(data))
    outer = 'model.' if prefix.startswith('model.') else ''
    rewrite(folder, lambda tensors: {
        f'{outer}vision_tower.vision_model.post_layernorm.weight': np.ones(3, np.float32),
        f'{outer}multi_modal_projector.mm_soft_emb_norm.weight': np.ones(3, np.float32),
        **{name.replace('model.', prefix, 1): value for name, value in tensors.items()},
    })
    wanted = models.load_hf(GOLDEN / 'gemma3')
    found = models.load_hf(folder, text_only=True)
    assert found.module == wanted.module
    assert_same(found.params, wanted.params)


class TestDamage:

  def test_no_folder(self, tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere is not a folder.*hf download'):
      models.load_hf(tmp_path / 'nowhere')

  def test_no_config(self, tmp_path):
    with pytest.raises(FileNotFoundError, match='config.json is missing'):
      models.load_hf(tmp_path)

  def test_config_that_is_not_json(self, tmp_path):
    folder = copy('llama2', tmp_path / 'model')
    (folder / 'config.json').write_text('{"hidden_size": ')
    with pytest.raises(ValueError, match='config.json is not JSON'):
      models.load_hf(folder)
    (folder / 'config.json').write_text('[]')
    with pytest.raises(ValueError, match='config.json must hold a JSON object, not list'):
      models.load_hf(folder)

  def test_no_weights(self, tmp_path):
    folder = copy('llama2', tmp_path / 'model')
    (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
    with pytest.raises(
        FileNotFoundError, match='neither model.safetensors nor .*pytorch_model.bin: convert'
    ):
      models.load_hf(folder)
    (folder / 'model.gguf').touch()
    with pytest.raises(FileNotFoundError, match='holds model.gguf: load that .*models.load_gguf'):
      models.load_hf(folder)

  @pytest.mark.parametrize('size', [0, 5, 100, 5000, -1])
  def test_truncated_weights(self, size, tmp_path):
    folder = copy('llama2', tmp_path / 'model')
    whole = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(whole[:size])
    with pytest.raises(ValueError, match='model.safetensors is truncated.*etch it again'):
      models.load_hf(folder)

  @pytest.mark.parametrize(
      'content, message',
      [
          (b'version https://git-lfs.github.com/spec/v1\n', 'a Git LFS pointer.*git lfs pull'),
          ((4).to_bytes(8, 'little') + b'abcd', 'not a safetensors file: its header is not'),
      ],
  )
  def test_other_files_in_place_of_weights(self, content, message, tmp_path):
    folder = copy('llama2', tmp_path / 'model')
    (folder / 'model.safetensors').write_bytes(content)
    with pytest.raises(ValueError, match=message):
      models.load_hf(folder)

  def test_offsets_that_do_not_fit(self, tmp_path):
    folder = copy('llama2', tmp_path / 'model')
    whole = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(whole.replace(b'"shape":[32]', b'"shape":[33]'))
    with pytest.raises(ValueError, match='is damaged at tensor .*norm.weight: fetch'):
      models.load_hf(folder)

  def test_missing_shard(self, tmp_path):
    folder = tmp_path / 'sharded'
    models.save_hf(models.load_hf(GOLDEN / 'llama2'), folder, max_shard_bytes=40_000)
    shards = sorted(folder.glob('*.safetensors'))
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=f'lacks 1 of {len(shards)}.*{shards[1].name}'):
      models.load_hf(folder)
    shards[0].rename(shards[1])
    shutil.copy(shards[1], shards[0])
    with pytest.raises(ValueError, match='lists tensors that its shards do not hold'):
      models.load_hf(folder)
    (folder / 'model.safetensors.index.json').write_text('{}')
    with pytest.raises(ValueError, match='index.json has no weight_map'):
      models.load_hf(folder)

  @pytest.mark.parametrize(
      'change, message',
      [
          (
              lambda tensors: {k: v for k, v in tensors.items() if 'k_proj' not in k},
              r'missing: model.layers.0.self_attn.k_proj.weight, model.layers.1\S+k_proj.weight\.$',
          ),
          (
              lambda tensors: {k: v for k, v in tensors.items() if '.mlp.' not in k},
              r'missing: model.layers.0.mlp.down_proj.weight, .*1.mlp.gate_proj\S+ and 1 more\.$',
          ),
          (
              lambda tensors: tensors | {'model.layers.0.mlp.up_proj.bias': np.ones(56)},
              '; unexpected: model.layers.0.mlp.up_proj.bias',
          ),
          (
              lambda tensors: tensors | {'model.norm.weight': np.ones(31, np.float32)},
              r'model.norm.weight has shape \(31,\), but config.json makes it \(32,\)',
          ),
          (
              lambda tensors: tensors | {'model.norm.weight': np.ones(32, np.int8)},
              'model.norm.weight has dtype I8, which is not supported. Supported are F32, F16',
          ),
      ],
  )
  def test_tensors_that_do_not_fit(self, change, message, tmp_path):
    folder = copy('llama2', tmp_path / 'model')
    keep = lambda tensors: {
        name: value.astype(np.float32) if value.dtype == np.float64 else value
        for name, value in change(tensors).items()
    }
    rewrite(folder, keep)
    with pytest.raises(ValueError, match=message):
      models.load_hf(folder)

  def test_untied_without_a_head(self, tmp_path):
    folder = copy('llama3', tmp_path / 'model', tie_word_embeddings=False)
    with pytest.raises(ValueError, match='missing: lm_head.weight'):
      models.load_hf(folder)


class TestTokenizer:

  @pytest.fixture
  def folder(self, tmp_path):
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({'def': 0, 'f': 1, '?': 2}, unk_token='?')
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / 'tokenizer.json'))
    return tmp_path

  def test_from_a_folder_or_a_file(self, folder):
    for path in (folder, folder / 'tokenizer.json', str(folder)):
      assert models.load_tokenizer(path).encode('def f x').ids == [0, 1, 2]

  def test_missing_or_broken(self, folder):
    (folder / 'tokenizer.json').write_text('{}')
    with pytest.raises(ValueError, match='tokenizer.json does not hold a tokenizer'):
      models.load_tokenizer(folder)
    (folder / 'tokenizer.json').unlink()
    with pytest.raises(FileNotFoundError, match='tokenizer.json does not exist.$'):
      models.load_tokenizer(folder)
    (folder / 'tokenizer.model').write_bytes(b'')
    with pytest.raises(FileNotFoundError, match='SentencePiece tokenizer.model.*AutoTokenizer'):
      models.load_tokenizer(folder)

  def test_ends_of_texts(self, tmp_path):
    assert models.load_eos_ids(GOLDEN / 'llama3') == (2, 3)
    folder = copy('llama2', tmp_path / 'model', eos_token_id=[4, 5])
    assert models.load_eos_ids(folder) == (2,)
    (folder / 'generation_config.json').unlink()
    assert models.load_eos_ids(folder) == (4, 5)


def test_convert_script(tmp_path):
  spec = importlib.util.spec_from_file_location('convert_hf', SCRIPTS / 'convert_hf.py')
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  script.convert(GOLDEN / 'llama3', tmp_path / 'out', dtype='bfloat16', max_shard_bytes=20_000)
  model = models.load_hf(tmp_path / 'out')
  assert model.module.dtype == ml_dtypes.bfloat16
  assert len(list((tmp_path / 'out').glob('*.safetensors'))) > 1
  assert models.load_eos_ids(tmp_path / 'out') == (2, 3)
  assert (tmp_path / 'out' / 'generation_config.json').exists()
  golden = models.load_hf(GOLDEN / 'llama3')
  assert_same(model.params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), golden.params))
