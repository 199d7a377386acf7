"""The rooms of experiments/: who reads configs, who imports whom, and how long a main may be."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What a folder must not import: configs end at the builder, and what runs knows no page.
FORBIDDEN = {
    'runs': ('ml_collections', 'experiments.build', 'experiments.report', 'configs', 'absl'),
    'report': ('ml_collections', 'experiments.build', 'configs'),
    'build': ('experiments.report', 'configs'),
}
MAINS = (
    'ablate', 'benchmark', 'compare', 'export/__main__', 'generate', 'plan', 'report/__main__',
    'synthesize', 'train',
)


def problems(folder: str, name: str, source: str) -> list[str]:
  """Forbidden imports, and arguments by the name of `config` where configs are not read."""
  tree, wrong = ast.parse(source), []
  for node in ast.walk(tree):
    imported = []
    if isinstance(node, ast.Import):
      imported = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      imported = [f'{node.module}.{alias.name}' for alias in node.names]
    for each in imported:
      if any(each == other or each.startswith(other + '.') for other in FORBIDDEN[folder]):
        wrong.append(f'{name} imports {each}')
    if isinstance(node, ast.arg) and node.arg == 'config' and folder == 'runs':
      wrong.append(f'{name}, line {node.lineno}: an argument `config`')
  return wrong


@pytest.mark.parametrize('folder', FORBIDDEN)
def test_configs_end_at_the_builder(folder):
  files = sorted((ROOT / 'experiments' / folder).rglob('*.py'))
  assert len(files) > 5
  assert not [line for each in files for line in problems(folder, each.name, each.read_text())]


def test_a_reader_of_configs_is_seen():
  source = 'from ml_collections import ConfigDict\n\ndef run(config):\n  import experiments.build\n'
  assert len(problems('runs', 'a.py', source)) == 3


@pytest.mark.parametrize('name', MAINS)
def test_a_main_is_short(name):
  assert len((ROOT / 'experiments' / f'{name}.py').read_text().splitlines()) <= 100
