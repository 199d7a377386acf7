"""Old names of modules and functions that moved, for one version: importing one says so.

An entry is removed with the version after the one that CHANGELOG names beside it.
"""

from collections.abc import Callable
import importlib
from importlib import abc
from importlib import machinery
import sys
from typing import Any
import warnings

# Old module: new module.
MODULES = {
    'specjax.analysis.law_test': 'specjax.analysis.sampled_law',
    'specjax.analysis.programs': 'specjax.analysis.timed_programs',
    'specjax.cache_rows': 'specjax.cache.rows',
    'specjax.constraints': 'specjax.sampling.constraints',
    'specjax.heads.hf_eagle': 'specjax.heads.hf.eagle',
    'specjax.heads.hf_keys': 'specjax.heads.hf.keys',
    'specjax.heads.hf_medusa': 'specjax.heads.hf.medusa',
    'specjax.kernels.accept.rule': 'specjax.kernels.accept.op_rule',
    'specjax.kv_cache': 'specjax.cache.kv_cache',
    'specjax.layout': 'specjax.sharding.layout',
    'specjax.models.hf_config': 'specjax.models.hf.config',
    'specjax.models.hf_files': 'specjax.models.hf.files',
    'specjax.models.hf_keys': 'specjax.models.hf.keys',
    'specjax.models.hf_rope': 'specjax.models.hf.rope',
    'specjax.models.tokenizer': 'specjax.models.hf.tokenizer',
    'specjax.penalties': 'specjax.sampling.penalties',
    'specjax.settings': 'specjax.sampling.settings',
    'specjax.sharding.ahead': 'specjax.planning.ahead',
    'specjax.sharding.chips': 'specjax.planning.chips',
    'specjax.sharding.programs': 'specjax.planning.compiled_text',
    'specjax.sharding.roofline': 'specjax.planning.roofline',
    'specjax.sharding.table': 'specjax.planning.table',
    'specjax.testing.statistics': 'specjax.testing.chi_square',
    'specjax.zoo.smollm2': 'specjax.zoo.fetched',
}
# Package or module: {old name: package that has it now}.
NAMES = {
    'specjax.heads.hf.medusa': {
        'load_early_exit': 'specjax.heads',
        'save_early_exit': 'specjax.heads',
    },
    'specjax.sharding': {
        'abstract_params': 'specjax.models',
        'init_params': 'specjax.models',
        'place': 'specjax.models',
    },
}


class _Finder(abc.MetaPathFinder, abc.Loader):
  """Imports a module of `MODULES` by its old name."""

  def find_spec(self, name, path=None, target=None):
    del path, target
    return machinery.ModuleSpec(name, self) if name in MODULES else None

  def create_module(self, spec):
    del spec  # the default one, which `exec_module` replaces

  def exec_module(self, module):
    old = module.__name__
    warn(old, MODULES[old])
    # What stands in `sys.modules` afterwards is what the import returns.
    sys.modules[old] = importlib.import_module(MODULES[old])


def install() -> None:
  """Makes the old names of modules importable."""
  if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
    # First, for a folder of data may have a module's old name.
    sys.meta_path.insert(0, _Finder())


def names(package: str) -> Callable[[str], Any]:
  """A `__getattr__` for a package or a module that functions moved out of."""

  def get(name: str) -> Any:
    if name not in NAMES[package]:
      raise AttributeError(f'module {package!r} has no attribute {name!r}')
    new = NAMES[package][name]
    warn(f'{package}.{name}', f'{new}.{name}')
    return getattr(importlib.import_module(new), name)

  return get


def warn(old: str, new: str) -> None:
  """Warns that `old` is now `new`, at the line that called the function that calls this."""
  warnings.warn(
      f'{old} is now {new}; the old name goes with the next version.',
      DeprecationWarning,
      stacklevel=3,
  )
