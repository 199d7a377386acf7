"""A tokenizer that every engine reads: SentencePiece, and the same as `tokenizer.json`.

llama.cpp converts a `tokenizer.model`; specjax and transformers read a `tokenizer.json`. The
SentencePiece model normalises nothing (identity rule, blanks kept, none put in front), because
text that only some engines normalise would be tokenised differently by them.

`sentencepiece` is needed to make one, not to use it.
"""

from collections.abc import Iterable
import io
import json
import pathlib
import re

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers

BLANK = '\u2581'  # SentencePiece's sign for a blank
UNKNOWN, BEGIN, END = '<unk>', '<s>', '</s>'
# Byte-level BPE writes bytes as letters (GPT-2, Radford et al. 2019): printable ones as they are,
# the others, in order, from U+0100 on.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + number): byte
    for number, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)
}
_BYTE = re.compile(r'<0x([0-9A-F]{2})>')
_CONFIG = dict(
    tokenizer_class='PreTrainedTokenizerFast', add_bos_token=False, add_eos_token=False,
    add_prefix_space=False, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN,
)


def train(texts: Iterable[str], vocab_size: int) -> bytes:
  """A SentencePiece BPE model of `vocab_size` pieces with byte fallback, as its file's bytes.

  Raises:
    ImportError: without the package `sentencepiece`.
  """
  import sentencepiece

  lines = (line for text in texts for line in text.splitlines() if line and '\0' not in line)
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(lines), model_writer=model, vocab_size=vocab_size, model_type='bpe',
      normalization_rule_name='identity', remove_extra_whitespaces=False, add_dummy_prefix=False,
      allow_whitespace_only_pieces=True, byte_fallback=True, character_coverage=0.9995,
      num_threads=1, minloglevel=2,
  )
  return model.getvalue()


def write(model: bytes, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
  """Writes tokenizer.model, tokenizer.json and tokenizer_config.json; returns their paths."""
  import sentencepiece

  processor = sentencepiece.SentencePieceProcessor(model_proto=model)
  pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
  folder.mkdir(parents=True, exist_ok=True)
  names = ('tokenizer.model', 'tokenizer.json', 'tokenizer_config.json')
  files = tuple(folder / name for name in names)
  files[0].write_bytes(model)
  from_pieces(pieces).save(str(files[1]))
  files[2].write_text(json.dumps(_CONFIG, indent=2) + '\n', encoding='utf-8')
  return files


def from_pieces(pieces: list[str]) -> tokenizers.Tokenizer:
  """The `tokenizers.Tokenizer` that merges as SentencePiece does.

  SentencePiece joins, again and again, the neighbours whose joined piece comes first in the
  vocabulary. As merges: every way to cut a piece in two pieces, in the order of the pieces.
  """
  vocab = {piece: index for index, piece in enumerate(pieces)}
  merges = []
  for piece in pieces:
    if _BYTE.fullmatch(piece) or piece in (UNKNOWN, BEGIN, END):
      continue
    cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
    cuts = [cut for cut in cuts if cut[0] in vocab and cut[1] in vocab]
    merges += sorted(cuts, key=lambda cut: (vocab[cut[0]], vocab[cut[1]]))
  tokenizer = tokenizers.Tokenizer(
      models.BPE(vocab, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)
  )
  tokenizer.normalizer = normalizers.Replace(' ', BLANK)
  tokenizer.decoder = decoders.Sequence(
      [decoders.Replace(BLANK, ' '), decoders.ByteFallback(), decoders.Fuse()]
  )
  return tokenizer


def words(tokenizer: tokenizers.Tokenizer) -> list[int]:
  """Tokens that are a blank and a lower-case word, in the order of the vocabulary."""
  pieces = map(tokenizer.id_to_token, range(tokenizer.get_vocab_size()))
  word = re.compile(BLANK + '[a-z]{2,}')
  return [index for index, piece in enumerate(pieces) if word.fullmatch(piece or '')]


def to_bytes(tokenizer: tokenizers.Tokenizer, tokens: Iterable[int]) -> bytes:
  """The text of tokens, byte for byte, whether or not it is valid UTF-8."""
  if isinstance(tokenizer.decoder, decoders.ByteLevel):
    added = tokenizer.get_added_tokens_decoder()
    pieces = ((int(token), tokenizer.id_to_token(int(token))) for token in tokens)
    return b''.join(
        piece.encode() if token in added else bytes(_BYTE_OF[letter] for letter in piece)
        for token, piece in pieces
    )
  parts = []
  for token in tokens:
    piece = tokenizer.id_to_token(int(token))
    byte = _BYTE.fullmatch(piece)
    parts.append(bytes([int(byte[1], 16)]) if byte else piece.replace(BLANK, ' ').encode())
  return b''.join(parts)
