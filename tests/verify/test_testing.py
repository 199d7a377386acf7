"""The tools of `specjax.testing` themselves: table models, replay, statistics."""

import doctest
import importlib

from flax import struct
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import randomness
from specjax import testing
from specjax import tree
from specjax import verify
from specjax.cache import kv_cache
from specjax.testing import replay
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')
MODEL = testing.table_model(seed=0, vocab_size=4, order=3)
TABLE = np.asarray(MODEL.params['table'])


def logits_after(tokens):
  """The table's row for a sequence."""
  padded = [MODEL.vocab_size] * 2 + list(tokens)
  return TABLE[tuple(padded[-3:])]


def test_a_table_is_looked_up_by_the_last_tokens():
  tokens = np.array([[1, 3, 0, 2]])
  expected = [logits_after(tokens[0, : end + 1]) for end in range(4)]
  np.testing.assert_array_equal(MODEL(jnp.asarray(tokens)).logits[0], expected)


def test_cached_calls_agree_with_fresh_ones():
  """Chunks with padding, a rejected append, and a batch of different lengths."""
  rows = [[1, 3, 0, 2, 1], [2, 2]]
  cache = MODEL.init_cache(batch_size=2, cache_length=6, max_append=3)
  tokens = jnp.array([[1, 3, 0], [2, 2, 0]])
  cache = MODEL(tokens, cache=cache, num_new=jnp.array([3, 1])).cache
  rejected = MODEL(jnp.array([[3, 3], [1, 1]]), cache=cache).cache
  cache = kv_cache.roll_back(rejected, cache.lengths)
  out = MODEL(jnp.array([[2, 1], [2, 0]]), cache=cache)
  np.testing.assert_array_equal(out.logits[0, 1], logits_after(rows[0]))
  np.testing.assert_array_equal(out.logits[1, 0], logits_after(rows[1]))
  assert out.cache.lengths.tolist() == [5, 3]


def test_trees_see_their_own_path():
  parents = jnp.array([[0, 0, 1, 2, 3]])
  paths, depths = tree.paths(parents, 3)
  cache = MODEL.init_cache(batch_size=1, cache_length=12, max_append=6)
  cache = MODEL(jnp.array([[0, 3]]), cache=cache).cache
  tokens = np.array([[1, 2, 3, 0, 1, 2]])
  out = MODEL(
      jnp.asarray(tokens), 2 + depths, cache, tree_mask=tree.ancestor_mask(paths)
  )
  for row in range(6):
    path = [tokens[0, node] for node in paths[0, row].tolist() if node]
    np.testing.assert_array_equal(out.logits[0, row], logits_after([0, 3, 1, *path]))
  # Keep root, 2, 4: the next token sees them and nothing of the other branch.
  cache = kv_cache.keep_path(
      out.cache, jnp.array([2]), jnp.array([[2, 4, 0]]), jnp.array([2]), num_nodes=5
  )
  np.testing.assert_array_equal(
      MODEL(jnp.array([[3]]), cache=cache).logits[0, 0],
      logits_after([0, 3, 1, tokens[0, 2], tokens[0, 4], 3]),
  )


def test_features_have_the_width_asked_for():
  out = MODEL(jnp.array([[1, 2]]), feature_layers=(0, 1), with_logits=False)
  assert out.features.shape == (1, 2, 8) and out.logits.shape == (1, 2, 0)


def test_a_table_of_another_shape_is_refused():
  with pytest.raises(ValueError, match=r'\[V \+ 1, V, V\]'):
    testing.table_model(np.zeros((3, 4)))


def test_replayed_choices_and_their_probabilities():
  slots = (
      replay.Slots(randomness.DRAFT, replay.DRAW, 0, 1, 3),
      replay.Slots(randomness.ACCEPT, replay.FLIP, 1, 1, 2),
  )
  choices = replay.all_choices(slots)
  source = testing.ReplaySource.create(jnp.asarray(choices), slots)
  tolerance.assert_close(source.probs, [[1 / 3, 1 / 2]] * 6, tolerance.chained(2))
  law = jnp.log(jnp.broadcast_to(jnp.array([2.0, 1.0, 1.0]), (6, 3)))  # not normalised
  token, source = source.draw(law, purpose=randomness.DRAFT, node=1)
  heads, source = source.flip(jnp.full((6, 1), 0.9), purpose=randomness.ACCEPT)
  assert token.tolist() == [0, 0, 1, 1, 2, 2] and heads[:, 0].tolist() == [False, True] * 3
  expected = np.array([0.05, 0.45, 0.025, 0.225, 0.025, 0.225])
  tolerance.assert_close(
      np.prod(source.probs, axis=1), expected, tolerance.of_rule(3, size=expected)
  )


@struct.dataclass
class Repeating(drafters.ModelDrafter):
  """Draws node 1 twice."""

  def propose(self, context, state):
    law = jnp.zeros((context.lengths.shape[0], self.vocab_size))
    _, source = context.sampler.source.draw(law, purpose=randomness.DRAFT, node=1)
    return super().propose(context.replace(sampler=context.sampler.replace(source=source)), state)


def test_a_number_used_twice_is_found():
  drafter = Repeating(draft=MODEL, min_confidence=jnp.float32(0), num_nodes=1)
  with pytest.raises(ValueError, match='a node of its own'):
    testing.output_law(
        MODEL, [[0]], drafter=drafter, rule=verify.rejection(), max_new_tokens=1
    )


def test_coupled_noise_is_not_enumerated():
  with pytest.raises(NotImplementedError, match='token by token'):
    testing.output_law(MODEL, [[0]], rule=verify.coupled(), max_new_tokens=1)


def test_chi_square_by_hand():
  law = {'a': 0.5, 'b': 0.3, 'c': 0.2}
  test = testing.chi_square({'a': 60, 'b': 25, 'c': 15}, law)
  assert test.statistic == tolerance.approx(100 / 50 + 25 / 30 + 25 / 20)
  # With two degrees of freedom the p-value is exp(-statistic / 2).
  assert test.degrees_of_freedom == 2
  wanted = np.exp(-test.statistic / 2)
  tolerance.assert_close(
      test.p_value, wanted, tolerance.of_exp(-test.statistic / 2, roundings=16)
  )


def test_chi_square_of_rare_and_impossible_outcomes():
  law = {'a': 0.96, 'b': 0.02, 'c': 0.02, 'd': 0.0}
  assert testing.chi_square({'a': 196, 'b': 2, 'c': 2}, law).degrees_of_freedom == 1
  assert testing.chi_square({'a': 199, 'd': 1}, law).p_value == 0.0
  assert testing.chi_square({'a': 10}, {'a': 1.0}).p_value == 1.0


@pytest.mark.parametrize('name', ['', '.replay', '.statistics', '.table_model'])
def test_examples_in_docstrings(name):
  result = doctest.testmod(importlib.import_module('specjax.testing' + name))
  assert result.failed == 0 and result.attempted > 0
