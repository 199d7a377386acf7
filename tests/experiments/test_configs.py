"""Every config builds, shrinks, says how it is run, and refuses what it does not know."""

import types

import ml_collections
import pytest

from configs import train_compared_zoo
from experiments.build import tasks
from experiments.build.training import optimizer
from specjax.models import TransformerConfig
from tests.support import configs


@pytest.mark.parametrize('file', configs.FILES, ids=lambda file: file.stem)
def test_a_config_builds_and_has_a_smoke_variant(file):
  module = configs.load(file)
  config, smoke = module.get_config(), module.get_config('smoke')
  assert isinstance(config, ml_collections.ConfigDict)
  assert config.name and config.to_json_best_effort()
  assert set(config) == set(smoke)
  assert config.to_dict() != smoke.to_dict()


@pytest.mark.parametrize('file', configs.FILES, ids=lambda file: file.stem)
def test_a_config_says_how_it_is_run(file):
  doc = configs.load(file).__doc__
  assert f'--config=configs/{file.name}' in doc
  assert 'python -m experiments.' in doc


@pytest.mark.parametrize('file', configs.FILES, ids=lambda file: file.stem)
def test_an_unknown_argument_is_refused(file):
  with pytest.raises(ValueError, match="'nonsense'"):
    configs.load(file).get_config('nonsense')


@pytest.mark.parametrize('name, millions', [('zoo_target', 16.8), ('train_distill_zoo', 1.75)])
def test_the_recipes_are_of_the_shipped_sizes(name, millions):
  file = next(file for file in configs.FILES if file.stem == name)
  config = configs.load(file).get_config()
  shape = TransformerConfig(**config.model.to_dict())
  places = 2 if millions < 10 else 1
  assert round(shape.num_parameters / 1e6, places) == millions
  assert optimizer(config).update is not None
  assert config.checkpoint_every % config.record_every == 0


def test_compared_heads_are_of_equal_size():
  tokenizer = types.SimpleNamespace(get_vocab=lambda: {'last': 4095})
  corpus = types.SimpleNamespace(end_tokens=(0,), tokenizer=tokenizer)
  made = {}
  for kind in ('eagle3', 'dflash', 'dspark', 'medusa'):
    config = train_compared_zoo.get_config(kind)
    made[kind] = tasks.task(config, corpus)
  sizes = {kind: task.num_parameters for kind, task in made.items()}
  assert max(sizes.values()) < 1.005 * min(sizes.values()), sizes
