"""Tokens to text, one at a time, given what stands before them.

A decoder of whole texts cannot be asked for the new tokens alone: many strip the first space of
what they are given (Llama 2, Mistral), and a character may take several tokens. All that turns
new tokens into text goes through `Detokenizer`: the output's texts and stop strings, the pieces
of a trace, and what the command line streams.
"""

from collections.abc import Callable, Sequence
import inspect
from typing import Any

# What a decoder writes for bytes that are no character, or not yet.
_OPEN = '\N{REPLACEMENT CHARACTER}'
# A character of UTF-8 has at most four bytes, so that one that four tokens leave open is broken.
_MOST_OPEN = 4
# Tokens without any text (special ones that are skipped) are no context for the next; beyond so
# many they are forgotten.
_MOST_CONTEXT = 32


class Detokenizer:
  """Turns a growing sequence of tokens into text.

  What it has returned never changes: the text of a character that is still open is held back
  until a later token completes it, or shows that it is broken (U+FFFD, as the decoder writes
  it). The text depends on the tokens alone, not on how many come at once. Each token costs two
  calls of `decode` on a handful of tokens, however long the text is.

  >>> class Bytes:
  ...   def decode(self, ids):
  ...     return bytes(ids).decode(errors='replace')
  >>> text = Detokenizer(Bytes(), before=b'caf')
  >>> text.push(0xc3), text.push(0xa9), text.push(0xc3), text.flush()
  ('', 'é', '', '\ufffd')
  """

  def __init__(self, tokenizer: Any, before: Sequence[int] = (), *, special: bool = False):
    """Starts after the tokens `before`, whose text is not returned.

    Args:
      tokenizer: has `decode(list of ids) -> str`.
      before: ids, such as the prompt's; only the last few are read.
      special: whether special tokens are in the text, where `decode` takes
        `skip_special_tokens`; otherwise the text is what `decode(ids)` shows.
    """
    self._decode = _decoder(tokenizer, special)
    # Of these tokens, the first `_num_out` are context: their text, `_out`, is not returned again.
    self._ids = _context(self._decode, before)
    self._num_out = len(self._ids)
    self._out = self._decode(self._ids) if self._ids else ''

  def push(self, token: int) -> str:
    """Appends a token and returns the text that it completes, '' if a character is open."""
    self._ids.append(int(token))
    text = self._decode(self._ids)
    if not text.endswith(_OPEN):
      return self._emit(len(self._ids), text)
    if len(self._ids) - self._num_out < _MOST_OPEN:
      return ''
    # A decoder writes one U+FFFD for as many bytes as begin a character: the text is cut where
    # both parts together are what the whole is.
    for end in range(self._num_out + 1, len(self._ids)):
      broken = self._decode(self._ids[:end])
      if broken + self._decode(self._ids[end:]) == text:
        return self._emit(end, broken)
    return self._emit(self._num_out + 1, self._decode(self._ids[: self._num_out + 1]))

  def flush(self) -> str:
    """The text that is held back, when no more tokens come."""
    if len(self._ids) == self._num_out:
      return ''
    return self._emit(len(self._ids), self._decode(self._ids))

  def _emit(self, end: int, text: str) -> str:
    """Returns what the context's tokens up to `end`, whose text is `text`, add to it."""
    fresh, out = self._ids[self._num_out : end], self._out
    if text.startswith(out):
      piece = text[len(out) :]
    elif out.endswith(_OPEN):
      # The character that the context ended in was completed.
      piece = text[_num_shared(text, out) :]
    else:
      # The decoder wrote the context anew, as a byte fallback does that finds a broken character.
      piece = self._decode(fresh)
    fresh_text = self._decode(fresh)
    if fresh_text:
      del self._ids[: self._num_out]
      self._num_out, self._out = len(fresh), fresh_text
    elif end <= _MOST_CONTEXT:
      self._num_out, self._out = end, text
    else:
      del self._ids[self._num_out : end]
    return piece


def pieces(tokenizer: Any, tokens: Sequence[int], before: Sequence[int] = ()) -> list[str]:
  """The text of each token; together they are the text of all.

  A token that ends within a character has no text of its own: the one that completes the
  character gets it, the last token what is never completed.

  Args:
    tokenizer: has `decode(list of ids) -> str`.
    tokens: ids.
    before: ids of what stands before them.
  """
  detokenizer = Detokenizer(tokenizer, before)
  texts = [detokenizer.push(token) for token in tokens]
  if texts:
    texts[-1] += detokenizer.flush()
  return texts


def text(tokenizer: Any, tokens: Sequence[int]) -> str:
  """The text of tokens that more may follow: without a character that they leave open."""
  detokenizer = Detokenizer(tokenizer)
  return ''.join([detokenizer.push(token) for token in tokens])


def shows_special(tokenizer: Any) -> bool:
  """Whether `tokenizer.decode` can be asked for special tokens in the text."""
  try:
    parameters = inspect.signature(tokenizer.decode).parameters.values()
  except (TypeError, ValueError):  # written in C without a signature
    return False
  return any(
      p.name == 'skip_special_tokens' or p.kind is inspect.Parameter.VAR_KEYWORD
      for p in parameters
  )


def _decoder(tokenizer: Any, special: bool) -> Callable[[list[int]], str]:
  if special and shows_special(tokenizer):
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
  return tokenizer.decode


def _context(decode: Callable[[list[int]], str], before: Sequence[int]) -> list[int]:
  """The last tokens of `before`: enough that they have a text and begin with a character."""
  size = _MOST_OPEN
  while True:
    ids = [int(token) for token in before[max(len(before) - size, 0) :]]
    text = decode(ids) if ids else ''
    if size >= len(before) or (text and not text.startswith(_OPEN)):
      return ids
    size *= 2


def _num_shared(text: str, other: str) -> int:
  """Characters that both begin with."""
  pairs = enumerate(zip(text, other))
  return next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))
