"""Runs the notebooks of experiments/colab and writes them with their outputs to docs/notebooks.

    python scripts/render_notebooks.py
    python scripts/render_notebooks.py --only=quickstart,losslessness

Each runs whole, in a kernel of this interpreter, in an empty folder that is removed afterwards; on
two CPU cores that takes minutes. Nothing is installed: lines with `%pip` fail if they are reached.
What depends on the machine alone is left out: times of execution, and the folders of this checkout
and of the run. `--smoke` runs them shrunken, as the tests do, to see that the script works.
"""

from collections.abc import Mapping, Sequence
import pathlib
import re
import sys
import tempfile

from absl import app
from absl import flags
import nbformat

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script's own folder comes first, not the repository

from tests.support import notebooks  # noqa: E402

_OUT = flags.DEFINE_string('out', str(ROOT / 'docs' / 'notebooks'), 'Folder to write.')
_ONLY = flags.DEFINE_list('only', [], 'Names of notebooks, without .ipynb; all by default.')
_TIMEOUT = flags.DEFINE_integer('timeout', 3600, 'Seconds that a cell may take.')
_SMOKE = flags.DEFINE_bool('smoke', False, 'Shrunken by the line under `smoke` of a cell.')


def cleaned(
    notebook: nbformat.NotebookNode, source: pathlib.Path, folders: Mapping[str, str]
) -> nbformat.NotebookNode:
  """The executed notebook with the sources, ids and metadata of its file.

  Args:
    notebook: after it was run.
    source: the file in experiments/colab.
    folders: what stands in outputs in the place of a folder.
  """
  original = nbformat.read(source, as_version=4)
  for cell, before in zip(notebook.cells, original.cells, strict=True):
    if cell.cell_type == 'code':
      cell.source = before.source
      cell.outputs = [_without_folders(output, folders) for output in _merged(cell.outputs)]
    cell.metadata = before.metadata
  notebook.metadata = original.metadata
  nbformat.validate(notebook)
  return notebook


def _merged(outputs: Sequence[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
  """Outputs without what a program only says to a terminal: its warnings and progress bars."""
  kept: list[nbformat.NotebookNode] = []
  for output in outputs:
    if output.output_type == 'stream' and output.name == 'stderr':
      continue
    if output.output_type == 'stream' and kept and kept[-1].output_type == 'stream':
      kept[-1].text += output.text
    else:
      kept.append(output)
  for output in kept:
    if output.output_type == 'stream':
      # A line that was written over is shown as it was last.
      output.text = re.sub(r'^[^\n]*\r(?!\n)', '', output.text, flags=re.MULTILINE)
  return kept


def _without_folders(value, folders: Mapping[str, str]):
  """An output with folders of this machine replaced in all of its texts."""
  if isinstance(value, str):
    for folder, name in folders.items():
      value = value.replace(folder, name)
    return value
  if isinstance(value, list):
    return [_without_folders(each, folders) for each in value]
  if isinstance(value, dict):
    return type(value)({key: _without_folders(each, folders) for key, each in value.items()})
  return value


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}; only flags are taken.')
  files = notebooks.FILES
  names = [file.stem for file in files]
  if unknown := sorted(set(_ONLY.value) - set(names)):
    raise app.UsageError(f'There is no notebook {unknown[0]!r}; there are {", ".join(names)}.')
  out = pathlib.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  for file in files:
    if _ONLY.value and file.stem not in _ONLY.value:
      continue
    print(f'{file.stem} …', flush=True)
    notebook = notebooks.prepared(file, smoke=_SMOKE.value)
    with tempfile.TemporaryDirectory(prefix='specjax_notebook_') as folder:
      notebooks.client(notebook, pathlib.Path(folder), timeout=_TIMEOUT.value).execute()
    folders = {
        folder: '.', str(ROOT): '/content/specjax', str(pathlib.Path.home()): '~',
        sys.prefix: 'VENV',
    }
    # The longest first: one may lie in another.
    folders = dict(sorted(folders.items(), key=lambda pair: -len(pair[0])))
    nbformat.write(cleaned(notebook, file, folders), out / file.name)
    print(f'Wrote {out / file.name}.')


if __name__ == '__main__':
  app.run(main)
