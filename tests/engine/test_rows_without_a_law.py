"""Nothing to draw from, for the draft or for the target: what is proposed, and which rows end.

The rules that choose (greedy, coupled) equal plain decoding row by row; the laws of those that
draw are enumerated in tests/verify/test_empty_laws.py. Where a table is broken, the target says
NaN after token 2. Plain decoding does not see that where token 2 is never said, where it stops
the output, or is its last; then a drafter that proposes it must change nothing.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import engine
from specjax import generation
from specjax import verify
from specjax.sampling import constraints
from tests.support import nothing_to_draw as nothing

pytestmark = pytest.mark.usefixtures('compiled_fast')
RULES = {'coupled': verify.coupled(), 'greedy': verify.greedy()}
DRAFTERS = {
    'chain': lambda draft: drafters.model(draft, num_speculative_tokens=3),
    'tree': lambda draft: drafters.model_tree(draft, tree=[(0,), (1,), (0, 0)]),
}
# After token 1 nothing is allowed: a fault, which `TokenAutomaton.create` refuses.
TRAP = constraints.TokenAutomaton(
    jnp.asarray([[0, 1, 0], [-1, -1, -1], [0, 0, 0], [0, 0, 0], [0, 0, 0]], jnp.int32)
)
ROWS = 128


def run(
    rule, drafter, case, *, target=nothing.TARGET, manner=nothing.SHIPPED, stop_tokens=(),
    constraint=None, draft=nothing.DRAFT,
) -> engine.DecodeState:
  """The state when all rows have ended; `drafter` None is plain decoding."""
  if drafter is not None:
    drafter = nothing.Mannered(DRAFTERS[drafter](draft))
  request = generation.Request(
      drafter=drafter, rule=RULES[rule], max_new_tokens=6, seeds=0, stop_tokens=stop_tokens,
      cache_length=16, prefill_chunk=8, trace=True,
      sampling=nothing.settings(case, repeats=ROWS // 2, manner=manner, constraint=constraint),
  )
  setup, state, *_ = generation.prepare(target, [nothing.PROMPT] * ROWS, request)
  return engine.run(setup, state, jnp.int32(99))


same_run = functools.partial(
    pytest.mark.parametrize, 'rule, drafter', [(r, d) for r in RULES for d in DRAFTERS]
)


@same_run()
def test_what_cannot_be_drawn_is_not_proposed(rule, drafter):
  proposed = set()
  for case in ('grammar', 'bias'):
    plain, state = run(rule, None, case), run(rule, drafter, case)
    np.testing.assert_array_equal(state.tokens, plain.tokens)
    trace = state.trace
    counts = np.asarray(trace.valid.sum(axis=-1))[np.asarray(trace.starts) > 0]
    if case == 'grammar':
      proposed |= set(counts.tolist())
    # The first half of the rows may say nothing but what the draft does not know.
    assert case == 'grammar' or not np.asarray(state.stats.proposed)[: ROWS // 2].any()
  # The grammar leaves nothing at the first node, at a middle one, at the last one, and at none.
  assert drafter != 'chain' or rule != 'coupled' or proposed == {0, 1, 2, 3}


@same_run()
def test_a_row_that_is_never_seen_changes_nothing(rule, drafter):
  for value in (np.nan, np.inf, -np.inf):
    target = nothing.broken_after_two(value)
    plain = run(rule, None, 'never 2', target=target)
    state = run(
        rule, drafter, 'never 2', target=target, manner=nothing.UNRULY, draft=nothing.OTHER_DRAFT
    )
    np.testing.assert_array_equal(state.tokens, plain.tokens)
    assert (np.asarray(state.finish) == engine.LENGTH).all()
    assert (np.asarray(state.trace.tokens) == 2).any()


@same_run()
@pytest.mark.parametrize('stop_tokens', [(), (2,)], ids=['length', 'stop'])
def test_a_row_ends_where_plain_decoding_does(rule, drafter, stop_tokens):
  """Where the next token is drawn from such a row: not with the one before it."""
  target, options = nothing.broken_after_two(np.nan), dict(stop_tokens=stop_tokens)
  plain = run(rule, None, 'free', target=target, **options)
  state = run(rule, drafter, 'free', target=target, draft=nothing.OTHER_DRAFT, **options)
  reasons = np.asarray(plain.finish)
  np.testing.assert_array_equal(state.finish, reasons)
  whole = reasons != engine.NOT_A_NUMBER
  np.testing.assert_array_equal(np.asarray(state.tokens)[whole], np.asarray(plain.tokens)[whole])
  if rule == 'coupled':
    assert (np.asarray(plain.tokens)[whole] == 2).any() and whole.all() == bool(stop_tokens)


@same_run()
def test_a_hook_that_allows_nothing_shows_within_a_round(rule, drafter):
  """Not as a token that the hook forbids."""
  plain = run(rule, None, 'free', constraint=TRAP)
  state = run(rule, drafter, 'free', constraint=TRAP)
  np.testing.assert_array_equal(state.finish, plain.finish)
  whole = np.asarray(plain.finish) == engine.LENGTH
  np.testing.assert_array_equal(np.asarray(state.tokens)[whole], np.asarray(plain.tokens)[whole])
  assert (np.asarray(plain.finish)[~whole] == engine.NOTHING_ALLOWED).all() and (~whole).any()
