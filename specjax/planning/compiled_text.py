"""What a compiled program sends between devices."""

import dataclasses
import re

from specjax.planning import program as program_lib
from specjax.planning import times

_LAYER = re.compile(r'/layer_(\d+)/')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction.

  Attributes:
    kind: one of `program.COLLECTIVES`.
    num_bytes: of its result on one device, without padding.
    largest: elements of the largest array in its result.
    computation: the computation that it stands in: a loop's body, for instance.
    op_name: where it comes from in the source: scopes and modules.
  """

  kind: str
  num_bytes: int
  largest: int
  computation: str
  op_name: str

  @property
  def scope(self) -> str:
    """'draft', 'score', 'verify', 'commit', or 'other'."""
    return times.scope_of(self.op_name) or 'other'

  @property
  def layer(self) -> int | None:
    """The layer of a model that it belongs to."""
    match = _LAYER.search(self.op_name)
    return int(match[1]) if match else None


def collectives(program: program_lib.Program | str) -> tuple[Collective, ...]:
  """All collectives of an optimised program, or of its text (`compiled.as_text()`)."""
  if isinstance(program, str):
    program = program_lib.parse(program)
  result = []
  for computation, each in program:
    kind = each.opcode.removesuffix('-start')
    if kind not in program_lib.COLLECTIVES:
      continue
    result.append(
        Collective(
            kind=kind,
            num_bytes=sum(array.num_elements * array.item_bits // 8 for array in each.received),
            largest=max((array.num_elements for array in each.received), default=0),
            computation=computation.name,
            op_name=each.op_name,
        )
    )
  return tuple(result)
