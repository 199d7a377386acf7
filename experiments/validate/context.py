"""What a step of a validation is given."""

import dataclasses
import importlib
import pathlib
import traceback

from experiments.validate import results as results_lib


@dataclasses.dataclass(frozen=True)
class Context:
  """What a step is given.

  Attributes:
    results: where its rows go.
    clock: how long it may take.
    smoke: whether sizes are tiny.
    switches: what was asked for; None for what the first run decides.
    decisions: folder of `decided.json`.
  """

  results: results_lib.Results
  clock: results_lib.Clock
  smoke: bool
  switches: dict[str, str | None]
  decisions: pathlib.Path

  def attempt(self, name: str, call, *args, essential: bool = True, **kwargs):
    """What `call` gives; None where it fails, which becomes a row and ends nothing else.

    Args:
      name: of that row.
      call: what is attempted.
      *args: of it.
      essential: whether the step has then failed; else the row says what was left out.
      **kwargs: of it.
    """
    try:
      return call(*args, **kwargs)
    except Exception as error:
      traceback.print_exc()
      told = f'{type(error).__name__}: {str(error).strip()[:300]}'
      self.results.add(name, **{'failed' if essential else 'skipped': told.replace('\n', ' ')})
      return None


def has(*packages: str) -> list[str]:
  """Those of the packages that cannot be imported."""
  missing = []
  for package in packages:
    try:
      importlib.import_module(package)
    except ImportError:
      missing.append(package)
  return missing
