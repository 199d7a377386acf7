"""Cycles of the acceptance op's kernels, from the schedules that the TPU's compiler writes."""

import pathlib
import re

# A branch takes effect after this many bundles.
_BRANCH_DELAY = 4


def read(folder: str) -> dict[str, str]:
  """The final schedule of each kernel of the acceptance op, by the kernel's name.

  Args:
    folder: where libtpu wrote them (`--xla_jf_dump_to`, `--xla_jf_dump_llo_text`).
  """
  schedules = {}
  for path in sorted(pathlib.Path(folder).rglob('*-final_bundles.txt')):
    name = re.search(r'accept_[a-z]+', path.name)
    if name and 'schedule-analysis' not in str(path):
      schedules[name[0]] = path.read_text(encoding='utf-8-sig')
  return schedules


def cycles(schedule: str) -> int:
  """Bundles of a schedule, those of a loop times how often it runs.

  A loop begins at a bundle marked LB and ends after a branch back, which is the one with a
  negated predicate; how often it runs is in its exit test. Bundles that a predicate leaves out
  are counted all the same.

  Raises:
    RuntimeError: if a loop has no constant exit test.
  """
  bundles = [
      line for line in schedule.splitlines()
      if re.match(r'\s*(0x[\da-f]+|0)\s+(LB|LH|LE|PB|PF|CT)?\s*:', line)
  ]
  times = [1] * (len(bundles) + _BRANCH_DELAY)
  starts = []
  for index, line in enumerate(bundles):
    if re.match(r'\s*0x[\da-f]+\s+LB', line):
      starts.append(index)
    if re.search(r'sbr\.rel \(!', line) and starts:
      start = starts.pop()
      tests = re.findall(
          r'scmp\.ge\.s32\.totalorder [^,]+, (\d+)[^;]*loop exit test',
          ' '.join(bundles[start : index + 1]),
      )
      if not tests:
        raise RuntimeError(f'The loop at bundle {start} has no constant exit test.')
      for bundle in range(start, index + 1 + _BRANCH_DELAY):
        times[bundle] *= int(tests[-1])
  return sum(times[: len(bundles)])


def cores(schedule: str) -> int:
  """On how many cores of a chip the kernel runs: two where they meet at a barrier."""
  return 2 if 'BarrierMegacore' in schedule else 1
