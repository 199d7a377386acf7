"""Chats are rendered and encoded as transformers does it; what is no chat is refused."""

import hashlib
import json
import pathlib

import pytest
import tokenizers

from specjax import models
from specjax.models import chat
from tests.support import published_templates

GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / 'golden' / 'chats.json').read_text(encoding='utf-8')
)
TEMPLATES, SPECIAL = GOLDEN['templates'], GOLDEN['special_tokens']
HELLO = [{'role': 'user', 'content': 'Hello!'}]


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.Tokenizer.from_str(json.dumps(GOLDEN['tokenizer']))


def rendered(template: str, title: str, **options) -> str | None:
  """The text of a chat of the goldens, or None where the template refuses it."""
  options = GOLDEN['chats'][title] | options
  try:
    return chat.render(template, special_tokens=SPECIAL, **options)
  except ValueError as error:
    if 'refuses these messages' not in str(error):
      raise
    return None


class TestRendering:

  @pytest.mark.parametrize('name', TEMPLATES)
  def test_texts_and_tokens_are_those_of_transformers(self, name, tokenizer):
    for title, expected in GOLDEN['results'][name].items():
      text = rendered(TEMPLATES[name], title)
      assert text == expected.get('text'), title
      if text is not None:
        assert chat.encode(text, tokenizer) == [*map(int, expected['tokens'].split())], title

  def test_the_goldens_have_refusals_and_every_construct(self):
    """So that agreeing with them means something."""
    refused = [title for title, each in GOLDEN['results']['refusals'].items() if 'error' in each]
    assert refused == ['system', 'everything', 'two questions', 'tools']
    source = ''.join(TEMPLATES.values())
    for construct in (
        'trim', 'tojson(indent', 'sort_keys', 'ensure_ascii', 'raise_exception', 'strftime_now',
        'namespace', 'break', 'continue', 'generation', 'macro', 'is defined', 'default(',
    ):
      assert construct in source, construct

  def test_special_tokens_in_a_text_are_their_ids_and_no_bos_is_added(self, tokenizer):
    assert tokenizer.encode('<s>a').ids[:2] == [1, 1]  # what a plain text gets
    ids = chat.encode('<s>a<|im_end|>', tokenizer)
    assert ids == [1, tokenizer.token_to_id('a'), tokenizer.token_to_id('<|im_end|>')]

  def test_a_date_can_be_fixed(self):
    template = "{{ strftime_now('%d %b %Y') }}"
    assert chat.render(template, HELLO, strftime_now=lambda form: form) == '%d %b %Y'
    assert int(chat.render(template, HELLO)[-4:]) > 2000

  def test_messages_are_what_they_were(self):
    messages = [dict(each) for each in HELLO]
    for change in ('messages.append(1)', 'messages[0].update(role=1)', 'messages[0].clear()'):
      with pytest.raises(ValueError, match='SecurityError'):
        chat.render('{{ ' + change + ' }}', messages)
    assert messages == HELLO


class TestRefusals:

  @pytest.mark.parametrize('messages, message', [
      ([], r'at least one message such as .*, got \[\]'),
      ('Hello!', "at least one message such as .*, got 'Hello!'"),
      (HELLO[0], 'must be a list of at least one message'),
      ([*HELLO, 'Hello!'], "Message 2 of 2 must be an object such as .*, got 'Hello!'"),
      ([{'role': 'human', 'content': ''}],
       "role must be one of system, user, assistant, tool, got 'human'. Rename"),
      ([{'content': 'Hello!'}], 'Message 1 of 1: role must be one of .*, got None'),
      ([{'role': 'user'}], r'Message 1 of 1 \(user\): content must be a text, got None. Give'),
      ([{'role': 'user', 'content': [{'type': 'text', 'text': 'Hello!'}]}],
       'content must be a text, got .*Join its parts; images'),
      ([{'role': 'user', 'content': 7}], 'content must be a text, got 7'),
  ])
  def test_what_is_no_chat(self, messages, message):
    with pytest.raises(ValueError, match=message):
      chat.render(TEMPLATES['marks'], messages)

  @pytest.mark.parametrize('template, message', [
      (None, r'the text that load_chat_template\(folder\) reads or one of your own; got None'),
      ("{{ raise_exception('Only one turn.') }}", 'refuses these messages: Only one turn. Change'),
      ('a\n{% if %}', r"not valid Jinja: Expected an expression.*\(line 2\). Fetch it again"),
      ('{{ messages | nothing }}', "not valid Jinja: No filter named 'nothing'"),
      ('{{ bos_token }}', "'bos_token' is undefined. Give special tokens"),
      ('{{ bos_token | trim }}', "'bos_token' is undefined. Give special tokens"),
      ('{{ messages[0].name.first }}', "has no attribute 'name'. Give special tokens"),
      ("{{ '<s>' ~ system }}", "'system' is undefined"),
      ("{{ 'a' + nothing.more }}", "'nothing' is undefined"),
      ("{{ messages[0].content + 1 }}", r'cannot be rendered \(TypeError: .*takes messages of'),
      ('{{ 1 / 0 }}', r'cannot be rendered \(ZeroDivisionError'),
      ("{{ ''.__class__.__mro__ }}", r'cannot be rendered \(SecurityError'),
      ('{{ namespace(__class__=1) }}', r'SecurityError: a namespace takes no name such as'),
      ('{% set ns = namespace() %}{% set ns.__a = 1 %}', r"no name such as '__a'"),
      ('{% for i in range(10 ** 9) %}{% endfor %}', r'cannot be rendered \(OverflowError'),
  ])
  def test_a_template_that_does_not_work(self, template, message):
    with pytest.raises(ValueError, match=message):
      chat.render(template, HELLO)

  def test_what_is_not_defined_may_be_asked_for_or_be_empty_on_purpose(self):
    template = '{{ bos_token }}{% if not (tools or nothing) and system is undefined %}a{% endif %}'
    assert chat.render(template, HELLO, special_tokens={'bos_token': ''}) == 'a'
    # What a message does not have is written as transformers does it.
    assert chat.render('a{{ messages[0].name }}', HELLO) == 'a'


class TestEnds:

  @pytest.mark.parametrize('template, expected', [
      (TEMPLATES['marks'], '<|im_end|>'),
      (TEMPLATES['headers'], '</s>'),
      (TEMPLATES['refusals'], '</s>'),
      (TEMPLATES['controls'], '<|im_end|>'),
      # A space, or a line break, before the mark.
      ("{% for m in messages %}{{ m.content + ' \n</s>' }}{% endfor %}", '</s>'),
      # Nothing after the last answer, but a mark where the user goes on.
      ("{% for m in messages %}{{ '<|header|>' + m.content }}{% endfor %}", '<|header|>'),
      # Plain text.
      ("{% for m in messages %}{{ '### ' + m.content + '\n' }}{% endfor %}", None),
  ])
  def test_the_token_after_an_answer(self, template, expected, tokenizer):
    ids = chat.chat_end_ids(template, tokenizer, special_tokens=SPECIAL)
    assert ids == (() if expected is None else (tokenizer.token_to_id(expected),))

  def test_a_longer_mark_wins_and_a_word_may_be_one(self, tokenizer):
    longer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    longer.add_special_tokens(['<|im_end|>|'])
    template = "{% for m in messages %}{{ m.content + '<|im_end|>|' }}{% endfor %}"
    assert chat.chat_end_ids(template, longer) == (longer.token_to_id('<|im_end|>|'),)
    # An end token of the vocabulary that was not added as a special one.
    template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    ids = chat.chat_end_ids(template, tokenizer, special_tokens={'eos_token': '!'})
    assert ids == (tokenizer.token_to_id('!'),)

  def test_what_has_no_end_to_be_seen(self, tokenizer):
    with pytest.raises(ValueError, match="does not write the answer 'It is azure.'"):
      chat.chat_end_ids('{{ messages[0].content }}', tokenizer)
    with pytest.raises(ValueError, match='must end with an answer of the assistant'):
      chat.chat_end_ids(TEMPLATES['marks'], tokenizer, messages=HELLO)


class TestFolders:

  @pytest.mark.parametrize('files, expected', [
      ({}, None),
      ({'tokenizer_config.json': {'chat_template': None}}, None),
      ({'tokenizer_config.json': {'chat_template': []}, 'chat_template.json': {}}, None),
      ({'chat_template.json': {'chat_template': 'a'}}, 'a'),
      ({'tokenizer_config.json': {'chat_template': 'b'},
        'chat_template.json': {'chat_template': 'a'}}, 'b'),
      ({'tokenizer_config.json': {'chat_template': [
          {'name': 'tool_use', 'template': 'c'}, {'name': 'default', 'template': 'd'}]}}, 'd'),
      ({'tokenizer_config.json': {'chat_template': 'b'}, 'chat_template.jinja': 'e\n'}, 'e\n'),
  ])  # fmt: skip
  def test_the_template_of_a_folder(self, files, expected, tmp_path):
    write(tmp_path, files)
    assert chat.load_chat_template(tmp_path) == expected

  @pytest.mark.parametrize('value, message', [
      (1, 'chat_template must be a text, a list of objects with a name and a template, or null'),
      (['a'], r"or null, got \['a'\]"),
      ([{'name': 'default'}], 'or null, got'),
      ([{'name': 'rag', 'template': ''}], "named 'default'; there are: 'rag'. Give the text"),
  ])
  def test_a_folder_with_something_else(self, value, message, tmp_path):
    write(tmp_path, {'tokenizer_config.json': {'chat_template': value}})
    with pytest.raises(ValueError, match=message) as info:
      chat.load_chat_template(tmp_path)
    assert 'tokenizer_config.json' in str(info.value)

  def test_special_tokens_are_texts_or_objects(self, tmp_path):
    assert chat.special_tokens(tmp_path) == {}
    write(tmp_path, {
        'special_tokens_map.json': {'bos_token': '<map>', 'unk_token': {'content': '<unk>'}},
        'tokenizer_config.json': {
            'bos_token': {'content': '<s>', 'lstrip': False}, 'eos_token': '</s>',
            'pad_token': None,
        },
    })
    texts = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
    assert chat.special_tokens(tmp_path) == texts
    write(tmp_path, {'tokenizer_config.json': {'bos_token': 7}})
    with pytest.raises(ValueError, match='tokenizer_config.json: bos_token must be an object, got'):
      chat.special_tokens(tmp_path)

  def test_a_folder_or_a_file_that_cannot_be_read(self, tmp_path):
    for function in (chat.load_chat_template, chat.special_tokens):
      with pytest.raises(FileNotFoundError, match='There is no folder'):
        function(tmp_path / 'nowhere')
    (tmp_path / 'chat_template.jinja').write_bytes(b'\xff')
    with pytest.raises(ValueError, match='chat_template.jinja is not UTF-8'):
      chat.load_chat_template(tmp_path)

  def test_a_byte_order_mark_is_no_part_of_a_template(self, tmp_path):
    (tmp_path / 'chat_template.jinja').write_text('a', encoding='utf-8-sig')
    assert models.chat.load_chat_template(tmp_path) == 'a'


def write(folder: pathlib.Path, files: dict) -> None:
  for name, content in files.items():
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding='utf-8')


# As the models' own generation configs have them.
PUBLISHED_ENDS = {
    'meta-llama': '<|eot_id|>', 'Qwen': '<|im_end|>', 'google': '<end_of_turn>', 'mistralai': '</s>'
}


def test_published_templates_have_the_texts_of_transformers(tmp_path, tokenizer):
  try:
    templates = published_templates.fetch(tmp_path, GOLDEN['published'])
  except OSError as error:
    pytest.skip(f'NOT TESTED: {error}')
  tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
  tokenizer.add_special_tokens([*PUBLISHED_ENDS.values()])
  for name, digests in GOLDEN['published'].items():
    (end,) = chat.chat_end_ids(templates[name], tokenizer, special_tokens=SPECIAL)
    maker = next(maker for maker in PUBLISHED_ENDS if name.startswith(maker))
    assert tokenizer.id_to_token(end) == PUBLISHED_ENDS[maker]
    for title, expected in digests.items():
      text = rendered(templates[name], title, **GOLDEN['date'])
      digest = None if text is None else hashlib.sha256(text.encode()).hexdigest()
      assert digest == expected, f'{name}: {title}\n{text}'
