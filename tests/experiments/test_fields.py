"""`--help`: every field of every config with its comments; and what a mistyped field is near to."""

import pathlib

import ml_collections
import pytest

from configs import benchmark_zoo
from configs import zoo
from experiments import cli
from experiments import fields
from tests.support import configs

ROOT = pathlib.Path(__file__).resolve().parents[2]

OWN = '''
import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.seed = 3  # of all
  # Several lines
  # above it.
  config.part = ml_collections.ConfigDict(dict(first=1, text='a # b'))  # one line
  config.deep = ml_collections.ConfigDict(
      # What the part is.
      dict(
          one=1.0,  # beside é
          # above
          two=(),
          both={'x': 2},  # a dict
      )
  )
  config.a, config.b = 1, 2  # of the first
  more(config)
  return config


def more(config):
  # another word about it
  config.seed = 4
  config.deep.update(
      one=2.0,  # is not said twice
      three='',  # new
  )


def never(config):
  config.other = 1  # is not run
'''


def test_comments_above_and_beside(tmp_path):
  file = tmp_path / 'own.py'
  file.write_text(OWN)
  known = fields.comments(file)
  assert {field: tuple(comment) for field, comment in known.items() if any(comment)} == {
      'seed': ('', 'of all'), 'part': ('Several lines above it.', 'one line'),
      'deep': ('What the part is.', ''), 'deep.one': ('', 'beside é'), 'deep.two': ('above', ''),
      'deep.both': ('', 'a dict'), 'a': ('', 'of the first'), 'deep.three': ('', 'new'),
  }
  assert 'part.text' in known and 'deep.both.x' in known and 'other' not in known


@pytest.mark.parametrize('file', configs.FILES, ids=lambda file: file.stem)
def test_every_field_of_a_config_is_shown_with_a_comment_here_and_there(file):
  config = configs.load(file).get_config()
  known = fields.comments(file)
  text = fields.describe(config, known)
  for name in config:
    assert f'--config.{name}' in text
  assert max(map(len, text.splitlines())) <= 120 and '# ' in text
  assert sum(map(any, known.values())) >= 5


def test_a_config_has_the_comments_of_the_one_that_it_begins_with():
  text = fields.describe(
      benchmark_zoo.get_config(), fields.comments(ROOT / 'configs/benchmark_zoo.py')
  )
  lines = text.splitlines()
  assert "  --config.options=" not in text and '  --config.drafter.kind=model' in lines
  assert any(line.startswith('  # none, or a function of specjax.drafters') for line in lines)
  assert '  --config.repetitions=2  # of every prompt and method; medians count' in lines
  assert '  --config.methods.NAME.FIELD=…' in lines and 'NAME: adaptive_block, ' in text
  assert '  --config.order="(\'draft_greedy\', \'adaptive_greedy\', ' in text
  assert '  --config.width=…' in lines  # not set


def test_help_names_flags_and_fields(monkeypatch):
  monkeypatch.chdir(ROOT)
  text = cli._help(['prog', '--config=configs/zoo.py:smoke', '--help'])
  assert 'Fields of configs/zoo.py:smoke' in text and '--config.max_new_tokens=16' in text
  with pytest.raises(ValueError, match='There is no config file configs/no.py'):
    cli._help(['prog', '--config', 'configs/no.py', '--help'])


@pytest.mark.parametrize('path, near', [
    ('smapling.temperature', 'sampling.temperature'),
    ('smapling.temprature', 'sampling.temperature'),
    ('temperature', 'sampling.temperature'),
    ('max_new_token', 'max_new_tokens'),
    ('drafter.knd', 'drafter.kind'),
    ('drafter.K', 'drafter.num_speculative_tokens'),
    ('tree', 'drafter.tree'),
    ('rule.temperature', 'sampling.temperature'),
    ('methods.draft_gredy.drafter.pth', 'methods.draft_greedy.drafter.path'),
    ('qqq.www', None),
])
def test_the_nearest_field_at_any_depth(path, near):
  config = zoo.get_config()
  config.methods = ml_collections.ConfigDict({'draft_greedy': dict(drafter=dict(path=''))})
  assert fields.nearest(config, path) == near
  wanted = f'Did you mean --config.{near}' if near else 'It has: batch_size'
  with pytest.raises(ValueError, match=wanted):
    fields.check(config, path)
