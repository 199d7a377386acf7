"""The files of the tutorials: as short as they say, lossless, their faults caught, and they run."""

import importlib
import io
import pathlib
import re

import pytest
import rich.console

from configs import benchmark_zoo
from configs import zoo
from experiments import ablate
from experiments import benchmark
from experiments import build
from experiments.build import parts
from specjax import verify
from tests.support import exact_laws
from tests.support import tiny_pair
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')

DOCS = pathlib.Path(__file__).parents[1] / 'docs'
EXAMPLES = DOCS / 'examples'
DRAFTER, RULE = f'{EXAMPLES}/my_drafter.py:make', f'{EXAMPLES}/my_rule.py:Brief'


@pytest.fixture
def example(monkeypatch):
  """name -> an example as a module, found as it is where a user runs it."""
  monkeypatch.syspath_prepend(str(EXAMPLES))
  return importlib.import_module


@pytest.fixture
def tiny(monkeypatch):
  """Every config loads the tiny pair; paths are those of the repository."""
  tiny_pair.install(monkeypatch)
  monkeypatch.chdir(DOCS.parent)


def console():
  return rich.console.Console(file=io.StringIO(), width=160)


@pytest.mark.parametrize('name, most', [('my_drafter', 40), ('my_rule', 30)])
def test_the_files_are_as_short_as_the_tutorials_say(name, most):
  assert len((EXAMPLES / f'{name}.py').read_text().splitlines()) <= most


def test_the_drafter_leaves_the_law_as_it_is(example):
  check = example('check_my_drafter')
  drafter = example('my_drafter').make(3, num_speculative_tokens=2)
  for rule in check.RULES:
    assert check.error(drafter, rule) < tolerance.CLAIM, rule.name


def test_a_fault_of_the_drafter_is_caught(example):
  check = example('check_my_drafter')
  faulty = check.Choosy(num_nodes=2, vocab_size=3, smooth=0.1)
  for rule in check.RULES:
    assert check.error(faulty, rule) > exact_laws.SEEN, rule.name


@pytest.mark.parametrize('name', ['draft model', 'prompt lookup'])
def test_the_rule_leaves_the_law_as_it_is_and_its_fault_is_caught(example, name):
  check, my_rule = example('check_my_rule'), example('my_rule')
  drafter = check.DRAFTERS[name]
  assert check.error(my_rule.Brief(most=1), drafter) < tolerance.CLAIM
  assert check.error(check.Forgetful(most=1), drafter) > exact_laws.SEEN


def test_what_the_brief_rule_accepts(example):
  """All that the rejection rule accepts where nothing is held back, else less, and at most one."""
  check, my_rule = example('check_my_rule'), example('my_rule')
  every = check.accepted(verify.rejection())
  tolerance.assert_close(
      check.accepted(my_rule.Brief(most=2)), every, tolerance.of_expectation(2)
  )
  assert check.accepted(my_rule.Brief(most=1)) < min(every, 1.0)


def test_both_go_through_the_command_lines(tiny, tmp_path):
  config = benchmark_zoo.get_config('smoke')
  config.dtype = 'float32'
  config.drafter.kind, config.drafter.num_speculative_tokens = DRAFTER, 2
  config.drafter.options = 'smooth=0.5'
  config.rule.name = RULE
  config.order, config.trace_methods = ('own_greedy', 'own_sampled', 'own_coupled'), ()
  config.calibration.repetitions = 1
  rows = benchmark.run(config, str(tmp_path / 'run'), console=console())
  assert [row['rule'] for row in rows[2:]] == ['greedy', 'brief', 'coupled']
  assert [row['lossless'] for row in rows[2:]] == ['identical', 'same law', 'identical']


def test_the_sweep(tiny, tmp_path):
  my_sweep = parts.load('sweep', f'{EXAMPLES}/my_sweep.py:get_config')
  full, config = my_sweep(), my_sweep('smoke')
  assert len(build.sweep(full).arms) == 4
  config.dtype, config.num_prompts, config.calibration.repetitions = 'float32', 2, 1
  rows = ablate.run(config, str(tmp_path / 'run'), console=console())
  assert [row['rule'] for row in rows] == ['rejection', 'brief']
  assert all(row['lossless'] == 'same law' for row in rows), rows


def test_options_that_the_pages_name_are_taken():
  """Every option of a drafter or a rule that the two tutorials give on a command line."""
  for page in ('add_a_drafter.md', 'add_a_rule.md'):
    text = (DOCS / page).read_text()
    for field in ('drafter', 'rule'):
      for options in re.findall(rf"--config\.{field}\.options='([^']*)'", text):
        config = zoo.get_config()
        config[field].options = options
        if field == 'drafter':
          config.drafter.kind = DRAFTER
        else:
          config.rule.name, config.sampling.temperature = RULE, 1.0
        build.check(config)
