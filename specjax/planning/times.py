"""How long a compiled TPU program takes: a walk through its schedule, an instruction at a time.

Every instruction takes a launch, and then the longer of two times: the compiler's estimate of its
cycles, and its bytes in HBM at the memory's bandwidth. What the compiler fetches ahead into VMEM
(`copy-start` … `copy-done`) moves beside other instructions with the bandwidth that they leave; an
instruction that waits for it waits as long as it must. So a sum of times is never below its bytes.
Collectives cost a latency for every hop, there and back for an all-reduce, and their bytes over the
links; those with a start and a done run beside other instructions.

The estimate of a product counts both cores of a chip that has two, where the program splits it over
them (`megacore_split_dim`, v5p): a product of 512 x 8192 x 7168, bound by arithmetic, is estimated
at 94 % of the chip's peak, which one core cannot reach.

A conditional takes its first branch, that of false: the engine's conditionals ask whether any row
needs what most do without. Those that ask for what some row mostly needs say so by their scope
(`specjax.verify.siblings.OFTEN`), and take the other. A loop runs as often as its condition says.
"""

from collections.abc import Mapping
import dataclasses
import math
import re

from specjax.planning import chips
from specjax.planning import program as program_lib
from specjax.planning import schedules
from specjax.verify import siblings

_FREE = frozenset({
    'parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'after-all', 'partition-id',
    'replica-id', 'opt-barrier', 'add-dependency',
})
SCOPES = ('draft', 'score', 'verify', 'commit')
# The compiler adds this much to every estimate for whatever comes with an instruction; small ones
# take less. The profile of a decode step that jax-llm-examples publishes (llama3/images, v5e:4x4)
# shows nine small instructions in 4.8 microseconds, and 2.6 microseconds for an update in place
# of a cache in HBM, which has no estimate: it reads tiles, changes them and writes them.
_FIXED_CYCLES = 2_000
LAUNCH_SECONDS = 0.4e-6
UPDATE_SECONDS = 2.6e-6
_FEW_TRIPS = 16
# The least and the largest error of predicted over measured steps, of the ten published cases whose
# cache is short enough not to matter (benchmarks.published_steps, context 2,048).
ERRORS = (-0.17, 0.14)


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one instruction costs in a round.

  Attributes:
    name: of the instruction.
    opcode: of it.
    scope: 'draft', 'score', 'verify' or 'commit'; 'other' in a program without them.
    op_name: where it comes from in the source.
    seconds: that the program stands still for it, over all its trips.
    trips: how often it runs.
    num_bytes: in HBM, that it reads and writes in one trip.
    bound: what took longest: 'launch', 'cycles', 'memory', 'link', or 'wait' for a transfer.
  """

  name: str
  opcode: str
  scope: str
  op_name: str
  seconds: float
  trips: float
  num_bytes: int
  bound: str


@dataclasses.dataclass(frozen=True)
class Times:
  """A walk through a program.

  Attributes:
    costs: of every instruction that takes time, in order.
    num_bytes: moved between HBM and a chip's cores in all.
    bandwidth: of the HBM, bytes per second.
  """

  costs: tuple[Cost, ...] = dataclasses.field(repr=False)
  num_bytes: float
  bandwidth: float

  @property
  def seconds(self) -> float:
    return math.fsum(each.seconds for each in self.costs)

  @property
  def least_seconds(self) -> float:
    """What its bytes alone take."""
    return self.num_bytes / self.bandwidth

  def of(self, *scopes: str) -> float:
    """Seconds of some scopes."""
    return math.fsum(each.seconds for each in self.costs if each.scope in scopes)

  def largest(self, count: int, *scopes: str) -> list[Cost]:
    """The instructions that take longest, alike ones of different layers together."""
    found: dict[tuple[str, str], Cost] = {}
    for each in self.costs:
      if scopes and each.scope not in scopes:
        continue
      key = each.scope, _without_numbers(each)
      before = found.get(key)
      if before is not None:
        each = dataclasses.replace(
            before, seconds=before.seconds + each.seconds, trips=before.trips + each.trips
        )
      found[key] = each
    return sorted(found.values(), key=lambda each: -each.seconds)[:count]


def _without_numbers(each: Cost) -> str:
  source = re.sub(r'layer_\d+', 'layer', each.op_name) or re.sub(r'[.\d]+$', '', each.name)
  return f'{each.opcode} {source}'


def walk(
    program: program_lib.Program,
    where: chips.Slice,
    *,
    kernels: Mapping[str, int] | None = None,
) -> Times:
  """The times of a round's instructions (`round_of`).

  Args:
    program: the program.
    where: what it is compiled for.
    kernels: cycles of Pallas kernels by instruction, which the compiler does not estimate: bundles
      of their schedules (`schedules.of_program`). Without, a kernel is its bytes and a launch.

  Returns:
    The `Times` of one round. A loop whose condition does not say how often it runs runs once.

  Raises:
    ValueError: for a slice of chips whose compiler estimates no cycles.
  """
  if not where.chip.is_tpu:
    raise ValueError(f'{where.name} is no slice of TPUs: their programs alone have estimates.')
  walker = _Walker(program, where, kernels or {})
  walker.run(program.computations[round_of(program)], trips=1.0, scope='')
  return Times(tuple(walker.costs), walker.num_bytes, where.chip.hbm_bandwidth)


def round_of(program: program_lib.Program) -> str:
  """The body of the entry's last loop, which is a round; the entry where it has none."""
  loops = [
      each for each in program.computations[program.entry].instructions if each.opcode == 'while'
  ]
  return loops[-1].called('body') if loops else program.entry


class _Walker:
  """A core's clock, and what is under way beside it."""

  def __init__(self, program, where: chips.Slice, kernels):
    self._program, self._where, self._kernels = program, where, kernels
    self.costs: list[Cost] = []
    self.num_bytes = 0.0
    # Transfers between HBM and VMEM under way, in the order in which they were begun, in bytes.
    self._transfers: dict[str, float] = {}
    self._links: dict[str, float] = {}  # asynchronous collectives, and when they are over
    self._links_free = 0.0
    self._now = 0.0

  def run(self, computation, *, trips: float, scope: str) -> None:
    scopes = scopes_of(computation, scope)
    for each in computation.instructions:
      self._one(computation, each, scopes[each.name], trips)

  def _one(self, computation, each, scope: str, trips: float) -> None:
    kind = each.opcode
    if kind in _FREE:
      return
    if kind == 'while':
      count = trip_count(self._program, each) or 1
      body = self._program.computations[each.called('body')]
      # One after the other, for what is fetched ahead beside them; long loops once for all trips.
      apart = count if count <= _FEW_TRIPS else 1
      for _ in range(apart):
        self.run(body, trips=trips * count / apart, scope=scope)
      return
    if kind == 'conditional':
      often = siblings.OFTEN in each.op_name.split('/')
      branch = self._program.computations[each.branches[-1 if often else 0]]
      self.run(branch, trips=trips, scope=scope)
      return
    if kind in ('call', 'async-start') and each.called('to_apply'):
      self.run(self._program.computations[each.called('to_apply')], trips=trips, scope=scope)
      return
    seconds, bound, moved = self._step(computation, each)
    self.num_bytes += moved * trips
    if seconds:
      self.costs.append(
          Cost(each.name, kind, scope, each.op_name, seconds * trips, trips, moved, bound)
      )

  def _step(self, computation, each) -> tuple[float, str, int]:
    """Seconds that the core stands still for an instruction, what for, and bytes in HBM."""
    kind = each.opcode
    base = kind.removesuffix('-start').removesuffix('-done').removesuffix('-update')
    if kind.endswith('-update'):
      return 0.0, 'wait', 0
    if kind.endswith('-done'):
      return *self._wait(_started(computation, each)), 0
    if base in program_lib.COLLECTIVES:
      seconds = collective_seconds(each, self._where)
      if not kind.endswith('-start'):
        self._advance(seconds, 0)
        return seconds, 'link', 0
      self._links_free = max(self._now, self._links_free) + seconds
      self._links[each.name] = self._links_free
      return 0.0, 'link', 0
    if kind.endswith('-start'):
      moved = _transferred(computation, each)
      self._transfers[each.name] = moved
      return 0.0, 'memory', moved
    moved = program_lib.moved_bytes(self._program, computation, each)
    in_place = kind == 'dynamic-update-slice' or 'output_to_operand_aliasing' in each.attributes
    launch = UPDATE_SECONDS if in_place and program_lib.in_hbm([each]) else LAUNCH_SECONDS
    work = self._cycles(each) / self._where.chip.clock
    memory = moved / self._where.chip.hbm_bandwidth
    seconds = launch + max(work, memory)
    self._advance(seconds, moved)
    bound = ('launch', 'cycles', 'memory')[max(range(3), key=(launch, work, memory).__getitem__)]
    return seconds, bound, moved

  def _cycles(self, each) -> int:
    """What an instruction computes, by the compiler's estimate or a kernel's schedule."""
    if schedules.KERNEL in each.attributes:
      return self._kernels.get(each.name, 0)
    return max(0, (each.cycles or 0) - _FIXED_CYCLES)

  def _advance(self, seconds: float, moved: float) -> None:
    """Time goes on; transfers get the bandwidth that `moved` bytes leave."""
    self._now += seconds
    spare = seconds * self._where.chip.hbm_bandwidth - moved
    for name in list(self._transfers):
      if spare <= 0:
        break
      done = min(spare, self._transfers[name])
      spare -= done
      self._transfers[name] -= done
      if self._transfers[name] <= 0:
        del self._transfers[name]

  def _wait(self, name: str) -> tuple[float, str]:
    if name in self._links:
      seconds = max(0.0, self._links.pop(name) - self._now)
      self._advance(seconds, 0)
      return seconds, 'link'
    if name not in self._transfers:
      return 0.0, 'wait'
    ahead = 0.0
    for other, left in self._transfers.items():
      ahead += left
      if other == name:
        break
    seconds = ahead / self._where.chip.hbm_bandwidth
    self._advance(seconds * (1 + 1e-12), 0)
    return seconds, 'wait'


def _started(computation, each) -> str:
  """The start of what a `-done` waits for."""
  while each.opcode.endswith(('-done', '-update')):
    each = computation.by_name[each.operands[0]]
  return each.name


def _transferred(computation, each) -> int:
  """Bytes in HBM of an asynchronous copy or call: what it reads there, and what it writes there."""
  if each.opcode in ('copy-start', 'slice-start'):
    ends = each.arrays[:2]  # where it goes and where it comes from; a slice is the smaller
    size = min(array.num_bytes for array in ends)
    return sum(size for array in ends if array.space == 0)
  operands = [computation.by_name.get(name) for name in each.operands]
  whole = sum(array.num_bytes for array in each.arrays if array.space == 0)
  return min(whole, 2 * program_lib.in_hbm(operands) + whole)


def trip_count(program: program_lib.Program, loop) -> int | None:
  """How often a loop runs, from the constant that its condition compares with; None if none."""
  match = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if match:
    return int(match[1])
  condition = program.computations[loop.called('condition')]
  for each in condition.instructions:
    if each.opcode != 'compare' or 'direction=LT' not in each.attributes:
      continue
    bound = condition.by_name.get(each.operands[1])
    if bound is not None and bound.opcode == 'constant' and bound.operands[0].isdigit():
      return int(bound.operands[0])
  return None


def collective_seconds(each, where: chips.Slice) -> float:
  """Latency and bytes of a collective.

  An all-reduce sums along every dimension of the slice and sends the sum back: twice the hops of an
  all-gather. A permutation is one hop.
  """
  kind = each.opcode.removesuffix('-start')
  count = group_size(each.attributes) or where.num_chips
  num_bytes = sum(array.num_bytes for array in each.received)
  share = (count - 1) / count
  chip = where.chip
  if kind == 'collective-permute':
    return chip.hop_seconds + num_bytes / chip.link_bandwidth
  hops = group_hops(where, count)
  passes = 2 if kind == 'all-reduce' else 1
  if kind == 'reduce-scatter':
    num_bytes *= count
  return passes * (hops * chip.hop_seconds + num_bytes * share / chip.link_bandwidth)


def group_size(attributes: str) -> int | None:
  """Devices that take part in a collective together; None for all.

  >>> group_size("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, use_global")
  4
  >>> group_size('replica_groups={{0,1},{2,3}}'), group_size('replica_groups=[4,2]<=[8]')
  (2, 2)
  """
  match = re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', attributes)
  if match:
    sizes = dict(re.findall(r"'([\w.]+)'=(\d+)", match[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'([\w.]+)'", match[2]))
  match = re.search(r'replica_groups=\[\d+,(\d+)\]', attributes)
  if match:
    return int(match[1])
  match = re.search(r'replica_groups=\{\{([\d,]+)\}', attributes)
  return len(match[1].split(',')) if match else None


def group_hops(where: chips.Slice, count: int) -> int:
  """Hops of a message through a group of `count` neighbours, the last dimension filled first.

  >>> [group_hops(chips.slice_of('v5e:4x4'), count) for count in (1, 4, 8, 16)]
  [0, 3, 4, 6]
  """
  if count >= where.num_chips:
    return where.hops
  hops = 0
  for size in reversed(where.shape):
    side = min(size, count)
    hops += side - 1
    count = -(-count // side)
  return hops


def scope_of(op_name: str) -> str:
  """The part of a round that an instruction belongs to, by the engine's named scopes; or ''.

  >>> scope_of('jit(run)/while/body/draft/while/body/Transformer/layer_0/mlp/dot_general')
  'draft'
  """
  return next((part for part in op_name.split('/') if part in SCOPES), '')


def scopes_of(computation, scope: str) -> dict[str, str]:
  """The scope of every instruction of a computation.

  One that the compiler adds (copies, for the most part) belongs to what takes its result; where
  nothing does, to what it takes itself; and else to the instruction before it.

  Args:
    computation: its instructions.
    scope: of all of them, where the loop or conditional that they belong to has one; or ''.
  """
  if scope:
    return dict.fromkeys(computation.by_name, scope)
  found = {each.name: scope_of(each.op_name) for each in computation.instructions}
  for each in reversed(computation.instructions):
    if not found[each.name]:
      users = computation.users.get(each.name, ())
      found[each.name] = next((found[user.name] for user in users if found[user.name]), '')
  before = ''
  for each in computation.instructions:
    if not found[each.name]:
      taken = (found.get(name, '') for name in each.operands)
      found[each.name] = next(filter(None, taken), before)
    before = found[each.name]
  first = next(filter(None, found.values()), 'other')
  return {name: each or first for name, each in found.items()}
