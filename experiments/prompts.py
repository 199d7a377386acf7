"""Prompts: a text, a file, Spec-Bench's JSONL, standard input, or a held-out text."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import sys
from typing import Any, TextIO

import tokenizers


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt.

  Attributes:
    name: where it came from.
    text: of the tokens below.
    tokens: ids.
  """

  name: str
  text: str
  tokens: tuple[int, ...]


def texts(
    *,
    prompt: str = '',
    file: str = '',
    held_out: Sequence[Any] = (),
    held_out_name: str = '',
    stdin: TextIO | None = None,
) -> list[tuple[str, str]]:
  """(name, text) of every prompt that was asked for.

  Args:
    prompt: a text; alone, if it is given.
    file: a file: every row of a `.jsonl` (Spec-Bench's format: `turns[0]` of each row), the
      whole of any other; `-` reads standard input as one prompt.
    held_out: texts (`name`, `text`) that serve where neither is given.
    held_out_name: which of them; the first if empty.
    stdin: instead of `sys.stdin`.

  Raises:
    ValueError: if both or nothing were asked for, a row is not as expected, or a prompt is
      empty.
    FileNotFoundError: if there is no such file.
  """
  if prompt and file:
    raise ValueError('Give either config.prompt or config.prompt_file, not both.')
  if prompt:
    found = [('prompt', prompt)]
  elif file == '-':
    found = [('stdin', (sys.stdin if stdin is None else stdin).read())]
  elif file:
    found = _read(pathlib.Path(file).expanduser())
  else:
    found = [_held_out(held_out, held_out_name)]
  for name, text in found:
    if not text:
      raise ValueError(f'The prompt {name} is empty; decoding starts from at least one token.')
  return found


def _held_out(held_out: Sequence[Any], name: str) -> tuple[str, str]:
  if not held_out:
    raise ValueError('There is no prompt: give --config.prompt=TEXT or --config.prompt_file=FILE.')
  for each in held_out:
    if not name or each.name == name:
      return each.name, each.text
  known = ', '.join(each.name for each in held_out)
  raise ValueError(f'config.held_out={name!r} is not one of the held-out texts: {known}.')


def _read(path: pathlib.Path) -> list[tuple[str, str]]:
  if not path.is_file():
    raise FileNotFoundError(f'There is no prompt file {path}.')
  try:
    content = path.read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8 text: {error}') from error
  if path.suffix != '.jsonl':
    return [(path.name, content)]
  rows = []
  for number, line in enumerate(content.split('\n'), start=1):
    if line.strip():
      rows.append(_spec_bench(line, f'{path}, line {number}'))
  if not rows:
    raise ValueError(f'{path} has no rows.')
  return rows


def _spec_bench(line: str, where: str) -> tuple[str, str]:
  """A row such as {"question_id": 81, "category": "writing", "turns": ["…", "…"]}."""
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f'{where} is not JSON: {error}') from error
  turns = row.get('turns') if isinstance(row, dict) else None
  if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
    raise ValueError(
        f'{where} must be an object with "turns", a list of texts, of which the first is the '
        'prompt (Spec-Bench).'
    )
  return f'{row.get("category", "question")}/{row.get("question_id", where)}', turns[0]


def encode(
    found: Sequence[tuple[str, str]],
    tokenizer: tokenizers.Tokenizer,
    *,
    max_tokens: int = 0,
    num_prompts: int = 0,
) -> list[Prompt]:
  """Tokens of the prompts, with what the tokenizer puts around a text (such as a BOS).

  Args:
    found: (name, text) of each.
    tokenizer: of the target.
    max_tokens: a longer prompt keeps its first tokens; 0 keeps all.
    num_prompts: only the first so many; 0 takes all.

  Raises:
    ValueError: if a number is negative.
  """
  if min(max_tokens, num_prompts) < 0:
    raise ValueError('config.prompt_tokens and config.num_prompts must be at least 0 (0: all).')
  prompts = []
  for name, text in found[: num_prompts or None]:
    ids = tokenizer.encode(text).ids
    if max_tokens and len(ids) > max_tokens:
      ids = ids[:max_tokens]
      text = tokenizer.decode(ids)
    prompts.append(Prompt(name, text, tuple(ids)))
  return prompts
