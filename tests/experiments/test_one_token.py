"""Command lines that draft one token per round, over a vocabulary large enough for the op."""

import io

import jax
import jax.numpy as jnp
import pytest
import rich.console

from configs import zoo
from experiments import generate
from experiments import workdir as workdir_lib
from experiments.build import targets
from experiments.runs import records
from specjax import models
from specjax import zoo as zoo_lib
from tests.support import tiny_pair

pytestmark = pytest.mark.usefixtures('compiled_fast')


def language_model(seed: int) -> models.LanguageModel:
  module = models.Transformer(models.TransformerConfig(
      vocab_size=32_768, width=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8,
      mlp_width=8, tie_embeddings=True,
  ))
  params = module.init(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))['params']
  return models.LanguageModel(module, params)


def test_one_token_is_drafted(tmp_path, monkeypatch):
  """By the rule that `auto` picks for sampled chains."""
  target, draft = (language_model(seed) for seed in (0, 1))
  tiny = tiny_pair.loaded()
  pair = zoo_lib.Pair(
      name='tiny', target=target, drafts={'draft': draft}, tokenizer=tiny.tokenizer,
      end_of_text=0, held_out=tiny.held_out,
  )
  loaded = records.Loaded(target, tiny.tokenizer, (0,), tiny.held_out, pair)
  monkeypatch.setattr(targets, 'load', lambda config: loaded)
  config = zoo.get_config('smoke')
  config.prompt, config.max_new_tokens = 'def main():', 4
  config.drafter.kind, config.drafter.num_speculative_tokens = 'model', 1
  config.sampling.temperature = 1.0
  generate.run(config, str(tmp_path / 'run'), console=rich.console.Console(file=io.StringIO()))
  metrics, = workdir_lib.read_rows(tmp_path / 'run')
  assert metrics['rule'] == 'block' and metrics['num_speculative_tokens'] == 1
  assert metrics['new_tokens'] == 4
