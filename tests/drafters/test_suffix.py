"""Suffix drafting: matches and votes against a search by hand, past outputs, exact laws."""

import collections
import functools

import jax
import numpy as np
import pytest

from specjax import drafters
from specjax import generation
from specjax import sampling
from specjax import types
from specjax import verify
from tests.support import compiles
from tests.support import exact_laws
from tests.support import tiny

pytestmark = pytest.mark.usefixtures('compiled_fast')
OPTIONS = dict(max_new_tokens=40, prefill_chunk=8)


def propose(drafter, rows, mode='greedy'):
  """The first proposal after `rows`, and the state after it."""
  batch, size = len(rows), 32
  tokens = np.zeros((batch, size), np.int32)
  for row, text in enumerate(rows):
    tokens[row, : len(text)] = text
  lengths = np.asarray([len(text) for text in rows], np.int32)
  sampler = sampling.Sampler(
      source=None,
      sampling=sampling.make(batch_size=batch),
      history=sampling.init_history(tokens, lengths, vocab_size=drafter.vocab_size),
      mode=mode,
  )
  context = types.Context(tokens, lengths, lengths < 0, sampler, None, None, None, None)
  return first_round(drafter, context)


@jax.jit
def first_round(drafter, context):
  batch, size = context.tokens.shape
  state = drafter.init(batch_size=batch, cache_length=size, max_append=8)
  # Half by prefill, the rest in the first round.
  half = context.lengths // 2
  state = drafter.prefill(
      state, target=None, tokens=context.tokens, num_new=half, features=None
  )
  proposal, state, _ = drafter.propose(context, state)
  return proposal, state


def by_hand(past, row, num_tokens, min_match, max_match):
  """The chain that is proposed, and the length of the match."""
  text = [token for sequence in past for token in (*sequence, -1)]
  text += row
  end = len(text) - 1

  def matched(place):
    length = 0
    while length <= place and text[place - length] == text[end - length] != -1:
      length += 1
      if end - length < len(text) - len(row):
        break
    return length

  lengths = {place: matched(place) for place in range(end)}
  longest = max(lengths.values(), default=0)
  if longest < min_match:
    return [], longest
  alive = [place for place, length in lengths.items() if length >= min(longest, max_match)]
  chain = []
  for depth in range(num_tokens):
    following = {place: text[place + 1 + depth % (end - place)] for place in alive}
    votes = collections.Counter(token for token in following.values() if token != -1)
    if not votes:
      break
    chain.append(min(votes, key=lambda token: (-votes[token], token)))
    alive = [place for place in alive if following[place] == chain[-1]]
  return chain, longest


@pytest.mark.parametrize('min_match, max_match', [(1, 16), (3, 3), (2, 4)])
def test_matches_and_votes_are_those_found_by_hand(min_match, max_match):
  rng = np.random.default_rng(min_match)
  past = [rng.integers(0, 3, length).tolist() for length in (9, 1, 14)]
  rows = [rng.integers(0, 3, length).tolist() for length in (1, 2, 5, *[24] * 37)]
  drafter = drafters.suffix(
      vocab_size=3,
      num_speculative_tokens=5,
      past=past,
      min_match=min_match,
      max_match=max_match,
  )
  proposal, state = propose(drafter, rows)
  tokens, valid = np.asarray(proposal.tokens), np.asarray(proposal.valid)
  assert proposal.kind == types.ONE_HOT and proposal.law is None
  counts = set()
  for row, text in enumerate(rows):
    chain, longest = by_hand(past, text, 5, min_match, max_match)
    assert int(drafter.match_length(state)[row]) == longest
    assert tokens[row][valid[row]].tolist() == chain
    assert valid[row].tolist() == [True] * len(chain) + [False] * (5 - len(chain))
    counts.add(len(chain))
  assert {0, 5} <= counts or min_match == 1


def test_a_tree_branches_where_the_votes_part():
  drafter = drafters.suffix(
      vocab_size=9, tree=[(0,), (1,), (2,), (0, 0), (1, 0)], past=[[1, 2, 7, 8], [1, 2, 7, 8]]
  )
  proposal, _ = propose(drafter, [[1, 2, 5, 6, 1, 2]])
  # 7 twice, 5 once, no third; then 8 and 6.
  assert proposal.valid.tolist() == [[True, True, False, True, True]]
  assert proposal.tokens[0, :2].tolist() == [7, 5] and proposal.tokens[0, 3:].tolist() == [8, 6]
  shape = drafters.dynamic_tree(num_nodes=4, depth=3, width=2)
  dynamic, _ = propose(drafter.replace(shape=shape), [[1, 2, 5, 6, 1, 2]])
  # 7 and 8 with 2/3 each; then 5, 6 or what repeats the present, with 1/3.
  assert dynamic.tokens[0, :2].tolist() == [7, 5] and dynamic.valid.all()
  assert dynamic.parents[0, :3].tolist() == [0, 0, 1]


@functools.cache
def plain(rule):
  return generation.decode(tiny.target(), tiny.PROMPTS, rule=rule, **OPTIONS)


def run(drafter, rule=verify.greedy(), **options):
  return generation.generate(
      tiny.target(), tiny.PROMPTS, drafter=drafter, rule=rule, **(OPTIONS | options)
  )


@pytest.mark.parametrize('rule', [verify.greedy(), verify.coupled()])
def test_output_is_plain_decodings(rule):
  drafter = drafters.suffix(vocab_size=tiny.VOCAB, num_speculative_tokens=4)
  output = run(drafter, rule)
  np.testing.assert_array_equal(output.tokens, plain(rule).tokens)
  assert output.mean_acceptance_length > (1.1 if rule.mode == 'greedy' else 1.0)
  # The state is that of the whole text, in every row.
  state = output.drafter_state
  for row in range(4):
    read = int(state.lengths[row])
    np.testing.assert_array_equal(state.text[row, :read], output.tokens[row, :read])
    assert read >= output.lengths[row] - 5


def test_past_outputs_are_remembered_without_a_recompile():
  drafter = drafters.suffix(vocab_size=tiny.VOCAB, num_speculative_tokens=4, past_tokens=200)
  first = run(drafter)
  drafter = drafter.remember([first.tokens[row, : first.lengths[row]] for row in range(4)])
  with compiles.counted() as compiled:
    second = run(drafter)
  assert compiled['run'] == 0
  np.testing.assert_array_equal(second.tokens, first.tokens)
  assert second.target_passes < 0.6 * first.target_passes
  assert second.mean_acceptance_length > 3.5
  # The oldest make room.
  assert drafter.past.shape == (200,)
  np.testing.assert_array_equal(
      drafter.remember([list(range(60))]).past[-61:-1], np.arange(60)
  )


@pytest.mark.parametrize('rule', [verify.rejection(), verify.block()])
def test_output_law_is_the_targets(rule):
  drafter = drafters.suffix(
      vocab_size=exact_laws.VOCAB, num_speculative_tokens=3, past=[[1, 0, 2]]
  )
  laws = exact_laws.output_laws(rule, drafter, max_new_tokens=4)
  exact_laws.assert_equal(laws, exact_laws.plain_laws(max_new_tokens=4))


@pytest.mark.parametrize('options, message', [
    (dict(num_speculative_tokens=0), 'at least 1'),
    (dict(min_match=0), '1 <= min_match'),
    (dict(min_match=5, max_match=4), 'min_match <= max_match'),
    (dict(past=[[1], [2, 9]]), 'Past output 1 has tokens from 2 to 9'),
])
def test_refusals(options, message):
  with pytest.raises(ValueError, match=message):
    drafters.suffix(vocab_size=9, **options)


def test_without_room_nothing_is_remembered():
  with pytest.raises(ValueError, match='past_tokens'):
    drafters.suffix(vocab_size=9).remember([[1]])
