"""The exact law of what the engine emits, for every sampling control, and the target's own."""

import functools

import numpy as np

from specjax import sampling as sampling_lib
from specjax import testing
from specjax.sampling import constraints
from tests.support import tolerance

VOCAB = 3
TARGET = testing.table_model(seed=1)
DRAFT = testing.table_model(seed=9)
# The prompt repeats itself, so that prompt lookup finds something from the start.
PROMPT = (0, 1, 0)
# What a planted fault moves some probability by, and rounding never.
SEEN = 1e-3

# One row of a batch each: one compiled program serves them all.
SETTINGS = {
    'temperature 1': dict(),
    'temperature 0.5': dict(temperature=0.5),
    'temperature 0': dict(temperature=0.0),
    'top-k': dict(top_k=2),
    'top-p': dict(top_p=0.7),
    'min-p': dict(min_p=0.3),
    'penalties': dict(repetition_penalty=1.6, presence_penalty=0.4, frequency_penalty=0.5),
    'bias': dict(logit_bias=(0.8, -0.9, 0.1)),
    'all': dict(
        temperature=0.8, top_p=0.9, min_p=0.05, frequency_penalty=-0.6,
        logit_bias=(0.0, 0.5, -0.5),
    ),
}
FREE = constraints.TokenAutomaton.create([[0, 0, 0], [0, 0, 0]])
# After a 1 must come a 2.
STRICT = constraints.TokenAutomaton.create([[0, 1, 0], [-1, -1, 0]])


def settings(constraint=FREE, repeats=1):
  """All settings, `repeats` rows each, with a constraint."""
  defaults = {
      'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'min_p': 0.0, 'repetition_penalty': 1.0,
      'presence_penalty': 0.0, 'frequency_penalty': 0.0, 'logit_bias': (0.0,) * VOCAB,
  }
  columns = {
      name: np.repeat([row.get(name, value) for row in SETTINGS.values()], repeats, axis=0)
      for name, value in defaults.items()
  }
  return sampling_lib.make(
      batch_size=repeats * len(SETTINGS), constraint=constraint, **columns
  )


def output_laws(rule, drafter, *, constraint=FREE, max_new_tokens=3, **options):
  return testing.output_law(
      TARGET,
      [PROMPT] * len(SETTINGS),
      rule=rule,
      drafter=drafter,
      sampling=settings(constraint),
      max_new_tokens=max_new_tokens,
      **options,
  )


@functools.cache
def plain_laws(*, constrained=False, max_new_tokens=3, stop_tokens=()):
  return testing.plain_law(
      TARGET,
      [PROMPT] * len(SETTINGS),
      sampling=settings(STRICT if constrained else FREE),
      max_new_tokens=max_new_tokens,
      stop_tokens=stop_tokens,
  )


def assert_equal(laws, expected):
  """Fails unless the law of every setting is the one expected."""
  for name, law, right in zip(SETTINGS, laws, expected):
    tolerance.assert_law(law, right, name)


def errors(laws, expected):
  """The largest error of every setting."""
  return {
      name: testing.max_difference(law, right)
      for name, law, right in zip(SETTINGS, laws, expected)
  }
