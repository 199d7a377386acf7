"""Stop strings: matched on the host between chunks, with the same cut for any chunking."""

from collections.abc import Iterable, Sequence
from typing import Any

from specjax.detokenize import Detokenizer


def as_strings(strings: str | Sequence[str] | None) -> tuple[str, ...]:
  """Stop strings as a tuple: a single text is one stop string, and None means none."""
  if strings is None:
    return ()
  several = isinstance(strings, Iterable) and not isinstance(strings, str)
  return tuple(strings) if several else (strings,)


class StopStrings:
  """The text of each row as it grows, and its end where a stop string is complete.

  Stop strings are searched for in the text with its special tokens (`<|im_end|>`), so that none
  matches across a special token that is not shown; the text that is returned is the one that the
  tokenizer shows. The cut depends on the tokens alone: a row ends with the first token that
  completes a stop string, however many tokens come at once.
  """

  def __init__(
      self,
      strings: str | Sequence[str] | None,
      tokenizer: Any,
      prompts: Sequence[Sequence[int]],
  ):
    """Starts after the prompts.

    Args:
      strings: one stop string, or several; none may be empty.
      tokenizer: has `decode(list of ids) -> str`.
      prompts: the tokens before each row's output.
    """
    strings = as_strings(strings)
    self._rows = [_Row(strings, tokenizer, prompt) for prompt in prompts]

  def update(self, row: int, tokens: Sequence[int], *, over: bool = False) -> tuple[int, str, bool]:
    """Reads a row's output so far.

    Args:
      row: its number.
      tokens: [n] int32, all tokens that it has emitted.
      over: whether no more tokens come.

    Returns:
      The number of tokens to keep, their text (cut before the stop string), and whether a stop
      string is complete. Until the row is over, the end of the text that may still change is
      held back: an incomplete character, and the possible beginning of a stop string.
    """
    return self._rows[row].update(tokens, over)


class _Row:
  """The text of one row."""

  def __init__(self, strings: tuple[str, ...], tokenizer: Any, prompt: Sequence[int]):
    self._strings = strings
    self._longest = max(map(len, strings), default=0)
    self._shown = Detokenizer(tokenizer, prompt)
    self._searched = Detokenizer(tokenizer, prompt, special=True) if strings else None
    self._text = ''
    self._search_text = ''
    # The lengths of both texts after each token.
    self._steps = [(0, 0)]
    self._num_read = 0
    self._is_stopped = False

  def update(self, tokens: Sequence[int], over: bool) -> tuple[int, str, bool]:
    for token in tokens[self._num_read :]:
      if self._is_stopped:
        break
      self._num_read += 1
      self._append(self._shown.push(token), self._searched and self._searched.push(token))
    if over and not self._is_stopped:
      self._append(self._shown.flush(), self._searched and self._searched.flush())
    text = self._text
    if not self._is_stopped and not over:
      text = text[: self._num_shown(len(self._search_text) - self._num_held_back())]
    return self._num_read, text, self._is_stopped

  def _append(self, shown: str, searched: str | None) -> None:
    self._text += shown
    if not searched:  # nothing to search, or nothing new
      searched = ''
    self._search_text += searched
    self._steps.append((len(self._text), len(self._search_text)))
    start = max(len(self._search_text) - len(searched) - self._longest + 1, 0)
    places = [self._search_text.find(string, start) for string in self._strings] if searched else []
    places = [place for place in places if place >= 0]
    if places:
      self._is_stopped = True
      self._text += self._shown.flush()
      self._steps[-1] = (len(self._text), len(self._search_text))
      self._text = self._text[: self._num_shown(min(places))]

  def _num_held_back(self) -> int:
    """Length of the longest beginning of a stop string that the searched text ends with."""
    most = min(self._longest - 1, len(self._search_text))
    for size in range(most, 0, -1):
      end = self._search_text[-size:]
      if any(string.startswith(end) for string in self._strings):
        return size
    return 0

  def _num_shown(self, place: int) -> int:
    """Characters of the shown text that come before a position in the searched text."""
    shown, searched = self._steps[-1]
    if place >= searched:
      return shown
    for (start, first), (end, last) in zip(self._steps[-2::-1], self._steps[:0:-1]):
      if first <= place:
        # Within a step both texts end alike; a special token adds to one of them only.
        return max(end - (last - place), start)
    return 0
