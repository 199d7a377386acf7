"""What the short run of the suite leaves out, and why.

`./scripts/test.sh` is the short run: every kind of check, and every level of every factor at
least once, but not every combination of them. `./scripts/test.sh --everything` runs all tests,
and so does pytest for tests that are named on its command line. `problems` finds what the table
below must not do: leave out the only case of a level, or name what is not there.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import os

import pytest

# Set by `scripts/test.sh --everything`, and for tests that are named on the command line.
EVERYTHING = 'SPECJAX_TEST_EVERYTHING'
# All tests that were collected, before any was left out.
COLLECTED = pytest.StashKey[list]()


@dataclasses.dataclass(frozen=True)
class Short:
  """What the short run keeps of a test.

  Attributes:
    keep: ids of the cases that stay, in brackets after the test's name. None of them where the
      whole test is left out.
    reason: what the others would add, and what they cost.
    instead: of a test that is left out: a test that the short run keeps, and that holds the same.
  """

  keep: tuple[str, ...]
  reason: str
  instead: str = ''


# By node id, without the parameters.
TABLE: dict[str, Short] = {}

# Modules that take longest with few tests begin first: the other worker then has enough left to do.
FIRST = ()


def everything() -> bool:
  """Whether this run leaves nothing out."""
  return bool(os.environ.get(EVERYTHING))


def name_of(item: pytest.Item) -> str:
  """The node id without the parameters."""
  return item.nodeid.split('[', 1)[0]


def case_of(item: pytest.Item) -> str:
  """The id of the parameters; empty where there are none."""
  return item.nodeid.split('[', 1)[1][:-1] if '[' in item.nodeid else ''


def split(items: Iterable[pytest.Item], table=None) -> tuple[list, list]:
  """What the short run keeps of the collected tests, and what it leaves out."""
  table = TABLE if table is None else table
  kept, left = [], []
  for item in items:
    entry = table.get(name_of(item))
    (kept if entry is None or case_of(item) in entry.keep else left).append(item)
  return kept, left


def ordered(items: Sequence[pytest.Item]) -> list[pytest.Item]:
  """The modules of `FIRST`, then the others as they were collected."""
  rank = {path: number for number, path in enumerate(FIRST)}
  return sorted(items, key=lambda item: rank.get(item.nodeid.split('::', 1)[0], len(rank)))


def levels(items: Iterable[pytest.Item]) -> set[tuple[str, str]]:
  """The levels of every factor, a parameter of a test, that occur in some cases."""
  return {
      (factor, repr(level))
      for item in items
      if hasattr(item, 'callspec')
      for factor, level in item.callspec.params.items()
  }


def problems(items: Sequence[pytest.Item], table=None) -> list[str]:
  """What is wrong with the table, given all tests that were collected.

  Entries of files that were not collected are not judged.
  """
  table = TABLE if table is None else table
  kept, left = split(items, table)
  files = {item.nodeid.split('::', 1)[0] for item in items}
  found = []
  for name, entry in table.items():
    if name.split('::', 1)[0] not in files:
      continue
    own, rest = ([i for i in part if name_of(i) == name] for part in (kept, left))
    if not own and not rest:
      found.append(f'{name}: there is no such test')
      continue
    for case in sorted(set(entry.keep) - {case_of(item) for item in own}):
      found.append(f'{name}: keeps {case!r}, which is none of its cases')
    if not rest:
      found.append(f'{name}: nothing of it is left out')
    for factor, level in sorted(levels(rest) - levels(own) if entry.keep else ()):
      found.append(f'{name}: no case of {factor}={level} is kept')
    if not entry.keep and entry.instead.split('::', 1)[0] in files:
      if entry.instead not in {name_of(item) for item in kept}:
        found.append(f'{name}: {entry.instead!r}, which is to hold the same, is not kept')
    if bool(entry.keep) == bool(entry.instead):
      found.append(f'{name}: must keep cases, or name the test that holds the same instead')
  return found
