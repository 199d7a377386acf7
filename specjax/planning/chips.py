"""What chips can do, each number with its source.

Sources: Google Cloud's TPU pages (docs.cloud.google.com/tpu/docs/v5e, v5p, v6e: peak, memory,
interconnect), NVIDIA's data sheets of H100 SXM, H200 SXM and B200 (dense bfloat16, memory,
NVLink). A TPU's clock is not published: it is the peak over the products of its matrix units a
cycle, 1.5 GHz for v5e (four of 128 x 128) and 1.75 GHz for v5p (eight); that of v6e is taken as
v5p's. The latency of a hop between TPUs, about a microsecond, is that of "How to Scale Your
Model" (jax-ml.github.io/scaling-book); that of a collective over NVSwitch is an assumption.
"""

from collections.abc import Mapping
import dataclasses
import math
import types


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator.

  Attributes:
    name: as in a slice's name ('v5e') or a node's ('H100').
    hbm_bytes: memory.
    hbm_bandwidth: bytes per second.
    peak_flops: dense bfloat16 operations per second.
    link_bandwidth: bytes a second that leave a chip over all links together.
    hop_seconds: latency of one hop between neighbours; of a whole collective for GPUs.
    clock: cycles per second of its core; 0 where no compiler estimates cycles.
    source: of the numbers.
  """

  name: str
  hbm_bytes: float
  hbm_bandwidth: float
  peak_flops: float
  link_bandwidth: float
  hop_seconds: float
  clock: float
  source: str

  @property
  def is_tpu(self) -> bool:
    return self.clock > 0


_TPU, _GPU = 'docs.cloud.google.com/tpu/docs/', 'NVIDIA data sheet, '

CHIPS: Mapping[str, Chip] = types.MappingProxyType({
    chip.name: chip
    for chip in (
        Chip('v5e', 16e9, 819e9, 197e12, 200e9, 1e-6, 1.5e9, _TPU + 'v5e'),
        Chip('v5p', 95e9, 2765e9, 459e12, 600e9, 1e-6, 1.75e9, _TPU + 'v5p'),
        Chip('v6e', 32e9, 1640e9, 918e12, 400e9, 1e-6, 1.75e9, _TPU + 'v6e'),
        Chip('H100', 80e9, 3350e9, 989e12, 450e9, 10e-6, 0.0, _GPU + 'H100 SXM'),
        Chip('H200', 141e9, 4800e9, 989e12, 450e9, 10e-6, 0.0, _GPU + 'H200 SXM'),
        Chip('B200', 180e9, 8000e9, 2250e12, 900e9, 10e-6, 0.0, _GPU + 'DGX B200'),
    )
})


@dataclasses.dataclass(frozen=True)
class Slice:
  """Some chips and how they are wired.

  Attributes:
    name: 'v5p:2x2x2', or 'H100:8' for a node of GPUs.
    chip: which.
    shape: chips along each dimension.
  """

  name: str
  chip: Chip
  shape: tuple[int, ...]

  @property
  def num_chips(self) -> int:
    return math.prod(self.shape)

  @property
  def hops(self) -> int:
    """Hops of a message from the farthest chip, dimension by dimension.

    Slices below a whole pod have no wires around (but a v5p cube, whose sides are 4 long).

    >>> slice_of('v5e:4x4').hops, slice_of('v5p:4x4x4').hops, slice_of('H100:8').hops
    (6, 6, 1)
    """
    if not self.chip.is_tpu:
      return 1 if self.num_chips > 1 else 0
    around = self.chip.name == 'v5p' and all(size % 4 == 0 for size in self.shape)
    around |= self.chip.name != 'v5p' and min(self.shape) >= 16
    return sum(size // 2 if around else size - 1 for size in self.shape)


def slice_of(name: str) -> Slice:
  """The slice of a name.

  >>> slice_of('v5p:2x2x2').num_chips
  8

  Raises:
    ValueError: for an unknown chip or a name that is none.
  """
  chip, _, shape = name.partition(':')
  if chip not in CHIPS:
    raise ValueError(f'Unknown chip {chip!r} in {name!r}. Known are {", ".join(CHIPS)}.')
  try:
    sizes = tuple(int(size) for size in shape.split('x'))
  except ValueError:
    sizes = ()
  if not sizes or min(sizes) < 1:
    raise ValueError(f'{name!r} does not say how many chips: write v5p:2x2x2 or H100:8.')
  return Slice(name, CHIPS[chip], sizes)
