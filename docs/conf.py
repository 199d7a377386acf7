"""Sphinx: the site of the documentation.

    pip install -e '.[docs,experiments]'
    sphinx-build -W --keep-going -b html docs docs/_build/html
"""

import inspect
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = 'specjax'
author = 'The specjax authors'
project_copyright = 'The specjax authors, Apache-2.0'
# Read, not imported: the pages can be built without the reference where JAX is not installed.
release = re.search(
    r"^__version__ = '(.+)'$", (ROOT / 'specjax' / '__init__.py').read_text(), re.MULTILINE
)[1]
version = release

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
exclude_patterns = ['_build', '**.ipynb_checkpoints']

# Pages are Markdown; headings down to the third level are anchors.
myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3
# Notebooks are rendered from the outputs that scripts/render_notebooks.py wrote.
nb_execution_mode = 'off'
# What a cell printed is one block.
nb_merge_streams = True

# Docstrings are Google's, with the shape of every array in square brackets, a summary in the first
# line, and `single backquotes` around code.
default_role = 'code'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_include_init_with_doc = False
# Attributes of a dataclass are listed once, by its docstring.
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_default_options = {'member-order': 'bysource', 'exclude-members': 'replace'}
autodoc_typehints_format = 'short'
autodoc_preserve_defaults = True
maximum_signature_line_length = 88

_BUILTIN = (tuple, type(None), int, float, bool, str, dict, list, frozenset)
_OF_TYPES = {(inspect.getdoc(kind) or '').partition('\n')[0] for kind in _BUILTIN}

html_theme = 'furo'
html_title = f'specjax {release}'
html_show_sphinx = False


def setup(app):
  """Connects what docstrings need on their way to Sphinx; the first before napoleon."""
  app.connect('autodoc-process-docstring', _as_rst, priority=400)
  app.connect('autodoc-skip-member', _skip)


def _skip(app, what, name, obj, skip, options):
  """Leaves out the fields of named tuples, which the docstring of the class lists."""
  del app, what, name, options
  is_field = str(getattr(obj, '__doc__', '')).startswith('Alias for field number')
  return True if is_field else skip


def _as_rst(app, what, name, obj, options, lines):
  """Docstrings are read in editors too: tables are Markdown's, examples are indented.

  Both become literal blocks, and bars in the text are escaped.
  """
  del app, what, name, obj, options
  # An attribute without a docstring would have that of its type.
  first = next((line.strip() for line in lines if line.strip()), '')
  lines[:] = [] if first in _OF_TYPES else list(_literal_blocks(lines))


def _literal_blocks(lines):
  """The lines with `::` before tables and indented examples."""
  last, in_table, in_block, in_doctest = '', False, None, False
  for number, line in enumerate(lines):
    text = line.lstrip()
    indent = len(line) - len(text)
    in_doctest = bool(text) and (in_doctest or text.startswith('>>>'))
    if in_block is not None and (not text or indent >= in_block):
      yield line  # as it is
      continue
    in_block = None
    is_row = text.startswith('|') and not in_doctest
    if is_row and not in_table:
      yield from ('', ' ' * indent + '::', '')
    if in_table and not is_row and text:
      yield ''
    in_table = is_row
    before = lines[number - 1].strip() if number else ''
    parent = len(last) - len(last.lstrip())
    # Sections of arguments are indented by two, without an empty line before what they list.
    deeper = 2 if last.endswith((':', ',')) else 4
    if (
        text and number and not before and indent >= parent + deeper
        and not is_row and not in_doctest and not text.startswith(('- ', '* '))
    ):
      yield from (' ' * parent + '::', '')
      in_block = indent
    if text:
      last = line.rstrip()
    if is_row:
      yield '    ' + line
    elif in_block is not None or in_doctest:
      yield line
    else:
      yield ''.join(
          part if part.startswith('`') else part.replace('|', r'\|')
          for part in re.split(r'(`[^`]*`)', line)
      )
