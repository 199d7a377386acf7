"""Reading a compiled program's text: its collectives, and the compiler's estimated cycles."""

from collections.abc import Iterator, Mapping
import dataclasses
import math
import re

_KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
_COLLECTIVE = re.compile(
    r'^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<kind>'
    + '|'.join(_KINDS)
    + r')(?P<start>-start)?\('
)
_ARRAY = re.compile(r'\b(pred|s8|u8|s16|u16|bf16|f16|s32|u32|f32|s64|u64|f64)\[([\d,]*)\]')
_SIZES = dict(pred=1, s8=1, u8=1, s16=2, u16=2, bf16=2, f16=2, s32=4, u32=4, f32=4)
_SIZES |= dict(s64=8, u64=8, f64=8)
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LAYER = re.compile(r'/layer_(\d+)/')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction.

  Attributes:
    kind: 'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all' or 'collective-permute'.
    num_bytes: of its result on one device.
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
    return scope(self.op_name)

  @property
  def layer(self) -> int | None:
    """The layer of a model that it belongs to."""
    match = _LAYER.search(self.op_name)
    return int(match[1]) if match else None


def scope(op_name: str) -> str:
  """The part of a round that an instruction belongs to, by the engine's named scopes.

  >>> scope('jit(run)/while/body/draft/while/body/Transformer/layer_0/mlp/dot_general')
  'draft'
  """
  for part in op_name.split('/'):
    if part in ('draft', 'score', 'verify', 'commit'):
      return part
  return 'other'


def _lines(text: str) -> Iterator[tuple[str, str]]:
  """(computation, instruction) of every instruction."""
  computation = ''
  for line in text.splitlines():
    if line and not line[0].isspace() and line.rstrip().endswith('{'):
      computation = line.removeprefix('ENTRY ').split()[0].lstrip('%')
    elif ' = ' in line:
      yield computation, line


def collectives(text: str) -> tuple[Collective, ...]:
  """All collectives of an optimised program (`compiled.as_text()`)."""
  result = []
  for computation, line in _lines(text):
    match = _COLLECTIVE.match(line)
    if not match:
      continue
    sizes = [
        (_SIZES[kind], math.prod(int(d) for d in dims.split(',') if d))
        for kind, dims in _ARRAY.findall(match['shape'])
    ]
    if match['start'] and len(sizes) > 1:
      sizes = sizes[len(sizes) // 2 :]  # operand and result, of an asynchronous one
    name = _OP_NAME.search(line)
    result.append(
        Collective(
            kind=match['kind'],
            num_bytes=sum(size * count for size, count in sizes),
            largest=max((count for _, count in sizes), default=0),
            computation=computation,
            op_name=name[1] if name else '',
        )
    )
  return tuple(result)


def cycles(text: str, *, loops: Mapping[str, int]) -> dict[str, float]:
  """The compiler's estimated cycles of one round, by scope.

  Args:
    text: the optimised program.
    loops: how often the body of an inner loop runs per round, by scope; 1 where not given.

  Returns:
    Cycles by scope. Kernels and collectives carry no estimate and are not counted.
  """
  result: dict[str, float] = {}
  for _, line in _lines(text):
    match = _CYCLES.search(line)
    if not match or int(match[1]) > 1e15:
      continue  # the largest integer stands for what the compiler does not know
    name = _OP_NAME.search(line)
    op_name = name[1] if name else ''
    here = scope(op_name)
    inner = op_name.count('/while/body/') > 1
    result[here] = result.get(here, 0.0) + int(match[1]) * (loops.get(here, 1) if inner else 1)
  return result
