"""The greedy rule: a drafted token stays where it is the target's argmax."""

import dataclasses

from specjax.verify import acceptance


@dataclasses.dataclass(frozen=True)
class Greedy:
  """See `greedy`; fields and call as in `specjax.verify.Rule`."""

  name: str = 'greedy'
  lossless: bool = True
  mode: str = 'greedy'
  handles_trees: bool = True

  def __call__(self, *, target_law, proposal, positions, source):
    del positions
    return acceptance.follow(acceptance.largest(target_law), proposal), source


def greedy() -> Greedy:
  """Accepts drafted tokens that are the target's argmax (Stern et al. 2018).

  The output is that of plain greedy decoding, for every drafter, chain or tree. Equal logits
  are decided for the smaller token, as in plain decoding. No probability is formed.

  Returns:
    A rule for proposals of any kind.
  """
  return Greedy()
