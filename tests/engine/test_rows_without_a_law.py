"""Rows of the target from which nothing can be drawn (NaN, nothing allowed): who sees them, ends.

After token 2 the target says NaN. Plain decoding does not see that where token 2 is never said,
where it stops the output, or is its last; then a drafter that proposes it must change nothing.
"""

import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import engine
from specjax import generation
from specjax import sampling as sampling_lib
from specjax import testing
from specjax import verify
from specjax.kernels import accept

pytestmark = pytest.mark.usefixtures('compiled_fast')
VOCAB = 3
PROMPT = (0, 1, 0)
INF = np.inf
DRAFT = testing.table_model(seed=9)


def broken_after_two(value: float = np.nan):
  table = np.array(testing.table_model(seed=1).params['table'])
  table[:, 2] = value
  return testing.table_model(table)


def forbidden(batch_size: int):
  """Token 2 is never said."""
  return sampling_lib.make(batch_size=batch_size, logit_bias=[0.0, 0.0, -INF])


@struct.dataclass
class Unruly:
  """A drafter of one's own that knows nothing of biases and hooks."""

  inner: drafters.ModelDrafter | drafters.ModelTreeDrafter

  def __getattr__(self, name: str):
    return getattr(object.__getattribute__(self, 'inner'), name)

  def propose(self, context, state):
    sampler = context.sampler
    free = sampler.sampling.replace(logit_bias=None, constraint=None)
    proposal, state, after = self.inner.propose(
        context.replace(sampler=sampler.replace(sampling=free)), state
    )
    after = after.replace(sampler=sampler.replace(source=after.sampler.source))
    return proposal, state, after


def chain(count: int = 2):
  return Unruly(drafters.model(DRAFT, num_speculative_tokens=count))


def tree(siblings: str):
  return Unruly(drafters.model_tree(DRAFT, tree=[(0,), (1,), (0, 0)], siblings=siblings))


THROUGH = {rule: accept.through(getattr(verify, rule)(), 'xla') for rule in ('block', 'recursive')}
ENUMERATED = {
    'rejection': (verify.rejection(), chain),
    'block': (verify.block(), chain),
    'block through the op': (THROUGH['block'], chain),
    'recursive': (verify.recursive(), lambda: tree('without_replacement')),
    'recursive through the op': (THROUGH['recursive'], lambda: tree('with_replacement')),
    'traversal': (verify.traversal(), lambda: tree('without_replacement')),
    'k_sequential': (verify.k_sequential(), lambda: tree('with_replacement')),
}


@pytest.mark.parametrize('name', ENUMERATED)
@pytest.mark.parametrize('value', [np.nan, INF, -INF])
def test_rows_that_plain_decoding_never_sees(name, value):
  """The exact law: nothing ends, and nothing of the row gets into what is left to draw from."""
  if value == INF and 'through' in name:
    pytest.skip('the op gives an infinite logit all of the mass')
  rule, make = ENUMERATED[name]
  target, sampling = broken_after_two(value), forbidden(1)
  law, = testing.output_law(
      target, [PROMPT], rule=rule, drafter=make(), sampling=sampling, max_new_tokens=3
  )
  right, = testing.plain_law(target, [PROMPT], sampling=sampling, max_new_tokens=3)
  assert testing.max_difference(law, right) < 1e-6
  assert sum(law.values()) == pytest.approx(1.0, abs=1e-6)


ROWS = 256


@functools.cache
def finished(rule, drafter_name: str = 'plain', **options):
  """Tokens and the reason to end of each of ROWS rows, token 2 being allowed."""
  make = {'plain': lambda: None, 'chain': lambda: chain(3), 'tree': lambda: tree('rank')}
  options = dict(options)
  request = generation.Request(
      drafter=make[drafter_name](), rule=rule, max_new_tokens=options.get('length', 3), seeds=0,
      stop_tokens=options.get('stop_tokens', ()), cache_length=8, prefill_chunk=8,
  )
  setup, state, *_ = generation.prepare(broken_after_two(), [PROMPT] * ROWS, request)
  state = engine.run(setup, state, jnp.int32(99))
  return np.asarray(state.tokens), np.asarray(state.finish)


@pytest.mark.parametrize('drafter', ['chain', 'tree'])
@pytest.mark.parametrize('options', [dict(), dict(stop_tokens=(2,))], ids=['length', 'stop'])
def test_a_row_ends_where_plain_decoding_does(drafter, options):
  """Coupled, so that rows are plain decoding's: the same rows end, for the same reasons."""
  rule = verify.coupled()
  tokens, reasons = finished(rule, **options)
  found_tokens, found = finished(rule, drafter, **options)
  np.testing.assert_array_equal(found, reasons)
  whole = reasons != engine.NOT_A_NUMBER
  np.testing.assert_array_equal(found_tokens[whole], tokens[whole])
  # Some end with the token behind which there is nothing; only in its middle is it an end.
  assert (tokens[whole] == 2).any()
  assert (~whole).any() == (not options)


@pytest.mark.parametrize('rule', [verify.greedy(), verify.coupled()], ids=lambda rule: rule.name)
def test_choices_never_see_it_either(rule):
  options = dict(
      rule=rule, max_new_tokens=5, sampling=forbidden(64), cache_length=8, prefill_chunk=8
  )
  plain = generation.decode(broken_after_two(), [PROMPT] * 64, **options)
  for make in (chain, lambda: tree('rank')):
    output = generation.generate(broken_after_two(), [PROMPT] * 64, drafter=make(), **options)
    np.testing.assert_array_equal(output.tokens, plain.tokens)


@struct.dataclass
class Trap:
  """A hook with a fault: after token 1 nothing is allowed."""

  def initial(self, batch_size: int) -> jax.Array:
    return jnp.zeros((batch_size,), bool)

  def advance(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
    return state | (tokens == 1)

  def allowed(self, state: jax.Array) -> jax.Array:
    return jnp.broadcast_to(~state[:, None], (state.shape[0], VOCAB))


@pytest.mark.parametrize('make', [None, chain], ids=['plain', 'chain'])
def test_a_hook_that_allows_nothing_shows_within_a_round(make):
  """Not a token that the hook forbids, however short the output."""
  sampling = sampling_lib.make(batch_size=8, logit_bias=[-INF, 0.0, -INF], constraint=Trap())
  draft = drafters.model(
      testing.table_model(np.broadcast_to([0.0, 9.0, 0.0], (VOCAB, VOCAB))),
      num_speculative_tokens=2,
  )
  with pytest.raises(ValueError, match='allows no token at all in row'):
    generation.generate(
        testing.table_model(seed=1), [PROMPT] * 8, rule=verify.rejection(), sampling=sampling,
        drafter=None if make is None else Unruly(draft), max_new_tokens=2,
    )
