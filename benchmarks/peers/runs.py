"""What the engines are asked for, and what a run of any of them gives."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import subprocess

import tokenizers

from benchmarks.peers import tokenizer as tokenizer_lib

PLAIN, DRAFT, LOOKUP = 'plain', 'draft model', 'prompt lookup'


@dataclasses.dataclass(frozen=True)
class Task:
  """What every engine does: greedy tokens after each prompt.

  Attributes:
    name: of the pair.
    target: a Hugging Face folder.
    draft: likewise; None leaves the draft model out.
    tokenizer: of both.
    prompts: token lists.
    num_speculative_tokens: K.
    max_new_tokens: N, after each prompt.
    max_ngram: the longest suffix that prompt lookup looks for.
    threads: that each engine may use.
  """

  name: str
  target: pathlib.Path
  draft: pathlib.Path | None
  tokenizer: tokenizers.Tokenizer
  prompts: tuple[tuple[int, ...], ...]
  num_speculative_tokens: int
  max_new_tokens: int
  max_ngram: int
  threads: int

  @property
  def methods(self) -> tuple[str, ...]:
    """Those that can be run."""
    return (PLAIN, LOOKUP) if self.draft is None else (PLAIN, DRAFT, LOOKUP)

  def to_bytes(self, tokens: Sequence[int]) -> bytes:
    """The text of tokens, byte for byte."""
    return tokenizer_lib.to_bytes(self.tokenizer, tokens)


@dataclasses.dataclass(frozen=True)
class Run:
  """One prompt continued by one method of one engine.

  Attributes:
    method: `PLAIN`, `DRAFT` or `LOOKUP`.
    prompt: its number.
    text: the N new tokens, or a few more, byte for byte.
    target_passes: that emitted the N tokens.
    timed_tokens: emitted in `seconds`.
    seconds: of decoding.
    prefill_seconds: before it.
    proposed: draft tokens, or None where an engine does not count them.
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


def fastest(rounds: Sequence[Run]) -> list[Run]:
  """The run of every method and prompt with the least time per token.

  Raises:
    ValueError: if two runs of a greedy method differ in their text.
  """
  best: dict[tuple[str, int], Run] = {}
  for run in rounds:
    other = best.setdefault((run.method, run.prompt), run)
    if run.text != other.text:
      raise ValueError(
          f'{run.method}, prompt {run.prompt}: two greedy runs gave different texts; this engine '
          'cannot be compared.'
      )
    if run.seconds / run.timed_tokens < other.seconds / other.timed_tokens:
      best[run.method, run.prompt] = run
  return list(best.values())


def call(
    command: Sequence[str], *, name: str = '', stdin: str = '',
    environment: Mapping[str, str] | None = None,
) -> tuple[bytes, str]:
  """Runs a program; returns its standard output, and its standard error as text.

  Raises:
    ValueError: if it fails, with `name`, or its path, and the last lines of its error output.
  """
  process = subprocess.run(
      command, input=stdin.encode(), capture_output=True, env=environment, check=False
  )
  stderr = process.stderr.decode(errors='replace')
  if process.returncode:
    last = '\n'.join(stderr.strip().splitlines()[-5:])
    raise ValueError(f'{name or command[0]} failed. Its last lines:\n{last}')
  return process.stdout, stderr
