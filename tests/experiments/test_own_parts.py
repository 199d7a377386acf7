"""A drafter and a rule in a file outside the repository, through all command lines."""

import io
import json

import pytest
import rich.console

from configs import benchmark_zoo
from configs import lossless
from configs import sweeps
from configs import zoo
from experiments import ablate
from experiments import benchmark
from experiments import build
from experiments import generate
from experiments import workdir as workdir_lib
from experiments.build import parts
from experiments.sweep import param
from scripts import check_lossless
from tests.support import tiny_pair

pytestmark = pytest.mark.usefixtures('compiled_fast')

SOURCE = '''
"""Repeats the token that stands `back` tokens before the end."""

import dataclasses

from flax import struct
import jax.numpy as jnp

from specjax import verify
from specjax.drafters import base


@struct.dataclass
class Repeat(base.Chain, base.Stateless):
  num_nodes: int = struct.field(pytree_node=False)
  back: int = struct.field(pytree_node=False)

  def propose(self, context, state):
    start = jnp.maximum(context.lengths - self.back, 0)[:, None] + jnp.zeros(self.num_nodes, int)
    tokens = jnp.take_along_axis(context.tokens, start, axis=1)
    return base.chosen(tokens, jnp.ones_like(tokens, bool)), state, context


def make(*, num_speculative_tokens: int = 4, back: int = 1):
  return Repeat(num_speculative_tokens, back)


def fixed(vocab_size: int):
  assert vocab_size == 256
  return Repeat(2, 1)


@dataclasses.dataclass(frozen=True)
class Careful(type(verify.rejection())):
  """The rejection rule by another name."""

  name: str = 'careful'
  delta: float = 0.0


def careful(*, delta: float):
  return Careful(delta=delta)


@dataclasses.dataclass(frozen=True)
class Gullible(type(verify.rejection())):
  """Keeps every draft: not lossless, though it says so."""

  name: str = 'gullible'

  def prob(self, numbers):
    return jnp.ones_like(numbers.target)
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
  """The file; every config loads the tiny pair."""
  tiny_pair.install(monkeypatch)
  path = tmp_path / 'my_parts.py'
  path.write_text(SOURCE)
  return path


def of_file(config, file, *, drafter='make', rule=None, **options):
  config.dtype = 'float32'
  config.drafter.kind = f'{file}:{drafter}'
  config.drafter.num_speculative_tokens = 2
  if options:
    config.drafter.options = ', '.join(f'{name}={value!r}' for name, value in options.items())
  if rule:
    config.rule.name = f'{file}:{rule}'
    config.rule.options = 'delta=0.3' if rule == 'careful' else ''
  return config


def console():
  return rich.console.Console(file=io.StringIO(), width=160)


def test_generate(file, tmp_path):
  config = of_file(zoo.get_config('smoke'), file, rule='careful', back=2)
  config.prompt, config.sampling.temperature = 'def add(first', 1.0
  generate.run(config, str(tmp_path / 'run'), console=console())
  (row,) = workdir_lib.read_rows(tmp_path / 'run')
  assert row['drafter'] == f'{file}:make' and row['rule'] == 'careful'
  assert row['num_speculative_tokens'] == 2 and row['draft_acceptance_rate'] is not None


def test_benchmark(file, tmp_path):
  """Predicted and checked as the library's own."""
  config = of_file(benchmark_zoo.get_config('smoke'), file, rule='careful', back=3)
  config.order, config.trace_methods = ('own_greedy', 'own_sampled', 'own_coupled'), ()
  config.calibration.repetitions = 1
  rows = benchmark.run(config, str(tmp_path / 'run'), console=console())
  assert [row['rule'] for row in rows] == ['greedy', 'sampling', 'greedy', 'careful', 'coupled']
  assert [row['lossless'] for row in rows[2:]] == ['identical', 'same law', 'identical']
  assert all(row['predicted_speedup'] > 0 for row in rows[2:])
  calibration = json.loads((tmp_path / 'run' / 'calibration.json').read_text())
  assert list(calibration['rules'][0]['drafting']) == [f'{file}:make back=3']


def test_a_sweep_and_a_drafter_without_k(file, tmp_path):
  config = of_file(sweeps.get_config('rule,smoke'), file, drafter='fixed', rule='careful')
  config.arms = param('sampling.temperature', 0.5)
  config.num_prompts, config.calibration.repetitions = 2, 1
  (row,) = ablate.run(config, str(tmp_path / 'run'), console=console())
  assert row['status'] == 'done', row
  assert row['rule'] == 'careful' and row['lossless'] == 'same law'
  assert row['num_speculative_tokens'] == 2 and row['predicted_speedup'] > 0


def test_losslessness(file, tmp_path):
  config = of_file(lossless.get_config('own,float32,smoke'), file, rule='Gullible')
  config.arms = lossless.own(param('dtype', 'float32'))
  config.num_prompts, config.max_new_tokens = 2, 32
  rows = ablate.run(config, str(tmp_path / 'run'), console=console())
  assert [row.get('lossless') for row in rows[:2]] == ['identical', 'identical']
  # Nothing was timed, and nothing says how fast it was.
  assert [row['tokens_per_second'] for row in rows[:2]] == [None, None]
  assert 'tokens/s' not in (tmp_path / 'run' / 'report.html').read_text().split('<details>')[0]
  assert rows[2]['status'] == 'failed' and 'do not follow the law' in rows[2]['error']
  with pytest.raises(SystemExit, match='1'):
    check_lossless.run(config, str(tmp_path / 'run'), console=console())


def test_an_edited_file_is_another_arm(file):
  config = of_file(sweeps.get_config('rule,smoke'), file)
  config.arms = param('sampling.temperature', 0.5)
  (before,) = build.sweep(config).arms
  other = file.with_name('edited.py')
  other.write_text(SOURCE.replace('gullible', 'trusting'))
  assert parts.source(f'{other}:make') == str(other)
  (after,) = build.sweep(of_file(config, other)).arms
  assert after.key != before.key


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(kind='no_module:make'), "module 'no_module', which cannot be imported"),
        (dict(kind='no/file.py:make'), 'there is no file'),
        (dict(kind='FILE:mke'), "no function 'mke'; did you mean 'make'"),
        (dict(options='bakc=2'), "unexpected option 'bakc'; make takes num_speculative_tokens, b"),
        (dict(options='2'), 'must be options with their values'),
        (dict(options='back=open'), 'must be options with their values'),
        (dict(rule='FILE:make'), 'which is no rule; missing: name, lossless, mode'),
        (dict(kind='combined', free='FILE:mke'), "config.drafter.free=.*no function 'mke'"),
    ],
)
def test_mistakes_are_named(file, fields, message):
  config = of_file(zoo.get_config('smoke'), file)
  fields = {name: value.replace('FILE', str(file)) for name, value in fields.items()}
  config.rule.name = fields.pop('rule', 'auto')
  config.drafter.update(fields)
  with pytest.raises(ValueError, match=message):
    build.check(config)
    build.recipe(config)
