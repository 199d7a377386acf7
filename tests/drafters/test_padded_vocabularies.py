"""Drafts whose vocabulary is the target's, padded to another size: nothing to say, exact laws."""

import jax
import numpy as np
import pytest

import specjax
from specjax import drafters
from specjax import engine
from specjax import sampling as sampling_lib
from specjax import sharding
from specjax import testing
from specjax import verify
from specjax.drafters import vocabulary
from specjax.models import LanguageModel, Transformer, TransformerConfig
from specjax.planning import ahead

pytestmark = pytest.mark.usefixtures('compiled_fast')
TARGET = testing.table_model(vocab_size=3, seed=1)
PROMPT = (0, 1, 0)


def draft(vocab_size: int) -> LanguageModel:
  return testing.table_model(vocab_size=vocab_size, seed=9)


def tree(vocab_size: int):
  return drafters.model_tree(draft(vocab_size), tree=(2,))


def chain(vocab_size: int):
  return drafters.model(draft(vocab_size), num_speculative_tokens=2)


@pytest.mark.parametrize('rule, make, vocab_size', [
    (verify.block(), chain, 2), (verify.rejection(), chain, 4), (verify.recursive(), tree, 2),
])
def test_the_output_law_is_the_targets(rule, make, vocab_size):
  sampling = sampling_lib.make(
      batch_size=3, temperature=[1.0, 0.5, 1.0], top_p=[1.0, 1.0, 0.8],
      frequency_penalty=[0.0, 0.5, 0.0], logit_bias=[0.0, 0.5, 0.5],
  )
  options = dict(sampling=sampling, max_new_tokens=3 if make is chain else 2)
  laws = testing.output_law(TARGET, [PROMPT] * 3, rule=rule, drafter=make(vocab_size), **options)
  for law, right in zip(laws, testing.plain_law(TARGET, [PROMPT] * 3, **options)):
    assert testing.max_difference(law, right) < 1e-6
    assert any(2 in output for output in law)  # which the smaller draft does not have


@pytest.mark.parametrize('rule, vocab_size', [('greedy', 2), ('coupled', 4)])
def test_what_only_one_side_has_is_never_drafted(rule, vocab_size):
  """The same drafter for chains, and after a lookup that was told the target's size."""
  target = testing.table_model(vocab_size=3, seed=4, scale=0.5)
  options = dict(rule=rule, max_new_tokens=12, prefill_chunk=4, seeds=[3, 5])
  prompts = [PROMPT, (2, 2)]
  plain = specjax.decode(target, prompts, width=3, **options)
  drafter = chain(vocab_size)
  if vocab_size == 4:
    free = drafters.suffix(vocab_size=3, num_speculative_tokens=2)
    drafter = drafters.combined(free, drafter)
  output = specjax.generate(target, prompts, drafter=drafter, trace=True, **options)
  np.testing.assert_array_equal(output.tokens, plain.tokens)
  drafted = output.trace.tokens[output.trace.valid]
  assert drafted.size and drafted.max() < (vocab_size if vocab_size < 3 else 3)


def test_sizes_of_padding():
  """Qwen2.5's are; a tokenizer's double, or of another family, is not."""
  for sizes in ((151_936, 152_064), (152_064, 151_936), (50_257, 50_304), (128_264, 128_256)):
    assert vocabulary.is_padding(*sizes)
  for sizes in ((32_000, 128_256), (32, 64), (1, 2), (32_000, 50_257)):
    assert not vocabulary.is_padding(*sizes)


@pytest.mark.parametrize('drafter', [
    drafters.model(draft(8)),
    drafters.suffix(vocab_size=4),
    drafters.combined(drafters.suffix(vocab_size=4), drafters.model(draft(4))),
])
def test_other_vocabularies_are_refused(drafter):
  with pytest.raises(ValueError, match=r'of (4|8) tokens, the target of 3\. Both must be the same'):
    specjax.generate(TARGET, [PROMPT], drafter=drafter)


def test_a_plan_has_it_as_well():
  """Shapes of a run over a mesh."""
  layout = sharding.make('tensor', model=1, devices=jax.devices()[:1])
  sizes = dict(
      width=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_width=8
  )
  target, smaller = (
      ahead.abstract_model(
          Transformer(TransformerConfig(vocab_size=size, **sizes), layout=layout.target)
      )
      for size in (64, 48)
  )
  setup, state = ahead.abstract_run(
      target, drafter=drafters.model(smaller), rule=verify.block(), batch_size=1, context=32,
      prefill_chunk=8,
  )
  after = jax.eval_shape(engine.speculative_round, setup, state)
  assert after.tokens.shape == (1, 32) and setup.drafter.vocab_size == 64
