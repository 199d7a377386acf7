"""Best-first trees hold the most probable nodes of all, and give the tokens of plain decoding."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax import drafters
from specjax import types
from specjax.drafters import best_first
from tests.support import tiny
from tests.support import tiny_heads

pytestmark = pytest.mark.usefixtures('compiled_fast')

BATCH, DEPTH, WIDTH, NODES = 5, 4, 3, 12


def every_node(scores):
  """Joint score of every path of ranks."""
  return {
      ranks: sum(scores[level, rank] for level, rank in enumerate(ranks))
      for length in range(1, DEPTH + 1)
      for ranks in itertools.product(range(WIDTH), repeat=length)
  }


@pytest.mark.parametrize('few', [False, True])
def test_they_are_the_most_probable_nodes_of_all(few):
  rng = np.random.default_rng(0)
  scores = -np.sort(rng.exponential(size=(BATCH, DEPTH, WIDTH)).astype(np.float32))
  if few:
    scores[0, 1:] = -np.inf  # nothing follows
    scores[1, :, 1:] = -np.inf  # a chain, which is shorter than the tree
    scores[2] = -np.inf  # nothing at all
  tokens = np.broadcast_to(10 * np.arange(DEPTH)[:, None] + np.arange(WIDTH), scores.shape)
  made = best_first.proposal(
      jnp.asarray(tokens, jnp.int32), jnp.asarray(scores), None, num_nodes=NODES,
      kind=types.ONE_HOT,
  )
  for row in range(BATCH):
    joint = every_node(scores[row])
    ranked = sorted((s for s in joint.values() if s > -np.inf), reverse=True)[:NODES]
    found, paths = [], {0: ()}
    for node in range(NODES):
      if not made.valid[row, node]:
        continue
      parent, token = int(made.parents[row, node]), int(made.tokens[row, node])
      assert parent <= node
      level, rank = divmod(token, 10)
      paths[node + 1] = (*paths[parent], rank)
      assert len(paths[node + 1]) == level + 1 == int(made.rows[row, node]) + 1
      found.append(joint[paths[node + 1]])
    assert len(set(paths.values())) == len(paths)
    np.testing.assert_allclose(found, ranked, rtol=1e-6)


@pytest.mark.parametrize('kind', ['medusa', 'dflash'])
@pytest.mark.parametrize('rule', ['greedy', 'coupled'])
def test_output_is_plain_decodings(kind, rule):
  tree = drafters.best_first_tree(num_nodes=9, depth=3, width=4)
  options = dict(max_new_tokens=16, seeds=2, cache_length=48)
  drafter = tiny_heads.make(kind, tree=tree)
  output = specjax.generate(tiny.target(), tiny.PROMPTS, drafter=drafter, rule=rule, **options)
  plain = specjax.decode(tiny.target(), tiny.PROMPTS, rule=rule, width=10, **options)
  np.testing.assert_array_equal(output.tokens, plain.tokens)


def test_penalties_and_a_bias_act_on_what_is_drafted():
  bias = np.zeros((4, tiny.VOCAB), np.float32)
  bias[:, ::2] = -np.inf
  sampling = specjax.sampling.make(
      batch_size=4, temperature=0.0, logit_bias=bias, frequency_penalty=0.5
  )
  drafter = tiny_heads.make(
      'dflash', tree=drafters.best_first_tree(num_nodes=6, depth=3, width=3)
  )
  output = specjax.generate(
      tiny.target(), tiny.PROMPTS, drafter=drafter, sampling=sampling, max_new_tokens=8, trace=True
  )
  for row in range(4):
    assert all(token % 2 for token in output.new_tokens(row))
    drafted = output.trace.tokens[row][output.trace.valid[row]]
    assert drafted.size and (drafted % 2 == 1).all()


def test_whose_laws_depend_on_the_path_is_refused():
  tree = drafters.best_first_tree(num_nodes=4, depth=3, width=2)
  for kind in ('eagle3', 'exit', 'dspark'):
    with pytest.raises(ValueError, match='laws that depend on the depth alone'):
      tiny_heads.make(kind, tree=tree)
  with pytest.raises(ValueError, match='laws that depend on the depth alone'):
    drafters.model_tree(tiny.related_draft(), tree=tree)
  with pytest.raises(ValueError, match='had they been drawn'):
    drafters.medusa(tiny_heads.medusa(), tiny.target(), tree=tree, siblings='with_replacement')
  with pytest.raises(ValueError, match='at most 14 nodes'):
    drafters.best_first_tree(num_nodes=15, depth=3, width=2)
