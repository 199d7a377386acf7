"""The greedy rule: a drafted token stays where it is the target's argmax."""

import dataclasses

from specjax.verify import follow
from specjax.verify import rule


@dataclasses.dataclass(frozen=True)
class Greedy(rule.RuleBase):
  """See `greedy`; fields and methods as in `specjax.verify.Rule`."""

  name: str = 'greedy'
  lossless: bool = True
  mode: str = 'greedy'
  handles_trees: bool = True

  def decide(self, rows, *, positions, source):
    """As `specjax.verify.Rule.decide`."""
    del positions
    return follow.decide(rows), source


def greedy() -> Greedy:
  """Accepts drafted tokens that are the target's argmax (Stern et al. 2018).

  The output is that of plain greedy decoding, for every drafter, chain or tree. Equal logits
  are decided for the smaller token, as in plain decoding. No probability is formed.

  Returns:
    A rule for proposals of any kind.
  """
  return Greedy()
