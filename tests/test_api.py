"""The public names, and the README's example."""

import importlib
import pathlib
import re

import pytest

import specjax
from specjax import _moved

ROOT = pathlib.Path(__file__).resolve().parents[1]


class TestApi:

  def test_public_names(self):
    assert specjax.__all__ == [
        'GenerateOutput',
        'analysis',
        'decode',
        'drafters',
        'generate',
        'heads',
        'load',
        'models',
        'sampling',
        'stream',
        'testing',
        'verify',
        'zoo',
    ]
    for name in specjax.__all__:
      assert hasattr(specjax, name), name

  def test_names_that_users_rely_on(self):
    rules = ('greedy', 'rejection', 'block', 'coupled', 'typical')
    for name in (*rules, 'recursive', 'k_sequential', 'traversal'):
      assert getattr(specjax.verify, name)().lossless == (name != 'typical')
    names = ('combined', 'dynamic_tree', 'eagle', 'early_exit', 'medusa', 'model', 'model_tree')
    more = ('ngram', 'plain', 'static_tree', 'suffix', 'synthetic', 'translate')
    for name in (*names, *more):
      assert callable(getattr(specjax.drafters, name))
    assert callable(specjax.models.load_hf)

  def test_the_readmes_example_runs(self):
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    example = re.search(r'```python\n(.*?)```', text, re.DOTALL).group(1)
    assert 'specjax.generate(' in example
    # Fewer tokens, so that the test is short; the rest as printed.
    names = {}
    exec(example.replace('max_new_tokens=64', 'max_new_tokens=8'), names)
    assert names['output'].num_new_tokens == 8
    assert isinstance(names['output'].texts[0], str)

  @pytest.mark.parametrize('old', sorted(_moved.MODULES))
  def test_a_module_that_moved_has_its_old_name(self, old):
    with pytest.warns(DeprecationWarning, match=re.escape(_moved.MODULES[old])):
      module = importlib.import_module(old)
    assert module is importlib.import_module(_moved.MODULES[old])

  @pytest.mark.parametrize(
      'package, name', [(old, name) for old, names in _moved.NAMES.items() for name in names]
  )
  def test_a_function_that_moved_has_its_old_name(self, package, name):
    with pytest.warns(DeprecationWarning, match=_moved.NAMES[package][name]):
      moved = getattr(importlib.import_module(package), name)
    assert moved is getattr(importlib.import_module(_moved.NAMES[package][name]), name)
    with pytest.raises(AttributeError, match='nothing_of_this_name'):
      importlib.import_module(package).nothing_of_this_name  # noqa: B018
