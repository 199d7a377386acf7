"""Rows that the TPU kernels fetch from HBM by hand: eight at a time, two groups in VMEM.

The grid is (parts, groups of a part). The groups of a part run in order, the next one being
fetched meanwhile; parts know nothing of each other, so that a chip with two cores (v5p) may run
one on each.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from specjax.kernels.accept import tpu_rows
from specjax.kernels.accept.tpu_rows import LANES
from specjax.kernels.accept.tpu_rows import ROWS

# Not `ANY`: the compiler then moves whole arrays of logits into VMEM where they fit (v5e, v6e).
HBM = pl.BlockSpec(memory_space=pltpu.HBM)


@dataclasses.dataclass(frozen=True)
class Stream:
  """Rows that are fetched from an array in HBM.

  Attributes:
    row: (group, sublane) to the row.
    source: [R, V] in HBM.
    buffer: [2, 8, V]; tail: for the last lanes; semaphore: [2].
  """

  row: Callable
  source: Any
  buffer: Any
  tail: Any
  semaphore: Any

  def fetch(self, group, slot) -> list:
    """The copies of a group's rows, one a sublane."""
    return [
        pltpu.make_async_copy(
            self.source.at[pl.ds(self.row(group, s), 1), :],
            self.buffer.at[slot, pl.ds(s, 1), :],
            self.semaphore.at[slot],
        )
        for s in range(ROWS)
    ]


def group_number():
  """The number of this step's group, among those of all parts."""
  return pl.program_id(0) * pl.num_programs(1) + pl.program_id(1)


def arrive(streams: list[Stream]) -> tuple[tpu_rows.Rows, ...]:
  """Waits for this step's group of rows and starts to fetch the part's next one."""
  group, slot = group_number(), jax.lax.rem(pl.program_id(1), 2)

  def start(group, slot):
    for stream in streams:
      for copy in stream.fetch(group, slot):
        copy.start()

  @pl.when(pl.program_id(1) == 0)
  def _():
    start(group, 0)

  @pl.when(pl.program_id(1) + 1 < pl.num_programs(1))
  def _():
    start(group + 1, 1 - slot)

  rows = []
  for stream in streams:
    for copy in stream.fetch(group, slot):
      copy.wait()
    rows.append(
        tpu_rows.Rows(stream.buffer.at[slot], stream.tail, stream.source.shape[1])
    )
    rows[-1].load_tail()
  return tuple(rows)


def streams(rows: tuple[Callable, ...], sources, scratch) -> list[Stream]:
  """Streams of `sources` from the scratch that `buffers` asks for."""
  count = len(sources)
  parts = [scratch[at * count : (at + 1) * count] for at in range(3)]
  return [Stream(*stream) for stream in zip(rows, sources, *parts)]


def buffers(size: int, count: int) -> list:
  """Scratch of `count` streams: two groups each, their tails, their semaphores."""
  return [
      *[pltpu.VMEM((2, ROWS, size), jnp.float32)] * count,
      *[pltpu.VMEM(tpu_rows.tail_shape(size), jnp.float32)] * count,
      *[pltpu.SemaphoreType.DMA((2,))] * count,
  ]


def parameters(
    size: int, streams: int, semantics: tuple[str, ...], itemsize: int = 4
) -> pltpu.CompilerParams:
  """Room for the rows, their tails and masses, and 8 MiB of what the compiler spills."""
  padded = -(-size // LANES) * LANES
  rows = streams * 2 * ROWS * padded * itemsize
  return pltpu.CompilerParams(
      dimension_semantics=semantics, vmem_limit_bytes=rows + ROWS * padded + (8 << 20)
  )


def filled(rows: int) -> int:
  """Rows of whole groups."""
  return -(-rows // ROWS) * ROWS
