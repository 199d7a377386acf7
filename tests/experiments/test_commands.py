"""Every command of README, the pages and the configs: it parses, and its smoke form runs."""

import io
import pathlib
import re
import shlex
import sys

from absl import flags
from ml_collections import config_flags
import pytest
import rich.console

from experiments import ablate
from experiments import benchmark
from experiments import build
from experiments import cli
from experiments import generate
from experiments.sweep import param
from scripts import check_lossless
from tests.support import short_run
from tests.support import tiny_pair

pytestmark = pytest.mark.usefixtures('compiled_fast')
ROOT = pathlib.Path(__file__).resolve().parents[2]

# Commands whose smoke form another test runs: by main and config, a test of that config.
ELSEWHERE = {
    ('benchmark', 'benchmark_peers'): 'test_peers.py::test_all_engines',
    ('peers', 'benchmark_peers'): 'test_peers.py::test_all_engines',
    ('peers', 'benchmark_smollm2'): 'test_peers.py::test_a_model_without_a_draft',
    ('plan', 'llama3_70b'): '../sharding/test_plan.py::test_the_command_writes_rows_and_a_page',
    ('plan', 'llama3_70b_eagle3'): '../sharding/test_plan.py::test_a_tree_is_planned',
    ('plan', 'qwen3_blocks'): '../sharding/test_plan.py::test_a_block_costs',
    ('synthesize', 'synthesize'): 'test_synthesize.py::TestChats::test_rows',
    ('benchmark', 'qwen3_blocks'): 'test_commands.py::test_it_parses_and_builds',
    ('train', 'train_eagle3'): 'test_synthesize.py::TestHead::test_the_corpus_is_the_chats',
    ('train', 'train_compared_zoo'): 'test_synthesize.py::test_other_kinds_by_the_same_config',
    ('train', 'train_distill_zoo'): 'test_experiments.py::test_a_draft_is_distilled',
    ('train', 'train_eagle3_zoo'): 'test_experiments.py::test_a_head_is_trained_by_its_recipe',
    ('train', 'train_medusa_zoo'): 'test_experiments.py::test_a_head_is_trained_by_its_recipe',
    ('train', 'train_early_exit_zoo'): 'test_experiments.py::test_a_head_is_trained_by_its_recipe',
    ('train', 'zoo_target'): 'test_experiments.py::test_training_resumes_after_sigkill',
}
COMMAND = re.compile(
    r'(?:python -m )?(?:experiments|benchmarks)\.\w+ --.*|python scripts/check_lossless.*'
)
# Those that read a workdir, and patterns of commands.
NO_CONFIG = re.compile(r'experiments\.(NAME|report|export|compare)\b|=…|\.\.\.')
# What differs only in these runs once.
SIZES = re.compile(r' --(config\.)?(num_|max_new|seed|batch|prompts|out|workdir|new_)\S*')
MAINS = dict(ablate=ablate, benchmark=benchmark, generate=generate)


def commands_in(text: str) -> list[str]:
  """Commands of experiments and of check_lossless; '…' stands for the first one of the text."""
  text = re.sub(r'\\+\n\s*', '', text)
  # In prose a command stands between backticks, and lines break anywhere.
  prose = re.sub(r'\s*\n\s*', ' ', text)
  lines = [line.strip() for line in text.splitlines() if line.startswith(('    ', 'python', 'cat'))]
  lines += re.findall(r'`((?:python|…|experiments\.)[^`]*)`', prose)
  first, commands = '', []
  for line in lines:
    line = re.sub(r'\s#.*', '', line)
    if '…' in line:
      line = line.replace('…', first, 1)
    if match := COMMAND.search(line):
      commands.append(match[0] if match[0].startswith('python') else f'python -m {match[0]}')
      first = first or commands[-1]
  return commands


TEXTS = {path.name: path.read_text() for path in sorted(ROOT.glob('configs/[!_]*.py'))}
TEXTS = {name: text.split('"""')[1] for name, text in TEXTS.items()}
TEXTS['README.md'] = (ROOT / 'README.md').read_text()
PAGES = {f'docs/{path.name}': path.read_text() for path in sorted(ROOT.glob('docs/*.md'))}
# A command that stands in several texts is that of the first one.
COMMANDS = sorted(
    (name, command)
    for command, name in {
        each: name for name, text in [*PAGES.items(), *TEXTS.items()] for each in commands_in(text)
    }.items()
    if not NO_CONFIG.search(command)
)


def parse(command: str, files: pathlib.Path, *, smoke: bool):
  """(main, name of the config, config) of a command, with files in the place of its examples."""
  for example in ('question.jsonl', 'my_file.py', 'module.py'):
    command = command.replace(example, str(files / example))
  words = shlex.split(command.replace('my_module:', f'{files}/my_file.py:'))
  if words[1] == '-m':
    main, arguments = words[2].partition('.')[2], words[3:]
  else:
    main, arguments = 'ablate', check_lossless.expand(words[2:])
  # A later flag replaces an earlier one, as absl has it.
  given = [word for word in arguments if re.match('--config[= ]', word)][-1]
  config = given.partition('=')[2]
  path, _, argument = config.partition(':')
  if smoke:
    argument = ','.join(filter(None, [argument, 'smoke'])) if 'sweeps' in path or (
        'lossless' in path) else 'smoke'
  rest = [word for word in arguments if re.match(r'--config\.', word)]
  values = flags.FlagValues()
  argv = ['prog', f'--config={ROOT / path}:{argument}', *rest]
  cli._check_config_flags(argv)
  holder = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  values(argv)
  return main, pathlib.Path(path).stem, holder.value


@pytest.fixture
def files(tmp_path, monkeypatch):
  """What the examples name; every config loads the tiny pair."""
  tiny_pair.install(monkeypatch)
  (tmp_path / 'question.jsonl').write_text('{"turns": ["def f(x):"]}\n' * 8)
  (tmp_path / 'module.py').write_text('def f(x):\n')
  (tmp_path / 'my_file.py').write_text(
      'from specjax import drafters\n\n\ndef make(num_speculative_tokens, order=1):\n'
      '  return drafters.ngram(num_speculative_tokens=num_speculative_tokens, max_ngram=order)\n'
  )
  return tmp_path


def test_there_are_commands():
  assert all(commands_in(text) for text in TEXTS.values())
  assert len(COMMANDS) > 50


@pytest.mark.parametrize('name, command', COMMANDS)
def test_it_parses_and_builds(name, command, files):
  """At full size, before any model is read."""
  main, config_name, config = parse(command, files, smoke=False)
  if main in ('ablate', 'benchmark') and 'peers' not in config:
    study = build.sweep(config) if main == 'ablate' else build.benchmark(config)
    assert study.arms
  if main == 'generate':
    build.check(config)
    assert 'FOLDER' in command or build.recipe(config) or config.drafter.kind == 'none'
  assert main in MAINS or (main, config_name) in ELSEWHERE


def smoke_commands() -> list[str]:
  """One of each kind: what differs only in sizes is run once."""
  kinds = {}
  for name, command in COMMANDS:
    # The pages have variants of what README and configs name: they run with everything.
    if name in PAGES and not short_run.everything():
      continue
    # What the tutorials run is held by test_tutorials.
    left = ('FOLDER', 'smoke', 'methods.', 'docs/examples', 'ORGANISATION', 'configs/own.py')
    if any(each in command for each in left):
      continue
    if 'interactive' in command:
      continue  # test_chats.py::TestInteractive types the turns
    kinds.setdefault(SIZES.sub('', command), command)
  return list(kinds.values())


@pytest.mark.parametrize('command', smoke_commands())
def test_its_smoke_form_runs(command, files, monkeypatch):
  main, config_name, _ = parse(command, files, smoke=False)
  if (main, config_name) in ELSEWHERE:
    place, _, test = ELSEWHERE[main, config_name].partition('::')
    assert f'def {test}' in (pathlib.Path(__file__).parent / place).read_text()
    return
  main, config_name, config = parse(command, files, smoke=True)
  config.dtype = 'float32'
  if main != 'generate':
    shrink(config)
  if config.prompt_file == '-':
    monkeypatch.setattr(sys, 'stdin', io.StringIO('def f(x):\n'))
  console = rich.console.Console(file=io.StringIO(), width=120)
  rows = MAINS[main].run(config, str(files / 'run'), console=console)
  if main != 'generate':
    assert not [row['error'] for row in rows if 'error' in row]
  written = {path.name for path in (files / 'run').iterdir()}
  assert {'config.json', 'metrics.jsonl'} <= written


def shrink(config) -> None:
  """To what the tiny pair can do in a moment: it has no heads."""
  config.num_prompts, config.max_new_tokens, config.prompt_tokens = 2, 8, 8
  config.calibration.enabled = False
  if 'arms' in config:
    config.num_seeds = 1
    config.arms = tuple(
        arm for arm in config.arms if not {'eagle', 'medusa', 'early_exit'} & {
            str(value).removesuffix('_tree') for _, value in arm
        }
    )[:1] or param('drafter.kind', 'ngram')
  else:
    config.trace_methods = ()
    config.order = config.order[:1]
