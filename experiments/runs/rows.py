"""What reports, tables for papers and comparisons ask of the rows of a `metrics.jsonl`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def measured(rows: Sequence[Row]) -> list[Row]:
  """The rows of methods and arms that ran, of all in a `metrics.jsonl`."""
  return [row for row in rows if 'tokens_per_second' in row and 'rule' in row]


def sped_up(rows: Sequence[Row]) -> list[Row]:
  """Those that speculate and were timed."""
  return [row for row in rows if row.get('speedup') and row['num_speculative_tokens']]


def varies(rows: Sequence[Row], field: str) -> bool:
  """Whether the arms of a sweep differ in a field."""
  return len({str(row['fields'].get(field)) for row in rows}) > 1


def flat(values: Row, parent: str = '') -> Iterator[tuple[str, Any]]:
  """What lies in objects that lie in each other, by dotted name.

  >>> dict(flat({'a': {'b': 1, 'c': [2]}, 'd': 3}))
  {'a.b': 1, 'a.c': [2], 'd': 3}
  """
  for key, value in values.items():
    if isinstance(value, Mapping):
      yield from flat(value, f'{parent}{key}.')
    else:
      yield f'{parent}{key}', value


def extent(counts: Iterable[int]) -> str:
  """'4', or '4 to 8' of counts that are not all the same.

  >>> extent([8, 4, 8]), extent([4])
  ('4 to 8', '4')
  """
  ordered = sorted(counts)
  low, high = ordered[0], ordered[-1]
  return f'{low}' if low == high else f'{low} to {high}'
