"""Stop strings: matched on the host between chunks, with the same cut for any chunking."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class StopStrings:
  """Looks for stop strings in the text of each row, token by token.

  The cut depends on the tokens alone: the shortest prefix of a row's output whose text
  contains a stop string is kept, so it does not matter how many tokens came at once.
  """

  def __init__(self, strings: Sequence[str], tokenizer: Any, batch_size: int):
    """`tokenizer.decode(ids) -> str` is used for texts; may be None without strings."""
    self._strings = tuple(strings)
    self._tokenizer = tokenizer
    # Tokens of each row that are known not to complete a stop string.
    self._clean = [0] * batch_size
    self._hits: list[tuple[int, str] | None] = [None] * batch_size

  def update(self, row: int, tokens: np.ndarray) -> tuple[int, str, bool]:
    """Reads a row's output so far.

    Args:
      row: which row.
      tokens: [n] int32, all that it emitted.

    Returns:
      How many tokens to keep, their text (cut before the stop string), and whether a stop
      string was found.
    """
    if self._hits[row] is not None:
      return (*self._hits[row], True)
    ids = [int(token) for token in tokens]
    text = self._tokenizer.decode(ids)
    if not self._strings or not any(string in text for string in self._strings):
      self._clean[row] = len(ids)
      return len(ids), text, False
    for end in range(self._clean[row] + 1, len(ids) + 1):
      text = self._tokenizer.decode(ids[:end])
      places = [place for s in self._strings if (place := text.find(s)) >= 0]
      if places:
        self._hits[row] = (end, text[: min(places)])
        return (*self._hits[row], True)
    return len(ids), text, False
