"""Rules for trees: exact laws, wrong rules caught, and never shorter than the first branch."""

import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import generation
from specjax import testing
from specjax import types
from specjax import verify
from specjax.verify import whole
from specjax.verify.k_sequential import first_branch_heights
from tests.support import exact_laws
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')
DRAFT = exact_laws.DRAFT
# Two siblings, the first of which goes on: three nodes, two deep.
UNEVEN = [(0,), (1,), (0, 0)]
DYNAMIC = drafters.dynamic_tree(num_nodes=3, depth=2, width=2)


def tree(siblings, shape=UNEVEN, draft=DRAFT):
  return drafters.model_tree(draft, tree=shape, siblings=siblings)


DRAFTERS = {
    'with_replacement': tree('with_replacement'),
    'without_replacement': tree('without_replacement'),
    'rank': tree('rank'),
    'dynamic': tree(None, DYNAMIC),
}
RULES = {'recursive': verify.recursive(), 'traversal': verify.traversal()}
CASES = [(rule, kind) for rule in RULES for kind in ('with_replacement', 'without_replacement')]
CASES += [('traversal', 'rank'), ('recursive', 'dynamic')]
RULES['k_sequential'] = verify.k_sequential()
CASES.append(('k_sequential', 'with_replacement'))
LENGTH = 4  # a round after a full acceptance


@pytest.mark.parametrize('rule, kind', CASES)
def test_output_law_is_the_targets(rule, kind):
  """For every sampling control, penalty and hook, at every node."""
  for constrained in (False, True):
    laws = exact_laws.output_laws(
        RULES[rule],
        DRAFTERS[kind],
        constraint=exact_laws.STRICT if constrained else exact_laws.FREE,
        max_new_tokens=LENGTH,
    )
    expected = exact_laws.plain_laws(constrained=constrained, max_new_tokens=LENGTH)
    exact_laws.assert_equal(laws, expected)


# Wrong on purpose: the check must be able to fail.


class Unstruck(whole.WholeRows):
  """Forgets which tokens are struck out."""

  def mass(self, draw):
    return super().mass(draw.replace(without=jnp.full_like(draw.without, -1)))

  def draw(self, draw, source):
    return super().draw(draw.replace(without=jnp.full_like(draw.without, -1)), source)


class StruckOut(type(verify.recursive())):
  """Forgets that a rejected sibling's mass is the draft's."""

  def residual(self, scale, share, whole):
    return scale, share


class KeepsTheTarget(StruckOut):
  """A rejected sibling changes nothing."""

  def rows(self, logits, *, sampling, proposal):
    rows = super().rows(logits, sampling=sampling, proposal=proposal)
    return Unstruck(rows.values, rows.proposal)


class TokenResidual(type(verify.traversal())):
  """The residual of a single token, whatever the path is worth."""

  def residual(self, scale, share, prob, whole):
    return super().residual(scale, share, jnp.ones_like(prob), whole)


class SameChance(type(verify.traversal())):
  """A path is worth as much after a child was rejected as before."""

  def chance(self, prob, surplus):
    return prob


class NoFactor(type(verify.k_sequential())):
  """Keeps every sibling as if it were the only one."""

  def factor(self, law, draft, size):
    return jnp.ones(size.shape, jnp.float32)


class LastSibling(type(verify.k_sequential())):
  """The residual of one sibling, after two were rejected."""

  def residual(self, law, draft, factor, size):
    return super().residual(law, draft, factor, jnp.ones_like(size))


@dataclasses.dataclass(frozen=True)
class AsIfReplaced:
  """Takes siblings drawn without replacement for independent ones."""

  rule: object = verify.recursive()
  name: str = 'wrong'
  mode: str = 'sample'
  handles_trees: bool = True

  def __call__(self, *, proposal, **kwargs):
    return self.rule(proposal=proposal.replace(kind=types.SAMPLED), **kwargs)


@struct.dataclass
class Pruning(drafters.ModelTreeDrafter):
  """Prunes drawn siblings because of what they are."""

  def propose(self, context, state):
    proposal, state, context = super().propose(context, state)
    batch = jnp.arange(proposal.tokens.shape[0])[:, None]
    likely = proposal.law[batch, proposal.rows, proposal.tokens] > jnp.log(0.4)
    return proposal.replace(valid=proposal.valid & likely), state, context


FAULTS = {
    'recursive, the target for a residual': (KeepsTheTarget(), 'with_replacement'),
    'recursive, struck out': (StruckOut(), 'without_replacement'),
    'recursive, replacement taken for granted': (AsIfReplaced(), 'without_replacement'),
    'traversal, residual of a token': (TokenResidual(), 'without_replacement'),
    'traversal, the same chance': (SameChance(), 'with_replacement'),
    'traversal, replacement taken for granted': (
        AsIfReplaced(verify.traversal()), 'without_replacement'
    ),
    'k_sequential, threshold of one sibling': (NoFactor(), 'with_replacement'),
    'k_sequential, residual of one sibling': (LastSibling(), 'with_replacement'),
    'pruned by what was drawn': (verify.recursive(), 'pruning'),
}
PRUNING = Pruning(
    draft=DRAFT, shape=DRAFTERS['with_replacement'].shape, siblings='with_replacement'
)
# Two alike, so that the groups of the k-sequential rule have two members.
PAIR = tree('with_replacement', (2,))


@pytest.mark.parametrize('fault', FAULTS)
def test_wrong_rules_are_caught(fault):
  rule, kind = FAULTS[fault]
  drafter = PRUNING if kind == 'pruning' else DRAFTERS[kind]
  if fault.startswith('k_sequential'):
    drafter = PAIR
  laws = exact_laws.output_laws(rule, drafter, max_new_tokens=2)
  found = exact_laws.errors(laws, exact_laws.plain_laws(max_new_tokens=2))
  assert found['temperature 1'] > exact_laws.SEEN, found


def test_the_k_sequential_rule_with_a_group_of_two():
  laws = exact_laws.output_laws(verify.k_sequential(), PAIR, max_new_tokens=2)
  exact_laws.assert_equal(laws, exact_laws.plain_laws(max_new_tokens=2))


# Never shorter than the chain that is the first branch, by exact expectation.


def accepted(rule, kind, shape, draft):
  return testing.expected_accepted(
      exact_laws.TARGET,
      [exact_laws.PROMPT] * len(exact_laws.SETTINGS),
      rule=rule,
      drafter=tree(kind, shape, draft),
      sampling=exact_laws.settings(),
  )


SEEDS = range(20, 24)


@functools.cache
def chain(rule: str, kind: str):
  """Expected tokens of the first branch, [seeds, settings]."""
  kind = kind if kind == 'rank' else 'with_replacement'
  return np.stack([
      accepted(RULES[rule], kind, (1, 1), testing.table_model(seed=seed)) for seed in SEEDS
  ])


@pytest.mark.parametrize('rule, kind, shape', [
    *[(rule, kind, 'uneven') for rule, kind in CASES if kind != 'dynamic'],
    ('recursive', 'rank', 'uneven'),
    ('k_sequential', 'with_replacement', 'even'),
])
def test_never_shorter_than_the_first_branch(rule, kind, shape):
  shape = UNEVEN if shape == 'uneven' else (2, 1)
  found = np.stack([
      accepted(RULES[rule], kind, shape, testing.table_model(seed=seed)) for seed in SEEDS
  ])
  shortest = chain(rule, kind)
  tolerance.assert_at_least(found, shortest, tolerance.of_expectation(2))
  assert (found > shortest + 1e-2).any()  # a gain, not rounding


def test_on_a_chain_the_rules_are_those_for_chains():
  prompts = [exact_laws.PROMPT] * len(exact_laws.SETTINGS)
  for tree_rule, chain_rule in (('recursive', 'rejection'), ('traversal', 'block')):
    expected = testing.expected_accepted(
        exact_laws.TARGET,
        prompts,
        rule=getattr(verify, chain_rule)(),
        drafter=tree('with_replacement', (1, 1), testing.table_model(seed=SEEDS[0])),
        sampling=exact_laws.settings(),
    )
    tolerance.assert_close(
        chain(tree_rule, 'with_replacement')[0], expected, tolerance.of_expectation(2)
    )
  tolerance.assert_close(
      chain('k_sequential', 'with_replacement'), chain('recursive', 'with_replacement'),
      tolerance.of_expectation(2),
  )


def test_a_threshold_shared_across_uneven_subtrees_would_be_shorter():
  """Why the k-sequential rule forms groups: the literal rule loses the first branch."""

  class OneGroup(type(verify.k_sequential())):

    def _next_child(self, walk, proposal, heights):
      return super()._next_child(walk, proposal, jnp.zeros_like(heights))

  found = [
      accepted(OneGroup(), 'with_replacement', UNEVEN, testing.table_model(seed=seed))
      for seed in SEEDS
  ]
  # A loss, not rounding.
  assert (np.stack(found) < chain('k_sequential', 'with_replacement') - 1e-4).any()


# The rules by themselves.


def proposal(tokens, parents, law=None, kind=types.SAMPLED):
  """One row, drawn from `law` [M, V] with a row per parent, in order."""
  rows = {parent: index for index, parent in enumerate(sorted(set(parents)))}
  one_row = lambda x: jnp.asarray([x], jnp.int32)
  return types.Proposal(
      tokens=one_row(tokens),
      parents=one_row(parents),
      valid=jnp.ones((1, len(tokens)), bool),
      law=None if law is None else jnp.log(jnp.asarray([law], jnp.float32)),
      rows=one_row([rows[parent] for parent in parents]),
      kind=types.ONE_HOT if law is None else kind,
  )


@struct.dataclass
class Script:
  """Flips by node, and the most probable token."""

  flips: jax.Array

  def draw(self, law, *, purpose, node):
    return jnp.argmax(law, axis=-1).astype(jnp.int32), self

  def flip(self, probs, *, purpose, node):
    return self.flips[node - 1] & (probs > 0), self


def decide(rule, proposal, law, flips):
  law = jnp.log(jnp.asarray([law], jnp.float32))
  return jax.jit(lambda: rule(
      target_law=law, proposal=proposal, positions=None, source=Script(jnp.asarray(flips))
  )[0])()


P, Q = [0.5, 0.2, 0.3], [0.2, 0.5, 0.3]
LEAVES = [P] * 4


def test_recursive_by_hand():
  """Node 1 is token 1: 0.4; the residual is (1, 0, 0); then token 0: 1."""
  drafted = proposal([1, 0, 2], [0, 0, 2], [Q, Q])
  result = decide(verify.recursive(), drafted, LEAVES, [False, True, False])
  tolerance.assert_close(result.accept_probs, [[0.4, 1.0, 1.0]], tolerance.of_rule(3))
  assert result.path.tolist() == [[2, 0, 0]] and result.num_accepted.tolist() == [1]
  assert not result.is_bonus.any()
  # Without replacement the second is drawn from (0.4, 0, 0.6): refused, as p is 0.
  drafted = proposal([1, 2, 2], [0, 0, 2], [Q, Q], types.WITHOUT_REPLACEMENT)
  result = decide(verify.recursive(), drafted, LEAVES, [False, True, True])
  tolerance.assert_close(result.accept_probs, [[0.4, 0.0, 0.0]], tolerance.of_rule(3))
  assert result.num_accepted.tolist() == [0] and result.next_token.tolist() == [0]
  # Chosen: 0.2; then 0.5 / 0.8, and the tokens are struck out.
  drafted = proposal([1, 0], [0, 0])
  result = decide(verify.recursive(), drafted, LEAVES[:3], [False, False])
  tolerance.assert_close(result.accept_probs, [[0.2, 0.625]], tolerance.of_rule(3))
  assert result.next_token.tolist() == [2]


def test_k_sequential_by_hand():
  """beta = 0.2 + 0.2 / rho + 0.3 / rho for rho >= 1; the factor solves its equation."""
  drafted = proposal([1, 1], [0, 0], [Q])
  result = decide(verify.k_sequential(), drafted, LEAVES[:3], [False, True])
  rho = 0.2 / np.asarray(result.accept_probs)[0, 0] / 0.5
  beta = 0.2 + 0.5 / rho
  assert 1.0 < rho < 2.0
  tolerance.assert_close(rho * beta, 1 - (1 - beta) ** 2, tolerance.of_rule(3, size=rho))
  tolerance.assert_close(*result.accept_probs[0, :2], tolerance.of_rule(3))
  assert result.path.tolist() == [[2, 0]] and result.is_bonus.all()


def test_traversal_by_hand():
  """A chain as in the block rule, then a sibling that meets what the first branch left."""
  drafted = proposal([1, 1, 0], [0, 0, 1], [Q, Q])
  result = decide(verify.traversal(), drafted, LEAVES, [False, True, False])
  # Node 1: 0.4. Node 3: min(0.4 * 0.5 / 0.2, 1). Rejected: node 1 becomes
  # S = 0.4 * 0.5 - 0.2 = 0 at token 0: never kept. The root asks for (1, 0, 0): node 2 has 0.
  tolerance.assert_close(result.accept_probs, [[0.4, 0.0, 1.0]], tolerance.of_rule(3))
  assert result.num_accepted.tolist() == [0] and result.next_token.tolist() == [0]
  result = decide(verify.traversal(), drafted, LEAVES, [False, True, True])
  assert result.path.tolist() == [[1, 3, 0]] and result.is_bonus.all()


def test_heights_by_hand():
  parents = jnp.asarray([[0, 0, 1, 1, 3], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0], [0, 1, 1, 3, 4]])
  heights = first_branch_heights(parents)
  assert heights.tolist() == [[2, 0, 1, 0, 0], [4, 3, 2, 1, 0], [0] * 5, [1, 0, 2, 1, 0]]


@pytest.mark.parametrize('rule', [verify.recursive(), verify.traversal(), verify.k_sequential()])
def test_static_and_what_they_refuse(rule):
  assert hash(rule) == hash(type(rule)()) and rule == type(rule)()
  assert rule.lossless and rule.handles_trees and rule.mode == 'sample'
  drafted = proposal([1, 0], [0, 0], [Q])
  with pytest.raises(ValueError, match=r'take verify.coupled\(\)'):
    decide(rule, drafted.replace(kind=types.COUPLED), LEAVES[:3], [True] * 2)
  with pytest.raises(ValueError, match='keep the laws'):
    decide(rule, drafted.replace(law=None), LEAVES[:3], [True] * 2)
  if rule.name == 'k_sequential':
    with pytest.raises(ValueError, match='verifies drafts of kind sampled'):
      decide(rule, proposal([1, 0], [0, 0]), LEAVES[:3], [True] * 2)


@pytest.mark.parametrize('rule', [verify.recursive(), verify.traversal(), verify.k_sequential()])
def test_nothing_proposed_is_plain_decoding(rule):
  result = decide(rule, proposal([], [], []), [P], [])
  assert result.next_token.tolist() == [0] and result.is_bonus.all()
  assert result.path.shape == result.accept_probs.shape == (1, 0)


@pytest.mark.parametrize('name', ['traversal', 'k_sequential'])
def test_the_engines_own_numbers(name):
  """The enumeration takes choices as independent; here they are drawn as they are."""
  target, draft = (testing.table_model(seed=seed, scale=2.0) for seed in (1, 6))
  output = generation.generate(
      target,
      [exact_laws.PROMPT] * 30_000,
      drafter=tree('with_replacement', [(0,), (1,), (0, 0), (0, 1)], draft),
      rule=RULES[name],
      max_new_tokens=3,
      cache_length=6,
      prefill_chunk=3,
  )
  tokens, counts = np.unique(output.tokens[:, 3:], axis=0, return_counts=True)
  counts = dict(zip(map(tuple, tokens.tolist()), counts.tolist()))
  law = testing.plain_law(target, [exact_laws.PROMPT], max_new_tokens=3)[0]
  test = testing.chi_square(counts, law)
  assert test.p_value > 1e-3, test


# Coupled: by equality.


def coupled(rule, drafter=None):
  return generation.generate(
      exact_laws.TARGET,
      [exact_laws.PROMPT] * 500 * len(exact_laws.SETTINGS),
      drafter=drafter,
      rule=rule,
      sampling=exact_laws.settings(repeats=500),
      max_new_tokens=4,
      cache_length=8,
      prefill_chunk=8,
  )


@dataclasses.dataclass(frozen=True)
class WrongNoise(type(verify.coupled())):
  """Noise of the position that a node stands at, not of that which it draws for."""

  def __call__(self, *, positions, **kwargs):
    return super().__call__(positions=positions.at[:, 1:].add(-1), **kwargs)


def test_coupled_trees_give_plain_samples():
  plain = coupled(verify.coupled()).tokens
  for shape in (UNEVEN, DYNAMIC):
    output = coupled(verify.coupled(), tree(None, shape))
    np.testing.assert_array_equal(output.tokens, plain)
  wrong = coupled(WrongNoise(), tree(None, UNEVEN))
  assert not np.array_equal(wrong.tokens, plain)
