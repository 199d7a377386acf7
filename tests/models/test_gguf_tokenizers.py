"""Tokenizers of GGUF files: ids on hard texts, ends of texts, and what is refused."""

import functools
import json
import os
import pathlib

import pytest

from experiments import prompts
from specjax import models
from specjax.models import gguf
from tests.support import gguf_texts

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'gguf'
SMOLLM2 = 'SPECJAX_SMOLLM2'
RULES = ('llama-bpe', 'qwen2', 'deepseek-r1-qwen', 'smollm', 'gpt-2', 'tekken')


@functools.cache
def golden():
  return json.loads((GOLDEN / 'tokenizers.json').read_text(encoding='utf-8'))


def write(tmp_path, kind='byte_level', architecture='qwen2', **keys):
  """A file with one of the two vocabularies."""
  vocabulary = golden()['pieces' if kind == 'gemma' else kind]
  if kind == 'gemma':
    vocabulary = gguf_texts.as_gemma(vocabulary)
  return gguf_texts.write(tmp_path / 'model.gguf', vocabulary, architecture, **keys)


def encoded(tokenizer):
  return [tokenizer.encode(text).ids for text in gguf_texts.TEXTS]


def assert_same(found, wanted):
  for text, ours, theirs in zip(gguf_texts.TEXTS, found, wanted, strict=True):
    assert ours == theirs, text


@pytest.mark.parametrize('rule', RULES)
def test_ids_of_bytes(rule, tmp_path):
  tokenizer = gguf.load_gguf_tokenizer(write(tmp_path, pre=rule))
  found = encoded(tokenizer)
  assert_same(found, golden()['ids'][rule])
  # The rules differ on these texts, so that agreement means something.
  others = [golden()['ids'][other] for other in RULES if other not in (rule, 'deepseek-r1-qwen')]
  assert found not in others[:5] or rule == 'deepseek-r1-qwen'
  for text, ids in zip(gguf_texts.TEXTS, found):
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    assert whole == text or rule == 'qwen2'  # which composes characters


def test_rules_of_other_names(tmp_path):
  ids = lambda rule: encoded(gguf.load_gguf_tokenizer(write(tmp_path, pre=rule)))
  same = {'llama3': 'llama-bpe', 'llama-v3': 'llama-bpe', 'starcoder': 'smollm'}
  for name, other in same.items():
    assert_same(ids(name), golden()['ids'][other])
  # A file without a rule has llama.cpp's: punctuation alone, and digits by threes.
  assert ids(None) == ids('default')
  tokenizer = gguf.load_gguf_tokenizer(write(tmp_path, pre=None))
  pieces = [text for text, _ in tokenizer.pre_tokenizer.pre_tokenize_str("it's 12345 x<=y\n  z")]
  assert pieces == ["it", "'", 's', 'Ġ', '123', '45', 'Ġx', '<=', 'y', 'ĊĠ', 'Ġz']


@pytest.mark.parametrize('rule, whole', [
    ('llama-bpe', True), ('tekken', True), ('qwen2', False), ('smollm', False),
])
def test_some_rules_keep_a_word_that_is_a_token(rule, whole, tmp_path):
  vocabulary = golden()['byte_level']
  word = next(
      text for text in vocabulary['tokens'] if text[0] == 'Ġ' and text[1:].isascii() and text[2:]
  )
  # Without its merges no other rule gets there.
  tokenizer = gguf.load_gguf_tokenizer(
      write(tmp_path, pre=rule, merges=vocabulary['merges'][:1])
  )
  assert (tokenizer.encode(f' {word[1:]}').tokens == [word]) == whole


@pytest.mark.parametrize('kind, architecture', [('llama', 'llama'), ('gemma', 'gemma2')])
def test_ids_of_pieces(kind, architecture, tmp_path):
  vocabulary = 'pieces' if kind == 'llama' else 'gemma'
  tokenizer = gguf.load_gguf_tokenizer(write(tmp_path, vocabulary, architecture))
  found = encoded(tokenizer)
  assert_same(found, golden()['ids'][kind])
  for text, ids in zip(gguf_texts.TEXTS, found):
    if '\N{LOWER ONE EIGHTH BLOCK}' in text or kind == 'llama' and text.startswith(' '):
      continue  # a block is a space to them, and Llama's first space is the text's own
    assert tokenizer.decode(ids[1:], skip_special_tokens=False) == text


def test_ids_of_bytes_are_those_of_a_tokenizer_json_of_the_same(tmp_path):
  tokenizer = gguf.load_gguf_tokenizer(write(tmp_path, pre='llama-bpe'))
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  again = models.load_tokenizer(tmp_path)
  assert encoded(again) == encoded(tokenizer)
  count = len(golden()['byte_level']['tokens'])
  assert again.get_vocab_size() == tokenizer.get_vocab_size() == count


@pytest.mark.parametrize('keys, begins, ends', [
    (dict(), False, False),
    (dict(add_bos_token=True), True, False),
    (dict(add_bos_token=True, add_eos_token=True), True, True),
    (dict(add_bos_token=False, add_eos_token=True), False, True),
    (dict(add_bos_token=None, pre='llama-bpe'), True, False),
    (dict(add_bos_token=None, pre='qwen2'), False, False),
])
def test_ends_of_texts(keys, begins, ends, tmp_path):
  tokenizer = gguf.load_gguf_tokenizer(write(tmp_path, **dict(pre='qwen2') | keys))
  bos, eos = (tokenizer.token_to_id(text) for text in ('<|endoftext|>', '<|im_end|>'))
  plain = tokenizer.encode('Hello', add_special_tokens=False).ids
  assert tokenizer.encode('Hello').ids == [bos] * begins + plain + [eos] * ends
  # A prompt with its BOS gets no second one.
  (prompt,) = prompts.encode([('', '<|endoftext|>Hello')], tokenizer)
  assert prompt.tokens.count(bos) == 1 and prompt.tokens[0] == bos


def test_end_tokens_and_others_by_name(tmp_path):
  path = write(tmp_path, pre='qwen2')
  tokenizer = gguf.load_gguf_tokenizer(path)
  assert gguf.load_gguf_eos_ids(path) == tuple(
      map(tokenizer.token_to_id, ('<|im_end|>', '<|endoftext|>'))
  )
  assert gguf.load_gguf_special_tokens(path) == {
      'bos_token': '<|endoftext|>', 'eos_token': '<|im_end|>'
  }
  path = write(tmp_path, pre='qwen2', eot_token_id=5, eom_token_id=2**32 - 1)
  assert gguf.load_gguf_eos_ids(path)[1] == 5
  pieces = write(tmp_path, 'pieces', 'llama', bos_token_id=None, eos_token_id=None)
  assert gguf.load_gguf_special_tokens(pieces) == {
      'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'
  }
  assert gguf.load_gguf_eos_ids(pieces) == (2,)


def test_chat_templates(tmp_path):
  from tests.support import gguf_files

  case = gguf_files.metadata(gguf_files.CASES['llama'])
  key = 'tokenizer.chat_template'
  load = lambda more: gguf.load_gguf_chat_template(
      gguf_files.write(tmp_path / 'model.gguf', case | more, {})
  )
  assert load({}) is None
  assert load({key: '{{ x }}', f'{key}.tools': '{{ y }}'}) == '{{ x }}'
  with pytest.raises(ValueError, match='tokenizer.chat_template must be a text, got 3'):
    load({key: 3})


@pytest.mark.parametrize('kind, keys, message', [
    ('byte_level', dict(model='bert'), "tokenizer.ggml.model='bert' is not supported. Supported"),
    ('byte_level', dict(pre='poro-chat'),
     "tokenizer.ggml.pre='poro-chat' is not supported. Supported are default, deepseek-r1-qwen, "),
    ('byte_level', dict(merges=None), "model 'gpt2' needs tokenizer.ggml.merges"),
    ('byte_level', dict(merges=['a b c']), 'merges must hold pairs of tokens that are a token'),
    ('byte_level', dict(merges=['a zz']), "a token together, got 'a zz': the file is damaged"),
    ('byte_level', dict(tokens=None), 'tokenizer.ggml.tokens must be a list of texts, got None'),
    ('byte_level', dict(token_type=[1, 2]), r'token_type must have an entry for each of \d+ tok'),
    ('byte_level', dict(eos_token_id=10**6), r'eos_token_id=1000000 is none of \d+ tokens'),
    ('byte_level', dict(add_bos_token=True, bos_token_id=None),
     'add_bos_token is true, but tokenizer.ggml.bos_token_id is missing'),
    ('byte_level', dict(add_sep_token=True), 'add_sep_token=True is not supported'),
    ('byte_level', {'normalizer.lowercase': True}, 'normalizer.lowercase=True is not supported'),
    ('byte_level', dict(new_rule='x'), "tokenizer.ggml.new_rule='x' is not known, and may change"),
    ('pieces', dict(scores=[0.0]), 'scores must have an entry for each'),
    ('pieces', dict(scores=None), 'scores must have an entry for each'),
    ('pieces', dict(scores=[float('nan')]), 'scores must be a list of finite numbers'),
    ('pieces', dict(remove_extra_whitespaces=True), 'remove_extra_whitespaces=True is not supp'),
    ('pieces', dict(precompiled_charsmap=[1]), r'precompiled_charsmap=\[1\] is not supported'),
])
def test_what_is_not_supported_is_refused_by_name(kind, keys, message, tmp_path):
  path = write(tmp_path, kind, **dict(pre='qwen2') | keys)
  with pytest.raises(ValueError, match=message) as info:
    gguf.load_gguf_tokenizer(path)
  assert str(path) in str(info.value)


def test_a_token_that_is_there_twice_is_refused(tmp_path):
  tokens = list(golden()['byte_level']['tokens'])
  tokens[7] = tokens[3]
  with pytest.raises(ValueError, match='twice, as tokens 3 and 7: the file is damaged'):
    gguf.load_gguf_tokenizer(write(tmp_path, tokens=tokens, merges=[f'{tokens[0]} {tokens[1]}']))


def test_ids_of_smollm2():
  if not os.environ.get(SMOLLM2):
    pytest.skip(f'NOT TESTED: {SMOLLM2} names no SmolLM2-135M-Instruct.Q4_1.gguf')
  tokenizer = gguf.load_gguf_tokenizer(os.environ[SMOLLM2])
  data = json.loads((GOLDEN / 'smollm2.json').read_text(encoding='utf-8'))
  assert_same(encoded(tokenizer), data['texts'])
  for prompt in data['prompts']:
    assert tokenizer.encode(prompt['text']).ids == prompt['ids']
  assert gguf.load_gguf_eos_ids(os.environ[SMOLLM2]) == (2, 0)
  assert '<|im_start|>' in gguf.load_gguf_chat_template(os.environ[SMOLLM2])
