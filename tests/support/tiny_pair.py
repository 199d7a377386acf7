"""A pair of tiny random models with a tokenizer of bytes, in the place of the zoo's."""

import functools

import jax
import jax.numpy as jnp
import pytest
import tokenizers

from experiments.build import targets
from experiments.runs import records
from specjax import models
from specjax import zoo

TEXT = 'def add(first, second):\n  return first + second\n\n\n' * 12


def language_model(seed: int) -> models.LanguageModel:
  config = models.TransformerConfig(
      vocab_size=256, width=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
      mlp_width=24,
  )
  module = models.Transformer(config)
  params = module.init(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))['params']
  return models.LanguageModel(module, jax.tree.map(lambda x: x * 2, params))


@functools.cache
def loaded() -> records.Loaded:
  """What `experiments.build.targets.load` gives."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet)
  tokenizer.train_from_iterator(['x'], trainer)
  target, draft = language_model(0), language_model(1)
  pair = zoo.Pair(
      name='tiny', target=target, drafts={'draft': draft}, tokenizer=tokenizer, end_of_text=0,
      held_out=(zoo.HeldOut('add.py', TEXT),),
  )
  return records.Loaded(target, tokenizer, (0,), pair.held_out, pair)


def install(patch: pytest.MonkeyPatch) -> None:
  """Has every config load the tiny pair, whatever it says."""
  patch.setattr(targets, 'load', lambda config: loaded())
