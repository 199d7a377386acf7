"""The sampling law against numpy with sorting, and control against plain decoding."""

import itertools
import types as python_types

import chex
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import randomness
from specjax import sampling
from specjax import types
from specjax.sampling import constraints
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')
INF = np.inf

_law = jax.jit(sampling.law)


def _small_law(rows, **settings):
  """Laws [4, n] of four rows of n <= 7 logits, padded to share one compilation."""
  rows = np.broadcast_to(np.asarray(rows, np.float32), [4, np.shape(rows)[-1]])
  logits = np.pad(rows, ((0, 0), (0, 7 - rows.shape[1])), constant_values=-INF)
  found = np.asarray(_law(logits[:, None], sampling.make(batch_size=4, **settings)))[:, 0]
  return found[:, : rows.shape[1]]


@jax.jit
def _control(logits, settings, history, path, valid):
  return sampling.control(
      logits, sampling=settings, history=history, path=path, path_valid=valid
  )


def _random_logits(shape, seed=0, scale=3.0):
  return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)


def _reference_law(logits, temperature, top_k, top_p, min_p):
  """One row's log-probabilities in float64, with sorting."""
  logits = logits.astype(np.float64)
  if temperature == 0:
    return np.where(np.arange(logits.size) == np.argmax(logits), 0.0, -INF)
  logits = logits / temperature
  if 0 < top_k < logits.size:
    logits = np.where(logits >= np.sort(logits)[-int(top_k)], logits, -INF)
  probs = np.exp(logits - logits.max())
  probs /= probs.sum()
  if top_p < 1:
    ranked = np.sort(probs)[::-1]
    last = np.flatnonzero(np.cumsum(ranked) >= top_p)[0]
    probs = np.where(probs >= ranked[last], probs, 0.0)
  probs = np.where(probs >= min_p * probs.max(), probs, 0.0)
  with np.errstate(divide='ignore'):
    return np.log(probs / probs.sum())


GRID = np.array(
    list(itertools.product([0, 0.3, 1.0, 2.5], [0, 1, 3, 50], [1.0, 0.9, 0.35], [0.0, 0.07, 1.0]))
)


def _check_law(logits, **settings):
  """Compares rows [B, R, V] with the reference; settings are arrays [B]."""
  batch = logits.shape[0]
  settings = {'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'min_p': 0.0} | settings
  found = np.asarray(_law(logits, sampling.make(batch_size=batch, **settings)))
  assert found.dtype == np.float32
  columns = {name: np.broadcast_to(value, [batch]) for name, value in settings.items()}
  for index in np.ndindex(logits.shape[:2]):
    row = {name: value[index[0]].item() for name, value in columns.items()}
    wanted = _reference_law(logits[index], **row)
    np.testing.assert_array_equal(found[index] > -INF, wanted > -INF, err_msg=str(row))
    tolerated = tolerance.of_log_softmax(len(wanted), logits=wanted)
    tolerance.assert_close(found[index], wanted, tolerated, str(row))
  tolerance.assert_close(np.exp(found).sum(-1), 1.0, tolerance.of_rule(found.shape[-1]))


class TestLaw:

  def test_is_log_softmax_without_settings(self):
    logits = _random_logits([len(GRID), 2, 257])
    found = _law(logits, sampling.make(batch_size=len(GRID)))
    np.testing.assert_array_equal(found, jax.jit(jax.nn.log_softmax)(logits))

  @pytest.mark.parametrize('vocab_size', [7, 257])
  @pytest.mark.parametrize('kind', ['random', 'ties', 'excluded'])
  def test_matches_sorting(self, vocab_size, kind):
    """Every combination of settings, all in one batch."""
    logits = _random_logits([len(GRID), 2, vocab_size], seed=vocab_size)
    if kind == 'ties':
      logits = np.round(logits)
    if kind == 'excluded':
      drop = np.random.default_rng(1).random(logits.shape) < 0.7
      drop[..., 3] = False
      logits[drop] = -INF
    temperature, top_k, top_p, min_p = GRID.T
    _check_law(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)

  @pytest.mark.parametrize(
      'settings',
      [
          dict(top_k=5),
          dict(top_p=0.8),
          dict(min_p=0.2),
          dict(temperature=0.4),
          dict(temperature=0),
          dict(top_k=20, top_p=0.7),
          dict(top_k=20, min_p=0.1),
          dict(top_p=0.95, min_p=0.1),
      ],
      ids=str,
  )
  def test_each_setting_for_all_rows(self, settings):
    _check_law(_random_logits([len(GRID), 2, 257], seed=5), **settings)

  def test_rows_do_not_see_each_other(self):
    logits = _random_logits([len(GRID), 2, 7], seed=2)
    temperature, top_k, top_p, min_p = GRID.T
    make = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    together = _law(logits, sampling.make(batch_size=len(GRID), **make))
    changed = _random_logits([len(GRID), 2, 7], seed=3)
    changed[20] = logits[20]
    others = {name: np.roll(value, 1) for name, value in make.items()}
    for name in make:
      others[name][20] = make[name][20]
    alone = _law(changed, sampling.make(batch_size=len(GRID), **others))
    np.testing.assert_array_equal(together[20], alone[20])

  def test_ties_at_a_threshold_are_all_kept(self):
    found = _small_law(
        np.log([0.1, 0.3, 0.3, 0.3]),
        top_k=[1, 0, 0, 2],
        top_p=[1, 0.31, 1, 1],
        min_p=[0, 0, 1, 0.9],
    )
    tolerance.assert_close(np.exp(found), [[0, 1 / 3, 1 / 3, 1 / 3]] * 4, tolerance.of_rule(4))

  def test_top_p_is_renormalised_after_top_k(self):
    # Of .4 .3 .2 .1, the two left by top-k have shares 4/7 and 3/7: the first is enough
    # for p = 0.55, though not of the whole.
    found = _small_law(
        np.log([0.4, 0.3, 0.2, 0.1]), top_k=[2, 0, 2, 0], top_p=[0.55, 0.55, 0.6, 0.75]
    )
    np.testing.assert_array_equal((found > -INF).sum(-1), [1, 2, 2, 3])

  def test_temperature_zero_is_the_one_hot_limit(self):
    found = _small_law(
        [1, 3, 3, -INF], temperature=[0, 1e-45, 1e-37, 1], top_k=[2, 0, 0, 0],
        top_p=[0.5, 1, 1, 1],
    )
    np.testing.assert_array_equal(found[0], [-INF, 0, -INF, -INF])
    # 1e-45 is not a normal number, on some processors zero: it is greedy on all.
    np.testing.assert_array_equal(found[1], found[0])
    tolerance.assert_close(np.exp(found[2]), [0, 0.5, 0.5, 0], tolerance.of_rule(4))
    logits = jnp.array([1, 3, 3, -INF])
    tolerance.assert_close(
        found[3], jax.nn.log_softmax(logits), tolerance.of_log_softmax(4, logits=logits)
    )

  def test_no_temperature_is_too_large(self):
    found = _small_law([1, 300, 3, -INF], temperature=[1e20, 1e30, 1e36, 3e38])
    tolerance.assert_close(np.exp(found), [[1 / 3, 1 / 3, 1 / 3, 0]] * 4, tolerance.of_rule(4))

  def test_filters_that_keep_all_keep_what_is_unlikely(self):
    found = _small_law([0, -60, -80, -INF], top_k=[0, 2, 4, 9], top_p=[1, 0.5, 1, 1])
    np.testing.assert_array_equal(found[[0, 2, 3]], [[0, -60, -80, -INF]] * 3)
    np.testing.assert_array_equal(found[1], [0, -INF, -INF, -INF])

  def test_shows_logits_that_are_no_logits(self):
    logits = np.zeros([4, 7], np.float32)
    logits[0, 2], logits[1, 2], logits[2] = np.nan, INF, -INF
    for options in ({}, dict(temperature=0), dict(top_k=3, top_p=0.5)):
      found = _small_law(logits, **options)
      assert np.isnan(found[:3]).all(axis=-1).all()
      assert not np.isnan(found[3]).any()

  def test_bisection_is_exact_and_takes_31_steps(self):
    values = np.float32([0, -1e-30, -0.5, np.nextafter(np.float32(-0.5), np.float32(-1)), -9])
    for goal in (1, 3, 5):
      steps = []

      def count(lowest):
        steps.append(0)
        return jnp.sum(values >= lowest, axis=-1, keepdims=True, dtype=jnp.float32)

      with jax.disable_jit():
        found = sampling.bisect(count, jnp.float32(goal), jnp.array(True), (1, 1, 1))
      assert found.item() == values[goal - 1]
      assert len(steps) <= 31

  def test_has_no_sort_and_filters_are_optional(self):
    settings = sampling.make(batch_size=2)
    jaxpr = jax.make_jaxpr(sampling.law)(np.zeros([2, 3, 7], np.float32), settings)
    names = set(_primitives(jaxpr.jaxpr))
    assert 'while' in names and 'cond' in names
    assert not [name for name in names if 'sort' in name or 'top_k' in name]
    assert 'while' not in set(_primitives(jaxpr.jaxpr, into_cond=False))
    assert 'sort' in set(_primitives(jax.make_jaxpr(jnp.sort)(np.zeros(3)).jaxpr))

  def test_argmax_takes_the_first_of_equals(self):
    values = np.round(_random_logits([50, 7], seed=9, scale=0.7))
    np.testing.assert_array_equal(sampling.argmax(values), np.argmax(values, axis=-1))


def _primitives(jaxpr, into_cond=True):
  """Names of all primitives, those of inner programs included."""
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    if equation.primitive.name == 'cond' and not into_cond:
      continue
    for parameter in jax.tree.leaves(
        equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
    ):
      inner = getattr(parameter, 'jaxpr', parameter)
      if hasattr(inner, 'eqns'):
        yield from _primitives(inner, into_cond)


VOCAB = 11
PENALTIES = dict(
    repetition_penalty=[1, 1.7, 1, 1.3, 0.6],
    presence_penalty=[0, 0, 0.7, 0.1, -0.3],
    frequency_penalty=[0, 0, 0.33, -0.4, 0.21],
)
BATCH = 5
# Paths of six rows, -1 where there is nothing: duplicates, a branch, a hole, padding.
PATHS = np.array(
    [[-1, -1, -1], [2, -1, -1], [2, 2, -1], [2, 2, 2], [2, 5, -1], [-1, 5, 4]]
)


def _scene(seed=0, constraint=None):
  """Raw logits [B, 6, VOCAB], a history after two output tokens, paths and validity."""
  rng = np.random.default_rng(seed)
  prompts = rng.integers(0, VOCAB, [BATCH, 4])
  history = sampling.init_history(
      prompts, np.array([4, 1, 2, 3, 4]), vocab_size=VOCAB, constraint=constraint
  )
  output = np.array([[2, 2], [7, 1], [2, 7], [5, 2], [0, 0]])
  valid = np.array([[True, True]] * 4 + [[True, False]])
  history = sampling.update_history(history, output, valid, constraint)
  paths = np.broadcast_to(PATHS, [BATCH, *PATHS.shape])
  # What stands in entries that are not valid must not matter.
  garbage = rng.choice([-5, 2, VOCAB, 1000], paths.shape)
  path = np.where(paths >= 0, paths, garbage).astype(np.int32)
  return _random_logits([BATCH, len(PATHS), VOCAB], seed), history, path, paths >= 0


def _reference_penalties(logits, prompt, output, repetition, presence, frequency):
  """One row, as `transformers` and vLLM define them, token by token."""
  values = logits.astype(np.float64)
  for token in set(prompt) | set(output):
    values[token] *= 1 / repetition if values[token] > 0 else repetition
  for token in set(output):
    values[token] -= frequency * output.count(token) + presence
  return values


class TestControl:

  def test_penalties_match_their_definition(self):
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, VOCAB, [BATCH, 4])
    output = [[2, 2], [7, 1], [2, 7], [5, 2], [0]]
    lengths = [4, 1, 2, 3, 4]
    logits, history, path, valid = _scene()
    bias = _random_logits([BATCH, VOCAB], seed=4)
    settings = sampling.make(batch_size=BATCH, logit_bias=bias, **PENALTIES)
    found = _control(logits, settings, history, path, valid)
    for b, r in np.ndindex(BATCH, len(PATHS)):
      wanted = _reference_penalties(
          logits[b, r] + bias[b],
          prompts[b, : lengths[b]].tolist(),
          output[b] + PATHS[r][PATHS[r] >= 0].tolist(),
          *(PENALTIES[f'{name}_penalty'][b] for name in ('repetition', 'presence', 'frequency')),
      )
      # A bias, a factor, a product and two differences, of the largest entry's size.
      tolerance.assert_close(
          found[b, r], wanted, tolerance.chained(5, size=tolerance.largest(wanted))
      )

  def test_speculative_rows_equal_plain_decoding_bit_for_bit(self):
    logits, history, path, valid = _scene(seed=3)
    settings = sampling.make(batch_size=BATCH, **PENALTIES)
    speculative = np.asarray(_control(logits, settings, history, path, valid))
    nothing = np.zeros([BATCH, 1, 0], np.int32)
    for row in range(len(PATHS)):
      after = history
      for index in range(PATHS.shape[1]):
        after = sampling.update_history(
            after, path[:, row, index : index + 1], valid[:, row, index : index + 1]
        )
      plain = _control(logits[:, row : row + 1], settings, after, nothing, nothing > 0)
      np.testing.assert_array_equal(speculative[:, row], np.asarray(plain)[:, 0])

  def test_changes_nothing_when_nothing_is_set(self):
    logits, history, path, valid = _scene()
    found = _control(logits, sampling.make(batch_size=BATCH), history, path, valid)
    np.testing.assert_array_equal(found, logits)
    jaxpr = jax.make_jaxpr(_control)(
        logits, sampling.make(batch_size=BATCH), history, path, valid
    )
    assert not {'scatter', 'gather', 'div'} & set(_primitives(jaxpr.jaxpr, into_cond=False))

  def test_excluded_tokens_stay_excluded(self):
    logits, history, path, valid = _scene()
    bias = np.zeros(VOCAB)
    bias[[2, 7]] = -INF
    settings = sampling.make(batch_size=BATCH, logit_bias=bias, **PENALTIES)
    found = np.asarray(_control(logits, settings, history, path, valid))
    assert (found[..., [2, 7]] == -INF).all()
    assert np.isfinite(np.delete(found, [2, 7], axis=-1)).all()

  def test_reads_low_precision(self):
    logits, history, path, valid = _scene()
    found = _control(
        logits.astype(jnp.bfloat16), sampling.make(batch_size=BATCH), history, path, valid
    )
    assert found.dtype == jnp.float32

  def test_history_ignores_padding_and_counts(self):
    history = sampling.init_history(
        np.array([[1, 2, 3], [4, 4, 0]]), np.array([2, 1]), vocab_size=5
    )
    np.testing.assert_array_equal(history.in_prompt, [[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]])
    assert history.constraint is None
    history = sampling.update_history(
        history, np.array([[1, 1, 1], [0, 4, 0]]), np.array([[True] * 3, [True, False, True]])
    )
    np.testing.assert_array_equal(history.output_counts, [[0, 3, 0, 0, 0], [2, 0, 0, 0, 0]])

  def test_refuses_shapes_that_do_not_belong_together(self):
    logits, history, path, valid = _scene()
    settings = sampling.make(batch_size=BATCH)

    def control(logits=logits, settings=settings, path=path):
      sampling.control(
          logits, sampling=settings, history=history, path=path, path_valid=valid
      )

    with pytest.raises(ValueError, match='init_history the vocabulary size'):
      control(logits=logits[..., :-1])
    with pytest.raises(ValueError, match=r'path and path_valid must be \[5, 6, depth\]'):
      control(path=path[:, :-1])
    with pytest.raises(ValueError, match='one entry for each token of the model'):
      control(settings=sampling.make(batch_size=BATCH, logit_bias=np.zeros(VOCAB + 1)))
    with pytest.raises(ValueError, match='no state of this constraint'):
      control(settings=sampling.make(batch_size=BATCH, constraint=_alternating()))


def _alternating():
  """Even and odd tokens take turns; the first is even."""
  even = np.arange(VOCAB) % 2 == 0
  return constraints.TokenAutomaton.create(np.where([even, ~even], [[1], [0]], -1))


@struct.dataclass
class _Countdown:
  """A hook with a state of two leaves that forbids everything after `steps` tokens."""

  steps: jax.Array  # [B]: a hook may hold something for each row.

  def initial(self, batch_size):
    return {'left': self.steps, 'seen': jnp.zeros([batch_size, VOCAB], bool)}

  def advance(self, state, tokens):
    seen = state['seen'].at[jnp.arange(tokens.shape[0]), tokens].set(True)
    return {'left': state['left'] - 1, 'seen': seen}

  def allowed(self, state):
    return (state['left'] > 0)[:, None] & ~state['seen']


class TestConstraint:

  def test_is_walked_along_every_path(self):
    constraint = _alternating()
    logits, history, path, valid = _scene(constraint=constraint)
    settings = sampling.make(batch_size=BATCH, constraint=constraint)
    found = np.asarray(_control(logits, settings, history, path, valid))
    odd = np.arange(VOCAB) % 2
    # The output, and what each path adds; a forbidden token leaves the state as it is.
    output = [[2, 2], [7, 1], [2, 7], [5, 2], [0]]
    for b, r in np.ndindex(BATCH, len(PATHS)):
      turn = 0
      for token in output[b] + PATHS[r][PATHS[r] >= 0].tolist():
        turn = 1 - turn if token % 2 == turn else turn
      np.testing.assert_array_equal(found[b, r], np.where(odd == turn, logits[b, r], -INF))

  def test_comes_after_penalties(self):
    constraint = _alternating()
    logits, history, path, valid = _scene(constraint=constraint)
    plain = sampling.make(batch_size=BATCH, **PENALTIES)
    both = sampling.make(batch_size=BATCH, constraint=constraint, **PENALTIES)
    wanted = _control(logits, plain, history, path, valid)
    found = _control(logits, both, history, path, valid)
    allowed = np.asarray(found) > -INF
    np.testing.assert_array_equal(np.where(allowed, found, 0), np.where(allowed, wanted, 0))

  def test_nothing_is_allowed_where_the_hook_allows_nothing(self):
    """Below the root as well: the engine verifies nothing there, and draws nothing."""
    constraint = _Countdown(steps=jnp.array([5, 4, 3, 2, 1]))
    logits, history, path, valid = _scene(constraint=constraint)
    settings = sampling.make(batch_size=BATCH, constraint=constraint)
    found = np.asarray(_control(logits, settings, history, path, valid))
    left = np.asarray(history.constraint['left'])
    np.testing.assert_array_equal(left, [3, 2, 1, 0, 0])
    seen = np.asarray(history.constraint['seen'])
    for b, r in np.ndindex(BATCH, len(PATHS)):
      used = PATHS[r][PATHS[r] >= 0]
      allowed = ~seen[b] & (left[b] > len(used))
      allowed[used] = False
      np.testing.assert_array_equal(found[b, r], np.where(allowed, logits[b, r], -INF))

  @pytest.mark.parametrize(
      'table, start, message',
      [
          ([0, 1], 0, r'shape \[states, vocabulary\]'),
          ([[0.0, 1.0]], 0, 'must be integers'),
          ([[0, 2], [0, 0]], 0, r'lie in -1 … 1'),
          ([[0, 0]], 1, 'start must be one of the states 0 … 0; got 1'),
          ([[1, -1], [-1, -1]], 0, 'none in state 1'),
      ],
  )
  def test_automaton_refuses_bad_tables(self, table, start, message):
    with pytest.raises(ValueError, match=message):
      constraints.TokenAutomaton.create(np.array(table), start=start)


class TestMake:

  def test_broadcasts_and_keeps_types(self):
    settings = sampling.make(batch_size=3, temperature=[0, 0.5, 1], top_k=np.int64(4))
    chex.assert_shape(jax.tree.leaves(settings), [3])
    assert settings.top_k.dtype == jnp.int32
    assert settings.temperature.dtype == settings.top_p.dtype == jnp.float32
    np.testing.assert_array_equal(settings.temperature, np.float32([0, 0.5, 1]))
    bias = sampling.make(batch_size=3, logit_bias=np.arange(4)).logit_bias
    np.testing.assert_array_equal(bias, np.tile(np.arange(4), (3, 1)))

  def test_settings_change_without_a_recompile(self):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def both(logits, settings, history, path, valid):
      controlled = _control(logits, settings, history, path, valid)
      return sampling.law(controlled, settings)

    scene = _scene()
    for options in (
        {},
        dict(temperature=0),
        dict(temperature=[0, 1, 0.5, 2, 1], top_k=3, min_p=0.1),
        dict(top_p=0.5, **PENALTIES),
    ):
      law = both(scene[0], sampling.make(batch_size=BATCH, **options), *scene[1:])
      tolerance.assert_close(np.exp(law).sum(-1), 1.0, tolerance.of_rule(VOCAB))

  @pytest.mark.parametrize(
      'options, message',
      [
          (dict(batch_size=0), 'batch_size must be at least 1; got 0'),
          (dict(temperature=-0.5), 'temperature must be finite and >= 0.*got -0.5 for row 0'),
          (dict(temperature=[1, -1]), 'got -1 for row 1.*Change temperature='),
          (dict(temperature=np.nan), 'temperature must be.*got nan'),
          (dict(temperature=INF), 'temperature must be.*got inf'),
          (dict(temperature='warm'), "temperature must be.*got 'warm'"),
          (dict(temperature=[1, 1, 1]), r'each of the 2 rows of the batch; got shape \(3,\)'),
          (dict(top_k=-1), 'top_k must be a whole number >= 0'),
          (dict(top_k=1.5), 'top_k must be a whole number'),
          (dict(top_k=2**31), 'top_k must be'),
          (dict(top_p=0), r'top_p must be in \(0, 1\].*got 0 '),
          (dict(top_p=1.01), 'top_p must be'),
          (dict(top_p=1e-60), 'top_p must be'),
          (dict(min_p=-0.1), r'min_p must be in \[0, 1\]'),
          (dict(min_p=2), 'min_p must be'),
          (dict(repetition_penalty=0), 'repetition_penalty must be finite and > 0'),
          (dict(presence_penalty=np.nan), 'presence_penalty must be finite'),
          (dict(frequency_penalty=INF), 'frequency_penalty must be finite'),
          (dict(logit_bias={3: 1.0}), r'logit_bias must be an array.*got dict'),
          (dict(logit_bias=np.zeros([3, 4])), r'logit_bias must have shape \[vocabulary\]'),
          (dict(logit_bias=[0, np.nan]), 'logit_bias must be finite'),
          (dict(logit_bias=[-INF, -INF]), 'leave at least one token'),
          (dict(constraint=python_types.SimpleNamespace(initial=len)), 'lacks advance, allowed'),
      ],
      ids=str,
  )
  def test_refuses(self, options, message):
    with pytest.raises(ValueError, match=message):
      sampling.make(**({'batch_size': 2} | options))


@jax.jit
def _draw(sampler, logits, path, position):
  token, law, _ = sampler.draw(
      logits, path=path, path_valid=path >= 0, position=position, node=1
  )
  return token, law


def _sampler(batch, vocab_size, mode, seed=0, keep_law=False, **options):
  keys = randomness.row_keys(jnp.arange(batch) + seed)
  return sampling.Sampler(
      source=randomness.KeySource(keys, jnp.full([batch], 3)),
      sampling=sampling.make(batch_size=batch, **options),
      history=sampling.init_history(
          np.zeros([batch, 3], np.int32), np.full([batch], 3), vocab_size=vocab_size
      ),
      mode=mode,
      keep_law=keep_law,
  )


def _chi_square(tokens, law):
  """Pearson's statistic of drawn tokens [B] against a law [V]; V - 1 degrees of freedom."""
  expected = np.exp(np.asarray(law, np.float64)) * len(tokens)
  counts = np.bincount(tokens, minlength=len(expected))
  return np.sum((counts - expected) ** 2 / expected)


@struct.dataclass
class _Recorder:
  """A source that draws the likeliest token and remembers what it was asked."""

  calls: tuple = struct.field(pytree_node=False, default=())

  def draw(self, law, *, purpose, node):
    return sampling.argmax(law), _Recorder(calls=self.calls + ((purpose, node),))


class TestSampler:
  BATCH = 20_000
  LIMIT = 22.5  # chi-square, 6 degrees of freedom, one in a thousand

  def _inputs(self, seed=0):
    logits = np.tile(_random_logits([7], seed, scale=1.0), (self.BATCH, 1))
    path = np.tile(np.int32([3, 3, -1]), (self.BATCH, 1))
    return logits, path, np.full([self.BATCH], 5, np.int32)

  @pytest.mark.parametrize('mode', ['sample', 'coupled'])
  def test_draws_from_its_law(self, mode):
    options = dict(temperature=0.8, frequency_penalty=0.5)
    sampler = _sampler(self.BATCH, 7, mode, keep_law=True, **options)
    logits, path, position = self._inputs()
    tokens, law = _draw(sampler, logits, path, position)
    values = logits[0].copy()
    values[3] -= 2 * 0.5  # The path has token 3 twice.
    tolerance.assert_close(
        law[0], jax.nn.log_softmax(values / 0.8), tolerance.of_log_softmax(7, logits=values / 0.8)
    )
    assert _chi_square(np.asarray(tokens), law[0]) < self.LIMIT
    assert _chi_square(np.asarray(tokens), jax.nn.log_softmax(values)) > 2 * self.LIMIT

  def test_coupled_is_the_argmax_with_shared_noise(self):
    options = dict(temperature=0.8, frequency_penalty=0.5)
    sampler = _sampler(self.BATCH, 7, 'coupled', keep_law=True, **options)
    logits, path, position = self._inputs()
    tokens, _ = _draw(sampler, logits, path, position)
    # The target, whose rows 0 … 2 stand after 0 … 2 drafted tokens, has the same logits at
    # row 2: the same law, hence the same token, whatever the round or the node.
    controlled = _control(
        np.tile(logits[:, None], (1, 3, 1)),
        sampler.sampling,
        sampler.history,
        np.tile(path[:, None], (1, 3, 1)),
        np.tile(np.tri(3, 3, -1, dtype=bool), (self.BATCH, 1, 1)),
    )
    target_law = _law(controlled, sampler.sampling)[:, 2]
    source = sampler.source.replace(lengths=jnp.full([self.BATCH], 4))
    wanted = np.argmax(target_law + source.gumbel(position, 7), axis=-1)
    np.testing.assert_array_equal(tokens, wanted)
    elsewhere, _ = _draw(sampler, logits, path, position + 1)
    assert np.mean(np.asarray(elsewhere) == tokens) < 0.9

  def test_greedy_is_the_argmax_after_control(self):
    logits = np.array([[1.0, 3, 3, 2]] * 2, np.float32)
    sampler = _sampler(2, 4, 'greedy', presence_penalty=[0, 2])
    token, law = _draw(sampler, logits, np.array([[1], [1]]), np.array([5, 5]))
    assert law is None
    np.testing.assert_array_equal(token, [1, 2])

  @pytest.mark.parametrize('mode', ['sample', 'coupled'])
  def test_temperature_zero_is_greedy_in_every_mode(self, mode):
    sampler = _sampler(
        self.BATCH, 7, mode, keep_law=True, temperature=np.arange(self.BATCH) % 2
    )
    logits, path, position = self._inputs()
    tokens = np.asarray(_draw(sampler, logits, path, position)[0])
    assert (tokens[::2] == np.argmax(logits[0])).all()
    assert len(set(tokens[1::2].tolist())) > 1

  def test_coupled_keeps_its_law_on_demand(self):
    for keep_law in (False, True):
      sampler = _sampler(2, 7, 'coupled', keep_law=keep_law)
      inputs = [array[:2] for array in self._inputs()]
      _, law = jax.eval_shape(_draw, sampler, *inputs)
      assert (law is not None) == keep_law

  def test_obeys_constraints_and_names_its_draws(self):
    even = np.where(np.arange(7) % 2, -1, 0)[None]
    constraint = constraints.TokenAutomaton.create(even)
    sampler = _sampler(2, 7, 'sample', constraint=constraint)
    sampler = sampler.replace(
        source=_Recorder(), history=sampler.history.replace(constraint=constraint.initial(2))
    )
    draw = jax.jit(lambda sampler, logits, path, position: sampler.draw(
        logits, path=path, path_valid=path >= 0, position=position, node=3
    ))
    zeros = np.zeros([2], np.int32)
    token, law, after = draw(sampler, np.zeros([2, 7]), zeros[:, None], zeros)
    tolerance.assert_close(np.exp(law), [[0.25, 0] * 3 + [0.25]] * 2, tolerance.of_rule(7))
    np.testing.assert_array_equal(token, [0, 0])
    assert after.source.calls == ((randomness.DRAFT, 3),)

  def test_refuses_an_unknown_mode(self):
    sampler = _sampler(2, 7, 'beam')
    with pytest.raises(ValueError, match="'coupled'; got 'beam'"):
      _draw(sampler, np.zeros([2, 7]), np.zeros([2, 0], np.int32), np.zeros([2], np.int32))


def test_hooks_follow_the_protocol():
  for hook in (_alternating(), _Countdown(steps=jnp.zeros([1], jnp.int32))):
    for name in ('initial', 'advance', 'allowed'):
      assert callable(getattr(hook, name)) and hasattr(types.Constraint, name)
