"""Prompts as people's files have them, and what the command line shows of outputs."""

import io
import types

import numpy as np
import pytest
import rich.console

import specjax
from experiments import display
from experiments import prompts
from experiments.runs import traces
from specjax import drafters
from tests.support import scripted

pytestmark = pytest.mark.usefixtures('compiled_fast')

TOKENIZER = scripted.llama_2(['cat', ' w8', ' sat', 'r', 'U'])


def ids(*pieces: str | int) -> list[int]:
  return [scripted.token(TOKENIZER, piece) for piece in pieces]


@pytest.mark.parametrize('name, content', [
    ('a.txt', 'some text'),
    ('a.jsonl', '{"prompt": "some text"}\n{"prompt": "more"}\n'),
])
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path, name, content):
  (tmp_path / name).write_text(content, encoding='utf-8-sig')
  assert prompts.texts(file=str(tmp_path / name))[0][1] == 'some text'
  stdin = io.StringIO('\ufeffsome text')
  assert prompts.texts(file='-', stdin=stdin)[0][1] == 'some text'


@pytest.mark.parametrize('text, expected', [
    ('cat', ('<s>', 'cat')),
    ('<s>cat', ('<s>', 'cat')),
    ('<s>', ('<s>',)),
    ('cat<s>', ('<s>', 'cat', '<s>')),
    ('<s><s>cat', ('<s>', '<s>', 'cat')),
])
def test_a_prompt_that_begins_with_its_bos_gets_no_second_one(text, expected):
  tokenizer = scripted.llama_2()
  tokenizer.add_tokens(['cat'])
  (prompt,) = prompts.encode([('a', text)], tokenizer)
  assert list(prompt.tokens) == [scripted.token(tokenizer, piece) for piece in expected]
  tokenizer.post_processor = None
  (prompt,) = prompts.encode([('a', 'cat')], tokenizer)
  assert list(prompt.tokens) == [scripted.token(tokenizer, 'cat')]


def test_a_prompt_that_is_cut_within_a_character_shows_none_of_it():
  text = 'é' * 4
  (prompt,) = prompts.encode([('a', text)], TOKENIZER, max_tokens=4)
  assert prompt.tokens == (1, *ids(*'éé'.encode()[:3])) and prompt.text == 'é'


def shown(prompt: list[int], output: list[int], rounds: int, **options) -> list[str]:
  """What stands on the screen after each output of a stream."""
  target = scripted.saying([prompt[-1], *output], TOKENIZER.get_vocab_size())
  console = rich.console.Console(file=io.StringIO(), width=80)
  stream = display.TokenStream(
      console, TOKENIZER, stop_strings=options.get('stop_strings', ())
  )
  seen = []
  for each in specjax.stream(
      target, [prompt], tokenizer=TOKENIZER, max_new_tokens=len(output), rounds_per_chunk=rounds,
      **options,
  ):
    stream.update(each)
    seen.append(console.file.getvalue())
  return seen


@pytest.mark.parametrize('rounds', [1, 3, 100])
def test_a_stream_shows_spaces_and_whole_characters(rounds):
  output = ids(' w8', *'é'.encode(), ' sat', 'r', 0xE8)
  seen = shown(ids('<s>', 'cat'), output, rounds)
  assert seen[-1] == ' w8é satr\N{REPLACEMENT CHARACTER}'
  for text in seen[:-1]:
    assert ' w8é satr'.startswith(text)
  if rounds == 1:
    assert seen[:4] == [' w8', ' w8', ' w8é', ' w8é sat']


@pytest.mark.parametrize('rounds', [1, 3, 100])
@pytest.mark.parametrize('stop', ['<|im_end|>', 'r<|im_end|>U', '<|im_end|>U'])
def test_a_stream_ends_before_its_stop_string(rounds, stop):
  output = ids(' w8', ' sat', 'r', '<|im_end|>', 'U', 'cat')
  seen = shown(ids('</s>'), output, rounds, stop_strings=stop)
  assert seen[-1] == (' w8 sat' if stop.startswith('r') else ' w8 satr').removeprefix(' ')
  assert all(seen[-1].startswith(text) for text in seen)


def test_the_viewers_nodes_have_their_first_space():
  script = ids('cat', ' w8', ' sat', 'r', 'U')
  target = scripted.saying(script, TOKENIZER.get_vocab_size())
  output = specjax.generate(
      target, [script[:1]], drafter=drafters.model(target, num_speculative_tokens=2),
      max_new_tokens=4, trace=True,
  )
  first, second = traces.entry(output, TOKENIZER, name='a')['rounds']
  assert first['before'] == 'cat' and second['before'] == 'r'
  assert [node['text'] for node in first['nodes']] == [' w8', ' sat']
  assert [text for text, _ in first['emitted'] + second['emitted']] == [' w8', ' sat', 'r', 'U']


def test_stop_strings_of_a_held_stream_are_one_text():
  output = types.SimpleNamespace(
      finish_reasons=('running',), tokens=np.asarray([[5, 6, 7]]), prompt_lengths=[1], trace=None,
      texts=None, new_tokens=lambda row: [ord('a'), ord('b'), ord('c')],
  )
  console = rich.console.Console(file=io.StringIO())
  tokenizer = types.SimpleNamespace(decode=lambda tokens: ''.join(map(chr, tokens)))
  display.TokenStream(console, tokenizer, stop_strings='bcd').update(output)
  assert console.file.getvalue() == 'a'
