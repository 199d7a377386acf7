"""Sets finished runs side by side, with ratios to the first.

    python -m experiments.compare runs/before runs/after

Benchmarks, sweeps and generations, method by method. Runs on other hardware, or with other versions
of Python and JAX, are refused, with what differs, unless `--allow_different` asks for them; other
commits, models and settings are printed.
"""

from collections.abc import Sequence
import os
import pathlib
import sys

from absl import app
from absl import flags
import rich.console

from experiments import display
from experiments import workdir as workdir_lib
from experiments.runs import comparison


def run(
    folders: Sequence[str | os.PathLike],
    *,
    allow_different: bool = False,
    console: rich.console.Console | None = None,
) -> None:
  """Prints tables of what the runs in some folders have in common.

  Args:
    folders: workdirs, the first one being what ratios are to.
    allow_different: compare runs on other hardware or with other versions, too.
    console: where to.

  Raises:
    FileNotFoundError: if one of them holds no run.
    ValueError: for fewer than two, runs without finished methods or without any in common, and
      such as were not measured alike.
  """
  console = rich.console.Console() if console is None else console
  runs = _read(folders)
  if allow_different:
    for line in comparison.differences(runs):
      console.print(f'not alike: {line}', highlight=False, soft_wrap=True, style='yellow')
  else:
    comparison.check(runs)
  tables = comparison.tables(runs)  # refused before anything is said
  for line in comparison.notes(runs):
    console.print(line, highlight=False, markup=False, soft_wrap=True)
  for head, rows in tables:
    console.print()
    console.print(display.table(rows, title=head))
  for line in comparison.alone(runs):
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _read(folders: Sequence[str | os.PathLike]) -> list[comparison.Run]:
  """The runs, named by their folders."""
  if len(folders) < 2:
    raise ValueError(
        'Name at least two workdirs: python -m experiments.compare runs/before runs/after.'
    )
  paths = [pathlib.Path(folder).expanduser() for folder in folders]
  names = [path.resolve().name for path in paths]
  if len(set(names)) < len(names):
    names = [str(path) for path in paths]
  if len(set(names)) < len(names):
    raise ValueError(f'One folder is named twice: {", ".join(names)}.')
  return [
      comparison.Run(
          name, workdir_lib.read_rows(path), workdir_lib.read_json(path / workdir_lib.CONFIG) or {}
      )
      for name, path in zip(names, paths)
  ]


def main(argv: Sequence[str]) -> None:
  try:
    run(argv[1:], allow_different=_ALLOW.value)
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  _ALLOW = flags.DEFINE_bool(
      'allow_different', False, 'Compare runs on other hardware or with other versions, too.'
  )
  app.run(main)
