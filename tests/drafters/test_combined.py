"""A free drafter and a learned one together: who drafts, caches, exact laws."""

import functools

from flax import struct
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import generation
from specjax import types
from specjax import verify
from specjax.drafters import base
from tests.support import exact_laws
from tests.support import tiny
from tests.support import tiny_heads
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')
OPTIONS = dict(max_new_tokens=48, prefill_chunk=8)
TREE = [(0,), (1,), (0, 0), (0, 1), (0, 0, 0)]
HEADS = {
    'eagle3': ('eagle3', {}),
    'exit tree': ('exit', dict(tree=TREE)),
}


def make(learned, draft=None):
  """Seven nodes are the free drafter's, fewer the other's."""
  free = drafters.suffix(vocab_size=tiny.VOCAB, num_speculative_tokens=7, min_match=3)
  if learned in HEADS:
    return drafters.combined(free, tiny_heads.make(*HEADS[learned][:1], **HEADS[learned][1]))
  draft = tiny.related_draft() if draft is None else draft
  if learned == 'tree':
    return drafters.combined(free, drafters.model_tree(draft, tree=TREE))
  return drafters.combined(free, drafters.model(draft, num_speculative_tokens=3))


@functools.cache
def plain(rule):
  return generation.decode(tiny.target(), tiny.PROMPTS, rule=rule, **OPTIONS)


@functools.cache
def run(learned, rule=verify.greedy(), perfect=False):
  return generation.generate(
      tiny.target(),
      tiny.PROMPTS,
      drafter=make(learned, tiny.target() if perfect else None),
      rule=rule,
      trace=True,
      **OPTIONS,
  )


@pytest.mark.parametrize('learned, rule', [
    ('chain', verify.greedy()),
    ('tree', verify.coupled()),
    ('eagle3', verify.greedy()),
    ('exit tree', verify.greedy()),
])
def test_output_is_plain_decodings(learned, rule):
  output = run(learned, rule)
  np.testing.assert_array_equal(output.tokens, plain(rule).tokens)


@pytest.mark.parametrize('learned', ['chain', 'tree'])
def test_a_learned_drafter_reads_what_the_free_one_had_accepted(learned):
  """It is the target itself: whenever it drafts, all of its first branch must be right."""
  output = run(learned, perfect=True)
  trace, sources = output.trace, set()
  for row in range(4):
    rounds = np.flatnonzero(trace.starts[row])
    before = None
    for index in rounds:
      by_free = trace.valid[row, index].sum() == 7
      if not by_free:
        assert trace.num_accepted[row, index] == 3, (row, index)
        sources.add(('learned', before))
      before = (by_free, int(trace.num_accepted[row, index]))
      sources.add('free' if by_free else 'learned')
  # It drafted after rounds of the other one in which something was accepted, and not.
  assert 'free' in sources
  assert any(s[1] is not None and s[1][0] and s[1][1] > 0 for s in sources if len(s) == 2)


def test_a_head_drafts_the_same_whoever_drafted_before():
  """What a fresh pass would say, in rounds after those of the free drafter too."""
  output = run('eagle3')
  trace, after_free = output.trace, 0
  for row in range(2):
    rounds = np.flatnonzero(trace.starts[row])
    by_free = trace.valid[row, rounds].sum(-1) > tiny_heads.K
    after = [turn for turn in range(1, len(rounds)) if by_free[turn - 1] and not by_free[turn]]
    for turn in after[:2]:
      length = trace.starts[row, rounds[turn]]
      expected = tiny_heads.fresh_chain('eagle3', output.tokens[row, :length].tolist())
      assert trace.tokens[row, rounds[turn]].tolist()[: tiny_heads.K] == expected, (row, turn)
      after_free += 1
  assert after_free


def test_rounds_are_counted_by_who_drafted():
  output = run('chain')
  by_free = (output.trace.valid.sum(-1) > 3) & (output.trace.starts > 0)
  np.testing.assert_array_equal(output.drafter_state.num_free_rounds, by_free.sum(-1))
  assert 0 < by_free.sum() < output.stats.rounds.sum()


def test_the_free_proposal_pays():
  """Its rounds are longer than what the other one could draft."""
  trace = run('chain').trace
  assert (trace.num_accepted > 3).any()


CASES = {
    'chain': (
        verify.block(),
        drafters.model(exact_laws.DRAFT, num_speculative_tokens=2),
    ),
    'tree': (
        verify.recursive(),
        drafters.model_tree(exact_laws.DRAFT, tree=[(0,), (1,), (0, 0)]),
    ),
}


@struct.dataclass
class Counting:
  """A user's drafter of the version before: counts on from the root, and what it was asked for."""

  num_nodes: int = struct.field(pytree_node=False, default=2)
  depth: int = struct.field(pytree_node=False, default=2)
  is_chain: bool = struct.field(pytree_node=False, default=True)
  feature_layers: tuple[int, ...] = struct.field(pytree_node=False, default=())
  vocab_size: int | None = struct.field(pytree_node=False, default=tiny.VOCAB)

  def init(self, *, batch_size, cache_length, max_append):
    return jnp.zeros((2, batch_size), jnp.int32)

  def prefill(self, state, *, tokens, num_new, features):
    return state.at[0].add(num_new)

  def propose(self, context, state, *, active=None):
    root = jnp.take_along_axis(context.tokens, context.lengths[:, None] - 1, axis=1)
    tokens = (root + 1 + jnp.arange(2)) % tiny.VOCAB
    return base.chosen(tokens, True), state.at[1].add(active & ~context.done), context

  def update(self, state, verification, context):
    return state


def test_a_users_drafter_of_the_version_before_goes_on_working():
  free = drafters.suffix(vocab_size=tiny.VOCAB, num_speculative_tokens=3)
  with pytest.warns(DeprecationWarning) as warned:
    drafter = drafters.combined(free, Counting())
  messages = [str(each.message) for each in warned]
  assert len(messages) == 2 and 'takes no target' in messages[0] and 'active' in messages[1]
  output = generation.generate(
      tiny.target(), tiny.PROMPTS, drafter=drafter, rule=verify.greedy(), **OPTIONS
  )
  np.testing.assert_array_equal(output.tokens, plain(verify.greedy()).tokens)
  num_read, asked = output.drafter_state.learned
  np.testing.assert_array_equal(num_read, output.prompt_lengths - 1)
  rounds = output.stats.rounds - output.drafter_state.num_free_rounds
  np.testing.assert_array_equal(asked, rounds)
  assert (asked > 0).all() and (asked < output.stats.rounds).any()


def test_a_drafter_that_has_everything_stays_what_it_is():
  for learned in ('chain', 'tree', *HEADS):
    drafter = make(learned)
    assert base.complete(drafter) is drafter
    assert base.complete(drafter.free) is drafter.free


@pytest.mark.parametrize('case', CASES)
def test_output_law_is_the_targets(case):
  """Rows of one batch, some looked up and some drawn."""
  rule, learned = CASES[case]
  free = drafters.suffix(vocab_size=exact_laws.VOCAB, num_speculative_tokens=3, min_match=2)
  drafter = drafters.combined(free, learned)
  laws = exact_laws.output_laws(rule, drafter, max_new_tokens=3)
  exact_laws.assert_equal(laws, exact_laws.plain_laws(max_new_tokens=3))


def test_refusals():
  learned = drafters.model(tiny.target())
  branching = drafters.suffix(vocab_size=tiny.VOCAB, tree=(2, 1))
  with pytest.raises(ValueError, match='proposes a chain'):
    drafters.combined(branching, learned)
  with pytest.raises(ValueError, match='vocabularies of 9 and 64'):
    drafters.combined(drafters.suffix(vocab_size=9), learned)


def test_laws_of_both_stand_in_one_array():
  from specjax.drafters.combined import choose

  kind = dict(kind=types.SAMPLED)
  free = types.Proposal(
      tokens=np.asarray([[2, 1, 0]] * 2), parents=np.asarray([[0, 1, 2]] * 2),
      valid=np.ones((2, 3), bool), law=None, rows=np.asarray([[0, 1, 2]] * 2), kind=types.ONE_HOT,
  )
  law = np.log(np.full((2, 1, 4), 0.25, np.float32))
  learned = types.Proposal(
      tokens=np.asarray([[3, 3]] * 2), parents=np.asarray([[0, 0]] * 2),
      valid=np.ones((2, 2), bool), law=law, rows=np.asarray([[0, 0]] * 2), **kind,
  )
  found = choose(np.asarray([True, False]), free, learned)
  assert found.kind == types.SAMPLED and found.num_nodes == 3
  assert found.tokens.tolist() == [[2, 1, 0], [3, 3, 0]]
  assert found.parents.tolist() == [[0, 1, 2], [0, 0, 2]]
  assert found.valid.tolist() == [[True] * 3, [True, True, False]]
  probs = np.exp(np.asarray(found.law))[np.arange(2)[:, None], found.rows]
  np.testing.assert_array_equal(probs[0], np.eye(4)[[2, 1, 0]])
  tolerance.assert_close(probs[1, :2], 0.25, tolerance.of_exp(np.log(0.25), roundings=1))
