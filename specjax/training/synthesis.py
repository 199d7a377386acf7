"""Which of the chats that a model wrote are kept (Xu et al. 2024, Magpie, arXiv 2406.08464)."""

from collections.abc import Iterator
import dataclasses
import functools

from specjax.training import chats

# Questions that share so many words in a row with an excluded prompt count as that prompt.
_SHARED_WORDS = 8
_PIECE = 4


@dataclasses.dataclass(frozen=True)
class Filters:
  """What is left out.

  Attributes:
    min_characters: of a question.
    max_repetition: the largest share of four-word pieces that came before in the same text.
    excluded: prompts that must not be among the questions, since they measure.
  """

  min_characters: int = 1
  max_repetition: float = 1.0
  excluded: tuple[str, ...] = ()

  def question(self, text: str) -> str:
    """Why a question is left out, in a word; '' where it is kept."""
    if len(text) < self.min_characters:
      return 'short'
    if repetition(text) > self.max_repetition:
      return 'repetitive'
    whole, pieces = self._excluded
    if chats.normalized(text) in whole or not pieces.isdisjoint(_pieces(text, _SHARED_WORDS)):
      return 'excluded'
    return ''

  def answer(self, text: str) -> str:
    """The same of an answer."""
    if not text.strip():
      return 'empty answer'
    return 'repetitive answer' if repetition(text) > self.max_repetition else ''

  @functools.cached_property
  def _excluded(self) -> tuple[frozenset[str], frozenset[tuple[str, ...]]]:
    """The excluded prompts, normalised, and their pieces."""
    whole = frozenset(map(chats.normalized, self.excluded))
    pieces = frozenset(p for text in self.excluded for p in _pieces(text, _SHARED_WORDS))
    return whole, pieces


def repetition(text: str) -> float:
  """The share of a text's four-word pieces that came before in it, 0 … 1.

  >>> repetition('a b c d a b c d'), repetition('a b c')
  (0.2, 0.0)
  """
  pieces = list(_pieces(text, _PIECE))
  return (len(pieces) - len(set(pieces))) / len(pieces) if pieces else 0.0


def _pieces(text: str, size: int) -> Iterator[tuple[str, ...]]:
  words = chats.normalized(text).split()
  return (tuple(words[i : i + size]) for i in range(len(words) - size + 1))
