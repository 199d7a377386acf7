"""Cycles of Pallas kernels on TPUs, from the schedules that the TPU's compiler writes.

The compiler estimates its own instructions, and of a kernel knows nothing. But it writes down what
it schedules, bundle by bundle, if it is told to before it is loaded (`watch`, or
`LIBTPU_INIT_ARGS`).
"""

import atexit
from collections.abc import Callable, Mapping
import os
import pathlib
import re
import shutil
import tempfile

from specjax.planning import program as program_lib

# A branch takes effect after this many bundles.
_BRANCH_DELAY = 4
KERNEL = 'custom_call_target="tpu_custom_call"'
_ARGUMENTS = 'LIBTPU_INIT_ARGS'
_PASS = '--xla_jf_dump_llo_pass_label_regex=final_bundles'

_folder: pathlib.Path | None = None


def watch() -> None:
  """Has the compiler write schedules, into a folder of this process that goes with it.

  Compilations take about half as long again. Without effect where the compiler is loaded already.
  """
  global _folder
  if _folder is not None:
    return
  _folder = pathlib.Path(tempfile.mkdtemp(prefix='specjax_schedules_'))
  atexit.register(shutil.rmtree, _folder, ignore_errors=True)
  wanted = f'--xla_jf_dump_to={_folder} --xla_jf_dump_llo_text=true {_PASS}'
  os.environ[_ARGUMENTS] = f'{os.environ.get(_ARGUMENTS, "")} {wanted}'.strip()


def forget() -> None:
  """Removes what was written so far, before the next compilation."""
  if _folder is not None:
    for path in _folder.glob('*'):
      path.unlink()


def of_program(program: program_lib.Program) -> dict[str, int]:
  """Cycles of the kernels of the program that was compiled last, by instruction.

  The compiler schedules equal kernels once, under the name of one of them. Kernels whose schedule
  cannot be counted are left out, as all are where nothing is watched.
  """
  if _folder is None:
    return {}
  found = read(_folder, lambda name: True)
  kernels = [each for _, each in program if KERNEL in each.attributes]
  known: dict[tuple[str, str], int] = {}
  for each in kernels:
    if each.name in found:
      try:
        known[_kind(each)] = cycles(found[each.name])
      except RuntimeError:
        pass
  return {each.name: known[_kind(each)] for each in kernels if _kind(each) in known}


def _kind(each: program_lib.Instruction) -> tuple[str, str]:
  """What equal kernels have in common: their name, and the shapes of their operands."""
  shapes = re.search(r'operand_layout_constraints=\{(.*?)\}, \w+=', each.attributes)
  return re.sub(r'[.\d]+$', '', each.name), shapes[1] if shapes else each.shape


def read(folder: str | pathlib.Path, wanted: Callable[[str], bool]) -> Mapping[str, str]:
  """The final schedules in a folder, by the instruction's name.

  Args:
    folder: where libtpu wrote them (`--xla_jf_dump_to`, `--xla_jf_dump_llo_text`).
    wanted: name -> whether it is read.
  """
  schedules = {}
  for path in sorted(pathlib.Path(folder).rglob('*-final_bundles.txt')):
    match = re.match(r'\d+-(.+)-\d+-final_bundles', path.name)
    if match and wanted(match[1]):
      schedules[match[1]] = path.read_text(encoding='utf-8-sig')
  return schedules


def cycles(schedule: str) -> int:
  """Bundles of a schedule, those of a loop times how often it runs.

  A loop begins at a bundle marked LB, where a region starts, and ends after a branch back to that
  region; how often it runs is in its exit test. Bundles that a predicate or another branch leaves
  out are counted all the same.

  Raises:
    RuntimeError: if a loop has no constant exit test, or no end.
  """
  bundles = _bundles(schedule)
  times = [1] * (len(bundles) + _BRANCH_DELAY)
  starts: dict[str, int] = {}  # by region
  open_loops = set()
  for index, bundle in enumerate(bundles):
    if re.match(r'\s*0x[\da-f]+\s+LB', bundle):
      starts |= {region: index for region in re.findall(r'Start region (\d+)', bundle)}
      open_loops.add(index)
    for region in re.findall(r'sbr\.rel \(![^;]*target = \$region(\d+)', bundle):
      if region not in starts:
        continue
      start = starts.pop(region)
      open_loops.discard(start)
      tests = re.findall(
          r'scmp\.ge\.s32\.totalorder [^,]+, (\d+)[^;]*loop exit test',
          ' '.join(bundles[start : index + 1]),
      )
      if not tests:
        raise RuntimeError(f'The loop at bundle {start} has no constant exit test.')
      for inside in range(start, index + 1 + _BRANCH_DELAY):
        times[inside] *= int(tests[-1])
  if open_loops:
    raise RuntimeError(f'No branch goes back to the loops at bundles {sorted(open_loops)}.')
  return sum(times[: len(bundles)])


def _bundles(schedule: str) -> list[str]:
  """The bundles, each with all its lines."""
  bundles = []
  for line in schedule.splitlines():
    if re.match(r'\s*(0x[\da-f]+|0)\s+(LB|LH|LE|PB|PF|CT)?\s*:', line):
      bundles.append(line)
    elif bundles:
      bundles[-1] += '\n' + line
  return bundles


def cores(schedule: str) -> int:
  """On how many cores of a chip the kernel runs: two where they meet at a barrier."""
  return 2 if 'BarrierMegacore' in schedule else 1
