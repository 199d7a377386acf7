"""Tolerances from the arithmetic: how far two right computations of one number may lie apart.

The error model is that of Higham and Mary, "A new approach to probabilistic rounding error
analysis" (SIAM J. Sci. Comput. 41, 2019). An operation returns its exact result times 1 + d with
|d| <= u, the unit roundoff of its dtype (2**-24 for float32). n operations in a chain are off by
n * u at worst; as they round up as often as down, they are off by more than A * sqrt(n) * u only
with probability 2 * exp(-A**2 / 2). A sum of n terms is off by A * sqrt(n) * u * sum(|x|), in
whatever order it is added (Higham, "Accuracy and Stability of Numerical Algorithms", section
4.2, with sqrt(n) for n). Where both sides are rounded there are twice as many operations.

A is 4: 7e-4 by that bound, which holds for any roundings within [-u, u]; of roundings that are
spread evenly there, it is seven standard deviations. So a processor with other instructions, or a
compiler that adds in another order, stays well below, and a wrong operand does not.

A test says which arithmetic it does (`of_sum`, `of_logits`, ...), never a number.

With the environment variable SPECJAX_TOLERANCES naming a file, every comparison appends a line of
JSON to it: the test, and the largest error as a share of its tolerance.
"""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np

A = 4.0
# What the project claims of every law (CONTRIBUTING): no tolerance of a law is above it.
CLAIM = 1e-6


def unit(dtype='float32') -> float:
  """Unit roundoff: half of the distance from 1 to the next number."""
  return float(jnp.finfo(jnp.dtype(dtype)).eps) / 2


def chained(roundings, *, size=1.0, dtype='float32'):
  """Of a value of `size` (a number, or an array of them) after so many roundings on either side."""
  return A * np.sqrt(2 * roundings) * unit(dtype) * np.abs(np.asarray(size, np.float64))


def of_sum(terms, *, size, dtype='float32'):
  """Of a sum of so many terms, or a dot product; `size` is the sum of the terms' sizes."""
  return chained(terms + 1, size=size, dtype=dtype)


def of_probs(vocab_size, *, logits, probs=1.0, dtype='float32'):
  """Of probabilities `probs` by a softmax over a vocabulary.

  An exponential turns what its argument is off by into as large a share of its result: a bias, a
  temperature and the largest logit subtracted are three roundings of the logits' size. The sum,
  the exponential (two units in the last place) and the quotient add to it.
  """
  size = np.max(np.abs(logits), initial=1.0, where=np.isfinite(logits))
  return chained(3 * size**2 + vocab_size + 5, size=probs, dtype=dtype)


def of_log_softmax(vocab_size, *, logits, dtype='float32'):
  """Of log-probabilities from the same logits: the share that probabilities may be off by."""
  return of_probs(vocab_size, logits=logits, dtype=dtype)


def of_rule(vocab_size, *, size=1.0):
  """Of probabilities that a rule makes from two laws by hand: of `size`, over a short vocabulary.

  A logarithm and its exponential, a ratio, a difference, the sum over the vocabulary, the
  quotient by it.
  """
  return chained(vocab_size + 5, size=size)


def of_exp(argument, *, roundings, dtype='float32'):
  """Of exp(argument), whose argument came out of so many roundings of its size."""
  return chained(roundings * argument**2 + 3, size=np.exp(argument), dtype=dtype)


def of_expectation(tokens, *, size=1.0) -> float:
  """Of a sum of `size` over all that may be emitted, each weighted with its probability.

  Per token some 16 roundings come in: scaling, softmax and selection of the target's and of the
  draft's logits, the ratio, what is left of the target's law and its norm. All terms are
  positive, so no sum of them is off by a larger share than its factors.
  """
  return min(CLAIM, float(chained(16 * tokens, size=size)))


def of_law(law) -> float:
  """Of the probabilities of an output's law {tokens: probability}."""
  return of_expectation(max(map(len, law)), size=max(law.values()))


def of_logits(config, *, size, positions=64, per_term=1, dtype='float32'):
  """Of logits of `size` (their largest) by two programs that add in other orders.

  The terms of a dot product have either sign, so that its partial sums are no larger than its
  result: it is off by the root of its length, in units of u of that. The residual stream is
  normed, so what a layer's products are off by reaches the logits in proportion, and adds up like
  other roundings do: the lengths are summed under the root.

  Args:
    config: a `TransformerConfig`.
    size: the largest logit's size.
    positions: over how many the attention sums.
    per_term: roundings of each term of a sum; more than one where the programs also make the
      terms in different ways.
    dtype: of the pass.
  """
  heads = config.num_heads * config.head_dim
  layer = 2 * config.width + config.head_dim + positions + heads + config.mlp_width
  length = per_term * (config.num_layers * layer + config.width)
  return chained(length, size=size, dtype=dtype)


def of_logprobs(config, *, size, temperature=1.0, positions=64, dtype='float32'):
  """Of log-probabilities by two programs; `size` is the largest logit's.

  A log-probability is a logit less the logarithm of the sum, each off by as much as a logit; a
  temperature divides both.
  """
  return 2 * of_logits(config, size=size, positions=positions, dtype=dtype) / temperature


def of_loss(config, *, size, terms, positions=64, dtype='float32'):
  """Of a mean over so many positions of log-probabilities by two programs.

  What one is off by is another's by another sign: the mean is off by less, by the root of their
  number.
  """
  return of_logprobs(config, size=size, positions=positions, dtype=dtype) / np.sqrt(terms)


def largest(tree) -> float:
  """The largest finite size in a tree of arrays."""
  sizes = [np.abs(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
  return max(float(np.max(x, initial=0.0, where=np.isfinite(x))) for x in sizes)


def _share(actual, desired, tolerance) -> float:
  """The largest error in tolerances; equal values, infinities too, are no error."""
  actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
  if actual.shape != desired.shape:
    actual, desired = np.broadcast_arrays(actual, desired)
  with np.errstate(invalid='ignore', divide='ignore'):
    shares = np.where(actual == desired, 0.0, np.abs(actual - desired) / tolerance)
  shares = np.where(np.isnan(shares), np.inf, shares)
  share = float(shares.max(initial=0.0))
  if name := os.environ.get('SPECJAX_TOLERANCES'):
    row = dict(test=os.environ.get('PYTEST_CURRENT_TEST', ''), share=share)
    with open(name, 'a') as file:
      file.write(json.dumps(row) + '\n')
  return share


def assert_close(actual, desired, tolerance, message='') -> None:
  """Fails unless |actual - desired| <= tolerance everywhere; each a number, a list or an array."""
  share = _share(actual, desired, tolerance)
  if share > 1:
    raise AssertionError(
        f'{message}: an error of {share:.3g} tolerances of at most {np.max(tolerance):.3g}.\n'
        f'Actual:\n{actual}\nDesired:\n{desired}'
    )


def assert_trees_close(actual, desired, tolerance_of, message='') -> None:
  """`assert_close` for every leaf of two trees, with the tolerance `tolerance_of(desired leaf)`."""
  leaves, shape = jax.tree.flatten(desired)
  others, other_shape = jax.tree.flatten(actual)
  assert shape == other_shape, (shape, other_shape)
  for one, other in zip(others, leaves):
    assert_close(one, other, tolerance_of(other), message)


def assert_at_least(actual, least, tolerance, message='') -> None:
  """Fails where `actual` is below `least` by more than the tolerance."""
  assert_close(np.minimum(actual, least), least, tolerance, message)


def assert_law(law, expected, message='') -> None:
  """Fails unless two laws {tokens: probability} are equal."""
  outputs = sorted({*law, *expected})
  probs = [[each.get(output, 0.0) for output in outputs] for each in (law, expected)]
  assert_close(*map(np.asarray, probs), of_law(expected), message)


class Approx:
  """What `approx` returns; compares with `==`."""

  __array_ufunc__ = None  # so that an array leaves the comparison to this class

  def __init__(self, expected, relative: float):
    self.expected, self.relative = expected, relative

  def __eq__(self, actual) -> bool:
    if isinstance(actual, Approx):
      actual = actual.expected
    leaves, shape = jax.tree.flatten(self.expected)
    others, other_shape = jax.tree.flatten(actual)
    if shape != other_shape:
      return False
    return all(
        np.shape(a) == np.shape(e) and _share(a, e, self.relative * np.abs(e)) <= 1
        for a, e in zip(others, leaves)
    )

  def __repr__(self):
    return f'{self.expected} ± {self.relative:.2g} of it'


def approx(expected, *, roundings=64, dtype='float64') -> Approx:
  """Equals numbers (also in lists and dicts) that a formula of so many operations gives."""
  return Approx(expected, float(chained(roundings, dtype=dtype)))
