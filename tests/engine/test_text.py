"""Tokens become text given what stands before them; stop strings are found in all of it."""

import random

import jax
import jax.numpy as jnp
import pytest
import tokenizers

import specjax
from specjax import detokenize
from specjax import models
from specjax.analysis import traces
from tests.support import scripted

pytestmark = pytest.mark.usefixtures('compiled_fast')

WORDS = ('cat', ' cat', ' w8', ' sat', 'r', 'U', ' b', 'T', 'g', ' ')
TOKENIZER = scripted.llama_2(WORDS)
BROKEN = '\N{REPLACEMENT CHARACTER}'


def ids(*pieces: str | int) -> list[int]:
  return [scripted.token(TOKENIZER, piece) for piece in pieces]


def say(prompt: list[int], output: list[int], **options) -> specjax.GenerateOutput:
  """Prompt and output as they are given, decoded by the library."""
  target = scripted.saying([prompt[-1], *output], TOKENIZER.get_vocab_size())
  options = dict(max_new_tokens=len(output), tokenizer=TOKENIZER) | options
  return specjax.decode(target, [prompt], **options)


# One place turns new tokens into text.


def test_the_first_space_stays():
  assert TOKENIZER.decode(ids(' w8')) == 'w8'
  assert detokenize.pieces(TOKENIZER, ids(' w8', ' sat'), ids('<s>', ' cat')) == [' w8', ' sat']
  # Special tokens in between are no text to go on from; what stands before them is.
  assert detokenize.pieces(TOKENIZER, ids(' w8'), ids(' cat', *['</s>'] * 9)) == [' w8']
  assert detokenize.pieces(TOKENIZER, ids(' w8', '</s>', ' sat'), ids('cat')) == [
      ' w8', '', ' sat'
  ]
  # At the very beginning of a text the decoder strips it, and is right to.
  assert detokenize.pieces(TOKENIZER, ids(' cat', ' w8')) == ['cat', ' w8']
  assert detokenize.pieces(TOKENIZER, ids(' cat'), ids('<s>')) == ['cat']
  assert traces.pieces is detokenize.pieces


def test_a_lone_space_is_not_lost():
  assert ''.join(detokenize.pieces(TOKENIZER, ids(' ', ' w8', ' ', ' sat'))) == ' w8  sat'
  assert detokenize.pieces(TOKENIZER, ids(' ', ' w8'), ids('cat')) == [' ', ' w8']


@pytest.mark.parametrize('text', ['é', '語', '🙂', 'aé語🙂b'])
def test_a_character_comes_with_its_last_byte(text):
  tokens = ids(' cat', *text.encode())
  detokenizer = detokenize.Detokenizer(TOKENIZER, ids('cat'))
  shown = ''
  for end, token in enumerate(tokens):
    shown += detokenizer.push(token)
    assert shown == ' cat' + text.encode()[:end].decode(errors='ignore')
  assert detokenizer.flush() == '' and shown == ' cat' + text


def test_a_broken_character_is_shown_as_one():
  tokens = ids('cat', 0xE8, 0xAA, 'r', 0x80, 'U', *[0x80] * 6, 'g', 0xC3)
  assert ''.join(detokenize.pieces(TOKENIZER, tokens)) == TOKENIZER.decode(tokens)
  # Characters that were shown stay, though this decoder would take them back.
  assert ''.join(detokenize.pieces(TOKENIZER, ids(*'語'.encode(), 0xE8, 'r'))) == f'語{BROKEN}r'
  assert TOKENIZER.decode(ids(*'語'.encode(), 0xE8, 'r')) == 4 * BROKEN + 'r'


def test_a_character_that_the_prompt_leaves_open_is_completed():
  first, *rest = '語'.encode()
  assert detokenize.pieces(TOKENIZER, ids(*rest, 'r'), ids('cat', first)) == ['', '語', 'r']
  assert detokenize.text(TOKENIZER, ids('cat', first)) == 'cat'
  assert detokenize.pieces(TOKENIZER, ids('r'), ids('cat', first)) == ['r']


def test_pieces_join_to_the_text_for_any_tokens():
  # Its order is another one in every process.
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  byte_level = tokenizers.Tokenizer(tokenizers.models.BPE(
      vocab={c: n for n, c in enumerate(alphabet)}, merges=[]
  ))
  byte_level.decoder = tokenizers.decoders.ByteLevel()
  # Bytes that are no character alone: some of them begin one that the next does not continue.
  inside = [n for n in range(256) if byte_level.decode([n]) == BROKEN]
  rng = random.Random(0)
  for number in range(300):
    some = inside if number % 2 else range(256)
    tokens = [rng.choice(some) for _ in range(rng.randrange(24))]
    assert ''.join(detokenize.pieces(byte_level, tokens)) == byte_level.decode(tokens)
    text = ''.join(rng.choice('aé 語🙂\n') for _ in range(12))
    alphabet = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = [byte_level.token_to_id(c) for c in alphabet.pre_tokenize_str(text)[0][0]]
    cut = rng.randrange(len(tokens))
    before, after = tokens[:cut], tokens[cut:]
    joined = detokenize.text(byte_level, before) + ''.join(
        detokenize.pieces(byte_level, after, before)
    )
    assert joined == text


# Texts of outputs.


@pytest.mark.parametrize('rounds', [None, 1, 3])
def test_texts_go_on_from_the_prompt(rounds):
  output = say(ids('<s>', 'cat'), ids(' w8', ' sat'), rounds_per_chunk=rounds)
  assert output.texts == (' w8 sat',)


def test_texts_of_a_stream_never_take_anything_back():
  output = ids(' w8', *'é'.encode(), '<|im_end|>', 'r', 'U', *'🙂'.encode(), ' b', 'T')
  target = scripted.saying([ids('cat')[0], *output], TOKENIZER.get_vocab_size())
  seen = [
      each.texts[0]
      for each in specjax.stream(
          target, [ids('cat')], tokenizer=TOKENIZER, max_new_tokens=len(output), rounds_per_chunk=1,
          stop_strings=['é<|im_end|>U', ' bT'],
      )
  ]
  # Held back: the character that is open, and what may be the beginning of a stop string.
  assert seen == [
      ' w8', ' w8', ' w8', ' w8', ' w8ér', ' w8érU', *[' w8érU'] * 3, *[' w8érU🙂'] * 3
  ]


def test_a_text_that_ends_within_a_character_says_so():
  output = say(ids('cat'), ids(' w8', '語'.encode()[0]))
  assert output.texts == (f' w8{BROKEN}',) and output.finish_reasons == ('length',)


# Stop strings.


@pytest.mark.parametrize('rounds', [None, 1, 3])
@pytest.mark.parametrize(
    'stop, kept, text',
    [
        (' w8', 1, ''),
        ('8 s', 2, ' w'),
        ('<|im_end|>', 4, ' w8 satr'),
        (['no', '<|im_end|>U'], 5, ' w8 satr'),
        ('r<|im', 4, ' w8 sat'),
        ('rU', 8, ' w8 satrU bTg'),
        ('bTg', 8, ' w8 satrU '),
        (['U ', 'Tg'], 6, ' w8 satr'),
        ([], 8, ' w8 satrU bTg'),
    ],
)
def test_stop_strings_are_found_in_the_text_with_its_special_tokens(stop, kept, text, rounds):
  output = ids(' w8', ' sat', 'r', '<|im_end|>', 'U', ' b', 'T', 'g')
  found = say(ids('<s>', 'cat'), output, stop_strings=stop, rounds_per_chunk=rounds)
  assert found.texts == (text,) and found.new_tokens().tolist() == output[:kept]
  stops = stop not in ([], 'rU')
  assert found.finish_reasons == ('stop' if stops else 'length',)


def test_decoders_without_special_tokens_will_do():
  class Bytes:
    def decode(self, ids):
      return bytes(ids).decode(errors='replace')

  text = b'caf\xc3\xa9 no'
  target = scripted.saying(list(text), 256)
  output = specjax.decode(
      target, [[text[0]]], max_new_tokens=8, tokenizer=Bytes(), stop_strings='é '
  )
  assert output.texts == ('af',) and output.num_new_tokens == 5


def test_one_empty_stop_string_is_refused():
  for empty in ('', ['a', '']):
    with pytest.raises(ValueError, match='stop string is empty'):
      say(ids('cat'), ids(' w8'), stop_strings=empty)


# The longest sequence.


def test_no_row_may_be_longer_than_the_target_was_made_for():
  config = models.TransformerConfig(
      vocab_size=8, num_layers=1, width=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_width=8,
      max_positions=16,
  )
  module = models.Transformer(config)
  params = module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  target = models.LanguageModel(module, params)
  for prompts, limits in (([[1] * 12], 5), ([[1], [2] * 12], [15, 5])):
    row = len(prompts) - 1
    with pytest.raises(ValueError, match=f'Prompt {row} has 12 tokens; with 5 .* the 16 positions'):
      specjax.decode(target, prompts, max_new_tokens=limits)
  assert specjax.decode(target, [[1] * 12], max_new_tokens=4).num_new_tokens == 4
