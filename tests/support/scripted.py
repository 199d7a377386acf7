"""Targets that say a given sequence of tokens, and tokenizers to read it with."""

from collections.abc import Mapping, Sequence
import itertools

import numpy as np
import tokenizers
from tokenizers import decoders, models, processors

from specjax import testing

SPECIAL = ('<unk>', '<s>', '</s>', '<|im_end|>')


def successor(after: Mapping[int, int], vocab_size: int, second: Mapping[int, int] | None = None):
  """A target whose most probable token after a is after[a], and the second most second[a]."""
  table = np.zeros((vocab_size, vocab_size), np.float32)
  for best, score in ((second or {}, 4.0), (after, 8.0)):
    for token, following in best.items():
      table[token, following] = score
  return testing.table_model(table)


def saying(script: Sequence[int], vocab_size: int):
  """A target that goes on from script[0] with the rest of the script; no token comes twice."""
  if len(set(script)) < len(script):
    raise ValueError(f'A script may not repeat a token: {script}.')
  return successor(dict(itertools.pairwise(script)), vocab_size)


def llama_2(words: Sequence[str] = ()) -> tokenizers.Tokenizer:
  """A tokenizer as Llama 2's: bytes as a fallback, and a decoder that strips the first space.

  Ids are those of SPECIAL, then of the 256 bytes, then of the words; see `token`.
  """
  pieces = [*SPECIAL, *(f'<0x{byte:02X}>' for byte in range(256))]
  pieces += [word.replace(' ', '\u2581') for word in words]
  vocab = {piece: number for number, piece in enumerate(pieces)}
  tokenizer = tokenizers.Tokenizer(
      models.BPE(vocab=vocab, merges=[], byte_fallback=True, fuse_unk=True, unk_token='<unk>')
  )
  tokenizer.decoder = decoders.Sequence([
      decoders.Replace('\u2581', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
  ])
  tokenizer.add_special_tokens(list(SPECIAL))
  tokenizer.post_processor = processors.TemplateProcessing(
      single='<s> $A', pair=None, special_tokens=[('<s>', 1)]
  )
  return tokenizer


def token(tokenizer: tokenizers.Tokenizer, piece: str | int) -> int:
  """The id of a word, of a special token, or of a byte."""
  name = f'<0x{piece:02X}>' if isinstance(piece, int) else piece.replace(' ', '\u2581')
  return tokenizer.token_to_id(name)
