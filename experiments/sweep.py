"""A small algebra of sweeps: which fields of a config take which values, and together with what.

A sweep is a tuple of *arms*; an arm is a tuple of (field, value) pairs, fields being dotted
paths into a config. Four verbs make them (big_vision's and simply's are the models):

>>> lengths = param('drafter.num_speculative_tokens', 2, 4)
>>> rules = zipit(param('rule.name', 'greedy', 'block'), param('sampling.temperature', 0.0, 1.0))
>>> for arm in prod(rules, lengths):
...   print(label(arm))
rule=greedy T=0 K=2
rule=greedy T=0 K=4
rule=block T=1 K=2
rule=block T=1 K=4
>>> len(chain(rules, lengths))
4
"""

from collections.abc import Sequence
import itertools
from typing import Any

import ml_collections

# What fields that are often swept are called in tables.
SHORT = {
    'batch_size': 'B',
    'drafter.kind': 'drafter',
    'drafter.num_speculative_tokens': 'K',
    'drafter.tree': 'tree',
    'prompt_tokens': 'prompt',
    'rule.name': 'rule',
    'sampling.temperature': 'T',
}

Arm = tuple[tuple[str, Any], ...]
Sweep = tuple[Arm, ...]


def param(field: str, *values: Any) -> Sweep:
  """One arm for each value of a field; a single value fixes the field.

  Raises:
    ValueError: without a value.
  """
  if not values:
    raise ValueError(f'param({field!r}) needs at least one value.')
  return tuple(((field, value),) for value in values)


def fixed(**fields: Any) -> Sweep:
  """One arm that sets several fields; `__` stands for the dot of a path.

  >>> fixed(drafter__kind='ngram', seed=3)
  ((('drafter.kind', 'ngram'), ('seed', 3)),)
  """
  return (tuple((name.replace('__', '.'), value) for name, value in fields.items()),)


def prod(*sweeps: Sweep) -> Sweep:
  """Every arm of one with every arm of the others; the last one varies fastest.

  Raises:
    ValueError: if two of them set the same field.
  """
  return tuple(_merge(arms) for arms in itertools.product(*sweeps))


def zipit(*sweeps: Sweep) -> Sweep:
  """The first arms of all together, then the second ones, and so on.

  Raises:
    ValueError: for sweeps of different lengths, or that set the same field.
  """
  sizes = [len(each) for each in sweeps]
  if len(set(sizes)) > 1:
    raise ValueError(f'zipit needs sweeps of one length, got {sizes}; prod combines all with all.')
  return tuple(_merge(arms) for arms in zip(*sweeps))


def chain(*sweeps: Sweep) -> Sweep:
  """One sweep after the other; an arm that comes twice is kept once."""
  return tuple(dict.fromkeys(itertools.chain(*sweeps)))


def _merge(arms: Sequence[Arm]) -> Arm:
  merged = {}
  for field, value in itertools.chain(*arms):
    if field in merged:
      raise ValueError(f'The field {field!r} is set twice: to {merged[field]!r} and {value!r}.')
    merged[field] = value
  return tuple(merged.items())


def apply(config: ml_collections.ConfigDict, arm: Arm) -> ml_collections.ConfigDict:
  """A copy of the config with the arm's fields set.

  Raises:
    ValueError: if there is no such field, or its type is another one.
  """
  settings = ml_collections.ConfigDict(config).copy_and_resolve_references()
  settings.lock()
  for field, value in arm:
    try:
      settings.update_from_flattened_dict({field: value})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise ValueError(f'The arm sets {field}={value!r}, which the config refuses: {error}') from (
          error
      )
  return settings


def label(arm: Arm) -> str:
  """The arm in words: its fields by short names, with their values."""
  return ' '.join(f'{short(field)}={show(value)}' for field, value in arm)


def short(field: str) -> str:
  """A field's name for tables: a usual one, or the last part of its path."""
  return SHORT.get(field, field.rpartition('.')[2])


def show(value: Any) -> str:
  """A value as short as it can be said."""
  return f'{value:g}' if isinstance(value, float) else str(value)
