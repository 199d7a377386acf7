"""The fields of a config: the comments at them in its file, and the nearest to a mistyped one.

A config's file is its own reference. What `--help` prints are its fields with their values, and at
each the comments that stand above it and beside it, of the file that set it last; where its
`get_config` begins with that of another config, that one's too.
"""

import ast
from collections.abc import Iterable, Iterator, Sequence
import difflib
import importlib.util
import pathlib
import re
import shlex
import textwrap
from typing import Any, NamedTuple

import ml_collections

from experiments import sweep as sweep_lib

ConfigDict = ml_collections.ConfigDict

_WIDTH = 100
# Longer values are cut: the arms of a sweep are a page by themselves.
_LONGEST_VALUE = 60


class Comment(NamedTuple):
  """What a file says about a field: in the lines above it, and at the end of its line."""

  above: str = ''
  beside: str = ''


Comments = dict[str, Comment]


def comments(file: pathlib.Path, functions: Sequence[str] = ('get_config',)) -> Comments:
  """Fields by dotted path, in the order in which they are set, with their comments.

  Args:
    file: of a config.
    functions: of the file that are run; so are those that they call, here and in other configs.
  """
  text = file.read_text(encoding='utf-8-sig')
  tree, lines = ast.parse(text), text.splitlines()
  defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
  reached, called = [name for name in functions if name in defined], {}
  for name in reached:  # grows
    for call in [node for node in ast.walk(defined[name]) if isinstance(node, ast.Call)]:
      match call.func:
        case ast.Name(id=other) if other in defined and other not in reached:
          reached.append(other)
        case ast.Attribute(value=ast.Name(id=module), attr=other):
          called.setdefault(module, {})[other] = None
  result: Comments = {}
  for module, path in _imports(tree, file):
    source = path.read_text(encoding='utf-8-sig')
    if wanted := [each for each in called.get(module, ()) if f'def {each}(' in source]:
      result |= comments(path, wanted)
  own: Comments = {}
  for name in reached:
    for field, comment in _set_in(defined[name], lines):
      # Whatever sets a field again, as a smaller variant does, the first one says what it is.
      if not any(own.get(field, ())):
        own[field] = comment
  return result | {
      field: comment if any(comment) else result.get(field, comment)
      for field, comment in own.items()
  }


def _imports(tree: ast.Module, file: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
  """Name and file of the other configs that a config imports."""
  for node in tree.body:
    if not isinstance(node, ast.ImportFrom) or node.module != 'configs':
      continue
    for alias in node.names:
      spec = importlib.util.find_spec(f'{node.module}.{alias.name}')
      path = pathlib.Path(spec.origin) if spec and spec.origin else file
      if path.is_file() and path.resolve() != file.resolve():
        yield alias.asname or alias.name, path


def _set_in(function: ast.FunctionDef, lines: Sequence[str]) -> Iterator[tuple[str, Comment]]:
  """The fields of `config` that a function sets, with their comments."""
  for node in ast.walk(function):
    match node:
      case ast.Assign(targets=[target], value=value):
        targets = target.elts if isinstance(target, ast.Tuple) else [target]
        comment = _comment(node, lines, after=r'\s*')
        for field in filter(None, map(_field, targets)):
          yield field, comment
          comment = Comment()  # is said once, at the first of several
          yield from _inside(field, value, lines)
      case ast.Call(func=ast.Attribute(value=owner, attr='update')):
        if field := _field(owner):
          yield from _inside(field, node, lines)


def _inside(field: str, value: ast.AST, lines: Sequence[str]) -> Iterator[tuple[str, Comment]]:
  """The fields that a value of a field has: `ConfigDict(dict(…))`, `dict(…)`, `{…}`."""
  match value:
    case ast.Call(func=ast.Attribute(attr='ConfigDict'), args=[inner]):
      if any(comment := _comment(inner, lines, after=r'\s*')):
        yield field, comment
      yield from _inside(field, inner, lines)
    case ast.Call(func=ast.Name(id='dict') | ast.Attribute(attr='update'), keywords=keywords):
      for each in keywords:
        if each.arg:
          yield f'{field}.{each.arg}', _comment(each, lines, after=r'[\s,]*')
          yield from _inside(f'{field}.{each.arg}', each.value, lines)
    case ast.Dict(keys=keys, values=values):
      for key, each in zip(keys, values):
        if isinstance(key, ast.Constant):
          yield f'{field}.{key.value}', Comment(_above(key, lines), _beside(each, lines, r'[\s,]*'))
          yield from _inside(f'{field}.{key.value}', each, lines)


def _field(node: ast.AST) -> str:
  """'a.b' of the expression `config.a.b`; '' of any other."""
  names = []
  while isinstance(node, ast.Attribute):
    names.append(node.attr)
    node = node.value
  is_config = isinstance(node, ast.Name) and node.id == 'config'
  return '.'.join(reversed(names)) if is_config else ''


def _comment(node: Any, lines: Sequence[str], *, after: str) -> Comment:
  return Comment(_above(node, lines), _beside(node, lines, after))


def _above(node: Any, lines: Sequence[str]) -> str:
  """The lines of comment above the line that a node begins, as one text."""
  number = node.lineno - 1
  if lines[number].encode()[: node.col_offset].strip():
    return ''  # another one begins the line
  first = number
  while first and lines[first - 1].lstrip().startswith('#'):
    first -= 1
  return ' '.join(line.strip().removeprefix('#').strip() for line in lines[first:number])


def _beside(node: Any, lines: Sequence[str], after: str) -> str:
  """The comment at the end of the line that a node ends, with `after` alone between them."""
  rest = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
  found = re.match(rf'{after}#\s*(.*)', rest)
  return found[1] if found else ''


def describe(config: ConfigDict, known: Comments) -> str:
  """The fields of a config as flags, with their values and comments, for a terminal."""
  blocks = []
  order = {field: number for number, field in enumerate(known)}
  shown = list(_shown(config))
  place = lambda field: order.get(field, order.get(field.rpartition('.')[0], len(order)))
  is_noted, last = set(), ''
  for field, text, more in sorted(shown, key=lambda each: place(each[0])):
    above = []
    for part in _parents(field):
      if part in known and part not in is_noted:
        is_noted.add(part)
        above += filter(None, [known[part].above, known[part].beside if part != field else ''])
    begins = field.partition('.')[0] != last.partition('.')[0] and '.' in field + last
    if above or begins:
      blocks.append('')
    if above:
      blocks += textwrap.wrap(
          ' '.join(above), _WIDTH, initial_indent='  # ', subsequent_indent='  # '
      )
    beside = ' '.join(filter(None, [known.get(field, Comment()).beside, more]))
    if len(text) + len(beside) + 6 <= _WIDTH:
      blocks.append(f'  {text}  # {beside}' if beside else f'  {text}')
    else:
      indent = '      # '
      wrapped = textwrap.wrap(beside, _WIDTH, initial_indent=indent, subsequent_indent=indent)
      blocks += [f'  {text}', *wrapped]
    last = field
  return '\n'.join(blocks)


def _shown(config: ConfigDict, parent: str = '') -> Iterator[tuple[str, str, str]]:
  """(field, flag, remark) of every field; of a list of parts, such as methods, one line."""
  for name in config:
    field, value = f'{parent}{name}', config[name]
    if not isinstance(value, ConfigDict):
      yield field, f'--config.{field}={_value(value)}', ''
    elif not value:
      yield field, f'--config.{field}.FIELD=…', ''
    elif all(isinstance(each, ConfigDict) for each in value.values()):
      parts = ', '.join(dict.fromkeys(part for each in value.values() for part in each))
      yield (
          field, f'--config.{field}.NAME.FIELD=…', f'NAME: {", ".join(value)}; FIELD: {parts}'
      )
    else:
      yield from _shown(value, f'{field}.')


def _value(value: Any) -> str:
  """As a shell takes it; '…' for a field that is not set."""
  if value is None:
    return '…'
  text = str(value)
  if text and shlex.quote(text) != text:
    # A tuple of names is easier to read so.
    text = f'"{text}"' if not set(text) & set('"$`\\!') else shlex.quote(text)
  return text if len(text) <= _LONGEST_VALUE else f'{text[:_LONGEST_VALUE]}…'


def _parents(field: str) -> list[str]:
  """The field after all that it lies in.

  >>> _parents('a.b.c')
  ['a', 'a.b', 'a.b.c']
  """
  parts = field.split('.')
  return ['.'.join(parts[: count + 1]) for count in range(len(parts))]


def check(config: ConfigDict, path: str) -> None:
  """Refuses a field that there is not.

  Raises:
    ValueError: with the nearest field at any depth, or else with those that are there.
  """
  node, seen = config, 'config'
  for part in path.split('.'):
    if not isinstance(node, ConfigDict):
      raise ValueError(f'{seen} is a value, it has no field {part!r}.')
    if part not in node:
      near = nearest(config, path)
      hint = f'Did you mean --config.{near}?' if near else f'It has: {", ".join(sorted(node))}.'
      raise ValueError(f'{seen} has no field {part!r}. {hint} --help shows all fields.')
    node, seen = node[part], f'{seen}.{part}'


def nearest(config: ConfigDict, path: str) -> str | None:
  """The dotted path that a mistyped one most likely stands for, at any depth; None for none.

  Each part may be mistyped, the part may be another one, or the name that tables have for a field.

  >>> config = ConfigDict(dict(seed=0, sampling=dict(temperature=0.0)))
  >>> nearest(config, 'smapling.temprature'), nearest(config, 'temperature'), nearest(config, 'T')
  ('sampling.temperature', 'sampling.temperature', 'sampling.temperature')
  """
  fields, last = list(_paths(config)), lambda field: field.rpartition('.')[2]
  likest = lambda names: max(
      [field for field in fields if last(field) in names], default=None,
      key=lambda field: difflib.SequenceMatcher(None, field, path).ratio(),
  )
  name = last(path)
  short = [field for field, each in sweep_lib.SHORT.items() if each == name and field in fields]
  if found := likest([name]) or next(iter(short), None):
    return found
  if found := _corrected(config, path.split('.')):
    return '.'.join(found)
  return likest(difflib.get_close_matches(name, {last(field) for field in fields}, 1, cutoff=0.75))


def _corrected(node: Any, parts: Sequence[str]) -> list[str] | None:
  """The parts of a path with each mistyped one replaced by its nearest sibling."""
  if not parts:
    return []
  if not isinstance(node, ConfigDict):
    return None
  first, *rest = parts
  for name in [first] if first in node else difflib.get_close_matches(first, list(node)):
    if (found := _corrected(node[name], rest)) is not None:
      return [name, *found]
  return None


def _paths(config: ConfigDict, parent: str = '') -> Iterable[str]:
  """Dotted paths of all fields, and of the parts of the config that hold them."""
  for name in config:
    yield f'{parent}{name}'
    if isinstance(config[name], ConfigDict):
      yield from _paths(config[name], f'{parent}{name}.')
