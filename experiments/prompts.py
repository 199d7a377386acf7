"""Prompts: a text, a file, standard input, a held-out text, or the JSONL of a benchmark.

A row of a `.jsonl` is an object whose first key among these is the prompt:

| key        | format                 | example                                                 |
|------------|------------------------|---------------------------------------------------------|
| `turns`    | Spec-Bench, MT-bench   | {"question_id": 81, "category": "math", "turns": ["…"]} |
| `prompt`   | HumanEval, or your own | {"task_id": "HumanEval/0", "prompt": "def f(x):"}       |
| `question` | GSM8K                  | {"question": "…", "answer": "…"}                        |
| `text`     | your own               | {"text": "…", "category": "letters"}                    |
| `messages` | chats                  | {"messages": [{"role": "user", "content": "…"}]}        |

Names are 'category/id'; a category is the part before the last slash.

`texts` gives each prompt as a text to go on with, of several turns the first. `conversations` has
all turns, and `chat_tokens` is one of them by a chat template, after the answers to those before.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import sys
from typing import Any, TextIO, TypeVar

import tokenizers

from specjax import detokenize
from specjax.models import chat

# Of a row: the first that it has is the prompt.
_KEYS = ('turns', 'prompt', 'question', 'text', 'messages')


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt.

  Attributes:
    name: where it came from.
    text: of the tokens below.
    tokens: ids.
    num_cut: how many tokens were cut off its end; see `describe_cuts`.
  """

  name: str
  text: str
  tokens: tuple[int, ...]
  num_cut: int = 0


@dataclasses.dataclass(frozen=True)
class Conversation:
  """What a user says, turn by turn.

  Attributes:
    name: where it came from.
    turns: a text each. The answers between them are the model's own.
    messages: of a chat that has answers, or a system text, of its own: all of it, up to what the
      user says last, which is then the one turn. None where there are only turns.
  """

  name: str
  turns: tuple[str, ...]
  messages: tuple[Mapping[str, Any], ...] | None = None

  def name_of_turn(self, turn: int) -> str:
    """What the prompt of a turn, counted from 0, is called."""
    return f'{self.name} turn {turn + 1}' if turn else self.name


_PromptLike = TypeVar('_PromptLike', tuple[str, str], Conversation)


def texts(
    *,
    prompt: str = '',
    file: str = '',
    held_out: Sequence[Any] = (),
    held_out_name: str = '',
    category: str = '',
    stdin: TextIO | None = None,
) -> list[tuple[str, str]]:
  """(name, text) of every prompt that was asked for; of several turns the first.

  Arguments are as for `conversations`.

  Raises:
    ValueError: as `conversations`, and for a chat, which only a template makes a text of.
    FileNotFoundError: if there is no such file.
  """
  prompts = conversations(
      prompt=prompt, file=file, held_out=held_out, held_out_name=held_out_name, category=category,
      stdin=stdin,
  )
  return [as_text(each) for each in prompts]


def as_text(conversation: Conversation) -> tuple[str, str]:
  """Name and first turn, which is all that can be decoded without a chat template.

  Raises:
    ValueError: for a chat.
  """
  if conversation.messages is not None:
    raise ValueError(
        f'The prompt {conversation.name} is a chat ("messages"), which needs a chat template. Use '
        'one, or write the text under "prompt".'
    )
  return conversation.name, conversation.turns[0]


def conversations(
    *,
    prompt: str = '',
    file: str = '',
    held_out: Sequence[Any] = (),
    held_out_name: str = '',
    category: str = '',
    stdin: TextIO | None = None,
) -> list[Conversation]:
  """Every prompt that was asked for, with all of its turns.

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
    prompts = [Conversation('prompt', (prompt,))]
  elif file == '-':
    # A byte-order mark, which `utf-8-sig` takes off files.
    content = (sys.stdin if stdin is None else stdin).read().removeprefix('\ufeff')
    prompts = [Conversation('stdin', (content,))]
  elif file:
    prompts = _read(pathlib.Path(file).expanduser())
  else:
    name, text = _held_out(held_out, held_out_name)
    prompts = [Conversation(name, (text,))]
  if category:
    known = sorted({category_of(each.name) for each in prompts})
    prompts = [each for each in prompts if category_of(each.name) == category]
    if not prompts:
      raise ValueError(
          f'No prompt has the category {category!r}; there are: {", ".join(map(repr, known))}.'
      )
  for each in prompts:
    if not each.turns[0]:
      raise ValueError(f'The prompt {each.name} is empty; decoding starts from at least one token.')
  return prompts


def category_of(name: str) -> str:
  """The category in a prompt's name; '' where it has none.

  >>> category_of('writing/81'), category_of('prompt.txt')
  ('writing', '')
  """
  return name.rpartition('/')[0]


def by_turns(prompts: Sequence[_PromptLike]) -> list[_PromptLike]:
  """The prompts in an order in which categories take turns, so that the first few have all.

  They are pairs of a name and a text, or conversations.

  >>> by_turns([('a/1', ''), ('a/2', ''), ('b/1', '')])
  [('a/1', ''), ('b/1', ''), ('a/2', '')]
  """
  counts: dict[str, int] = {}
  turns = []
  for each in prompts:
    category = category_of(each.name if isinstance(each, Conversation) else each[0])
    counts[category] = counts.get(category, 0) + 1
    turns.append((counts[category], each))
  return [each for _, each in sorted(turns, key=lambda entry: entry[0])]


def _held_out(held_out: Sequence[Any], name: str) -> tuple[str, str]:
  if not held_out:
    raise ValueError('There is no prompt: give --config.prompt=TEXT or --config.prompt_file=FILE.')
  for each in held_out:
    if not name or each.name == name:
      return each.name, each.text
  known = ', '.join(each.name for each in held_out)
  raise ValueError(f'config.held_out={name!r} is not one of the held-out texts: {known}.')


def _read(path: pathlib.Path) -> list[Conversation]:
  if not path.is_file():
    raise FileNotFoundError(f'There is no prompt file {path}.')
  try:
    content = path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8 text: {error}') from error
  if path.suffix != '.jsonl':
    return [Conversation(path.name, (content,))]
  rows = []
  for number, line in enumerate(content.split('\n'), start=1):
    if line.strip():
      rows.append(_row(line, f'{path}, line {number}', number))
  if not rows:
    raise ValueError(f'{path} has no rows.')
  return rows


def _row(line: str, where: str, number: int) -> Conversation:
  """The prompt in a row of a `.jsonl`."""
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
    raise ValueError(f'{where} is not JSON: {error}') from error
  row = row if isinstance(row, dict) else {}
  key = next((key for key in _KEYS if key in row), None)
  if key == 'messages':
    turns, messages = _chat(row[key], where)
  else:
    turns, messages = row.get(key) if key == 'turns' else [row.get(key)], None
  if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
    raise ValueError(
        f'{where} must be an object with "turns" (a list of texts, what a user says in turn: '
        'Spec-Bench, MT-bench), with a text under "prompt" (HumanEval), "question" (GSM8K) or '
        '"text", or with "messages" (a chat: a list of {"role": …, "content": …}).'
    )
  category, _, task = str(row.get('task_id', '')).rpartition('/')
  category = str(row.get('category', category or 'question'))
  name = f'{category}/{row.get("question_id", task or number)}'
  for turn, text in enumerate(turns, start=1):
    if not text:
      what = f'turn {turn} of {len(turns)} of the prompt' if len(turns) > 1 else 'the prompt'
      raise ValueError(f'{where}: {what} {name} is empty. Write a text there, or leave it out.')
  return Conversation(name, tuple(turns), messages)


def _chat(messages: Any, where: str) -> tuple[list[str], tuple[Mapping[str, Any], ...]]:
  """The turn and the messages of a chat."""
  try:
    chat.check_messages(messages)
  except ValueError as error:
    raise ValueError(f'{where}, "messages": {error}') from error
  if messages[-1]['role'] != 'user':
    raise ValueError(
        f'{where}, "messages": the last one must be the user\'s, which is then answered; got one '
        f'of the {messages[-1]["role"]}. Leave it out.'
    )
  return [messages[-1]['content']], tuple(messages)


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

  Returns:
    The prompts. `num_cut` says how much of each was cut off, and `describe_cuts` says it of all.

  Raises:
    ValueError: if a number is negative.
  """
  if min(max_tokens, num_prompts) < 0:
    raise ValueError('config.prompt_tokens and config.num_prompts must be at least 0 (0: all).')
  prompts = []
  for name, text in texts[: num_prompts or None]:
    ids = _ids(text, tokenizer)
    num_cut = max(len(ids) - max_tokens, 0) if max_tokens else 0
    if num_cut:
      ids = ids[:max_tokens]
      text = detokenize.text(tokenizer, ids)
    prompts.append(Prompt(name, text, tuple(ids), num_cut))
  return prompts


def describe_cuts(prompts: Sequence[Prompt], *, most: int = 3) -> str:
  """A sentence about the prompts that were cut, for the user; '' where none was.

  >>> describe_cuts([Prompt('a', 'x', (1, 2)), Prompt('b', 'y', (3, 4), num_cut=5)])
  '1 of 2 prompts was cut at its end: b (2 of 7 tokens).'

  Args:
    prompts: of `encode`.
    most: so many of them are named.
  """
  cut = [each for each in prompts if each.num_cut]
  if not cut:
    return ''
  names = [
      f'{each.name} ({len(each.tokens)} of {len(each.tokens) + each.num_cut} tokens)'
      for each in cut[:most]
  ]
  names += [f'{len(cut) - most} more'] if len(cut) > most else []
  verb = 'was cut at its end' if len(cut) == 1 else 'were cut at their ends'
  return f'{len(cut)} of {len(prompts)} prompts {verb}: {", ".join(names)}.'


def chat_tokens(
    conversation: Conversation,
    turn: int,
    answers: Sequence[str],
    *,
    template: str,
    tokenizer: tokenizers.Tokenizer,
    special_tokens: Mapping[str, str] = chat.NO_TOKENS,
    system: str = '',
    **variables: Any,
) -> list[int]:
  """The tokens of a conversation up to one of its turns, which is to be answered.

  Args:
    conversation: of `conversations`.
    turn: from 0 on.
    answers: to the turns before it, [turn] texts.
    template: of the chat; `special_tokens` and `variables` are its own, as for
      `specjax.models.chat.render`.
    tokenizer: of the target.
    system: a text that comes first, unless the conversation has one of its own; '' for none.

  Returns:
    Token ids, none of them cut.

  Raises:
    ValueError: if there is no such turn, there are not as many answers, or the template cannot
      render them; with the name of the conversation.
  """
  name, turns = f'The prompt {conversation.name}', conversation.turns
  if not 0 <= turn < len(turns):
    raise ValueError(f'{name} has {len(turns)} turns, counted from 0; there is no turn {turn}.')
  if len(answers) != turn:
    raise ValueError(
        f'{name}: turn {turn} comes after {turn} answers, one to each turn before it; got '
        f'{len(answers)}.'
    )
  messages = list(conversation.messages or ())
  if not messages:
    for text, answer in zip(turns, answers):
      messages += [_message('user', text), _message('assistant', answer)]
    messages.append(_message('user', turns[turn]))
  if system and messages[0]['role'] != 'system':
    messages.insert(0, _message('system', system))
  try:
    text = chat.render(template, messages, special_tokens=special_tokens, **variables)
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error
  if not (ids := chat.encode(text, tokenizer)):
    raise ValueError(
        f'{name}: the chat template wrote {text!r}, of which there are no tokens. Give another one.'
    )
  return ids


def _message(role: str, content: str) -> dict[str, str]:
  return dict(role=role, content=content)


def _ids(text: str, tokenizer: tokenizers.Tokenizer) -> list[int]:
  """The tokens of a text and what the tokenizer adds, but no beginning that is there already."""
  encoded = tokenizer.encode(text)
  added = next((i for i, mask in enumerate(encoded.special_tokens_mask) if not mask), 0)
  beginning, rest = encoded.ids[:added], encoded.ids[added:]
  return rest if rest[:added] == beginning else encoded.ids
