"""Which rule: by its name, or the one that suits a request that names none."""

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
