"""YaRN: its frequencies and logits beyond the original context, and its keys in `config.json`."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from specjax import models
from specjax.models import layers
from specjax.models.hf import config as hf_config
from tests.support import tolerance

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
ARRAYS = np.load(GOLDEN / 'yarn.npz')
SETTINGS = json.loads(str(ARRAYS['settings']))
LLAMA = json.loads((GOLDEN / 'models' / 'llama2' / 'config.json').read_text())
MODELS = ('short', 'short, narrow')
logits = jax.jit(lambda model, tokens: model(tokens).logits)


@pytest.fixture(scope='module', autouse=True)
def fast(compiled_fast):
  yield


def spellings(name):
  """A setting's keys of a `config.json`, as newer and as older files have them."""
  head_dim, theta, longest, scaling = SETTINGS[name]
  sizes = dict(head_dim=head_dim, max_position_embeddings=longest)
  yield dict(sizes, rope_parameters={'rope_type': 'yarn', 'rope_theta': theta, **scaling})
  yield dict(
      sizes, rope_parameters=None, rope_theta=theta, rope_scaling={'type': 'yarn', **scaling}
  )


@pytest.mark.parametrize('name', SETTINGS)
def test_frequencies_are_those_of_transformers(name):
  for changes in spellings(name):
    config = hf_config.read(LLAMA | changes, where='config.json')
    found = layers.rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    wanted = ARRAYS[f'{name}: frequencies']
    tolerance.assert_close(found, wanted, tolerance.chained(8, size=wanted))
    assert config.rope_scaling.magnitude == pytest.approx(
        float(ARRAYS[f'{name}: magnitude']), rel=1e-12
    )
    # What is written is read as the same.
    written = json.loads(json.dumps(hf_config.write(config)))
    assert hf_config.read(written, where='config.json') == config


@pytest.mark.parametrize('name', MODELS)
def test_logits_beyond_the_original_context_agree_with_transformers(name, tmp_path):
  _, theta, _, scaling = SETTINGS[name]
  folder = tmp_path / 'model'
  shutil.copytree(GOLDEN / 'models' / 'qwen3', folder)
  data = json.loads((folder / 'config.json').read_text())
  data['rope_parameters'] = {'rope_type': 'yarn', 'rope_theta': theta, **scaling}
  (folder / 'config.json').write_text(json.dumps(data))
  model = models.load_hf(folder)
  tokens = np.load(folder / 'golden.npz')['tokens'][:1]
  assert tokens.shape[1] >= 3 * scaling['original_max_position_embeddings']
  wanted = ARRAYS[f'{name}: logits']
  tolerated = tolerance.of_logits(
      model.module.config, size=tolerance.largest(wanted), positions=tokens.shape[1]
  )
  tolerance.assert_close(logits(model, tokens), wanted, min(tolerated, 1e-4))
  if name == 'short':
    return
  # Every number of the setting shows in the logits.
  setting = model.module.config.rope_scaling
  for change in (
      dict(factor=2.0), dict(original_max_positions=24), dict(beta_fast=2.0),
      dict(beta_slow=0.5), dict(attention_factor=1.0), dict(truncate=True),
  ):
    config = dataclasses.replace(
        model.module.config, rope_scaling=dataclasses.replace(setting, **change)
    )
    other = model.replace(module=models.Transformer(config))
    difference = np.abs(np.asarray(logits(other, tokens)) - wanted).max()
    assert difference > 30 * tolerated, (change, difference)


def test_settings_that_say_the_same_give_the_same_record():
  scaling = models.RopeScaling('yarn', 4.0, original_max_positions=64)
  same = dataclasses.replace(scaling, attention_factor=scaling.magnitude, low_freq_factor=3.0)
  assert same != scaling and same.canonical() == scaling.canonical() == scaling
  assert models.RopeScaling('linear', 2.0, beta_fast=3.0).canonical() == models.RopeScaling(
      'linear', 2.0
  )


@pytest.mark.parametrize('scaling, message', [
    (dict(), "rotary scaling 'yarn' needs factor"),
    (dict(factor=4.0, beta_fast=1.0, beta_slow=1.0), 'needs beta_fast > beta_slow, got 1.0'),
    (dict(factor=4.0, truncate=None), 'truncate must be true or false, got None'),
    (dict(factor=4.0, mscale='x'), 'mscale must be a positive number or null'),
    (dict(factor=4.0, rope_theta=1.0), "'yarn' needs rope_theta > 1, got 1.0"),
])
def test_settings_that_are_refused(scaling, message):
  data = LLAMA | dict(rope_parameters={'rope_type': 'yarn', **scaling}, rope_theta=None)
  with pytest.raises(ValueError, match=message):
    hf_config.read(data, where='config.json')


@pytest.mark.parametrize('fields, message', [
    (dict(kind='dynamic'), "must be 'linear', 'llama3', 'yarn' or 'factors', not 'dynamic'"),
    (dict(kind='yarn', factors=(1.0,)), "got 'yarn' with 1 of them"),
    (dict(kind='factors'), "got 'factors' with 0 of them"),
])
def test_records_that_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    models.RopeScaling(**fields)


def test_a_factor_for_each_frequency():
  config = hf_config.read(LLAMA, where='config.json')
  with pytest.raises(ValueError, match='factor for each of 4 frequencies .*got 3'):
    dataclasses.replace(config, rope_scaling=models.RopeScaling('factors', factors=(1.0,) * 3))
