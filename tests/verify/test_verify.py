"""The rules by themselves: on examples by hand, on trees, and where they refuse."""

import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import randomness
from specjax import tree
from specjax import types
from specjax import verify
from specjax.testing import replay
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')
CHAIN_RULES = (verify.rejection(), verify.block(), verify.typical())
ALL_RULES = (verify.greedy(), verify.coupled(), *CHAIN_RULES)
NAMES = dict(ids=lambda rule: getattr(rule, 'name', rule))


@struct.dataclass
class Script:
  """A source with given flips; draws take the most probable token."""

  flips: jax.Array

  def draw(self, law, *, purpose, node):
    return jnp.argmax(law, axis=-1).astype(jnp.int32), self

  def flip(self, probs, *, purpose):
    return jnp.broadcast_to(self.flips, probs.shape), self


def chain(tokens, law=None, valid=None):
  """A chain that was drawn from `law` [B, N, V], or chosen."""
  tokens = jnp.asarray(tokens, jnp.int32)
  parents = tree.chain_parents(*tokens.shape)
  return types.Proposal(
      tokens=tokens,
      parents=parents,
      valid=jnp.ones(tokens.shape, bool) if valid is None else jnp.asarray(valid),
      law=law,
      rows=parents,
      kind=types.ONE_HOT if law is None else types.SAMPLED,
  )


def random_laws(*shape, seed=0, scale=1.5):
  logits = scale * np.random.default_rng(seed).normal(size=shape)
  return jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))


def keys(batch):
  return randomness.KeySource(randomness.row_keys(jnp.arange(batch)), jnp.full((batch,), 7))


@functools.partial(jax.jit, static_argnames='rule')
def apply(rule, law, proposal, source):
  positions = jnp.broadcast_to(jnp.arange(law.shape[1]), law.shape[:2])
  return rule(target_law=law, proposal=proposal, positions=positions, source=source)[0]


@pytest.mark.parametrize('rule', ALL_RULES, **NAMES)
def test_rules_are_static_and_know_what_they_are(rule):
  assert hash(rule) == hash(type(rule)()) and rule == type(rule)()
  assert rule.lossless == (not rule.name.startswith('typical'))
  assert rule.mode == (rule.name if rule.name in ('greedy', 'coupled') else 'sample')
  assert rule.handles_trees == (rule.mode != 'sample')


@pytest.mark.parametrize('rule', ALL_RULES, **NAMES)
def test_nothing_proposed_is_plain_decoding(rule):
  law = jnp.log(jnp.eye(4, dtype=jnp.float32)[jnp.array([[2], [0], [3]])])
  result = apply(rule, law, chain(np.zeros((3, 0))), keys(3))
  assert result.next_token.tolist() == [2, 0, 3]
  assert result.is_bonus.all() and not result.num_accepted.any()
  assert result.path.shape == result.accept_probs.shape == (3, 0)


@pytest.mark.parametrize('rule', ALL_RULES, **NAMES)
def test_rows_do_not_see_each_other(rule):
  law, draft = random_laws(4, 4, 5), random_laws(4, 3, 5, seed=1)
  tokens = np.random.default_rng(2).integers(0, 5, (4, 3))
  first = apply(rule, law, chain(tokens, draft), keys(4))
  law, draft = law.at[:3].set(random_laws(3, 4, 5, seed=3)), draft.at[:3].add(0)
  tokens = np.concatenate([(tokens[:3] + 1) % 5, tokens[3:]])
  second = apply(rule, law, chain(tokens, draft), keys(4))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[3], b[3]), first, second)


@pytest.mark.parametrize('rule', CHAIN_RULES[:2], **NAMES)
def test_a_chosen_token_is_drawn_from_a_one_hot_law(rule):
  law = random_laws(200, 4, 5)
  tokens = np.asarray(jnp.argmax(law, axis=-1))[:, :3]  # mostly accepted
  valid = np.arange(3) < np.arange(200)[:, None] % 4
  one_hot = jnp.log(jnp.eye(5, dtype=jnp.float32)[tokens])
  chosen = apply(rule, law, chain(tokens, valid=valid), keys(200))
  drawn = apply(rule, law, chain(tokens, one_hot, valid=valid), keys(200))
  tolerance.assert_trees_close(chosen, drawn, lambda _: tolerance.of_rule(5))
  assert set(chosen.num_accepted.tolist()) == {0, 1, 2, 3}


def test_rejection_by_hand():
  law = jnp.log(jnp.array([[[0.2, 0.6, 0.2], [0.6, 0.0, 0.4], [0.1, 0.1, 0.8]]]))
  draft = jnp.log(jnp.array([[[0.4, 0.4, 0.2], [0.3, 0.5, 0.2]]]))
  rule, tokens = verify.rejection(), [[0, 1]]
  result = apply(rule, law, chain(tokens, draft), Script(jnp.array([True, False])))
  tolerance.assert_close(result.accept_probs, [[0.5, 0.0]], tolerance.of_rule(3))
  assert result.num_accepted.tolist() == [1] and result.path.tolist() == [[1, 0]]
  # The residual of the second row is (0.3, 0, 0.2).
  assert result.next_token.tolist() == [0] and not result.is_bonus.any()
  result = apply(rule, law, chain(tokens, draft), Script(jnp.array([True, True])))
  assert result.next_token.tolist() == [2] and result.is_bonus.all()
  # A flip that succeeds after one that failed does not count.
  result = apply(rule, law, chain(tokens, draft), Script(jnp.array([False, True])))
  assert result.num_accepted.tolist() == [0]
  # The residual of the first row is (0, 0.2, 0).
  assert result.next_token.tolist() == [1]


# Sun et al. 2024, section 2: target 1/3, 2/3 and draft 2/3, 1/3 at every position.
@pytest.mark.parametrize(
    'tokens, expected',
    [((0, 0), (0.25, 1.0)), ((0, 1), (1.0, 1.0)), ((1, 0), (1.0, 0.5)), ((1, 1), (1.0, 1.0))],
)
def test_block_by_hand(tokens, expected):
  """0, 0: p = 1/2, 1/4; S_1 = 0, so h = 0, 1/4: both stay or none, with 1/4.

  0, 1: p = 1/2, 1, so all stay. 1, 0: p = 1, 1/2; S_1 = 1/3, h = 1, 1/2.
  """
  law = jnp.log(jnp.broadcast_to(jnp.array([1 / 3, 2 / 3]), (1, 3, 2)))
  draft = law[:, :2, ::-1]
  result = apply(verify.block(), law, chain([tokens], draft), Script(jnp.array(True)))
  tolerance.assert_close(result.accept_probs, [expected], tolerance.of_rule(2))


def test_block_takes_the_longest_prefix_and_its_residual():
  law = jnp.log(jnp.broadcast_to(jnp.array([0.5, 0.1, 0.4]), (1, 4, 3)))
  draft = jnp.log(jnp.broadcast_to(jnp.array([0.8, 0.1, 0.1]), (1, 3, 3)))
  flips = jnp.array([False, True, False])
  result = apply(verify.block(), law, chain([[0, 2, 0]], draft), Script(flips))
  assert result.num_accepted.tolist() == [2] and result.path.tolist() == [[1, 2, 0]]
  assert result.next_token.tolist() == [2]
  # p = 0.625: 0.625 target - draft is below 0 at tokens 0 and 1, 0.15 at token 2.
  flips = jnp.array([True, False, False])
  result = apply(verify.block(), law, chain([[0, 0, 0]], draft), Script(flips))
  assert result.next_token.tolist() == [2]


@pytest.mark.parametrize('rule', CHAIN_RULES[:2], **NAMES)
def test_accept_probs_are_those_of_the_flips(rule):
  """Their running products sum to the expected number accepted, by enumeration of flips."""
  batch, size = 20, 3
  law, draft = random_laws(batch, size + 1, 5), random_laws(batch, size, 5, seed=1)
  tokens = np.random.default_rng(2).integers(0, 5, (batch, size))
  valid = np.arange(size) < np.arange(batch)[:, None] % (size + 1)
  slots = (
      replay.Slots(randomness.ACCEPT, replay.FLIP, 0, size, 2),
      replay.Slots(randomness.NEXT, replay.DRAW, size, 1, 5),
  )
  choices = replay.all_choices(slots)
  repeat = lambda x: jnp.repeat(jnp.asarray(x), len(choices), axis=0)
  source = replay.ReplaySource.create(jnp.tile(choices, (batch, 1)), slots)
  law, draft = repeat(law), repeat(draft)
  run = jax.jit(lambda source: rule(
      target_law=law,
      proposal=chain(repeat(tokens), draft, repeat(valid)),
      positions=jnp.zeros(law.shape[:2], jnp.int32),
      source=source,
  ))
  result, source = run(source)
  weights = np.prod(np.asarray(source.probs, np.float64), axis=1).reshape(batch, -1)
  tolerance.assert_close(weights.sum(axis=1), 1.0, tolerance.of_expectation(size + 1))
  mean = (weights * np.asarray(result.num_accepted).reshape(batch, -1)).sum(axis=1)
  stays = np.cumprod(result.accept_probs, axis=1).sum(axis=1).reshape(batch, -1)
  tolerance.assert_close(stays[:, 0], mean, tolerance.of_expectation(size + 1))
  assert (np.asarray(source.uses) == 1).all()


@pytest.mark.parametrize('rule', CHAIN_RULES[:2], **NAMES)
def test_an_empty_residual_falls_back_on_the_target(rule):
  law = random_laws(1, 3, 5)
  source = Script(jnp.array(False))
  result = apply(rule, law, chain([[1, 2]], law[:, :2]), source)
  tolerance.assert_close(result.accept_probs, 1.0, tolerance.of_rule(5))
  assert result.next_token.tolist() == jnp.argmax(law[:, 0], axis=-1).tolist()


@pytest.mark.parametrize('rule', CHAIN_RULES, **NAMES)
def test_invalid_nodes_end_the_block(rule):
  """The token after the last valid node is a bonus from its row."""
  law = jnp.log(jnp.eye(4, dtype=jnp.float32))[None]
  tokens, valid = [[0, 1, 2]], [[True, True, False]]
  result = apply(rule, law, chain(tokens, valid=valid), Script(jnp.array(True)))
  assert result.num_accepted.tolist() == [2] and result.next_token.tolist() == [2]
  assert result.is_bonus.all() and result.accept_probs.tolist() == [[1.0, 1.0, 0.0]]


@pytest.mark.parametrize('rule', CHAIN_RULES, **NAMES)
def test_impossible_tokens_and_laws_leave_no_nan(rule):
  """Laws with zeros: 0 / 0, x / 0, and a prefix probability of 0 before x / 0."""
  zero = -jnp.inf
  law = jnp.array([[[0.0, zero], [0.0, zero], [zero, 0.0]]])
  draft = jnp.array([[[zero, 0.0], [zero, 0.0]]])
  for tokens in ([[0, 0]], [[1, 0]], [[1, 1]], [[0, 1]]):
    result = apply(rule, law, chain(tokens, draft), Script(jnp.array(False)))
    assert np.isfinite(result.accept_probs).all()
    # The target says 0, 0, 1; typical acceptance makes no flips.
    if rule.lossless or tokens[0][0]:
      assert result.num_accepted.tolist() == [0] and result.next_token.tolist() == [0]


def test_typical_thresholds():
  rule = verify.typical(epsilon=0.3, delta=0.5)
  law = jnp.log(jnp.array([[[0.5, 0.5], [0.99, 0.01], [1.0, 0.0]]]))
  # Entropies log 2, 0.056 and 0: min(0.3, 0.25), 0.3, 0.3.
  tolerance.assert_close(rule.thresholds(law), [[0.25, 0.3, 0.3]], tolerance.of_rule(2))
  result = apply(rule, law, chain([[1, 1]]), keys(1))
  assert result.num_accepted.tolist() == [1] and result.accept_probs.tolist() == [[1.0, 0.0]]


def walk(tokens, parents, valid, choices):
  """The path of one row, step by step."""
  path = []
  while True:
    at = path[-1] if path else 0
    children = [i + 1 for i, parent in enumerate(parents) if parent == at and valid[i]]
    match = [node for node in children if tokens[node - 1] == choices[at]]
    if not match:
      return path, not children
    path.append(match[0])


@pytest.mark.parametrize('rule', [verify.greedy(), verify.coupled()], **NAMES)
def test_trees_are_walked(rule):
  """300 random trees of 6 nodes, equal siblings and invalid nodes among them."""
  rng, batch, size = np.random.default_rng(0), 300, 6
  parents = np.stack([rng.integers(0, node, batch) for node in range(1, size + 1)], axis=1)
  tokens, valid = rng.integers(0, 2, (batch, size)), rng.random((batch, size)) < 0.9
  law = random_laws(batch, size + 1, 2)
  _, depths = tree.paths(jnp.asarray(parents, jnp.int32), size)
  proposal = types.Proposal(
      tokens=jnp.asarray(tokens, jnp.int32),
      parents=jnp.asarray(parents, jnp.int32),
      valid=jnp.asarray(valid),
      law=None,
      rows=jnp.asarray(parents, jnp.int32),
      kind=types.ONE_HOT,
  )
  source = keys(batch)
  run = jax.jit(lambda law: rule(
      target_law=law, proposal=proposal, positions=10 + depths, source=source
  )[0])
  result = run(law)
  scores = law + source.gumbel(10 + depths, 2) if rule.mode == 'coupled' else law
  choices = np.asarray(jnp.argmax(scores, axis=-1))
  lengths = set()
  result = jax.tree.map(np.asarray, result)
  for row in range(batch):
    path, at_leaf = walk(tokens[row], parents[row], valid[row], choices[row])
    assert int(result.num_accepted[row]) == len(path)
    assert result.path[row].tolist() == path + [0] * (size - len(path))
    assert int(result.next_token[row]) == choices[row, path[-1] if path else 0]
    assert bool(result.is_bonus[row]) == at_leaf
    lengths.add(len(path))
  assert lengths >= {0, 1, 2, 3, 4}


def test_equal_logits_are_decided_for_the_smaller_token():
  logits = jnp.array([[[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]])
  result = apply(verify.greedy(), logits, chain([[1]]), keys(1))
  assert result.num_accepted.tolist() == [1] and result.next_token.tolist() == [0]


@pytest.mark.parametrize('rule', CHAIN_RULES[:2], **NAMES)
def test_laws_that_a_rule_cannot_use_are_refused(rule):
  law, proposal = random_laws(1, 3, 5), chain([[1, 2]])
  with pytest.raises(ValueError, match=r'use verify.coupled\(\)'):
    apply(rule, law, proposal.replace(kind=types.COUPLED), keys(1))
  with pytest.raises(ValueError, match='draft a chain'):
    apply(rule, law, proposal.replace(kind=types.WITHOUT_REPLACEMENT), keys(1))
  with pytest.raises(ValueError, match='keep the law'):
    apply(rule, law, proposal.replace(kind=types.SAMPLED), keys(1))


@pytest.mark.parametrize('kind', [types.COUPLED, types.WITHOUT_REPLACEMENT, types.SAMPLED])
@pytest.mark.parametrize('rule', [verify.greedy(), verify.coupled(), verify.typical()], **NAMES)
def test_rules_that_compare_take_any_law(rule, kind):
  result = apply(rule, random_laws(1, 3, 5), chain([[1, 2]]).replace(kind=kind), keys(1))
  assert result.next_token.shape == (1,)


@pytest.mark.parametrize('arguments', [dict(epsilon=0.0), dict(epsilon=1.0), dict(delta=0.0)])
def test_typical_refuses_thresholds_out_of_range(arguments):
  with pytest.raises(ValueError, match=next(iter(arguments))):
    verify.typical(**arguments)
