"""Chats on the command lines: templates, several turns, end tokens, few prompts, batches."""

import dataclasses
import io
import json

import pytest
import rich.console

from configs import own
from configs import zoo
from experiments import benchmark
from experiments import build
from experiments import generate
from experiments import workdir as workdir_lib
from experiments.build import memory
from experiments.build import prompts as prompts_build
from experiments.build import targets
from tests.support import tiny_pair

pytestmark = pytest.mark.usefixtures('compiled_fast')

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'][0] + '>' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)


def loaded():
  return dataclasses.replace(
      tiny_pair.loaded(), held_out=(), chat_template=TEMPLATE, name='Tiny-Chat'
  )


@pytest.fixture
def chat(monkeypatch):
  """The tiny pair as a chat model."""
  monkeypatch.setattr(targets, 'load', lambda config: loaded())


@pytest.fixture
def file(tmp_path):
  rows = [
      dict(question_id=1, category='writing', turns=['one?', 'more?']),
      dict(question_id=2, category='math', turns=['two?']),
      dict(question_id=3, category='writing', messages=[
          dict(role='system', content='short'), dict(role='user', content='three?'),
      ]),
      dict(question_id=4, category='math', turns=['four?']),
  ]
  path = tmp_path / 'question.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def console():
  return rich.console.Console(file=io.StringIO(), width=160)


def settings(module, file, **fields):
  config = module.get_config('smoke')
  config.dtype, config.prompt_file, config.max_new_tokens = 'float32', str(file), 6
  config.update(fields)
  return config


def test_every_turn_is_answered_in_the_template(chat, file, tmp_path):
  config = settings(zoo, file, num_prompts=0)
  config.drafter.kind, config.prompt_tokens = 'ngram', 0
  generate.run(config, str(tmp_path / 'run'), console=console())
  lines = (tmp_path / 'run' / 'outputs.jsonl').read_text().splitlines()
  rows = {row['prompt']: row for row in map(json.loads, lines)}
  assert list(rows) == ['writing/1', 'math/2', 'writing/3', 'math/4', 'writing/1 turn 2']
  decode = loaded().tokenizer.decode
  assert decode(rows['math/2']['prompt_tokens']) == '<u>two?\n<a>'
  assert decode(rows['writing/3']['prompt_tokens']) == '<s>short\n<u>three?\n<a>'
  answer = rows['writing/1']['text']
  assert decode(rows['writing/1 turn 2']['prompt_tokens']) == (
      f'<u>one?\n<a>{answer}\n<u>more?\n<a>'
  )


def test_a_system_text_and_no_chat(chat, file, tmp_path):
  config = zoo.get_config('smoke')
  config.dtype, config.prompt, config.max_new_tokens = 'float32', 'hello', 2
  config.drafter.kind, config.system = 'ngram', 'be brief'
  for mode, wanted in (('auto', '<s>be brief\n<u>hello\n<a>'), ('off', 'hello')):
    config.chat = mode
    (row,) = build.generation(config).first_rows()
    assert loaded().tokenizer.decode(list(row.prompt.tokens)) == wanted
  config.chat = 'maybe'
  with pytest.raises(ValueError, match="config.chat must be one of 'auto', 'on', 'off'"):
    build.generation(config)


def test_a_chat_needs_a_template(monkeypatch, file):
  tiny_pair.install(monkeypatch)
  config = settings(zoo, file, chat='on', num_prompts=0)
  with pytest.raises(ValueError, match='has no chat template: give one'):
    build.generation(config)
  config.chat = 'auto'
  with pytest.raises(ValueError, match='is a chat .*needs a chat template'):
    build.generation(config)


class TestOwn:

  def config(self, file, **fields):
    config = settings(own, file, **fields)
    config.order = ('lookup_greedy_1', 'lookup_sampled_8', 'draft_greedy_1')
    config.trace_methods = ()
    for key in config.order:
      config.methods[key].drafter.num_speculative_tokens = 2
    config.calibration.enabled = False
    return config

  def test_few_prompts_batches_and_what_was_not_given(self, chat, file, tmp_path):
    screen = console()
    config = self.config(file)
    rows = benchmark.run(config, str(tmp_path / 'run'), console=screen)
    assert [(row['name'], row['batch_size']) for row in rows] == [
        ('plain decode', 1), ('plain decode, batch 8', 8), ('prompt lookup', 1),
        ('prompt lookup, batch 8', 8),
    ]
    # Four prompts; a batch of eight takes them twice.
    assert [row['prompts'] for row in rows] == [4, 8, 4, 8]
    assert [row['lossless'] for row in rows[2:]] == ['identical', 'same law']
    assert 'Memory: weights' in screen.file.getvalue()
    page = (tmp_path / 'run' / 'report.html').read_text()
    assert 'Speculative decoding with' in page

  def test_batches_that_do_not_fit_are_left_out(self, chat, file, monkeypatch):
    config = self.config(file)
    study = build.benchmark(config)
    need = memory.estimate(config, study)
    for room, sizes in ((need.total(8), [1, 8]), (need.total(8) - 1, [1])):
      monkeypatch.setattr(memory, '_available', lambda room=room: room)
      fitting, lines = build.fitting(config, study)
      assert [arm.sizes.batch_size for arm in fitting.arms] == sizes
      assert ('Left out' in ' '.join(lines)) == (len(sizes) == 1)
    monkeypatch.setattr(memory, '_available', lambda: 1000)
    with pytest.raises(ValueError, match='No batch fits: take a smaller model'):
      build.fitting(config, study)

  def test_too_few_prompts(self, chat, tmp_path):
    path = tmp_path / 'few.jsonl'
    path.write_text('{"turns": ["a"]}\n' * 3)
    with pytest.raises(ValueError, match='holds 3. At least 4 are needed'):
      benchmark.run(self.config(path), str(tmp_path / 'run'), console=console())
    assert not (tmp_path / 'run').exists()

  def test_rows_end_at_the_models_own_end(self, chat, file, monkeypatch, tmp_path):
    """Unequal rows: every token counts once, and ratios are of sums."""
    config = self.config(file, max_new_tokens=24)
    config.order = ('lookup_greedy_1',)
    rows = benchmark.run(config, str(tmp_path / 'all'), console=console())
    full = rows[-1]['new_tokens']
    monkeypatch.setattr(
        targets, 'load', lambda config: dataclasses.replace(
            loaded(), stop_tokens=tuple(range(128))
        )
    )
    rows = benchmark.run(config, str(tmp_path / 'stopped'), console=console())
    plain, lookup = rows
    assert plain['new_tokens'] == lookup['new_tokens'] < full == 4 * 24
    assert lookup['lossless'] == 'identical'

  def test_prompts_are_those_of_the_turns(self, chat, file):
    config = self.config(file)
    prompts = prompts_build.prompts(build.benchmark(config) and config, loaded())
    names = [name for name, _ in prompts.other]
    assert names == ['writing/1', 'math/2', 'writing/3', 'math/4', 'writing/1 turn 2']
    assert [name for name, _ in prompts.timed] == names[:4]


def test_the_whole_file_of_prompts_has_all_categories():
  config = own.get_config()
  rows = [json.loads(line) for line in open(config.prompt_file, encoding='utf-8')]
  counts = {}
  for row in rows:
    counts[row['category']] = counts.get(row['category'], 0) + 1
  assert len(counts) == 13 and set(counts.values()) == {4}
  assert workdir_lib.to_json(config)['name'] == 'own'
