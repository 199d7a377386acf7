"""SentencePiece tokenizers ('llama' in GGUF files): pieces with scores, and bytes for the rest.

SentencePiece merges the two neighbours whose piece has the highest score (Kudo & Richardson 2018).
The same as pairs: every cut of every piece into two is a merge, in the order of their scores.
"""

from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from specjax.models.gguf import vocabulary as vocabulary_lib

_SPACE = '\N{LOWER ONE EIGHTH BLOCK}'
# Kinds of tokens that texts are never merged to.
_NEVER_MERGED = (
    vocabulary_lib.UNKNOWN, vocabulary_lib.CONTROL, vocabulary_lib.UNUSED, vocabulary_lib.BYTE,
)


def build(vocabulary: vocabulary_lib.Vocabulary, *, gemma: bool) -> tokenizers.Tokenizer:
  """The tokenizer of a vocabulary, without added tokens.

  Args:
    vocabulary: the file's.
    gemma: whether it is one of Gemma's: its order of merges is that of the ids, texts get no
      space before them, and tokens of spaces alone are pieces.
  """
  texts = list(vocabulary.tokens)
  if gemma:
    pieces = set(texts)
    for number, text in enumerate(texts):
      piece = _SPACE * len(text)
      if not text.strip(' ') and piece not in pieces:
        texts[number] = piece
  merges = vocabulary.merges
  if merges is None:
    order = [-number for number in range(len(texts))] if gemma else vocabulary.scores
    merges = _merges(texts, vocabulary.kinds, order)
  unknown = vocabulary.ids.get('unk_token')
  tokenizer = tokenizers.Tokenizer(
      models.BPE(
          vocab={text: number for number, text in enumerate(texts)},
          merges=list(merges),
          unk_token=None if unknown is None else texts[unknown],
          fuse_unk=True,
          byte_fallback=True,
      )
  )
  prefix = not gemma if vocabulary.add_space_prefix is None else vocabulary.add_space_prefix
  decoding = [decoders.Replace(_SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()]
  if gemma and not prefix:
    tokenizer.normalizer = normalizers.Replace(' ', _SPACE)
  else:
    scheme = 'first' if prefix else 'never'
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_SPACE, prepend_scheme=scheme, split=False
    )
  if prefix:
    decoding.append(decoders.Strip(' ', 1, 0))
  tokenizer.decoder = decoders.Sequence(decoding)
  return tokenizer


def _merges(
    texts: Sequence[str], kinds: Sequence[int], scores: Sequence[float]
) -> list[tuple[str, str]]:
  """All cuts of pieces into two, the best score first; then the longest left part."""
  pieces = {
      text: number
      for number, text in enumerate(texts)
      if kinds[number] not in _NEVER_MERGED
  }
  merges = []
  for text, number in pieces.items():
    cuts = (
        (text[:place], text[place:])
        for place in range(1, len(text))
        if text[:place] in pieces and text[place:] in pieces
    )
    for left, right in sorted(cuts, key=lambda cut: (pieces[cut[0]], pieces[cut[1]])):
      merges.append((-scores[number], -len(left), -len(right), left, right))
  merges.sort(key=lambda merge: merge[:3])
  return [merge[3:] for merge in merges]
