"""Writes what a paper needs of a benchmark or a sweep: its rows, a table, and its plots.

    python -m experiments.export --workdir=runs/benchmark_zoo

The folder `export` in the workdir, or the one of `--out`, gets `rows.csv` (every number of every
row), `table.tex` (booktabs; `\\input` it), `table.md`, and every plot of the report as PDF and SVG,
by matplotlib (`pip install -e '.[export]'`).
"""

from collections.abc import Sequence
import pathlib
import sys

from absl import app
from absl import flags
from absl import logging

from experiments import export


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'What is {argv[1:]}? The folder is given as --workdir=DIR.')
  logging.set_verbosity(logging.WARNING)  # what embeds fonts reports every table of each
  workdir = pathlib.Path(_WORKDIR.value).expanduser()
  out = pathlib.Path(_OUT.value).expanduser() if _OUT.value else workdir / export.FOLDER
  try:
    for path in export.write(workdir, out, [each for each in _FORMATS.value if each]):
      print(f'Wrote {path}.')
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  _WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run.')
  _OUT = flags.DEFINE_string('out', '', 'The folder for the files; export in the workdir if empty.')
  _FORMATS = flags.DEFINE_list('formats', list(export.FORMATS), 'What is written.')
  flags.mark_flags_as_required(['workdir'])
  app.run(main)
