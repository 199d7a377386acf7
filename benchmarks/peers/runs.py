"""What a run of any engine gives, and what the engines are asked for."""

from collections.abc import Sequence
import dataclasses
import pathlib

import tokenizers

from benchmarks.peers import tokenizer as tokenizer_lib

PLAIN, DRAFT, LOOKUP = 'plain', 'draft model', 'prompt lookup'


@dataclasses.dataclass(frozen=True)
class Task:
  """What every engine does: greedy tokens after each prompt.

  Attributes:
    name: of the pair.
    target: a Hugging Face folder.
    draft: likewise.
    tokenizer: of both.
    prompts: token lists.
    num_speculative_tokens: K.
    max_new_tokens: N, of each prompt.
    max_ngram: longest suffix that prompt lookup looks for.
    threads: that each engine may use.
  """

  name: str
  target: pathlib.Path
  draft: pathlib.Path
  tokenizer: tokenizers.Tokenizer
  prompts: tuple[tuple[int, ...], ...]
  num_speculative_tokens: int
  max_new_tokens: int
  max_ngram: int
  threads: int

  def to_bytes(self, tokens: Sequence[int]) -> bytes:
    """The text of tokens, byte for byte."""
    return tokenizer_lib.to_bytes(self.tokenizer, tokens)


@dataclasses.dataclass(frozen=True)
class Run:
  """One prompt done by one method of one engine.

  Attributes:
    method: `PLAIN`, `DRAFT` or `LOOKUP`.
    prompt: its number.
    text: the N new tokens, or a few more, byte for byte.
    target_passes: that emitted the N tokens.
    timed_tokens: emitted in `seconds`.
    seconds: of decoding.
    prefill_seconds: before it.
    proposed: draft tokens, or None where an engine does not say.
    accepted: of them.
  """

  method: str
  prompt: int
  text: bytes
  target_passes: int
  timed_tokens: int
  seconds: float
  prefill_seconds: float
  proposed: int | None = None
  accepted: int | None = None

  @property
  def seconds_per_token(self) -> float:
    return self.seconds / self.timed_tokens


def fastest(runs: Sequence[Run]) -> list[Run]:
  """The fastest of the rounds of every method and prompt, in the order they first came.

  Raises:
    ValueError: if two rounds of a greedy method differ in their text.
  """
  best: dict[tuple[str, int], Run] = {}
  for run in runs:
    key = run.method, run.prompt
    kept = best.setdefault(key, run)
    if run.text != kept.text:
      raise ValueError(
          f'{run.method}, prompt {run.prompt}: two greedy runs gave different texts; this engine '
          'cannot be compared.'
      )
    if run.seconds_per_token < kept.seconds_per_token:
      best[key] = run
  return list(best.values())
