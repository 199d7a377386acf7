"""A compiled TPU program as data: its computations, in the order in which they are scheduled.

Read from the text of an optimised program (`compiled.as_text()`), whose grammar is that of XLA's
HLO (openxla.org/xla/hlo_to_hlo_dump) with a TPU's layouts: `{1,0:T(8,128)(2,1)S(1)}` says which
dimensions are minor, the tiles that they are padded to, and the memory that the array lies in.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import math
import re

_BYTES = dict(pred=1, s8=1, u8=1, s16=2, u16=2, bf16=2, f16=2, s32=4, u32=4, f32=4, s64=8, u64=8)
_BYTES |= dict(f64=8, c64=8, f8e4m3fn=1, f8e5m2=1)
_BITS = dict(s4=4, u4=4, s2=2, u2=2)
_ARRAY = re.compile(r'\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?')
_TILE = re.compile(r'T\(([\d,]+)\)')
_SPACE = re.compile(r'S\((\d+)\)')
_HEAD = re.compile(r'^\s*(ROOT )?%?([\w.\-]+) = ')
_OPERAND = re.compile(r'%([\w.\-]+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_KERNEL_BYTES = re.compile(r'"cost_estimate":\{[^}]*"bytes_accessed":"(\d+)"')
# Instructions between devices; of asynchronous ones, their names without `-start` and `-done`.
COLLECTIVES = (
    'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute',
    'collective-broadcast',
)
_UNKNOWN_CYCLES = 1e15  # the largest integer stands for what the compiler does not know


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a program.

  Attributes:
    dtype: as HLO names it: 'bf16'.
    dims: its sizes.
    minor_to_major: dimensions, the innermost first.
    tile: sizes of the outer tile, over the innermost dimensions; () where there is none.
    space: 0 for HBM; 1 for VMEM, and others for smaller memories of a core.
  """

  dtype: str
  dims: tuple[int, ...]
  minor_to_major: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()
  space: int = 0

  @property
  def num_elements(self) -> int:
    return math.prod(self.dims)

  @property
  def num_bytes(self) -> int:
    """Bytes that it takes in memory, padding included.

    >>> Array('bf16', (8, 5), (1, 0), (8, 128)).num_bytes
    2048
    """
    sizes = [self.dims[i] for i in self.minor_to_major] or list(self.dims)
    for index, tile in enumerate(reversed(self.tile)):
      if index < len(sizes):
        sizes[index] = -(-sizes[index] // tile) * tile
    return math.prod(sizes) * self.item_bits // 8

  @property
  def item_bits(self) -> int:
    """Bits of an element; 0 for a token, which has none."""
    return _BITS.get(self.dtype) or 8 * _BYTES.get(self.dtype, 0)


def arrays(shape: str) -> tuple[Array, ...]:
  """The arrays of a shape as HLO writes it, those of tuples one after the other.

  >>> [array.num_bytes for array in arrays('(f32[8]{0:T(128)}, bf16[16,128]{1,0:T(8,128)S(1)})')]
  [512, 4096]
  """
  return tuple(map(_array, _ARRAY.finditer(shape)))


def _array(match: re.Match) -> Array:
  numbers = lambda text: tuple(int(each) for each in (text or '').split(',') if each)
  layout = match[4] or ''
  tile, space = _TILE.search(layout), _SPACE.search(layout)
  return Array(
      dtype=match[1],
      dims=numbers(match[2]),
      minor_to_major=numbers(match[3]),
      tile=numbers(tile[1]) if tile else (),
      space=int(space[1]) if space else 0,
  )


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction.

  Attributes:
    name: of the instruction, and of its result.
    opcode: 'fusion', 'all-reduce', 'copy-start', …
    shape: of its result, as text.
    operands: names of the instructions that it takes, in order.
    attributes: the rest of the line.
    is_root: whether it is its computation's result.
  """

  name: str
  opcode: str
  shape: str
  operands: tuple[str, ...]
  attributes: str = dataclasses.field(repr=False)
  is_root: bool = False

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    return arrays(self.shape)

  @functools.cached_property
  def op_name(self) -> str:
    """Where it comes from in the source, scopes and modules; '' for what the compiler adds."""
    match = _OP_NAME.search(self.attributes)
    return match[1] if match else ''

  @functools.cached_property
  def cycles(self) -> int | None:
    """The compiler's estimate; None where it has none."""
    match = _CYCLES.search(self.attributes)
    return int(match[1]) if match and int(match[1]) < _UNKNOWN_CYCLES else None

  @functools.cached_property
  def received(self) -> tuple[Array, ...]:
    """Of a collective: what it leaves on a device.

    The start of an asynchronous one has its operands, what is received, and scalars of its own.
    """
    if not self.opcode.endswith('-start') or len(self.arrays) < 2:
      return self.arrays
    ends = [array for array in self.arrays if array.dims] or list(self.arrays)
    return tuple(ends[len(ends) // 2 :])

  def called(self, what: str) -> str:
    """The computation called as 'calls', 'body', 'condition' or 'to_apply'; '' for none."""
    match = re.search(rf'\b{what}=%?([\w.\-]+)', self.attributes)
    return match[1] if match else ''

  @functools.cached_property
  def branches(self) -> tuple[str, ...]:
    """Computations of a conditional; the first is that of false, or of index 0."""
    match = _BRANCHES.search(self.attributes)
    if match:
      return tuple(_OPERAND.findall(match[1]))
    pair = self.called('false_computation'), self.called('true_computation')
    return pair if all(pair) else ()


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions in the order in which they run.

  Attributes:
    name: of the computation.
    instructions: all of them.
  """

  name: str
  instructions: tuple[Instruction, ...]

  @functools.cached_property
  def by_name(self) -> Mapping[str, Instruction]:
    return {each.name: each for each in self.instructions}

  @functools.cached_property
  def users(self) -> Mapping[str, tuple[Instruction, ...]]:
    """Instructions that take each instruction."""
    found: dict[str, list[Instruction]] = {}
    for each in self.instructions:
      for operand in dict.fromkeys(each.operands):
        found.setdefault(operand, []).append(each)
    return {name: tuple(users) for name, users in found.items()}

  @functools.cached_property
  def root(self) -> Instruction:
    return next((each for each in self.instructions if each.is_root), self.instructions[-1])

  @functools.cached_property
  def parameters(self) -> Mapping[int, Instruction]:
    """Parameters by their number."""
    return {
        int(each.operands[0]): each for each in self.instructions if each.opcode == 'parameter'
    }


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    computations: by name.
    entry: name of the one that is run.
  """

  computations: Mapping[str, Computation] = dataclasses.field(repr=False)
  entry: str

  def __iter__(self) -> Iterator[tuple[Computation, Instruction]]:
    for computation in self.computations.values():
      for instruction in computation.instructions:
        yield computation, instruction


def parse(text: str) -> Program:
  """Reads the text of an optimised program.

  Raises:
    ValueError: if it holds no computation.
  """
  computations: dict[str, Computation] = {}
  entry, name, lines = '', '', []
  for line in text.splitlines():
    if line and not line[0].isspace() and line.rstrip().endswith('{') and ' = ' not in line:
      name = line.removeprefix('ENTRY ').split()[0].lstrip('%')
      if line.startswith('ENTRY '):
        entry = name
      lines = []
    elif line.startswith('}') and name:
      computations[name] = Computation(name, tuple(lines))
      name = ''
    elif name:
      instruction = _instruction(line)
      if instruction is not None:
        lines.append(instruction)
  if name and lines:
    computations[name] = Computation(name, tuple(lines))
  if not computations:
    raise ValueError('This is no text of a compiled program: it has no computation.')
  return Program(computations, entry or next(reversed(computations)))


def _instruction(line: str) -> Instruction | None:
  head = _HEAD.match(line)
  if not head:
    return None
  start = head.end()
  end = _closing(line, start) if line[start] == '(' else line.index(' ', start)
  shape = line[start:end]
  bracket = line.index('(', end)
  opcode = line[end:bracket].strip()
  close = _closing(line, bracket)
  inside = line[bracket + 1 : close - 1]
  numbered = opcode in ('parameter', 'constant')
  operands = (inside,) if numbered else tuple(_OPERAND.findall(inside))
  return Instruction(
      name=head[2],
      opcode=opcode,
      shape=shape,
      operands=operands,
      attributes=line[close:],
      is_root=bool(head[1]),
  )


_BRACKETS = re.compile(r'[()]')


def _closing(line: str, start: int) -> int:
  """The index after the bracket that closes the one at `start`."""
  depth = 0
  for match in _BRACKETS.finditer(line, start):
    depth += 1 if match[0] == '(' else -1
    if depth == 0:
      return match.end()
  return len(line)


def moved_bytes(program: Program, computation: Computation, each: Instruction) -> int:
  """Bytes that an instruction reads from and writes to HBM.

  A fusion that slices or gathers reads what it takes, not the whole operand; one that updates a
  part of an array in place writes that part. A kernel moves what it says itself
  (`pallas_call`'s `cost_estimate`), where it does.
  """
  estimate = _KERNEL_BYTES.search(each.attributes) if each.opcode == 'custom-call' else None
  if estimate and int(estimate[1]):
    return int(estimate[1])
  operands = [computation.by_name.get(name) for name in each.operands]
  if each.opcode == 'fusion':
    inner = program.computations[each.called('calls')]
    read = sum(
        _read(program, inner, inner.parameters[index].name, operand)
        for index, operand in enumerate(operands)
        if operand is not None and index in inner.parameters
    )
    return read + _written(program, inner, each)
  read = sum(
      _taken(each, index, operand)
      for index, operand in enumerate(operands)
      if operand is not None
  )
  if each.opcode == 'dynamic-update-slice':
    update = operands[1]
    return read + sum(array.num_bytes for array in update.arrays) * bool(in_hbm([each]))
  return read + in_hbm([each])


def in_hbm(instructions: Sequence[Instruction | None]) -> int:
  """Bytes of the results that lie in HBM."""
  return sum(
      array.num_bytes
      for each in instructions
      if each is not None
      for array in each.arrays
      if array.space == 0
  )


_PASSED_ON = ('bitcast', 'get-tuple-element', 'tuple')
_PARTS = ('dynamic-slice', 'slice', 'gather')


def _taken(user: Instruction, index: int, operand: Instruction) -> int:
  """Bytes that `user`, an instruction by itself, reads of its operand `index`."""
  if not in_hbm([operand]):
    return 0
  if index == 0 and user.opcode in _PARTS:
    return min(in_hbm([operand]), sum(array.num_bytes for array in user.arrays))
  if index == 0 and user.opcode in ('dynamic-update-slice', 'scatter'):
    return 0  # in place
  return in_hbm([operand])


def _read(program: Program, inner: Computation, name: str, operand: Instruction) -> int:
  """Bytes that a fused computation reads of the operand that it knows as `name`."""
  whole = in_hbm([operand])
  if not whole:
    return 0
  if inner.root.name == name:
    return whole  # passed on as it is, to what reads it
  read = 0
  for user in inner.users.get(name, ()):
    for index in (i for i, each in enumerate(user.operands) if each == name):
      if user.opcode in _PASSED_ON:
        read += _read(program, inner, user.name, operand)
      elif user.opcode == 'fusion':
        deeper = program.computations[user.called('calls')]
        read += _read(program, deeper, deeper.parameters[index].name, operand)
      else:
        read += _taken(user, index, operand)
  return min(read, whole)


def _written(program: Program, inner: Computation, each: Instruction) -> int:
  """Bytes that a fusion writes to HBM."""
  results = _results(inner)
  if len(results) != len(each.arrays):
    return in_hbm([each])
  return sum(
      min(array.num_bytes, _update_bytes(program, inner, result))
      for array, result in zip(each.arrays, results)
      if array.space == 0
  )


def _results(inner: Computation) -> list[Instruction]:
  root = inner.root
  if root.opcode != 'tuple':
    return [root]
  return [inner.by_name[name] for name in root.operands]


def _update_bytes(program: Program, inner: Computation, result: Instruction) -> int:
  """Bytes of a fused result that are written: an update's, where it updates in place."""
  while result.opcode == 'bitcast' and result.operands[0] in inner.by_name:
    result = inner.by_name[result.operands[0]]
  if result.opcode == 'fusion':
    deeper = program.computations[result.called('calls')]
    results = _results(deeper)
    return sum(_update_bytes(program, deeper, each) for each in results)
  if result.opcode == 'dynamic-update-slice':
    update = inner.by_name[result.operands[1]]
    return sum(array.num_bytes for array in update.arrays)
  if result.opcode == 'scatter':
    update = inner.by_name[result.operands[-1]]
    return 2 * sum(array.num_bytes for array in update.arrays)
  return sum(array.num_bytes for array in result.arrays)
