"""The coupled rule: drafter and target choose with the same noise and are compared."""

import dataclasses

from specjax.verify import follow
from specjax.verify import rule


@dataclasses.dataclass(frozen=True)
class Coupled(rule.RuleBase):
  """See `coupled`; fields and methods as in `specjax.verify.Rule`."""

  name: str = 'coupled'
  lossless: bool = True
  mode: str = 'coupled'
  handles_trees: bool = True

  def decide(self, rows, *, positions, source):
    """As `specjax.verify.Rule.decide`."""
    return follow.decide(rows, source=source, positions=positions), source


def coupled() -> Coupled:
  """Accepts drafted tokens that the target draws itself with the noise of their position.

  The target's token at a row is argmax(log-probability + Gumbel noise), the noise keyed by
  row key and absolute position alone (Daliri, Musco, Suresh 2024, arXiv 2408.07978,
  drafter-invariant speculative decoding). The output is therefore, token for token, that of
  plain decoding with the same key, whatever was drafted; a drafter that uses the same noise
  merely agrees more often. Works for chains and trees.

  Returns:
    A rule for proposals of any kind.
  """
  return Coupled()
