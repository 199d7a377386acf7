"""The table that a validation comes to: measured beside predicted, goals, and what is missing."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Goal:
  """What a run on an accelerator should show.

  Attributes:
    text: what it says.
    bound: of the rows' `share`.
    is_floor: whether the share should be at least the bound; else at most.
  """

  text: str
  bound: float
  is_floor: bool

  def met(self, share: float) -> bool:
    return share >= self.bound if self.is_floor else share <= self.bound


GOALS = {
    'plain': Goal("plain decoding at batch 1 reaches 85 % of the copy's bandwidth", 0.85, True),
    'speculation': Goal('speculation reaches 95 % of its forecast', 0.95, True),
    'acceptance': Goal('acceptance takes less than 1 % of a round', 0.01, False),
    'overhead': Goal("the loop's overhead o is below 5 % of a plain step", 0.05, False),
}
_OF_ROWS = {'step', 'name', 'at', 'measured', 'predicted', 'unit', 'goal', 'share'}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Markdown of all rows: the latest of each name in a step."""
  latest = {}
  for row in rows:
    latest[row['step'], row['name']] = row
  rows = list(latest.values())
  lines = ['# Validation on hardware', '']
  lines += [f'{row["name"]}: {row["says"]}  ' for row in rows if 'says' in row]
  lines += ['', '| step | what | measured | predicted | measured / predicted | unit | |']
  lines += ['|---|---|---|---|---|---|---|']
  for row in sorted(rows, key=lambda row: row['step']):
    if 'measured' in row:
      lines.append(_line(row))
  lines += ['', '| goal | found | |', '|---|---|---|', *_goals(rows)]
  missing = [row for row in rows if 'skipped' in row or 'failed' in row]
  if missing:
    lines += ['', 'Not there:', '']
    lines += [f'- step {row["step"]}, {row["name"]}: {_why(row)}' for row in missing]
  return '\n'.join(lines) + '\n'


def _line(row: Mapping[str, Any]) -> str:
  measured, predicted = row['measured'], row.get('predicted')
  ratio = measured / predicted if predicted else None
  more = {key: value for key, value in row.items() if key not in _OF_ROWS}
  told = ', '.join(f'{key} {_number(value)}' for key, value in more.items())
  cells = (
      row['step'], row['name'], _number(measured), _number(predicted), _number(ratio),
      row.get('unit', ''), told,
  )
  return '| ' + ' | '.join(str(cell).replace('|', '/') for cell in cells) + ' |'


def _goals(rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
  rows = list(rows)
  for key, goal in GOALS.items():
    shares = {row['name']: row['share'] for row in rows if row.get('goal') == key}
    told = ', '.join(f'{name} {share:.1%}' for name, share in shares.items()) or 'not measured'
    met = all(map(goal.met, shares.values()))
    yield f'| {goal.text} | {told} | {("yes" if met else "no") if shares else ""} |'


def _why(row: Mapping[str, Any]) -> str:
  return row['skipped'] if 'skipped' in row else f'failed: {row["failed"]}'


def _number(value: Any) -> str:
  if value is None:
    return ''
  if isinstance(value, float):
    return f'{value:.4g}'
  return str(value)
