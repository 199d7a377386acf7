"""Floors: each part of the library uses only what stands below it, and nothing goes round."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# From the ground up; the parts of a line do not use each other.
FLOORS = (
    ('_moved', 'atomic', 'types', 'tree', 'randomness', 'detokenize'),
    ('sharding', 'stats', 'stopping', 'traces', 'request', 'kernels.append'),
    ('cache', 'sampling', 'notebook', 'kernels.attention', 'kernels.attention_tpu'),
    ('models', 'output'),
    ('heads', 'verify'),
    ('kernels.accept', 'drafters'),
    ('engine',),
    ('checks', 'reading'),
    ('generation',),
    ('refill',),
    ('analysis', 'testing', 'training', 'zoo'),
    ('planning',),
)
FLOOR_OF = {part: number for number, parts in enumerate(FLOORS) for part in parts}


def modules() -> dict[str, ast.Module]:
  """The library's modules by name."""
  found = {}
  for path in sorted((ROOT / 'specjax').rglob('*.py')):
    name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    found[name.removesuffix('.__init__')] = ast.parse(path.read_text(encoding='utf-8'))
  return found


def imports(tree: ast.Module, names) -> set[str]:
  """Modules of the library that a module imports, wherever in it."""
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        inner = f'{node.module}.{alias.name}'
        found.add(inner if inner in names else node.module)
  return {name for name in found if name == 'specjax' or name.startswith('specjax.')}


def part_of(module: str) -> str | None:
  """The part that a module belongs to; None for the public names and empty packages."""
  inner = module.removeprefix('specjax').removeprefix('.')
  return next((part for part in FLOOR_OF if inner == part or inner.startswith(part + '.')), None)


def wrong_imports(trees: dict[str, ast.Module]) -> list[str]:
  """Imports of a part that does not stand below, and modules that no part holds."""
  wrong = []
  for module, tree in trees.items():
    here = part_of(module)
    if here is None:
      if module not in ('specjax', 'specjax.kernels'):
        wrong.append(f'{module} belongs to no part: give it a floor here')
      continue
    for other in sorted(imports(tree, trees)):
      there = part_of(other)
      if there is None or there != here and FLOOR_OF[there] >= FLOOR_OF[here]:
        wrong.append(f'{module} imports {other}')
  return wrong


def circle(trees: dict[str, ast.Module]) -> list[str]:
  """Modules that import each other in a circle; a package's own names count as its modules."""
  packages = {name for name in trees if any(other.startswith(name + '.') for other in trees)}
  graph = {
      name: imports(tree, trees) - packages for name, tree in trees.items() if name not in packages
  }
  try:
    list(graphlib.TopologicalSorter(graph).static_order())
  except graphlib.CycleError as error:
    return error.args[1]
  return []


def test_no_arrow_up():
  assert not wrong_imports(modules())


def test_no_circle():
  assert not circle(modules())


@pytest.mark.parametrize('module, line, what', [
    ('specjax.verify.rejection', 'from specjax import engine', 'arrow'),
    ('specjax.sharding.trees', 'from specjax.models import LanguageModel', 'arrow'),
    ('specjax.tree', 'import specjax.generation', 'arrow'),
    ('specjax.drafters.base', 'from specjax.drafters import model_tree', 'circle'),
    ('specjax.new', 'import jax', 'arrow'),
])
def test_a_planted_import_is_seen(module, line, what):
  trees = modules()
  planted = ast.parse(line)
  trees[module] = ast.Module(
      [*trees.get(module, ast.Module([], [])).body, *planted.body], type_ignores=[]
  )
  assert (wrong_imports if what == 'arrow' else circle)(trees)
