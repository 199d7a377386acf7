"""The files in `configs/`, loaded as the command lines load them: by path."""

import importlib.util
import pathlib
import types

FILES = sorted(pathlib.Path(__file__).parents[2].joinpath('configs').glob('[!_]*.py'))


def load(file: pathlib.Path) -> types.ModuleType:
  spec = importlib.util.spec_from_file_location(f'config_{file.stem}', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
