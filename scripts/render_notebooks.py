"""Runs the notebooks of experiments/colab and writes them with their outputs to docs/notebooks.

    python scripts/render_notebooks.py
    python scripts/render_notebooks.py --only=quickstart,losslessness

Each runs whole, in a kernel of this interpreter, in an empty folder that is removed afterwards; on
two CPU cores that takes minutes. Nothing is installed: lines with `%pip` fail if they are reached.
What depends on the machine alone is left out: times of execution, and the folders of this checkout
and of the run. `--smoke` runs them shrunken, as the tests do, to see that the script works.
"""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
import re
import sys
import tempfile

from absl import app
from absl import flags
import nbclient
import nbformat

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = ROOT / 'experiments' / 'colab'

_OUT = flags.DEFINE_string('out', str(ROOT / 'docs' / 'notebooks'), 'Folder to write.')
_ONLY = flags.DEFINE_list('only', [], 'Names of notebooks, without .ipynb; all by default.')
_TIMEOUT = flags.DEFINE_integer('timeout', 3600, 'Seconds that a cell may take.')
_SMOKE = flags.DEFINE_bool('smoke', False, 'Shrunken by the line under `smoke` of a cell.')


def prepared(path: pathlib.Path, *, smoke: bool) -> nbformat.NotebookNode:
  """The notebook as it is run, with its sources kept under `shown` in each cell's metadata."""
  notebook = nbformat.read(path, as_version=4)
  for cell in notebook.cells:
    if cell.cell_type != 'code':
      continue
    cell.metadata['shown'] = cell.source
    refused = r"\1raise AssertionError('install specjax before notebooks are rendered')"
    cell.source = re.sub(r'^( *)%pip .*$', refused, cell.source, flags=re.MULTILINE)
    if smoke and 'smoke' in cell.metadata:
      cell.source += '\n' + cell.metadata['smoke']
  return notebook


def execute(notebook: nbformat.NotebookNode, folder: pathlib.Path, *, timeout: int) -> None:
  """Runs a notebook in `folder`, in a kernel of this interpreter."""
  kernels = folder / '.jupyter' / 'kernels' / 'specjax'
  kernels.mkdir(parents=True)
  command = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
  paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  environment = dict(
      PYTHONPATH=os.pathsep.join(paths),
      MPLBACKEND='module://matplotlib_inline.backend_inline',
  )
  kernel = dict(argv=command, display_name='specjax', language='python', env=environment)
  (kernels / 'kernel.json').write_text(json.dumps(kernel))
  os.environ['JUPYTER_PATH'] = str(folder / '.jupyter')
  resources = {'metadata': {'path': str(folder)}}
  nbclient.NotebookClient(
      notebook, timeout=timeout, kernel_name='specjax', resources=resources
  ).execute()


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
      cell.source = cell.metadata['shown']
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
  files = sorted(SOURCES.glob('*.ipynb'))
  names = [file.stem for file in files]
  if unknown := sorted(set(_ONLY.value) - set(names)):
    raise app.UsageError(f'There is no notebook {unknown[0]!r}; there are {", ".join(names)}.')
  out = pathlib.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  for file in files:
    if _ONLY.value and file.stem not in _ONLY.value:
      continue
    print(f'{file.stem} …', flush=True)
    notebook = prepared(file, smoke=_SMOKE.value)
    with tempfile.TemporaryDirectory(prefix='specjax_notebook_') as folder:
      execute(notebook, pathlib.Path(folder), timeout=_TIMEOUT.value)
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
