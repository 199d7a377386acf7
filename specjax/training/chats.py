"""Chats of a file as tokens to train on: rendered by a template, with a mask of the answers.

A row of a `.jsonl` is a chat in one of two forms:

| key             | format   | example                                                |
|-----------------|----------|--------------------------------------------------------|
| `messages`      | OpenAI's | {"messages": [{"role": "user", "content": "Hello!"}]}  |
| `conversations` | ShareGPT | {"conversations": [{"from": "human", "value": "Hi!"}]} |

Files may be larger than memory: rows are read, encoded and written one after the other.

    files = ['chats.jsonl']
    encode_chats(read_chats(files), encoder, out='train.npy', vocab_size=49152)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np
import tokenizers

from specjax.models import chat as chat_lib
from specjax.training import token_files

# ShareGPT's names of who speaks.
_SPEAKERS = {
    'human': 'user', 'user': 'user', 'gpt': 'assistant', 'assistant': 'assistant',
    'chatgpt': 'assistant', 'bard': 'assistant', 'model': 'assistant', 'system': 'system',
    'tool': 'tool', 'observation': 'tool',
}


@dataclasses.dataclass(frozen=True)
class Chat:
  """A chat of a file.

  Attributes:
    messages: each a `role` and a `content`.
    where: file and line, for errors.
    is_finished: False where the last answer was cut off: nothing that would end it is learned.
  """

  messages: tuple[Mapping[str, Any], ...]
  where: str
  is_finished: bool = True

  @property
  def key(self) -> str:
    """A digest of what the user says first: chats that begin alike are on one side of a split."""
    first = next((m['content'] for m in self.messages if m['role'] == 'user'), '')
    return hashlib.sha256(normalized(first).encode()).hexdigest()


class NoChats(ValueError):
  """There is nothing to train on."""


def normalized(text: str) -> str:
  """A text without case, and with single blanks: how duplicates are recognised."""
  return ' '.join(text.casefold().split())


def read_chats(files: Iterable[str | os.PathLike]) -> Iterator[Chat]:
  """The chats of `.jsonl` files, row by row.

  Rows without any answer are left out: there is nothing to learn from them.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: for a row that is not a chat, naming file and line.
  """
  for file in files:
    path = pathlib.Path(file).expanduser()
    if not path.is_file():
      raise FileNotFoundError(f'There is no file of chats {path}.')
    with open(path, encoding='utf-8-sig') as lines:
      try:
        for number, line in enumerate(lines, start=1):
          if line.strip():
            chat = _chat(line, f'{path}, line {number}')
            if any(message['role'] == 'assistant' for message in chat.messages):
              yield chat
      except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not UTF-8 text: {error}') from error


def _chat(line: str, where: str) -> Chat:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{where} is not JSON: {error}') from error
  messages = row.get('messages') if isinstance(row, dict) else None
  if messages is None and isinstance(row, dict) and 'conversations' in row:
    messages = _of_sharegpt(row['conversations'], where)
  if messages is None:
    raise ValueError(
        f'{where} must be an object with "messages" (a list of {{"role": …, "content": …}}) or '
        '"conversations" (ShareGPT: a list of {"from": …, "value": …}).'
    )
  try:
    chat_lib.check_messages(messages)
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error
  return Chat(tuple(messages), where, row.get('finish_reason') != 'length')


def _of_sharegpt(turns: Any, where: str) -> list[dict[str, str]]:
  messages = []
  for turn in turns if isinstance(turns, list) else [None]:
    speaker = turn.get('from') if isinstance(turn, dict) else None
    text = turn.get('value') if isinstance(turn, dict) else None
    if speaker not in _SPEAKERS or not isinstance(text, str):
      raise ValueError(
          f'{where}, "conversations": each turn must have a "from" ({", ".join(_SPEAKERS)}) and a '
          f'text under "value", got {json.dumps(turn)[:80]}.'
      )
    messages.append(dict(role=_SPEAKERS[speaker], content=text))
  return messages


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Makes tokens of chats, as the model sees them when it answers.

  Attributes:
    tokenizer: of the model.
    template: Jinja source of its chat template.
    special_tokens: texts of special tokens by name, for the template.
    variables: what else the template takes, as pairs.
  """

  tokenizer: tokenizers.Tokenizer
  template: str
  special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
  variables: tuple[tuple[str, Any], ...] = ()

  def encode(self, chat: Chat) -> tuple[list[int], list[bool]]:
    """Token ids of a chat, and which of them are of answers, the tokens that end them included.

    The whole chat is rendered once; the answers are found in the text. What comes before the
    first token that an answer has a part in is no part of it.

    Raises:
      ValueError: if the template refuses the chat or does not write one of its answers.
    """
    try:
      text = chat_lib.render(
          self.template, chat.messages, add_generation_prompt=False,
          special_tokens=self.special_tokens, **dict(self.variables),
      )
    except ValueError as error:
      raise ValueError(f'{chat.where}: {error}') from error
    spans, position = [], 0
    for message in chat.messages:
      content = message['content'].strip()
      start = text.find(content, position)
      if message['role'] != 'assistant' or not content:
        position = start + len(content) if start >= 0 else position
        continue
      if start < 0:
        raise ValueError(
            f'{chat.where}: the chat template does not write the answer {content[:60]!r} as it '
            'stands; give one that does, or leave the chat out.'
        )
      position = start + len(content)
      spans.append((start, position))
    encoded = self.tokenizer.encode(text, add_special_tokens=False)
    ids, offsets = encoded.ids, encoded.offsets
    mask = [False] * len(ids)
    # A template may end an answer by a special token: it is the model's to write.
    special = {i for i, added in self.tokenizer.get_added_tokens_decoder().items() if added.special}
    index, last = 0, len(ids)
    for start, end in spans:
      while index < len(ids) and offsets[index][1] <= start:
        index += 1
      while index < len(ids) and offsets[index][0] < end:
        mask[index] = True
        index += 1
      last = index
      if index < len(ids) and ids[index] in special:
        mask[index] = True
    if not chat.is_finished:
      ids, mask = ids[:last], mask[:last]
    return ids, mask


def is_held_out(chat: Chat, *, one_in: int) -> bool:
  """Whether a chat is kept for measuring: one in so many are, chosen by what the user says."""
  return one_in > 0 and int(chat.key[:12], 16) % one_in == 0


def encode_chats(
    chats: Iterable[Chat],
    encoder: Encoder,
    *,
    out: str | os.PathLike,
    vocab_size: int,
    max_tokens: int = 0,
) -> token_files.Tokens:
  """Writes chats one after the other as a token file with a mask, each whole or cut at its end.

  Args:
    chats: from `read_chats`, perhaps a part of them.
    encoder: of the model.
    out: path that ends in `.npy`.
    vocab_size: of the model, whose embeddings may be more than the tokenizer's tokens.
    max_tokens: a longer chat keeps its first so many; 0 keeps all.

  Returns:
    The file, opened. Its `info` says how many chats, tokens and answers' tokens it has, how many
    chats were cut, and the sha256 of the ids.

  Raises:
    ValueError: for a chat that cannot be rendered; nothing is written.
    NoChats: where there is none.
    OSError: if the disk is full.
  """
  count, cut, digest = 0, 0, hashlib.sha256()
  with token_files.writing(out, vocab_size=vocab_size, with_mask=True) as file:
    for chat in chats:
      ids, mask = encoder.encode(chat)
      if max_tokens and len(ids) > max_tokens:
        ids, mask, cut = ids[:max_tokens], mask[:max_tokens], cut + 1
      file.add(ids, mask)
      digest.update(np.asarray(ids, '<u4').tobytes())
      count += 1
    if not count:
      raise NoChats('There is no chat with an answer among the rows.')
    file.info.update(
        chats=count, cut=cut, tokens=file.num_tokens, answer_tokens=file.num_counted,
        sha256=digest.hexdigest(),
    )
  return token_files.open_tokens(out)


def prompts(chats: Iterable[Chat], encoder: Encoder, *, count: int) -> list[list[int]]:
  """The first `count` chats up to their first answer, as token ids."""
  found = []
  for chat in chats:
    if len(found) == count:
      break
    first = next(i for i, message in enumerate(chat.messages) if message['role'] == 'assistant')
    if first:
      text = chat_lib.render(
          encoder.template, chat.messages[:first], special_tokens=encoder.special_tokens,
          **dict(encoder.variables),
      )
      found.append(chat_lib.encode(text, encoder.tokenizer))
  return found


def draft_vocabulary(counts: np.ndarray, size: int, *, always: Sequence[int] = ()) -> np.ndarray:
  """The tokens that a draft may propose: the most frequent ones, int32 [size], increasing.

  Args:
    counts: [V] integers, how often each token came.
    size: of the draft vocabulary.
    always: tokens that are in it anyhow, such as the ends of a text.

  Raises:
    ValueError: if `size` is not between the number of `always` and V.
  """
  if not len(set(always)) < size <= len(counts):
    raise ValueError(
        f'A draft vocabulary has {len(set(always)) + 1} … {len(counts)} tokens, got {size}.'
    )
  counts = np.array(counts, np.int64)
  counts[list(always)] = counts.max() + 1
  # Stable: of equally frequent tokens the ones with smaller ids, as tokenizers have them first.
  return np.sort(np.argsort(-counts, kind='stable')[:size]).astype(np.int32)
