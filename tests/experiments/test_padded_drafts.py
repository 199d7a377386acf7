"""A draft folder whose vocabulary is padded to another size than the target's."""

import io

import jax
import jax.numpy as jnp
import pytest
import rich.console

import specjax
from configs import zoo
from experiments import build
from experiments import generate
from specjax import models
from tests.support import tiny_pair

pytestmark = pytest.mark.usefixtures('compiled_fast')


@pytest.fixture
def folder(tmp_path):
  """A draft of 272 ids for the tiny pair's 256, with its tokenizer."""
  module = models.Transformer(models.TransformerConfig(
      vocab_size=272, width=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_width=8,
      tie_embeddings=True,
  ))
  params = module.init(jax.random.key(3), jnp.zeros((1, 2), jnp.int32))['params']
  models.save_hf(models.LanguageModel(module, params), tmp_path / 'draft')
  tiny_pair.loaded().tokenizer.save(str(tmp_path / 'draft' / 'tokenizer.json'))
  return tmp_path / 'draft'


def config_for(folder, monkeypatch):
  tiny_pair.install(monkeypatch)
  config = zoo.get_config('smoke')
  config.dtype, config.prompt, config.max_new_tokens = 'float32', 'def add(', 8
  config.drafter.kind, config.drafter.path = 'combined', str(folder)
  return config


def test_it_just_works(folder, tmp_path, monkeypatch):
  config, loaded = config_for(folder, monkeypatch), tiny_pair.loaded()
  output, = generate.run(
      config, str(tmp_path / 'run'), console=rich.console.Console(file=io.StringIO())
  )
  prompt = loaded.tokenizer.encode(config.prompt).ids
  plain = specjax.decode(loaded.target, [prompt], max_new_tokens=8, stop_tokens=0)
  assert output.new_tokens().tolist() == plain.new_tokens().tolist()


def test_other_tokens_are_refused(folder, monkeypatch):
  file = folder / 'tokenizer.json'
  text = file.read_text()
  assert '"a":' in text and '"b":' in text
  file.write_text(text.replace('"a":', '"?":').replace('"b":', '"a":').replace('"?":', '"b":'))
  with pytest.raises(ValueError, match="'[ab]' to the target and '[ab]' to the draft.*translate"):
    build.draft(config_for(folder, monkeypatch), tiny_pair.loaded())


def test_no_tokenizer_is_refused(folder, monkeypatch):
  (folder / 'tokenizer.json').unlink()
  with pytest.raises(ValueError, match="no tokenizer .* put the target's tokenizer there"):
    build.draft(config_for(folder, monkeypatch), tiny_pair.loaded())


@pytest.mark.parametrize('fields, rule', [
    (dict(kind='model'), 'block'), (dict(kind='model_tree', tree='2,1'), 'recursive'),
    (dict(kind='model_tree', tree='1,1'), 'block'), (dict(kind='eagle_tree'), 'recursive'),
    (dict(kind='combined', learned='model_tree'), 'recursive'),
    (dict(kind='synthetic', parents=(0, 0, 1)), 'recursive'),
    (dict(kind='synthetic', parents=(0, 1)), 'block'),
])
def test_auto_is_the_librarys_default(fields, rule):
  config = zoo.get_config('smoke')
  config.drafter.update(fields)
  config.sampling.temperature = 1.0
  assert build.rule(config).name == rule
  config.sampling.temperature = 0.0
  assert build.rule(config).name == 'greedy'
