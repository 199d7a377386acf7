"""Losslessness, proved: the exact law of what the engine emits, for rules right and wrong."""

import collections
import dataclasses

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import engine
from specjax import generation
from specjax import randomness
from specjax import testing
from specjax import tree
from specjax import types
from specjax import verify
from specjax.verify import whole
from tests.support import exact_laws
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')
# Drafters, and how many tokens are enumerated: K + 2 has a round after a full acceptance.
DRAFTERS = {
    'draft model': (drafters.model(exact_laws.DRAFT, num_speculative_tokens=2), 4),
    'prompt lookup': (drafters.ngram(num_speculative_tokens=3), 5),
    'adaptive': (drafters.model(exact_laws.DRAFT, num_speculative_tokens=3, min_confidence=0.7), 3),
    'plain': (None, 3),
}
CASES = [
    *[(rule, name) for rule in (verify.rejection(), verify.block()) for name in DRAFTERS],
    (verify.greedy(), 'draft model'),
]
CASES.remove((verify.block(), 'plain'))  # the same program as the rejection rule's


@pytest.mark.parametrize('rule, name', CASES, ids=lambda x: getattr(x, 'name', x))
def test_output_law_is_the_targets(rule, name):
  drafter, length = DRAFTERS[name]
  for constrained in (False, True):
    constraint = exact_laws.STRICT if constrained else exact_laws.FREE
    laws = exact_laws.output_laws(rule, drafter, constraint=constraint, max_new_tokens=length)
    expected = exact_laws.plain_laws(constrained=constrained, max_new_tokens=length)
    if rule.mode == 'greedy':
      # The greedy rule decodes greedily whatever the temperature: compare those rows.
      laws, expected = [laws[2]], [expected[2]]
      assert max(laws[0].values()) == tolerance.approx(1.0, roundings=16 * length, dtype='float32')
      tolerance.assert_law(laws[0], expected[0])
    else:
      exact_laws.assert_equal(laws, expected)


def test_stop_tokens_inside_an_accepted_block():
  laws = exact_laws.output_laws(verify.rejection(), DRAFTERS['draft model'][0], stop_tokens=(2,))
  exact_laws.assert_equal(laws, exact_laws.plain_laws(stop_tokens=(2,)))
  assert any(len(output) < 3 for output in laws[0])


def test_plain_law_against_float64():
  """The reference itself, from sorted float64 probabilities."""
  table = np.asarray(exact_laws.TARGET.params['table'], np.float64)
  for name, law in zip(exact_laws.SETTINGS, exact_laws.plain_laws()):
    for output, prob in law.items():
      expected = 1.0
      for index, token in enumerate(output):
        said = output[:index]
        before = (*exact_laws.PROMPT, *said)
        logits = table[before[-2], before[-1]]
        expected *= float64_law(logits, said=said, **exact_laws.SETTINGS[name])[token]
      tolerance.assert_close(prob, expected, tolerance.of_law(law), (name, output))


def float64_law(
    logits, *, said, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0,
    presence_penalty=0.0, frequency_penalty=0.0, logit_bias=0.0,
):
  logits = logits + np.asarray(logit_bias)
  counts = np.bincount(np.asarray(said, int), minlength=exact_laws.VOCAB)
  seen = (counts > 0) | np.isin(np.arange(exact_laws.VOCAB), exact_laws.PROMPT)
  factor = np.where(logits > 0, 1 / repetition_penalty, repetition_penalty)
  logits = np.where(seen, logits * factor, logits)
  logits = logits - frequency_penalty * counts - presence_penalty * (counts > 0)
  order = np.argsort(-logits)
  rank = np.argsort(order)
  if temperature == 0:
    return (rank == 0).astype(float)
  probs = np.exp((logits - logits.max()) / temperature)
  probs /= probs.sum()
  kept = rank < (top_k or exact_laws.VOCAB)
  probs = probs * kept / (probs * kept).sum()
  before = (np.cumsum(probs[order]) - probs[order])[rank]
  probs = np.where(before < top_p, probs, 0)
  probs = np.where(probs >= min_p * probs.max(), probs, 0)
  return probs / probs.sum()


# Wrong on purpose: the check must be able to fail.


class RowBefore(whole.WholeRows):
  """Draws a bonus from the row before the one that it follows."""

  def draw(self, draw, source):
    before = (draw.node - 1) % self.values.shape[1]
    return super().draw(
        draw.replace(node=jnp.where(draw.share > 0, draw.node, before)), source
    )


@dataclasses.dataclass(frozen=True)
class WrongRejection(type(verify.rejection())):
  """The rejection rule with one fault."""

  fault: str = ''

  def prob(self, numbers):
    prob = super().prob(numbers)
    return (prob > 0.5).astype(jnp.float32) if self.fault == 'fixed threshold' else prob

  def rest(self, progress, is_bonus):
    if self.fault == 'residual is the target':
      is_bonus = jnp.ones_like(is_bonus)
    return super().rest(progress, is_bonus)

  def rows(self, logits, *, sampling, proposal):
    rows = super().rows(logits, sampling=sampling, proposal=proposal)
    wrong = self.fault == 'bonus from the row before'
    return RowBefore(rows.values, rows.proposal) if wrong else rows


@dataclasses.dataclass(frozen=True)
class WrongBlock(type(verify.block())):
  """The block rule with one fault."""

  fault: str = ''

  def step(self, progress, numbers, flip, number):
    if self.fault != 'stops at the first rejection':
      return super().step(progress, numbers, flip, number)
    flip &= progress.stays > 0
    return super().step(progress, numbers, flip, number).replace(stays=flip.astype(jnp.int32))

  def rest(self, progress, is_bonus):
    scale, share = super().rest(progress, is_bonus)
    return (jnp.ones_like(scale) if self.fault == 'residual of one token' else scale), share


@struct.dataclass
class Dropping(drafters.ModelDrafter):
  """Stops before a token that turned out improbable, and drops that token."""

  def propose(self, context, state):
    proposal, state, context = super().propose(context, state)
    batch = jnp.arange(proposal.tokens.shape[0])[:, None]
    probs = jnp.exp(proposal.law[batch, proposal.rows, proposal.tokens])
    confident = jnp.cumprod(probs > 0.4, axis=1).astype(bool)
    return proposal.replace(valid=proposal.valid & confident), state, context


FAULTS = {
    fault: (WrongRejection(fault=fault), DRAFTERS['draft model'][0])
    for fault in ('residual is the target', 'fixed threshold', 'bonus from the row before')
}
FAULTS |= {
    fault: (WrongBlock(fault=fault), DRAFTERS['draft model'][0])
    for fault in ('stops at the first rejection', 'residual of one token')
}
FAULTS['drops the token that stops it'] = (
    verify.rejection(),
    Dropping(draft=exact_laws.DRAFT, min_confidence=jnp.float32(0), num_nodes=2),
)


@pytest.mark.parametrize('fault', FAULTS)
def test_wrong_rules_are_caught(fault):
  found = exact_laws.errors(exact_laws.output_laws(*FAULTS[fault]), exact_laws.plain_laws())
  assert found['temperature 1'] > exact_laws.SEEN, found


@pytest.mark.parametrize('wrong, right', [
    (WrongRejection(), verify.rejection()), (WrongBlock(), verify.block())
])
def test_without_its_fault_a_wrong_rule_is_the_right_one(wrong, right):
  """So that it is the fault that is caught above."""
  rng = np.random.default_rng(0)
  law, draft = (
      jax.nn.log_softmax(jnp.asarray(rng.normal(size=(100, rows, exact_laws.VOCAB)), jnp.float32))
      for rows in (3, 2)
  )
  parents = tree.chain_parents(100, 2)
  proposal = types.Proposal(
      tokens=jnp.asarray(rng.integers(0, exact_laws.VOCAB, (100, 2)), jnp.int32),
      parents=parents,
      valid=jnp.ones((100, 2), bool),
      law=draft,
      rows=parents,
      kind=types.SAMPLED,
  )
  source = randomness.KeySource(randomness.row_keys(jnp.arange(100)), jnp.zeros(100, jnp.int32))
  results = [
      jax.jit(lambda source, rule=rule: rule(
          target_law=law, proposal=proposal, positions=None, source=source
      )[0])(source)
      for rule in (wrong, right)
  ]
  for name in ('num_accepted', 'next_token', 'is_bonus'):
    np.testing.assert_array_equal(*(getattr(result, name) for result in results))


def expected_accepted(rule, target, draft):
  """The mean of every setting."""
  return testing.expected_accepted(
      target,
      [exact_laws.PROMPT] * len(exact_laws.SETTINGS),
      rule=rule,
      drafter=drafters.model(draft, num_speculative_tokens=2),
      sampling=exact_laws.settings(),
  )


def test_expected_tokens_of_the_two_symbol_example():
  """Sun et al. 2024, section 2: target 1/3, 2/3; draft 2/3, 1/3; K = 2."""
  never = -1e4  # a third token, so that the compiled programs above serve
  target = testing.table_model([[np.log(1 / 3), np.log(2 / 3), never]] * 3)
  draft = testing.table_model([[np.log(2 / 3), np.log(1 / 3), never]] * 3)
  size = exact_laws.VOCAB
  two_tokens = lambda model: testing.table_model(
      np.broadcast_to(model.params['table'], (size + 1, size, size))
  )
  target, draft = two_tokens(target), two_tokens(draft)
  for rule, expected in ((verify.rejection(), 10 / 9), (verify.block(), 11 / 9)):
    accepted = expected_accepted(rule, target, draft)
    tolerance.assert_close(accepted[0], expected, tolerance.of_expectation(2), rule.name)


def test_the_block_rule_never_accepts_less():
  for seed in range(10, 15):
    draft = testing.table_model(seed=seed)
    tokens = expected_accepted(verify.rejection(), exact_laws.TARGET, draft)
    blocks = expected_accepted(verify.block(), exact_laws.TARGET, draft)
    tolerance.assert_at_least(blocks, tokens, tolerance.of_expectation(2), seed)
    tolerance.assert_close(blocks[2], tokens[2], tolerance.of_expectation(2), 'temperature 0')


def test_typical_acceptance_is_biased_and_by_how_much():
  rule = verify.typical()
  laws = exact_laws.output_laws(rule, DRAFTERS['draft model'][0])
  bias = {
      name: testing.total_variation(law, right)
      for name, law, right in zip(exact_laws.SETTINGS, laws, exact_laws.plain_laws())
  }
  assert not rule.lossless and 'lossy' in rule.name
  tolerance.assert_close(bias['temperature 0'], 0.0, tolerance.of_expectation(3))
  assert round(bias['temperature 1'], 4) == 0.5368, bias


def test_the_adaptive_drafter_stops_now_and_then():
  table = np.asarray(exact_laws.DRAFT.params['table'], np.float64)
  largest = np.exp(table).max(axis=-1) / np.exp(table).sum(axis=-1)
  first = largest[exact_laws.PROMPT[-2], exact_laws.PROMPT[-1]]
  second = first * largest[exact_laws.PROMPT[-1]]
  assert first > 0.7 and second.min() < 0.7 < second.max()
  assert largest[exact_laws.PROMPT[-1], 2] < 0.7


# What an enumeration with independent choices cannot see: the engine's own random numbers.


@struct.dataclass
class PositionKeyed(randomness.KeySource):
  """Acceptance flips keyed by absolute position alone, so that rounds share them."""

  def flip(self, probs, *, purpose):
    positions = self.lengths[:, None] + jnp.arange(probs.shape[1])
    fixed = self.replace(lengths=jnp.zeros_like(self.lengths))
    return fixed.uniform(purpose, positions) < probs, self


@pytest.mark.parametrize('source', [randomness.KeySource, PositionKeyed])
def test_keys_of_the_block_rule(source):
  target, draft = (testing.table_model(seed=seed, scale=2.5) for seed in (1, 6))
  rows, counts = 20_000, collections.Counter()
  for start in range(0, 5 * rows, rows):
    request = generation.Request(
        drafter=drafters.model(draft, num_speculative_tokens=2),
        rule=verify.block(),
        max_new_tokens=3,
        seeds=start,
        cache_length=6,
        prefill_chunk=3,
    )
    setup, state, _, _ = generation.prepare(target, [exact_laws.PROMPT] * rows, request)
    state = engine.run(setup.replace(source_fn=source), state, jnp.int32(3))
    counts.update(map(tuple, np.asarray(state.tokens)[:, 3:].tolist()))
  law = testing.plain_law(target, [exact_laws.PROMPT], max_new_tokens=3)[0]
  test = testing.chi_square(counts, law)
  if source is PositionKeyed:
    assert test.statistic > 50 * test.degrees_of_freedom and test.p_value < 1e-6, test
  else:
    assert test.p_value > 1e-3, test


REPEATS = 2000


def coupled_tokens(drafter=None, seed=0):
  """Tokens [settings, REPEATS, 3] under the coupled rule."""
  output = generation.generate(
      exact_laws.TARGET,
      [exact_laws.PROMPT] * (REPEATS * len(exact_laws.SETTINGS)),
      drafter=drafter,
      rule=verify.coupled(),
      sampling=exact_laws.settings(repeats=REPEATS),
      max_new_tokens=3,
      seeds=seed,
      cache_length=6,
      prefill_chunk=3,
  )
  return output.tokens[:, 3:].reshape(len(exact_laws.SETTINGS), REPEATS, 3)


def test_plain_coupled_sampling_has_the_targets_law():
  samples = [coupled_tokens(seed=seed) for seed in (0, 10**6, 2 * 10**6)]
  for row, (name, law) in enumerate(zip(exact_laws.SETTINGS, exact_laws.plain_laws())):
    counts = collections.Counter(tuple(x) for part in samples for x in part[row].tolist())
    test = testing.chi_square(counts, law)
    assert test.p_value > 1e-3, (name, test)


def test_coupled_output_is_plain_decodings():
  """For any drafter, chain or tree, at every setting: token for token."""
  plain = coupled_tokens()
  assert len(np.unique(plain[0], axis=0)) > 10
  branching = drafters.synthetic(
      np.concatenate(
          [np.tile(exact_laws.PROMPT, (plain[..., 0].size, 1)), plain.reshape(-1, 3)], axis=1
      ),
      acceptance=0.7,
      vocab_size=exact_laws.VOCAB,
      parents=(0, 0, 1, 1, 3),
  )
  for drafter in (DRAFTERS['adaptive'][0], DRAFTERS['prompt lookup'][0], branching):
    np.testing.assert_array_equal(coupled_tokens(drafter), plain)
