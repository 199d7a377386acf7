"""The coupled rule: drafter and target choose with the same noise and are compared."""

import dataclasses

from specjax.verify import acceptance


@dataclasses.dataclass(frozen=True)
class Coupled:
  """See `coupled`; fields and call as in `specjax.verify.Rule`."""

  name: str = 'coupled'
  lossless: bool = True
  mode: str = 'coupled'
  handles_trees: bool = True

  def __call__(self, *, target_law, proposal, positions, source):
    noise = source.gumbel(positions, target_law.shape[-1])
    return acceptance.follow(acceptance.largest(target_law + noise), proposal), source


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
