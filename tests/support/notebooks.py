"""Runs notebooks as a user would, top to bottom in a kernel of their own, but shrunken."""

import dataclasses
import json
import os
import pathlib
import re
import sys

import nbclient
import nbformat

from specjax import models

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / 'experiments' / 'colab').glob('*.ipynb'))


def shallow(pair):
  """A zoo pair whose target has its first two layers only: it compiles in a fraction of the time.

  Called by the `smoke` lines of notebooks.
  """
  target = pair.target
  module = target.module.clone(config=dataclasses.replace(target.module.config, num_layers=2))
  layers = ('layer_0', 'layer_1')
  params = {k: v for k, v in target.params.items() if k in layers or not k.startswith('layer_')}
  return dataclasses.replace(pair, target=models.LanguageModel(module, params))


def prepared(path: pathlib.Path, *, smoke: bool = True) -> nbformat.NotebookNode:
  """The notebook; where it is to be shrunken, a cell is followed by what its metadata call `smoke`.

  A cell that would install something fails instead.
  """
  notebook = nbformat.read(path, as_version=4)
  for cell in notebook.cells:
    if cell.cell_type != 'code':
      continue
    refused = r"\1raise AssertionError('nothing is installed here')"
    cell.source = re.sub(r'^( *)%pip .*$', refused, cell.source, flags=re.M)
    if smoke and 'smoke' in cell.metadata:
      cell.source += '\n' + cell.metadata['smoke']
  return notebook


def client(
    notebook: nbformat.NotebookNode, folder: pathlib.Path, *, timeout: int = 300
) -> nbclient.NotebookClient:
  """A client whose kernel is this interpreter, in an empty folder, without a display."""
  kernels = folder / '.jupyter' / 'kernels' / 'specjax'
  kernels.mkdir(parents=True)
  command = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
  environment = dict(
      PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]),
      MPLBACKEND='module://matplotlib_inline.backend_inline',
  )
  kernel = dict(argv=command, display_name='specjax', language='python', env=environment)
  (kernels / 'kernel.json').write_text(json.dumps(kernel))
  os.environ['JUPYTER_PATH'] = str(folder / '.jupyter')
  return nbclient.NotebookClient(
      notebook, timeout=timeout, kernel_name='specjax',
      resources={'metadata': {'path': str(folder)}},
  )
