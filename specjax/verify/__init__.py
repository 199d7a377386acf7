"""Verification rules: which drafted tokens stay, and which token follows them.

| rule           | output                         | draft laws                       | trees |
|----------------|--------------------------------|----------------------------------|-------|
| `greedy`       | plain greedy decoding's        | any                              | yes   |
| `rejection`    | distributed as the target's    | sampled, one-hot                 | no    |
| `block`        | distributed as the target's    | sampled, one-hot                 | no    |
| `recursive`    | distributed as the target's    | sampled (± replacement), one-hot | yes   |
| `k_sequential` | distributed as the target's    | sampled with replacement         | yes   |
| `traversal`    | distributed as the target's    | sampled (± replacement), one-hot | yes   |
| `coupled`      | plain sampling's with that key | any                              | yes   |
| `typical`      | LOSSY, another law             | any                              | no    |

`named` finds a rule by its name; `default` is the one for a request that names none.
"""

from typing import Any

import numpy as np

from specjax.verify.block import block
from specjax.verify.coupled import coupled
from specjax.verify.greedy import greedy
from specjax.verify.k_sequential import k_sequential
from specjax.verify.recursive import recursive
from specjax.verify.rejection import rejection
from specjax.verify.rule import Rule
from specjax.verify.traversal import traversal
from specjax.verify.typical import typical

__all__ = [
    'NAMES',
    'Rule',
    'block',
    'coupled',
    'default',
    'greedy',
    'k_sequential',
    'named',
    'recursive',
    'rejection',
    'traversal',
    'typical',
]

_RULES = {
    rule.__name__: rule
    for rule in (
        greedy, rejection, block, recursive, k_sequential, traversal, coupled, typical
    )
}
NAMES = tuple(_RULES)


def named(name: str) -> Rule:
  """The rule of a name, with its default settings.

  >>> named('block').name
  'block'

  Args:
    name: one of `NAMES`.

  Raises:
    ValueError: if there is no rule of this name.
  """
  if name not in _RULES:
    raise ValueError(f'rule must be one of {", ".join(map(repr, NAMES))}; got {name!r}.')
  return _RULES[name]()


def default(*, temperature: Any, is_chain: bool) -> Rule:
  """The rule for a request that names none.

  Greedy where nothing is sampled. Otherwise the block rule, which never accepts less than the
  rejection rule; for trees the recursive rule, which takes every kind of siblings and decides
  through `specjax.kernels.accept` where that is faster.

  >>> [default(temperature=t, is_chain=c).name for t, c in ((0, True), (1, True), (1, False))]
  ['greedy', 'block', 'recursive']

  Args:
    temperature: one number, or one for each row; concrete, for the choice is static.
    is_chain: whether the drafter proposes chains only.
  """
  if not np.asarray(temperature).any():
    return greedy()
  return block() if is_chain else recursive()
