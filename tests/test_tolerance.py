"""The suite's tolerances: right computations stay well below, and one wrong operand does not."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import tiny
from tests.support import tolerance


@pytest.fixture(autouse=True)
def unrecorded(monkeypatch):
  """What is planted here is no share of the suite's."""
  monkeypatch.delenv('SPECJAX_TOLERANCES', raising=False)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('terms', [3, 64, 2048])
def test_sums_in_any_order_stay_below_half(terms, dtype):
  rng = np.random.default_rng(terms)
  values = np.asarray(jnp.asarray(rng.normal(size=terms), dtype), np.float64)
  tolerated = tolerance.of_sum(terms, size=np.abs(values).sum(), dtype=dtype)
  for seed in range(20):
    order = np.random.default_rng(seed).permutation(terms)
    # One after another, rounded each time: the order with the most roundings.
    total = np.zeros((), jnp.dtype(dtype))
    for value in values[order].astype(jnp.dtype(dtype)):
      total = (total + value).astype(jnp.dtype(dtype))
    tolerance.assert_close(float(total), values.sum(), tolerated / 2)
  if dtype == 'float32':
    with pytest.raises(AssertionError, match='tolerances'):
      tolerance.assert_close(values[1:].sum(), values.sum(), tolerated)


def test_a_softmax_stays_below_half_and_a_wrong_temperature_does_not():
  logits = np.random.default_rng(0).normal(size=(50, 300)) * 8
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  tolerated = tolerance.of_probs(300, logits=logits, probs=probs)
  found = jax.nn.softmax(jnp.asarray(logits, jnp.float32))
  tolerance.assert_close(found, probs, tolerated / 2)
  with pytest.raises(AssertionError, match='tolerances'):
    tolerance.assert_close(jax.nn.softmax(1.0001 * jnp.asarray(logits)), probs, tolerated)


def test_logits_by_another_program_stay_below_half_and_a_lost_bit_of_a_weight_does_not():
  model = tiny.target()
  tokens = jnp.arange(24).reshape(2, 12)
  whole = model(tokens).logits
  one = jnp.stack([model(row[None]).logits[0] for row in tokens])
  tolerated = tolerance.of_logits(
      model.module.config, size=tolerance.largest(whole), positions=12
  )
  tolerance.assert_close(one, whole, tolerated / 2)
  rounded = model.replace(
      params=jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), model.params)
  )
  with pytest.raises(AssertionError, match='tolerances'):
    tolerance.assert_close(rounded(tokens).logits, whole, tolerated)


def test_no_law_is_allowed_more_than_is_claimed():
  law = {(0, 1): 0.75, (0, 2): 0.25}
  assert tolerance.of_law(law) <= tolerance.of_expectation(100) == tolerance.CLAIM
  tolerance.assert_law(law, law)
  with pytest.raises(AssertionError, match='tolerances'):
    tolerance.assert_law({**law, (1, 1): 2e-6}, law)


def test_numbers_that_are_none_are_never_close():
  tolerance.assert_close([-np.inf, 1.0], [-np.inf, 1.0], 1e-7)
  for wrong in (np.nan, np.inf):
    with pytest.raises(AssertionError):
      tolerance.assert_close(wrong, 1.0, 1e30)
  assert dict(a=1.0, b=[2.0]) == tolerance.approx(dict(a=1.0 + 1e-16, b=[2.0]))
  assert dict(a=1.0) != tolerance.approx(dict(b=1.0))
  assert 1.0 + 1e-13 != tolerance.approx(1.0)
  assert np.ones(3) == tolerance.approx(np.ones(3))
  with pytest.raises(AssertionError):
    tolerance.assert_at_least(0.9, 1.0, 1e-6)
  tolerance.assert_at_least(1.1, 1.0, 1e-6)


def test_shares_are_recorded(tmp_path, monkeypatch):
  monkeypatch.setenv('SPECJAX_TOLERANCES', str(tmp_path / 'shares.jsonl'))
  tolerance.assert_close([1.0, 2.0], [1.0, 2.5], 1.0)
  (row,) = map(json.loads, (tmp_path / 'shares.jsonl').read_text().splitlines())
  assert row['share'] == 0.5 and 'test_shares_are_recorded' in row['test']
