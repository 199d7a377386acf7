"""Runs side by side: what they share, how their numbers relate, and what makes them incomparable.

A row of one run and one of another are the same method where arm, or name and rule, temperature, K
and batch size agree.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from experiments.runs import origin
from experiments.runs import rows as rows_lib

Row = Mapping[str, Any]

# What must agree for times to be compared.
_PLACE = ('hardware', 'versions')
# What they are called, which arms there are, and what no number depends on.
_SEEN = (
    'name', 'title', 'question', 'arms', 'order', 'fresh', 'x', 'baseline', 'trace_methods',
    'stream_method',
)  # fmt: skip
# Numbers that are set beside each other, with their heads.
NUMBERS = {
    'tokens_per_second': 'tokens/s',
    'speedup': 'speed-up over plain decoding',
    'mean_acceptance_length': 'tokens per round',
}


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished run.

  Attributes:
    name: for people.
    rows: of its `metrics.jsonl`.
    settings: its `config.json`, or {}.
  """

  name: str
  rows: Sequence[Row]
  settings: Row

  @property
  def measured(self) -> dict[tuple, Row]:
    """The rows that have numbers, by what is the same method in other runs.

    Raises:
      ValueError: if there are none.
    """
    rows = {_key(row): row for row in rows_lib.measured(self.rows)}
    if not rows:
      raise ValueError(
          f'{self.name} holds no finished method or arm: benchmarks, sweeps and generations are '
          'compared.'
      )
    return rows


def _key(row: Row) -> tuple:
  if 'arm' in row:
    return (row['arm'],)
  names = ('name', 'rule', 'temperature', 'num_speculative_tokens', 'batch_size')
  return tuple(row.get(name) for name in names)


def differences(runs: Sequence[Run]) -> list[str]:
  """What of hardware and versions is not the same in all runs, a line each."""
  lines = []
  for part in _PLACE:
    found = [_values(run, part) for run in runs]
    for name in dict.fromkeys(name for each in found for name in each):
      values = [each.get(name, ()) for each in found]
      if any(value != values[0] for value in values):
        shown = ', '.join(
            f'{" and ".join(value) or "not recorded"} in {run.name}'
            for value, run in zip(values, runs)
        )
        lines.append(f'{part}.{name}: {shown}')
  return lines


def _values(run: Run, part: str) -> dict[str, tuple[str, ...]]:
  """All values that a part of the rows has in a run, by name."""
  found: dict[str, dict[str, None]] = {}
  for row in run.measured.values():
    for name, value in (row.get(part) or {}).items():
      found.setdefault(name, {})[str(value)] = None
  return {name: tuple(values) for name, values in found.items()}


def check(runs: Sequence[Run]) -> None:
  """Refuses runs whose times say nothing about each other.

  Raises:
    ValueError: naming what differs.
  """
  if lines := differences(runs):
    raise ValueError(
        'These runs were not measured alike, so that their times say nothing about each other:\n  '
        + '\n  '.join(lines)
        + '\n--allow_different compares them all the same.'
    )


def notes(runs: Sequence[Run]) -> list[str]:
  """What else differs and does not forbid a comparison: commits, models and settings."""
  lines = []
  commits = [', '.join(origin.commits(run.measured.values())) or 'not recorded' for run in runs]
  models = [_models(run) for run in runs]
  for what, values in (('commit', commits), ('models', models)):
    if len(set(values)) > 1:
      lines.append(f'{what}: {_each(values, runs)}')
  settings = [dict(rows_lib.flat(run.settings)) for run in runs]
  for name in [name for name in settings[0] if all(name in each for each in settings)]:
    values = [str(each[name]) for each in settings]
    if len(set(values)) > 1 and name not in _SEEN:
      lines.append(f'config.{name}: {_each(values, runs)}')
  return lines


def _each(values: Sequence[str], runs: Sequence[Run]) -> str:
  return ', '.join(f'{value} in {run.name}' for value, run in zip(values, runs))


def _models(run: Run) -> str:
  """Digests of all models of a run, in words."""
  found = dict.fromkeys(
      f'{name} {digest}'
      for row in run.measured.values()
      for name, digest in ((row.get('origin') or {}).get('models') or {}).items()
  )
  return ' '.join(found) or 'not recorded'


def tables(runs: Sequence[Run]) -> list[tuple[str, list[dict[str, Any]]]]:
  """A head and rows for a terminal of every number that all runs have.

  Raises:
    ValueError: if they have no method in common.
  """
  measured = [run.measured for run in runs]
  keys = [key for key in measured[0] if all(key in each for each in measured)]
  if not keys:
    known = '; '.join(f'{run.name} has {_list(each)}' for run, each in zip(runs, measured))
    raise ValueError(f'These runs have no method in common: {known}.')
  result = []
  for name, head in NUMBERS.items():
    lines = []
    for key in keys:
      values = [each[key].get(name) for each in measured]
      if None not in values:
        lines.append(_names(measured[0][key]) | _beside(values, runs))
    if lines:
      result.append((head, lines))
  return result


def alone(runs: Sequence[Run]) -> list[str]:
  """A line for each run about methods that not all the others have."""
  measured = [run.measured for run in runs]
  lines = []
  for run, own in zip(runs, measured):
    missing = [key for key in own if not all(key in each for each in measured)]
    if missing:
      lines.append(f'Not in all runs, in {run.name}: {_list(missing)}.')
  return lines


def _list(keys) -> str:
  """Methods in words."""
  return '; '.join(' '.join(str(part) for part in key if part is not None) for key in keys)


def _names(row: Row) -> dict[str, Any]:
  if 'arm' in row:
    return {'arm': row['arm']}
  return {
      'method': row['name'], 'rule': row['rule'], 'T': f'{row["temperature"]:g}',
      'K': row['num_speculative_tokens'] or '',
  }


def _beside(values: Sequence[float], runs: Sequence[Run]) -> dict[str, Any]:
  """A number of each run, and after every one but the first its ratio to the first's."""
  cells: dict[str, Any] = {runs[0].name: values[0]}
  for value, run in zip(values[1:], runs[1:]):
    cells[run.name] = value
    # Heads must differ, and a space lets them wrap.
    cells[f'{run.name} ratio'] = f'{value / values[0]:.3f}×' if values[0] else None
  return cells
