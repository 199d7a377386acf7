"""The suite that every implementation of the acceptance op inherits.

A subclass, which pytest collects, says which implementation it is, `IMPLEMENTATION`, and proves
in `op` that it was this one that ran. Laws are those of an independent float64 computation: kernels
hide their probabilities, so the op is evaluated at the midpoint of every cell between the law's
breakpoints, and 1e-5 on either side of each.
"""

import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import generation
from specjax import randomness
from specjax import sampling as sampling_lib
from specjax import types
from specjax import verify
from specjax.kernels import accept as accept_lib
from specjax.models import LanguageModel
from tests.support import tiny
from tests.support import tolerance

STEP = 1e-5


@dataclasses.dataclass
class Case:
  """One set of inputs, B sequences; numpy."""

  target: np.ndarray  # [B, K + 1, V]
  draft: np.ndarray | None  # [B, K, V]
  tokens: np.ndarray  # [B, K]
  settings: dict
  valid: np.ndarray | None = None

  @property
  def shape(self):
    return (*self.tokens.shape, self.target.shape[-1])

  def repeat(self, times: int) -> 'Case':
    again = lambda x: None if x is None else np.repeat(x, times, axis=0)
    return Case(
        again(self.target), again(self.draft), again(self.tokens),
        {name: again(np.asarray(value)) for name, value in self.settings.items()},
        again(self.valid),
    )


def random_case(batch, size, vocab_size, *, seed=0, one_hot=False, dtype=np.float32, **settings):
  """Laws that agree about half of the time, tokens drawn from the draft's."""
  rng = np.random.default_rng(seed)
  target = 2.5 * rng.normal(size=(batch, size + 1, vocab_size))
  draft = target[:, :size] + 1.2 * rng.normal(size=(batch, size, vocab_size))
  target, draft = (np.array(jnp.asarray(x, dtype)) for x in (target, draft))
  settings = {name: np.broadcast_to(value, (batch,)) for name, value in settings.items()}
  tokens = np.zeros((batch, size), int)
  for row, j in np.ndindex(batch, size):
    law = law64(draft[row, j], **{name: value[row] for name, value in settings.items()})
    tokens[row, j] = np.searchsorted(np.cumsum(law), rng.uniform() * law.sum())
  return Case(target, None if one_hot else draft, tokens, settings)


MIXED = dict(
    temperature=[1.0, 0.6, 0.0, 1.0, 1.0, 0.9],
    top_k=[0, 0, 0, 3, 0, 5],
    top_p=[1.0, 1.0, 1.0, 1.0, 0.7, 0.95],
    min_p=[0.0, 0.0, 0.0, 0.0, 0.0, 0.02],
)


def one_hot(tokens, vocab_size: int) -> np.ndarray:
  """Rows [..., V] float64 with a one at each of tokens [...]."""
  return np.float64(np.asarray(tokens)[..., None] == np.arange(vocab_size))


def law64(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
  """One row's law, float64, by sorting."""
  logits = np.asarray(logits, np.float64)
  if np.isposinf(logits).any():
    logits = np.where(np.isposinf(logits), 0.0, -np.inf)
  if temperature == 0:
    return one_hot(np.argmax(logits), len(logits))
  probs = np.exp((logits - logits.max()) / temperature)
  probs /= probs.sum()
  if top_k:
    probs = np.where(probs >= np.sort(probs)[-min(top_k, len(probs))], probs, 0)
    probs /= probs.sum()
  if top_p < 1:
    order = np.argsort(-probs, kind='stable')
    before = np.cumsum(probs[order]) - probs[order]
    least = probs[order][before < top_p].min()
    probs = np.where(probs >= least, probs, 0)
  probs = np.where(probs >= min_p * probs.max(), probs, 0)
  return probs / probs.sum()


def reference(case: Case, rule: str, row: int):
  """Flip probabilities [K], and the law [K + 1, V] of what follows j accepted tokens."""
  settings = {name: value[row] for name, value in case.settings.items()}
  batch, size, vocab_size = case.shape
  target = np.stack([law64(x, **settings) for x in case.target[row]])
  tokens = case.tokens[row]
  if case.draft is None:
    draft = one_hot(tokens, vocab_size)
  else:
    draft = np.stack([law64(x, **settings) for x in case.draft[row]])
  number = np.arange(size)
  with np.errstate(divide='ignore', invalid='ignore'):
    ratios = target[number, tokens] / draft[number, tokens]
  ratios = np.where(target[number, tokens] > 0, ratios, 0.0)
  valid = np.ones(size, bool) if case.valid is None else case.valid[row]
  prefix = np.ones(size + 1)
  for j in range(size):
    prefix[j + 1] = min(1.0, prefix[j] * ratios[j])
  flips, laws = np.zeros(size), np.zeros((size + 1, vocab_size))
  for j in range(size + 1):
    scale = prefix[j] if rule == 'block' else 1.0
    is_last = j == size or not valid[j]
    rest = target[j] if is_last else np.maximum(scale * target[j] - draft[j], 0)
    if rule == 'block' and j:
      stop = 0 / 1 if is_last else rest.sum() / max(rest.sum() + 1 - scale, 1e-300)
      flips[j - 1] = scale if is_last else stop
    elif rule == 'rejection' and j < size:
      flips[j] = min(1.0, ratios[j])
    laws[j] = (rest if rest.sum() > 0 else target[j])
    laws[j] /= laws[j].sum()
  return np.where(valid, flips, 0.0), laws


def decide(flips, probs, valid, rule):
  """How many tokens stay, by the flips' numbers."""
  kept = (flips < probs) & valid
  if rule == 'rejection':
    return int(np.cumprod(kept).sum())
  return int(max([j + 1 for j in range(len(kept)) if kept[j]], default=0))


class AcceptSuite:
  """Inherited by one class for each implementation; an argument `own_rule` is each of `RULES`."""

  IMPLEMENTATION = None
  # Interpreted kernels are slow: vocabularies that end inside a tile, at its end and at 7.
  VOCABULARIES = (7, 300)
  KINDS = ('logits',)
  # Kernels do no less for the block rule than for the rejection rule.
  RULES = ('block',)

  def pytest_generate_tests(self, metafunc):
    if 'own_rule' in metafunc.fixturenames:
      metafunc.parametrize('own_rule', self.RULES)

  def op(self, case: Case, rule: str, numbers, *, is_law=False, dtype=None, parents=None):
    """Runs the op on a case; draft logits as laws where `is_law`."""
    batch, size, vocab_size = case.shape
    sampling = sampling_lib.make(batch_size=batch, **case.settings)
    draft = None
    if case.draft is not None:
      draft = jnp.asarray(case.draft, dtype)
      if is_law:
        draft = sampling_lib.law(draft, sampling)
      draft = draft.reshape(-1, vocab_size)
    target = jnp.asarray(case.target, dtype).reshape(-1, vocab_size)
    valid = None if case.valid is None else jnp.asarray(case.valid)
    if parents is not None:
      parents = jnp.asarray(parents, jnp.int32)
    return jax.tree.map(np.asarray, compiled(self.IMPLEMENTATION, rule, is_law)(
        target, jnp.asarray(case.tokens, jnp.int32), numbers, sampling, draft, valid, parents
    ))

  def uniforms(self, batch, size, seed=0):
    rng = np.random.default_rng(seed)
    number = lambda *shape: jnp.asarray(rng.uniform(size=shape), jnp.float32)
    return accept_lib.Uniforms(number(batch, size), number(batch, size + 1))

  def noise(self, batch, size):
    positions = 5 + jnp.broadcast_to(jnp.arange(size + 1, dtype=jnp.int32), (batch, size + 1))
    return accept_lib.Noise(randomness.row_keys(jnp.arange(batch)), positions)

  def check_rows(self, case, rule, found, numbers, *, off=None):
    """Every row of a result against the float64 law, whatever its numbers were.

    A draw may be `off` by as much at the ends of its token's cell: by default what rounding does.
    """
    if off is None:
      off = float(tolerance.of_probs(case.shape[-1], logits=self.scaled(case)))
    flips, following = np.asarray(numbers.flips), np.asarray(numbers.next_token)
    lengths = []
    for row in range(case.shape[0]):
      probs, laws = reference(case, rule, row)
      valid = np.ones(case.shape[1], bool) if case.valid is None else case.valid[row]
      near = np.abs(flips[row] - probs)[valid].min(initial=1.0)
      assert near > STEP / 10, 'a number lies on a breakpoint: take another seed'
      count = decide(flips[row], probs, valid, rule)
      assert found.num_accepted[row] == count, (rule, row, probs, flips[row])
      ends = np.cumsum(laws[count])
      token, number = found.next_token[row], following[row, count]
      low = ends[token - 1] if token else 0.0
      assert laws[count][token] > 0.0, (rule, row)
      assert low - off <= number <= ends[token] + off, (rule, row, token)
      assert found.is_bonus[row] == (count == np.cumprod(valid).sum())
      self.check_log_probs(case, found, row)
      lengths.append(count)
    return lengths

  def scaled(self, case):
    """The target's logits as the softmax takes them; greedy rows have none."""
    temperature = np.asarray(case.settings.get('temperature', np.ones(case.shape[0])))
    finite = np.where(np.isfinite(case.target), case.target, 0.0).astype(np.float64)
    return finite / np.where(temperature > 0, temperature, np.inf)[:, None, None]

  def check_log_probs(self, case, found, row):
    settings = {name: value[row] for name, value in case.settings.items()}
    count = found.num_accepted[row]
    emitted = [*case.tokens[row][:count], found.next_token[row]]
    for j, token in enumerate(emitted):
      prob = law64(case.target[row, j], **settings)[token]
      tolerated = tolerance.of_probs(
          case.shape[-1], logits=self.scaled(case)[row, j], probs=prob
      )
      tolerance.assert_close(np.exp(found.log_probs[row, j]), prob, tolerated)
    np.testing.assert_array_equal(found.log_probs[row, count + 1 :], 0.0)

  def test_mixed_settings(self, own_rule):
    lengths = []
    for kind in self.KINDS:
      for vocab_size in self.VOCABULARIES:
        case = random_case(6, 3, vocab_size, seed=3, one_hot=kind == 'one_hot', **MIXED)
        numbers = self.uniforms(6, 3)
        found = self.op(case, own_rule, numbers, is_law=kind == 'law')
        lengths += self.check_rows(case, own_rule, found, numbers)
    assert len(set(lengths)) > 1

  def test_law_at_every_breakpoint(self, own_rule):
    """Flips a hair below and above each probability; draws in, and a hair off, every cell."""
    case = random_case(1, 2, 7, seed=5)
    probs, laws = reference(case, own_rule, 0)
    points = []
    for j, prob in enumerate(probs):
      for number in (prob / 2, prob - STEP, prob + STEP, (1 + prob) / 2):
        if 0 < number < 1:
          flips = np.full(2, 0.999999)
          flips[:j] = 1e-6 if own_rule == 'rejection' else 0.999999
          flips[j] = number
          points.append((flips, np.full(3, 0.37)))
    for count in range(3):
      flips = np.where(np.arange(2) < count, 1e-6, 0.999999)
      if decide(flips, probs, np.ones(2, bool), own_rule) != count:
        continue
      ends = np.concatenate([[0.0], np.cumsum(laws[count])])
      numbers = [*((ends[1:] + ends[:-1]) / 2), *(ends[1:-1] - STEP), *(ends[1:-1] + STEP)]
      points += [(flips, np.full(3, x)) for x in numbers if 0 < x < 1]
    # Six at a time, by the program of the tests around this one: compiling takes longest.
    points += [points[0]] * (-len(points) % 6)
    six = case.repeat(6)
    for start in range(0, len(points), 6):
      flips, following = (np.asarray(x, np.float32) for x in zip(*points[start : start + 6]))
      numbers = accept_lib.Uniforms(jnp.asarray(flips), jnp.asarray(following))
      found = self.op(six, own_rule, numbers)
      self.check_rows(six, own_rule, found, numbers, off=STEP / 2)

  def test_impossible_tokens(self, own_rule):
    """Target and draft exclude tokens with -inf, and give all mass to some with +inf."""
    case = random_case(6, 2, 7, seed=8)
    case.target[0, :, :4] = -np.inf  # drafts of the first four are refused
    case.draft[1, :, 3:] = -np.inf
    case.tokens[1] = [0, 2]
    case.target[2] = -np.inf
    case.target[2, :, 2] = 0.0  # one-hot, as is the draft
    case.draft[2] = case.target[2, :2]
    case.tokens[2] = 2
    case.target[3, :, 5] = np.inf
    case.target[4, 0, [1, 2]] = np.inf
    case.draft[4, 0, 2] = np.inf
    case.tokens[4] = [2, 2]
    case.tokens[0] = [1, 5]
    numbers = self.uniforms(6, 2, seed=2)
    found = self.op(case, own_rule, numbers)
    self.check_rows(case, own_rule, found, numbers)
    assert np.isfinite(found.accept_probs).all()
    assert (found.num_accepted[2], found.next_token[2]) == (2, 2)

  def test_equal_laws_accept_everything(self, own_rule):
    """The residual is empty; numbers just below 1 reach for it."""
    case = random_case(6, 3, self.VOCABULARIES[-1], seed=1)
    case.draft[:] = case.target[:, :3]
    high = jnp.full((6, 4), np.nextafter(np.float32(1), np.float32(0)))
    found = self.op(case, own_rule, accept_lib.Uniforms(high[:, :3] - 2e-6, high))
    assert found.num_accepted.tolist() == [3] * 6
    for row in range(6):
      assert law64(case.target[row, 3])[found.next_token[row]] > 0

  def test_invalid_tokens_end_a_draft(self, own_rule):
    case = random_case(4, 3, 7, seed=4)
    case.valid = np.arange(3) < np.arange(4)[:, None]
    numbers = self.uniforms(4, 3, seed=4)
    found = self.op(case, own_rule, numbers)
    self.check_rows(case, own_rule, found, numbers)
    assert (found.accept_probs[~case.valid] == 0).all()

  @pytest.mark.parametrize('rule, is_law, says_valid', [
      ('rejection', True, True), ('block', True, False), ('block', False, False),
  ])
  def test_a_token_without_a_law_ends_a_draft(self, rule, is_law, says_valid):
    """Whatever is said to be valid: rows of NaN, rows of -inf, and a token that is excluded.

    A given law need not be read for the rejection rule but for the tokens' own entries.
    """
    case = random_case(6, 2, 7, seed=12)
    case.valid = np.ones((6, 2), bool) if says_valid else None
    expected = dataclasses.replace(case.repeat(1), valid=np.ones((6, 2), bool))
    for row, (first, fill) in enumerate([(0, np.nan), (1, np.nan), (0, -np.inf), (1, -np.inf)]):
      case.draft[row, first] = fill
      expected.valid[row, first:] = False
    # The law knows other tokens, not the one that it is said to have been drawn from.
    for copy in (case, expected):
      copy.draft[4, 1, copy.tokens[4, 1]] = -np.inf
    expected.valid[4, 1] = False
    numbers = self.uniforms(6, 2, seed=5)
    found = self.op(case, rule, numbers, is_law=is_law)
    lengths = self.check_rows(expected, rule, found, numbers)
    assert (found.accept_probs[~expected.valid] == 0).all()
    assert {0, 1} <= set(lengths)

  @pytest.mark.parametrize('rule', ['rejection', 'coupled'])
  def test_nothing_drafted(self, rule):
    case = random_case(3, 0, 7, seed=6, one_hot=True)
    numbers = self.uniforms(3, 0) if rule == 'rejection' else self.noise(3, 0)
    found = self.op(case, rule, numbers)
    assert found.num_accepted.tolist() == [0, 0, 0]
    if rule == 'rejection':
      self.check_rows(case, rule, found, numbers)

  @pytest.mark.parametrize('rule', ['greedy', 'coupled'])
  def test_choices(self, rule):
    for vocab_size in self.VOCABULARIES:
      case = random_case(6, 3, vocab_size, seed=7, **MIXED)
      noise = self.noise(6, 3)
      numbers = noise if rule == 'coupled' else None
      scores = np.asarray(case.target, np.float64)
      if rule == 'coupled':
        sampling = sampling_lib.make(batch_size=6, **case.settings)
        values = np.asarray(sampling_lib.scaled(jnp.asarray(case.target), sampling))
        scores = values + np.asarray(
            randomness.gumbel_noise(noise.keys, noise.positions, vocab_size)
        )
      choices = scores.argmax(axis=-1)
      case.tokens[:] = choices[:, :3]
      case.tokens[1, 1] = (case.tokens[1, 1] + 1) % vocab_size
      case.tokens[2, 0] = (case.tokens[2, 0] + 1) % vocab_size
      found = self.op(case, rule, numbers)
      assert found.num_accepted.tolist() == [3, 1, 0, 3, 3, 3]
      ends = choices[np.arange(6), found.num_accepted]
      assert found.next_token.tolist() == ends.tolist()
      if rule == 'coupled':  # a greedy choice may lie outside of the settings' law
        for row in range(6):
          self.check_log_probs(case, found, row)

  @pytest.mark.parametrize('rule', ['rejection', 'block', 'recursive'])
  def test_one_token_is_drafted(self, rule):
    """K = 1: the block rule has no inner rows, and all three decide alike."""
    # What the block rule is told of inner rows depends on how the tokens came about.
    for kind in self.KINDS if rule == 'block' else self.KINDS[:1]:
      case = random_case(6, 1, 7, seed=13, one_hot=kind == 'one_hot', **MIXED)
      numbers = self.uniforms(6, 1, seed=13)
      found = self.op(case, rule, numbers, is_law=kind == 'law')
      lengths = self.check_rows(case, 'rejection', found, numbers)
      assert set(lengths) == {0, 1}

  @pytest.mark.parametrize('rule', ['greedy', 'coupled'])
  def test_one_token_is_chosen(self, rule):
    case = random_case(4, 1, 7, seed=14)
    noise = self.noise(4, 1)
    scores = np.asarray(case.target, np.float64)
    if rule == 'coupled':
      scores -= scores.max(axis=-1, keepdims=True)
      scores += np.asarray(randomness.gumbel_noise(noise.keys, noise.positions, 7))
    choices = scores.argmax(axis=-1)
    wrong = np.arange(4) % 2
    case.tokens[:, 0] = (choices[:, 0] + wrong) % 7
    found = self.op(case, rule, noise if rule == 'coupled' else None)
    assert found.num_accepted.tolist() == [1, 0, 1, 0]
    assert found.next_token.tolist() == choices[np.arange(4), 1 - wrong].tolist()

  def test_ties_of_bfloat16_go_to_the_smaller_token(self):
    values = np.round(np.random.default_rng(0).normal(size=(2, 3, 300)) * 2) / 2
    values[0, 0, [17, 40, 299]] = 9.0
    case = Case(values, None, np.array([[17, 0], [0, 0]]), {})
    found = self.op(case, 'greedy', None, dtype=jnp.bfloat16)
    choices = values.argmax(axis=-1)
    assert found.num_accepted[0] == 1 + (choices[0, 1] == 0)
    assert found.next_token[1] == choices[1, found.num_accepted[1]]

  def test_bfloat16(self, own_rule):
    case = random_case(5, 3, self.VOCABULARIES[-1], seed=11, dtype=jnp.bfloat16)
    numbers = self.uniforms(5, 3, seed=1)
    found = self.op(case, own_rule, numbers, dtype=jnp.bfloat16)
    self.check_rows(case, own_rule, found, numbers)

  @pytest.mark.parametrize('rule', ['greedy', 'coupled'])
  def test_trees_are_followed(self, rule):
    """Root with children 1 and 2, node 2 with child 3: the second branch is taken."""
    case = random_case(1, 3, 7, seed=9, one_hot=True)
    noise = accept_lib.Noise(randomness.row_keys(jnp.arange(1)), jnp.array([[4, 5, 5, 6]]))
    scores = np.asarray(case.target)
    if rule == 'coupled':
      scores = scores - scores.max(axis=-1, keepdims=True)
      scores = scores + np.asarray(randomness.gumbel_noise(noise.keys, noise.positions, 7))
    choice = scores[0].argmax(axis=-1)
    case.tokens[0] = [(choice[0] + 1) % 7, choice[0], choice[2]]
    found = self.op(case, rule, noise if rule == 'coupled' else None, parents=[[0, 0, 2]])
    assert found.num_accepted.tolist() == [2]
    assert found.path.tolist() == [[2, 3, 0]]
    assert found.next_token.tolist() == [choice[3]]
    assert found.is_bonus.all()

  @pytest.mark.parametrize('rule, kind', [
      ('recursive', types.SAMPLED), ('recursive', types.WITHOUT_REPLACEMENT),
      ('recursive', types.ONE_HOT), ('traversal', types.WITHOUT_REPLACEMENT),
  ])
  def test_siblings(self, rule, kind):
    """Rules for trees, against the same on laws in memory; equal siblings among them."""
    batch, vocab_size, parents = 12, self.VOCABULARIES[-1] if kind == types.SAMPLED else 7, (
        0, 0, 0, 1, 1
    )
    rng = np.random.default_rng(4)
    target = 1.5 * rng.normal(size=(batch, 6, vocab_size)).astype(np.float32)
    draft = 1.5 * rng.normal(size=(batch, 2, vocab_size)).astype(np.float32)
    target[:, 0, :3] += 2
    draft[:, 0, :3] += 2
    noise = rng.gumbel(size=(batch, 5, vocab_size))
    rows = np.array(parents)
    if kind == types.SAMPLED:
      tokens = np.argmax(draft[:, rows] + noise, axis=-1)
    else:  # Gumbel top-k: siblings differ
      order = np.argsort(-(draft + noise[:, [0, 3]]), axis=-1)
      tokens = np.concatenate([order[:, 0, :3], order[:, 1, :2]], axis=1)
    sampling = sampling_lib.make(batch_size=batch, temperature=[1.0, 0.7] * 6)
    uniforms = self.uniforms(batch, 5, seed=9)
    law = None if kind == types.ONE_HOT else sampling_lib.law(jnp.asarray(draft), sampling)
    wide = lambda values: jnp.broadcast_to(jnp.asarray(values, jnp.int32), (batch, 5))
    proposal = types.Proposal(
        tokens=jnp.asarray(tokens, jnp.int32), parents=wide(parents),
        valid=jnp.ones((batch, 5), bool), law=law, rows=wide(rows), kind=kind,
    )
    expected, _ = jax.jit(lambda law, source: verify.named(rule)(
        target_law=law, proposal=proposal, positions=None, source=source
    ))(sampling_lib.law(jnp.asarray(target), sampling), Given(uniforms))
    found = jax.jit(lambda target, draft: accept_lib.accept(
        target, proposal.tokens, rule=rule, numbers=uniforms, sampling=sampling,
        draft_logits=None if kind == types.ONE_HOT else draft, draft_rows=proposal.rows,
        parents=proposal.parents, without_replacement=kind == types.WITHOUT_REPLACEMENT,
        implementation=self.IMPLEMENTATION,
    ))(jnp.asarray(target).reshape(-1, vocab_size), jnp.asarray(draft).reshape(-1, vocab_size))
    for name in ('num_accepted', 'path', 'next_token', 'is_bonus'):
      np.testing.assert_array_equal(getattr(expected, name), getattr(found, name), name)
    tolerated = tolerance.of_probs(vocab_size, logits=[target.max() / 0.7, draft.min() / 0.7])
    tolerance.assert_close(found.accept_probs, expected.accept_probs, tolerated)
    assert {0, 1} <= set(np.asarray(found.num_accepted).tolist())

  def test_siblings_without_a_law(self):
    """A child of a row without a law is none, and nothing of the row gets into other sequences."""
    batch, vocab_size, parents = 6, 7, (0, 0, 1)
    rng = np.random.default_rng(6)
    target = rng.normal(size=(batch, 4, vocab_size)).astype(np.float32)
    draft = target[:, [0, 1]] + 0.3 * rng.normal(size=(batch, 2, vocab_size)).astype(np.float32)
    tokens = np.argmax(draft[:, list(parents)] + rng.gumbel(size=(batch, 3, vocab_size)), axis=-1)
    draft[0], draft[1, 1] = np.nan, np.nan
    valid = np.ones((batch, 3), bool)
    valid[0], valid[1, 2] = False, False
    sampling = sampling_lib.make(batch_size=batch)
    law = sampling_lib.law(jnp.asarray(draft), sampling)
    uniforms = self.uniforms(batch, 3, seed=3)
    wide = lambda values: jnp.broadcast_to(jnp.asarray(values, jnp.int32), (batch, 3))
    proposal = types.Proposal(
        tokens=jnp.asarray(tokens, jnp.int32), parents=wide(parents), valid=jnp.asarray(valid),
        law=jnp.where(jnp.isnan(law), 0.0, law), rows=wide(parents), kind=types.SAMPLED,
    )
    expected, _ = jax.jit(lambda law: verify.recursive()(
        target_law=law, proposal=proposal, positions=None, source=Given(uniforms)
    ))(sampling_lib.law(jnp.asarray(target), sampling))
    found = jax.jit(lambda target, law: accept_lib.accept(
        target, proposal.tokens, rule='recursive', numbers=uniforms, sampling=sampling,
        draft_logits=law, draft_is_law=True, draft_rows=proposal.rows, parents=proposal.parents,
        implementation=self.IMPLEMENTATION,
    ))(jnp.asarray(target).reshape(-1, vocab_size), law.reshape(-1, vocab_size))
    for name in ('num_accepted', 'path', 'next_token', 'is_bonus'):
      np.testing.assert_array_equal(getattr(expected, name), getattr(found, name), name)
    tolerated = tolerance.of_probs(vocab_size, logits=[np.abs(target).max() + 1])
    tolerance.assert_close(found.accept_probs, expected.accept_probs, tolerated)
    assert {0, 1} <= set(np.asarray(found.num_accepted).tolist())


@struct.dataclass
class Given:
  """`Uniforms` as a source for rules that read laws."""

  uniforms: accept_lib.Uniforms

  def flip(self, probs, *, purpose, node=None):
    return self.uniforms.flip(probs, purpose=purpose, node=node)[0], self

  def draw(self, law, *, purpose, node):
    uniform = jnp.take_along_axis(self.uniforms.next_token, node[:, None], axis=1)[:, 0]
    return randomness.draw_from(law, uniform), self


@functools.cache
def compiled(implementation, rule, is_law):
  """The op as one jitted function for all tests of a kind."""

  def call(target, tokens, numbers, sampling, draft, valid, parents):
    return accept_lib.accept(
        target, tokens, rule=rule, numbers=numbers, sampling=sampling, draft_logits=draft,
        draft_is_law=is_law, valid=valid, parents=parents, implementation=implementation,
    )

  return jax.jit(call)


def shapes(rule: str, *, batch: int, size: int, vocab_size: int, dtype='float32') -> tuple:
  """The arguments of `caller`'s functions as shapes, to compile or lower for."""
  of = jax.ShapeDtypeStruct
  numbers = {
      'greedy': None,
      'coupled': accept_lib.Noise(of((batch, 2), jnp.uint32), of((batch, size + 1), jnp.int32)),
  }.get(rule, accept_lib.Uniforms(
      of((batch, size), jnp.float32), of((batch, size + 1), jnp.float32)
  ))
  with_draft = rule in ('rejection', 'block')
  return (
      of((batch * (size + 1), vocab_size), jnp.dtype(dtype)),
      of((batch, size), jnp.int32),
      numbers,
      sampling_lib.make(batch_size=batch),
      of((batch * size, vocab_size), jnp.dtype(dtype)) if with_draft else None,
  )


def caller(rule: str, implementation: str):
  """The op as a jitted function of arrays alone."""
  return jax.jit(lambda target, tokens, numbers, sampling, draft: accept_lib.accept(
      target, tokens, rule=rule, numbers=numbers, sampling=sampling, draft_logits=draft,
      implementation=implementation,
  ))


def check_engine(name: str, implementation: str):
  """The engine's tokens through an implementation are those of the rule's own definition."""
  rule = getattr(verify, name)()
  target = tiny.model(0, num_layers=1)
  drafter = drafters.ngram(num_speculative_tokens=2)
  if rule.mode == 'sample':
    # Weights a little larger: laws that agree often, not always.
    draft = LanguageModel(target.module, jax.tree.map(lambda x: 1.1 * x, target.params))
    drafter = drafters.model(draft, num_speculative_tokens=2)
  outputs = [
      generation.generate(
          target, tiny.PROMPTS[:2], drafter=drafter, rule=rule, max_new_tokens=8, seeds=3,
          sampling=sampling_lib.make(batch_size=2, temperature=[1.0, 0.7], top_p=[1.0, 0.9]),
      )
      # As the engine does by default: these drafts are chains.
      for rule in (rule, dataclasses.replace(
          accept_lib.through(rule, implementation), is_chain=True
      ))
  ]
  np.testing.assert_array_equal(outputs[0].tokens, outputs[1].tokens)
  assert int(outputs[0].stats.rounds.sum()) > 2
