"""Prompts: a text, a file, standard input, a held-out text, or the JSONL of a benchmark.

A row of a `.jsonl` is an object whose first key among these is the prompt:

| key        | format                 | example                                                 |
|------------|------------------------|---------------------------------------------------------|
| `turns`    | Spec-Bench, MT-bench   | {"question_id": 81, "category": "math", "turns": ["…"]} |
| `prompt`   | HumanEval, or your own | {"task_id": "HumanEval/0", "prompt": "def f(x):"}       |
| `question` | GSM8K                  | {"question": "…", "answer": "…"}                        |
| `text`     | your own               | {"text": "…", "category": "letters"}                    |

Names are 'category/id'; a category is the part before the last slash.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import sys
from typing import Any, TextIO

import tokenizers

from specjax import detokenize


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
    category: str = '',
    stdin: TextIO | None = None,
) -> list[tuple[str, str]]:
  """(name, text) of every prompt that was asked for.

  Args:
    prompt: a text; alone, if it is given.
    file: a file: every row of a `.jsonl` (formats above), the whole of any other; `-` reads
      standard input as one prompt.
    held_out: texts (`name`, `text`) that serve where neither is given.
    held_out_name: which of them; the first if empty.
    category: keep prompts of this category of a `.jsonl` only; all if empty.
    stdin: instead of `sys.stdin`.

  Raises:
    ValueError: if both or nothing were asked for, a row is not as expected, or a prompt is
      empty.
    FileNotFoundError: if there is no such file.
  """
  if prompt and file:
    raise ValueError('Give either config.prompt or config.prompt_file, not both.')
  if prompt:
    prompts = [('prompt', prompt)]
  elif file == '-':
    # A byte-order mark, which `utf-8-sig` takes off files.
    content = (sys.stdin if stdin is None else stdin).read().removeprefix('\ufeff')
    prompts = [('stdin', content)]
  elif file:
    prompts = _read(pathlib.Path(file).expanduser())
  else:
    prompts = [_held_out(held_out, held_out_name)]
  if category:
    known = sorted({category_of(name) for name, _ in prompts})
    prompts = [(name, text) for name, text in prompts if category_of(name) == category]
    if not prompts:
      raise ValueError(
          f'No prompt has the category {category!r}; there are: {", ".join(map(repr, known))}.'
      )
  for name, text in prompts:
    if not text:
      raise ValueError(f'The prompt {name} is empty; decoding starts from at least one token.')
  return prompts


def category_of(name: str) -> str:
  """The category in a prompt's name; '' where it has none.

  >>> category_of('writing/81'), category_of('prompt.txt')
  ('writing', '')
  """
  return name.rpartition('/')[0]


def by_turns(prompts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
  """The prompts in an order in which categories take turns, so that the first few have all.

  >>> by_turns([('a/1', ''), ('a/2', ''), ('b/1', '')])
  [('a/1', ''), ('b/1', ''), ('a/2', '')]
  """
  counts: dict[str, int] = {}
  turns = []
  for name, text in prompts:
    category = category_of(name)
    counts[category] = counts.get(category, 0) + 1
    turns.append((counts[category], name, text))
  return [(name, text) for _, name, text in sorted(turns, key=lambda entry: entry[0])]


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
    content = path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8 text: {error}') from error
  if path.suffix != '.jsonl':
    return [(path.name, content)]
  rows = []
  for number, line in enumerate(content.split('\n'), start=1):
    if line.strip():
      rows.append(_row(line, f'{path}, line {number}', number))
  if not rows:
    raise ValueError(f'{path} has no rows.')
  return rows


def _row(line: str, where: str, number: int) -> tuple[str, str]:
  """Name and text of a row of a `.jsonl`."""
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f'{where} is not JSON: {error}') from error
  row = row if isinstance(row, dict) else {}
  key = next((key for key in ('turns', 'prompt', 'question', 'text') if key in row), None)
  text = row.get(key)
  if key == 'turns':
    text = text[0] if isinstance(text, list) and text else None
  if not isinstance(text, str):
    raise ValueError(
        f'{where} must be an object with "turns" (a list of texts, of which the first is the '
        'prompt: Spec-Bench, MT-bench), or with a text under "prompt" (HumanEval), "question" '
        '(GSM8K) or "text".'
    )
  category, _, task = str(row.get('task_id', '')).rpartition('/')
  category = str(row.get('category', category or 'question'))
  return f'{category}/{row.get("question_id", task or number)}', text


def encode(
    texts: Sequence[tuple[str, str]],
    tokenizer: tokenizers.Tokenizer,
    *,
    max_tokens: int = 0,
    num_prompts: int = 0,
) -> list[Prompt]:
  """Tokens of the prompts, with what the tokenizer puts around a text (such as a BOS).

  A text that begins with the BOS itself, as chat templates write it, gets no second one.

  Args:
    texts: (name, text) of each.
    tokenizer: of the target.
    max_tokens: a longer prompt keeps its first tokens; 0 keeps all.
    num_prompts: only the first so many; 0 takes all.

  Raises:
    ValueError: if a number is negative.
  """
  if min(max_tokens, num_prompts) < 0:
    raise ValueError('config.prompt_tokens and config.num_prompts must be at least 0 (0: all).')
  prompts = []
  for name, text in texts[: num_prompts or None]:
    ids = _ids(text, tokenizer)
    if max_tokens and len(ids) > max_tokens:
      ids = ids[:max_tokens]
      text = detokenize.text(tokenizer, ids)
    prompts.append(Prompt(name, text, tuple(ids)))
  return prompts


def _ids(text: str, tokenizer: tokenizers.Tokenizer) -> list[int]:
  """The tokens of a text and what the tokenizer adds, but no beginning that is there already."""
  encoded = tokenizer.encode(text)
  added = next((i for i, mask in enumerate(encoded.special_tokens_mask) if not mask), 0)
  beginning, rest = encoded.ids[:added], encoded.ids[added:]
  return rest if rest[:added] == beginning else encoded.ids
