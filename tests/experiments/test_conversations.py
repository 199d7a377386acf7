"""Chats and turns from files of prompts, and their tokens by a chat template."""

import json

import pytest

from experiments import prompts
from specjax.models import chat
from tests.support import scripted

TEMPLATE = """\
{{ bos_token }}
{%- for m in messages %}{{ m.role[0] + ':' + m.content + '<|im_end|>' }}{% endfor %}
{%- if note is defined %}{{ note }}{% endif %}a:"""
TOKENIZER = scripted.llama_2()
OPTIONS = dict(template=TEMPLATE, tokenizer=TOKENIZER, special_tokens={'bos_token': '<s>'})

SYSTEM = {'role': 'system', 'content': 'S'}
USER = {'role': 'user', 'content': 'U'}
ASSISTANT = {'role': 'assistant', 'content': 'A'}


def write(folder, *rows) -> str:
  file = folder / 'rows.jsonl'
  file.write_text('\n'.join(row if isinstance(row, str) else json.dumps(row) for row in rows))
  return str(file)


def text_of(conversation, turn=0, answers=(), **options) -> str:
  """The text of the tokens that a conversation becomes."""
  tokens = prompts.chat_tokens(conversation, turn, answers, **OPTIONS | options)
  return TOKENIZER.decode(tokens, skip_special_tokens=False)


def test_all_turns_of_a_row_are_kept_and_the_first_is_the_text(tmp_path):
  file = write(
      tmp_path, dict(question_id=81, category='math', turns=['one?', 'two?', 'three?']),
      dict(prompt='four?', messages=[USER]), dict(messages=[USER], category='talk'),
  )
  conversations = prompts.conversations(file=file)
  assert conversations == [
      prompts.Conversation('math/81', ('one?', 'two?', 'three?')),
      prompts.Conversation('question/2', ('four?',)),
      prompts.Conversation('talk/3', ('U',), (USER,)),
  ]
  assert prompts.conversations(file=file, category='talk') == conversations[2:]
  math, question, _ = conversations
  assert prompts.by_turns([math, math, question]) == [math, question, math]
  assert prompts.texts(file=file, category='math') == [('math/81', 'one?')]
  with pytest.raises(ValueError, match=r'talk/3 is a chat \("messages"\), which needs a chat'):
    prompts.texts(file=file)


def test_a_text_is_a_conversation_of_one_turn(tmp_path):
  (tmp_path / 'a.txt').write_text('some text')
  assert prompts.conversations(prompt='x') == [prompts.Conversation('prompt', ('x',))]
  (conversation,) = prompts.conversations(file=str(tmp_path / 'a.txt'))
  assert text_of(conversation) == '<s>u:some text<|im_end|>a:'


def test_a_turn_comes_after_the_answers_before_it():
  conversation = prompts.Conversation('math/81', ('one?', 'two?'))
  assert text_of(conversation) == '<s>u:one?<|im_end|>a:'
  later = text_of(conversation, 1, ['1'], system='Count.', note='!')
  assert later == '<s>s:Count.<|im_end|>u:one?<|im_end|>a:1<|im_end|>u:two?<|im_end|>!a:'
  # The template's BOS is the only one.
  tokens = prompts.chat_tokens(conversation, 0, [], **OPTIONS)
  assert tokens.count(1) == 1 and TOKENIZER.encode('x').ids[0] == 1


def test_a_chat_keeps_its_own_system_text_and_answers(tmp_path):
  file = write(
      tmp_path, dict(messages=[SYSTEM, USER, ASSISTANT, USER]), dict(messages=[USER])
  )
  own, bare = prompts.conversations(file=file)
  assert own.turns == ('U',)
  assert text_of(own, system='T') == '<s>s:S<|im_end|>u:U<|im_end|>a:A<|im_end|>u:U<|im_end|>a:'
  assert text_of(bare, system='T') == '<s>s:T<|im_end|>u:U<|im_end|>a:'


@pytest.mark.parametrize('row, message', [
    ({'turns': ['a', '']}, 'line 2: turn 2 of 2 of the prompt question/2 is empty. Write a text'),
    ({'turns': ['a', 3]}, r'line 2 must be an object with "turns" \(a list of texts'),
    ({'turns': 'a'}, 'line 2 must be an object with "turns"'),
    ({'messages': []}, r'line 2, "messages": A chat must be a list of at least one message'),
    ({'messages': {}}, 'line 2, "messages": A chat must be a list'),
    ({'messages': [{'role': 'human', 'content': 'a'}]},
     "line 2, \"messages\": Message 1 of 1: role must be one of system.*got 'human'"),
    ({'messages': [{'role': 'user'}]}, 'line 2, "messages": Message 1 of 1 .*must be a text'),
    ({'messages': [USER, ASSISTANT]},
     'line 2, "messages": the last one must be the user\'s.*got one of the assistant'),
    ({'messages': [{'role': 'user', 'content': ''}]}, 'line 2: the prompt question/2 is empty'),
    ('[' * 100_000, 'line 2 is not JSON'),
])
def test_a_broken_row_names_file_and_line(tmp_path, row, message):
  file = write(tmp_path, {'turns': ['a']}, row)
  with pytest.raises(ValueError, match=message) as info:
    prompts.conversations(file=file)
  assert str(info.value).startswith(file)


@pytest.mark.parametrize('turn, answers, options, message', [
    (2, ['1', '2'], {}, 'The prompt math/81 has 2 turns, counted from 0; there is no turn 2'),
    (-1, [], {}, 'there is no turn -1'),
    (1, [], {}, 'math/81: turn 1 comes after 1 answers, one to each turn before it; got 0'),
    (0, ['1'], {}, 'turn 0 comes after 0 answers'),
    (0, [], dict(special_tokens={}), "math/81: .*'bos_token' is undefined"),
    (0, [], dict(template=None), 'math/81: A chat is rendered by a template'),
    (0, [], dict(template='{# nothing #}'), "math/81: the chat template wrote '', of which there"),
])
def test_a_turn_that_cannot_be_rendered(turn, answers, options, message):
  conversation = prompts.Conversation('math/81', ('one?', 'two?'))
  with pytest.raises(ValueError, match=message):
    prompts.chat_tokens(conversation, turn, answers, **OPTIONS | options)


def test_no_prompt_is_cut_without_a_word():
  texts = [(name, name * 6) for name in 'abcdefg']
  whole = prompts.encode(texts, TOKENIZER)
  assert not any(each.num_cut for each in whole) and prompts.describe_cuts(whole) == ''
  cut = prompts.encode([('z', 'z'), *texts], TOKENIZER, max_tokens=4)
  assert [(len(each.tokens), each.num_cut) for each in cut] == [(2, 0)] + [(4, 3)] * 7
  assert prompts.describe_cuts(cut) == (
      '7 of 8 prompts were cut at their ends: a (4 of 7 tokens), b (4 of 7 tokens), '
      'c (4 of 7 tokens), 4 more.'
  )


def test_the_special_tokens_of_a_chat_are_those_that_it_ends_with():
  ids = chat.chat_end_ids(TEMPLATE, TOKENIZER, special_tokens={'bos_token': '<s>'})
  assert ids == (scripted.token(TOKENIZER, '<|im_end|>'),)
