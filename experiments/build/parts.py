"""Factories of drafters and rules: the library's by name, users' own by import path.

`ngram` is `specjax.drafters.ngram`; `my_module:make` is `make` of a module that Python finds, and
`folder/my_file.py:make` of a file. A factory gets from the config what its signature names, and
the options that the config gives for it, written as the keyword arguments of a call:
`--config.drafter.options='order=3, smooth=0.1'`.
"""

import ast
from collections.abc import Callable, Mapping
import difflib
import functools
import importlib
import importlib.util
import inspect
import pathlib
from typing import Any

Factory = Callable[..., Any]


def is_own(name: str) -> bool:
  """Whether a name is an import path."""
  return ':' in name


def load(field: str, path: str) -> Factory:
  """The factory of an import path.

  Args:
    field: of the config, for errors.
    path: 'module:function' or 'file.py:function'.

  Raises:
    ValueError: if there is no such module or file, or no such function in it.
  """
  place, _, name = path.rpartition(':')
  try:
    module = _of_file(place) if place.endswith('.py') else importlib.import_module(place)
  except (ImportError, FileNotFoundError) as error:
    raise ValueError(
        f"config.{field}={path!r} names the module {place!r}, which cannot be imported: {error}. "
        "Give 'module:function' with the module's folder on PYTHONPATH, or 'file.py:function'."
    ) from error
  if not callable(getattr(module, name, None)):
    near = difflib.get_close_matches(name, dir(module), n=1)
    raise ValueError(
        f'config.{field}={path!r}: {place} has no function {name!r}'
        + (f'; did you mean {near[0]!r}?' if near else '.')
    )
  return getattr(module, name)


@functools.cache
def _of_file(name: str):
  path = pathlib.Path(name).expanduser().resolve()
  if not path.is_file():
    raise FileNotFoundError(f'there is no file {path}')
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def source(path: str) -> str:
  """The file that an import path's function was written in, of which results depend."""
  place = path.rpartition(':')[0]
  if place.endswith('.py'):
    return place
  try:
    spec = importlib.util.find_spec(place)
  except ImportError:
    spec = None
  return (spec and spec.origin) or ''


def options(field: str, text: str) -> dict[str, Any]:
  """The options that a config gives, 'order=3, smooth=0.1'.

  >>> options('drafter.options', "order=3, name='a'")
  {'order': 3, 'name': 'a'}

  Raises:
    ValueError: if the text is not a list of keyword arguments with literal values.
  """
  try:
    call = ast.parse(f'f({text})', mode='eval').body
    if not isinstance(call, ast.Call) or call.args or any(not each.arg for each in call.keywords):
      raise ValueError('every option needs a name')
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
  except (SyntaxError, ValueError) as error:
    raise ValueError(
        f"config.{field} must be options with their values, 'order=3, smooth=0.1'; got {text!r}: "
        f'{error}'
    ) from error


def parameters(factory: Factory) -> Mapping[str, inspect.Parameter]:
  """A factory's parameters by name."""
  return inspect.signature(factory).parameters


def takes(factory: Factory, name: str) -> bool:
  return name in parameters(factory)


def check_options(field: str, factory: Factory, given: Mapping[str, Any]) -> None:
  """Refuses options that a factory does not take.

  Raises:
    ValueError: naming those that it takes.
  """
  known = parameters(factory)
  if any(each.kind is each.VAR_KEYWORD for each in known.values()):
    return
  unknown = sorted(set(given) - set(known))
  if unknown:
    raise ValueError(
        f'config.{field}: unexpected option {unknown[0]!r}; {factory.__name__} takes '
        f'{", ".join(known) or "none"}.'
    )


def arguments(
    factory: Factory, values: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
  """The keyword arguments of a factory: of `values` those that it names, then `given`.

  A value that is '' or () leaves the factory's default.
  """
  named = {
      name: value
      for name, value in values.items()
      if takes(factory, name) and not (isinstance(value, (str, tuple)) and not value)
  }
  return named | dict(given)
