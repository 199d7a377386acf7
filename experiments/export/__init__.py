"""Results for papers: the rows of a run as CSV, a table in LaTeX and Markdown, its plots as PDF."""

from collections.abc import Sequence
import importlib.util
import pathlib
import re

from experiments import report
from experiments import workdir as workdir_lib
from experiments.export import figures
from experiments.export import table as table_lib
from experiments.export import text
from experiments.runs import rows as rows_lib
from specjax import atomic

FOLDER = 'export'
_TEXTS = {'csv': 'rows.csv', 'latex': 'table.tex', 'markdown': 'table.md'}
_FIGURES = ('pdf', 'svg')
FORMATS = (*_TEXTS, *_FIGURES)

Row = table_lib.Row


def write(
    workdir: pathlib.Path, out: pathlib.Path, formats: Sequence[str] = FORMATS
) -> list[pathlib.Path]:
  """Writes the results of a benchmark, a sweep or a generation; returns the files.

  Everything is made before the first file is written, and each appears as a whole.

  Args:
    workdir: the run's folder.
    out: the folder for the files; made if it is not there.
    formats: of `FORMATS`.

  Raises:
    FileNotFoundError: if there is no `metrics.jsonl`.
    ValueError: for an unknown format, if matplotlib is wanted and missing, or if the rows are not
      those of methods or arms, or all failed.
  """
  if unknown := sorted(set(formats) - set(FORMATS)):
    raise ValueError(f'--formats must be of {", ".join(FORMATS)}; got {unknown[0]!r}.')
  if not formats:
    raise ValueError(f'--formats is empty; there are {", ".join(FORMATS)}.')
  drawn = [each for each in formats if each in _FIGURES]
  if drawn and importlib.util.find_spec('matplotlib') is None:
    texts = ','.join(each for each in formats if each in _TEXTS) or ','.join(_TEXTS)
    raise ValueError(
        f"Plots as {' and '.join(drawn)} need matplotlib: pip install -e '.[export]', or leave "
        f'them out with --formats={texts}.'
    )
  rows = workdir_lib.read_rows(workdir)
  settings = workdir_lib.read_json(workdir / workdir_lib.CONFIG) or {}
  done = rows_lib.measured(rows)
  if not done:
    raise ValueError(
        f'{workdir} holds no finished method or arm: benchmarks, sweeps and generations are '
        'exported.'
    )
  made = table_lib.of_rows(done, title=report.title_of(settings)[0])
  name = re.sub(r'\W+', '-', str(settings.get('name') or workdir.resolve().name)).strip('-')
  contents = {
      'csv': lambda: text.csv(rows),
      'latex': lambda: text.latex(made, label=f'tab:{name}'),
      'markdown': lambda: text.markdown(made),
  }
  files: dict[str, str | bytes] = {
      _TEXTS[each]: contents[each]() for each in formats if each in _TEXTS
  }
  if drawn:
    traces = workdir_lib.read_json(workdir / workdir_lib.TRACES) or []
    calibration = workdir_lib.read_json(workdir / workdir_lib.CALIBRATION)
    for plot in report.all_plots(
        done, x=str(settings.get('x', '')), traces=traces, calibration=calibration
    ):
      for kind in drawn:
        files[f'{plot["id"]}.{kind}'] = figures.draw(plot, kind)
  out.mkdir(parents=True, exist_ok=True)
  return [atomic.write(out / name, content) for name, content in files.items()]
