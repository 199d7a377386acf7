"""Statistics and trace are those of the kept output, however it ends and however it is cut."""

import functools

import jax
import numpy as np
import pytest

import specjax
from specjax import drafters
from specjax import engine
from specjax.analysis import traces
from tests.support import scripted

pytestmark = pytest.mark.usefixtures('compiled_fast')

V, K = 64, 5
TREE = ((0,), (1,), (0, 0), (0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0, 0))


class Letters:
  """One letter per token."""

  def decode(self, ids):
    return ''.join(chr(0x4E00 + i) for i in ids)


@functools.cache
def models(every: int):
  """A target that counts, and a draft that is wrong after every so many tokens; never if 0."""
  count = {token: (token + 1) % V for token in range(V)}
  wrong = {token: 0 for token in range(V) if every and token % every == 0}
  second = {token: (token + 9) % V for token in range(V)}
  return scripted.successor(count, V), scripted.successor(count | wrong, V, second)


@functools.cache
def run(shape: str, ending: str, count: int, *, every: int = 0, rounds: int | None = None):
  """Rows that count from 1 and 3, of which the first ends after `count` tokens, and a long one."""
  target, draft = models(every)
  drafter = drafters.model(draft, num_speculative_tokens=K)
  if shape == 'tree':
    drafter = drafters.model_tree(draft, tree=TREE)
  options = {
      'token': dict(stop_tokens=[1 + count]),
      'string': dict(stop_strings=Letters().decode([1 + count])),
      'limit': dict(max_new_tokens=[count, count - 2, 40]),
  }[ending]
  return specjax.generate(
      target, [[1], [3], [20]], drafter=drafter, tokenizer=Letters(), trace=True,
      rounds_per_chunk=rounds,
      **(dict(max_new_tokens=40) | options),
  )


@pytest.mark.parametrize('count', [3, 5, 6, 9])
@pytest.mark.parametrize('ending', ['token', 'string', 'limit'])
@pytest.mark.parametrize('shape', ['chain', 'tree'])
def test_a_perfect_draft_has_a_rate_of_one_however_it_ends(shape, ending, count):
  output = run(shape, ending, count)
  lengths = [count, count - 2, 40]
  assert (output.lengths - output.prompt_lengths).tolist() == lengths
  rounds = [-(-length // (K + 1)) for length in lengths]
  assert output.stats.rounds.tolist() == rounds and output.target_passes == max(rounds)
  assert output.mean_acceptance_length == sum(lengths) / sum(rounds)
  # Rounds of six tokens, of which the last may be cut: five drafted ones, and one more.
  assert output.stats.accepted.tolist() == [n - n // (K + 1) for n in lengths]
  assert {rate for rate in output.acceptance_rate_per_position if rate is not None} == {1.0}
  if shape == 'chain':
    assert output.draft_acceptance_rate == 1.0
    assert output.stats.proposed.tolist() == output.stats.accepted.tolist()


@pytest.mark.parametrize('count', [3, 5, 6, 9, 17])
@pytest.mark.parametrize('shape', ['chain', 'tree'])
def test_statistics_and_rounds_do_not_tell_how_it_ended(shape, count):
  outputs = [run(shape, ending, count, every=7) for ending in ('token', 'string', 'limit')]
  first = outputs[0]
  for output in outputs:
    jax.tree.map(np.testing.assert_array_equal, output.stats, first.stats)
    assert output.target_passes == first.target_passes
    for row in range(3):
      found = traces.rounds(output, row)
      assert found == traces.rounds(first, row)
      # Counted once more, from what the trace says was drafted and emitted.
      sources = [source for each in found for source in each.sources]
      assert len(found) == output.stats.rounds[row]
      assert sum(len(each.nodes) for each in found) == output.stats.proposed[row]
      assert sources.count(traces.ACCEPTED) == output.stats.accepted[row]
      assert sum(node.accepted for each in found for node in each.nodes) == (
          output.stats.accepted[row]
      )


@pytest.mark.parametrize('shape', ['chain', 'tree'])
def test_any_chunking_gives_the_same_statistics_and_trace(shape):
  whole = run(shape, 'string', 9, every=7)
  assert whole.finish_reasons == ('stop', 'stop', 'length')
  for rounds in (1, 2, 5, 17, 1000):
    output = run(shape, 'string', 9, every=7, rounds=rounds)
    for name in ('tokens', 'lengths', 'stats', 'trace'):
      jax.tree.map(np.testing.assert_array_equal, getattr(output, name), getattr(whole, name))
    for name in ('texts', 'finish_reasons', 'target_passes', 'mean_acceptance_length'):
      assert getattr(output, name) == getattr(whole, name), (name, rounds)


def test_a_row_that_was_cut_stays_cut_while_others_go_on_for_long():
  """For longer than the state remembers rounds, and however often it is read meanwhile."""
  expected = run('chain', 'limit', 4, every=2)
  assert expected.target_passes > engine.RECENT
  for rounds in (1, 4, None):
    output = run('chain', 'string', 4, every=2, rounds=rounds)
    np.testing.assert_array_equal(output.lengths, expected.lengths)
    jax.tree.map(np.testing.assert_array_equal, output.stats, expected.stats)
    assert output.texts[0] == Letters().decode([2, 3, 4])


@pytest.mark.parametrize('ending', ['token', 'string', 'limit'])
def test_forecasts_count_what_was_drafted_and_decided(ending):
  stats = run('chain', ending, 3).stats
  assert stats.accepted_at[:2].tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
  assert stats.drafted_at[:2].tolist() == stats.decided_at[:2].tolist() == [[1] * K] * 2
