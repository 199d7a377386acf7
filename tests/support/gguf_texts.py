"""Texts that are hard to split into tokens, and small vocabularies of GGUF files."""

from collections.abc import Sequence
import pathlib
from typing import Any

from tests.support import gguf_files

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_SPACE = '\N{LOWER ONE EIGHTH BLOCK}'
TEXTS = (
    '',
    'Hello, world!',
    "I've said it's what they'll see; DON'T shout, WE'RE here, O'Brien's 'quoted' 'RE",
    '  two spaces, then three   and a trailing one ',
    'tabs\tand\t\ttwo\nlines\n\n\nthree\r\nDOS\r\n\r\n   indented\n \n',
    ' ' * 37 + 'far' + ' ' * 16 + 'apart',
    '0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 v1.2.3 x86_64 ٣٤٥ ⅷ½',
    'def f(x: int) -> list[str]:\n    """Doc."""\n    return [f"{x:>8.3f}%" for _ in range(10)]\n',
    '#include <stdio.h>\nint main(){printf("%d\\n", a[i]++ && b!=c);}// ok',
    'https://example.org/a_b/?q=1&r=%20#top user.name+tag@mail.co',
    '!!! ??? ... --- *** ((( ))) {{}} <=>= ||| ~~~ ``` $$$ ^^ +-*/',
    'CamelCaseWords and snake_case_words, ALLCAPS iPhone McDonald eBay',
    '你好，世界。今天是2024年5月17日。日本語のテキスト、カタカナ。한국어 문장입니다.',
    'Привет, мир! Γειά σου Κόσμε. مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก',
    '😀😃🚀 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ✈️ ☃ a😀b',
    'e\u0301 cafe\u0301 \u00e9 n\u0303 A\u030a \ufb01 stra\u00dfe \u0130stanbul \u1e9e',
    'no\u00a0break thin\u2009space zero\u200bwidth \u3000wide line\u2028sep \ufeffmark',
    'bell\x07 null\x00 escape\x1b[0m del\x7f',
    '<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n',
    'text<|endoftext|>more <s>no start</s> <unk> <bos> <think> thought</think> <tool>x<tool>',
    f'{_SPACE} literal {_SPACE}{_SPACE} block, \u0120 and \u010a',
    'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa banana bananas',
    'L\'été, "où" — «guillemets» … ¿qué? ¡sí! “quotes” ‘single’',
    'a\nb\n\nc\n\n\nd \n e  \n  f\t\n',
    '$x^2 + \\frac{1}{2} = \\sum_{i=0}^{n} a_i$',
)
PROMPTS = (
    'The capital of France is',
    '<|im_start|>user\nWrite a haiku about the sea.<|im_end|>\n<|im_start|>assistant\n',
    'def fibonacci(n):\n    if n <',
    '1, 1, 2, 3, 5, 8, 13, 21,',
)
# What small vocabularies are learned from.
TRAINING = tuple(TEXTS[1:18]) + (
    'The quick brown fox jumps over the lazy dog. Then the dog sleeps; the fox runs away.\n',
    'for i in range(100):\n    print(i, end=" ")\n    if i % 10 == 9:\n        print()\n',
    'It was the best of times, it was the worst of times; it was 1859, and 12 days later 1860.\n',
    "He said that he's sure they've been there: isn't it? Yes, it's what they'd said.\n",
    'banana bandana cabana 100 200 300 1000 2000 3000, (see p. 12), [1], [2], [12].\n',
)


def is_plain(text: str) -> bool:
  """Whether SentencePiece itself reads a text as `transformers` does.

  Special tokens are plain text to it, and it puts a space before a text that begins with one.
  """
  return not text.startswith((' ', _SPACE)) and '<' not in text and '\0' not in text


def with_added(tokens: Sequence[str], *, merges: Sequence[str]) -> dict[str, Any]:
  """A vocabulary of bytes with special tokens, one that is user-defined, and padding."""
  added = {
      '<|endoftext|>': CONTROL, '<|im_start|>': CONTROL, '<|im_end|>': CONTROL,
      '<think>': USER_DEFINED, '</think>': USER_DEFINED, '[PAD0]': UNUSED, '[PAD1]': UNUSED,
  }
  tokens = [*tokens, *added]
  return {
      'model': 'gpt2',
      'tokens': tokens,
      'token_type': [added.get(token, NORMAL) for token in tokens],
      'merges': list(merges),
      'bos_token_id': tokens.index('<|endoftext|>'),
      'eos_token_id': tokens.index('<|im_end|>'),
      'add_bos_token': False,
  }


def of_processor(processor) -> dict[str, Any]:
  """The vocabulary of a SentencePiece processor, as llama.cpp's converter writes it."""
  count = processor.get_piece_size()
  tokens = [processor.id_to_piece(token) for token in range(count)]
  kinds = []
  for token, text in enumerate(tokens):
    if processor.is_unknown(token):
      kinds.append(UNKNOWN)
    elif processor.is_control(token):
      kinds.append(CONTROL)
    elif processor.is_byte(token):
      kinds.append(BYTE)
    else:
      kinds.append(USER_DEFINED if text == '<tool>' else NORMAL)
  return {
      'model': 'llama',
      'tokens': tokens,
      'token_type': kinds,
      'scores': [float(processor.get_score(token)) for token in range(count)],
      'bos_token_id': processor.bos_id(),
      'eos_token_id': processor.eos_id(),
      'unknown_token_id': processor.unk_id(),
  }


def as_gemma(vocabulary: dict[str, Any]) -> dict[str, Any]:
  """A SentencePiece vocabulary as Gemma's files have it.

  Tokens of spaces are user-defined, and scores say nothing about the order of merges.
  """
  names = {'<s>': '<bos>', '</s>': '<eos>'}
  tokens, kinds = [], []
  for text, kind in zip(vocabulary['tokens'], vocabulary['token_type']):
    spaces = len(text) > 1 and not text.strip(_SPACE)
    tokens.append(' ' * len(text) if spaces else names.get(text, text))
    kinds.append(USER_DEFINED if spaces else kind)
  return vocabulary | {
      'tokens': tokens, 'token_type': kinds, 'scores': [0.0] * len(tokens),
      'add_space_prefix': False,
  }


def write(
    path: pathlib.Path, vocabulary: dict[str, Any], architecture: str, **keys: Any
) -> pathlib.Path:
  """Writes a file of a vocabulary, without tensors; a key that is None is left out."""
  case = gguf_files.Case(architecture)
  metadata = gguf_files.metadata(case) | {
      f'{architecture}.vocab_size': len(vocabulary['tokens']),
      **{
          f'tokenizer.ggml.{key}': value
          for key, value in (vocabulary | keys).items()
          if value is not None
      },
  }
  return gguf_files.write(path, metadata, {})
