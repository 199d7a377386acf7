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
from experiments import prompts as prompts_lib
from experiments import workdir as workdir_lib
from experiments.build import memory
from experiments.build import prompts as prompts_build
from experiments.build import targets
from experiments.runs import chat as chat_lib
import specjax
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


class TestInteractive:

  def talk(self, path, *turns, **fields):
    """Runs a chat with these turns; an exception among them is raised where it is asked for."""
    config = zoo.get_config('smoke')
    # The programs of the commands that test_commands runs.
    config.dtype, config.cache_length, config.max_new_tokens = 'float32', 128, 6
    config.interactive, config.rounds_per_chunk = True, 1
    config.update(fields)
    left = iter(turns)

    def ask(text):
      turn = next(left, EOFError())
      if isinstance(turn, BaseException):
        raise turn
      return turn

    results = workdir_lib.open_workdir(path, config, resume=True)
    screen = console()
    outputs = chat_lib.run(build.chat(config), results, screen, ask=ask)
    return outputs, screen.file.getvalue()

  def prompt(self, output) -> str:
    return loaded().tokenizer.decode(output.tokens[0, : output.prompt_lengths[0]].tolist())

  def kept(self, path):
    return [each['messages'] for each in workdir_lib.read_rows(path / 'chats.jsonl')]

  def test_turns_are_kept_and_gone_on_with(self, chat, tmp_path):
    outputs, text = self.talk(tmp_path, 'one?', KeyboardInterrupt(), '  ', 'two?', system='brief')
    first, second = (output.texts[0] for output in outputs)
    assert self.prompt(outputs[1]) == f'<s>brief\n<u>one?\n<a>{first}\n<u>two?\n<a>'
    assert text.count(' tokens/s · ') == 2 and 'Ctrl-D or /quit ends the chat.' in text
    assert 'A chat with Tiny-Chat' in text and first in text and 'max_new_tokens' in text
    # The next time it goes on, until another one begins.
    outputs, text = self.talk(tmp_path, 'three?', '/new', 'four?', '/quit', 'five?')
    assert self.prompt(outputs[0]).endswith(f'<u>two?\n<a>{second}\n<u>three?\n<a>')
    assert self.prompt(outputs[1]) == '<u>four?\n<a>'
    assert 'Going on after 2 turns' in text and '> two?' in text
    old, new = self.kept(tmp_path)
    assert [each['role'] for each in old] == ['system', *['user', 'assistant'] * 3]
    assert [each['content'] for each in new] == ['four?', outputs[1].texts[0]]
    rows = workdir_lib.read_rows(tmp_path)
    assert [(row['chat'], row['turn']) for row in rows] == [(1, 1), (1, 2), (1, 3), (2, 1)]
    # A file of training data and of prompts.
    assert prompts_lib.conversations(file=str(self.user_last(tmp_path)))[0].messages

  def user_last(self, path):
    file = path / 'prompts.jsonl'
    file.write_text(json.dumps(dict(messages=self.kept(path)[0][:-1])) + '\n')
    return file

  def test_an_interrupted_answer_stays_and_a_refused_turn_does_not(
      self, chat, tmp_path, monkeypatch
  ):
    real = specjax.stream

    def interrupted(*args, rounds_per_chunk, **options):
      for number, output in enumerate(real(*args, rounds_per_chunk=1, **options)):
        if number == 1:
          raise KeyboardInterrupt
        yield output

    monkeypatch.setattr(specjax, 'stream', interrupted)
    (output,), text = self.talk(tmp_path, 'one?', 'long ' * 2000)
    assert output.finish_reasons == ('running',) and '· stopped' in text
    assert 'error: ' in text and 'positions' in text and '/new begins another chat' in text
    assert [each['content'] for each in self.kept(tmp_path)[0]] == ['one?', output.texts[0]]
    (row,) = workdir_lib.read_rows(tmp_path)
    assert row['interrupted'] is True

  def test_without_a_template_a_text_goes_on(self, tmp_path, monkeypatch):
    tiny_pair.install(monkeypatch)
    (first, second), text = self.talk(tmp_path, 'more', prompt='def f(')
    assert 'no chat template' in text and self.prompt(first) == 'def f('
    assert self.prompt(second) == f'def f({first.texts[0]}more'
    with pytest.raises(ValueError, match='has no chat template: give one'):
      self.talk(tmp_path, chat='on')
    with pytest.raises(ValueError, match='config.num_samples=2 does not go with'):
      self.talk(tmp_path, num_samples=2)
    (tmp_path / 'chats.jsonl').write_text('{"prompt": "x"}\n')
    with pytest.raises(ValueError, match='is no file of chats'):
      self.talk(tmp_path)
