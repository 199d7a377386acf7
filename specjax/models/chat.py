"""Chats: messages to the text that a model was trained on, and that text to tokens.

A model that follows instructions expects each message between marks of its own, which the Jinja
template of its folder writes. `render` gives the text that transformers' `apply_chat_template`
gives, `encode` its tokens, and `chat_end_ids` the token with which the model ends its answer.

    template, names = chat.load_chat_template(folder), chat.special_tokens(folder)
    text = chat.render(template, [{'role': 'user', 'content': 'Hello!'}], special_tokens=names)
    prompt = chat.encode(text, tokenizer)
    ends = chat.chat_end_ids(template, tokenizer, special_tokens=names)
    specjax.generate(target, [prompt], stop_tokens=(*models.load_eos_ids(folder), *ends))
"""

from collections.abc import Mapping, Sequence
import os
import pathlib
import types
from typing import Any, NamedTuple

import tokenizers

from specjax.models.hf import keys as hf_keys

ROLES = ('system', 'user', 'assistant', 'tool')
NO_TOKENS: Mapping[str, str] = types.MappingProxyType({})

# An answer that neither a template nor a question has in it.
_EXAMPLE = (
    {'role': 'user', 'content': 'Which colour has the sky?'},
    {'role': 'assistant', 'content': 'It is azure.'},
)


def _templates(name: str, value: Any) -> dict[str, str]:
  """The templates of `chat_template` by their names."""
  if isinstance(value, str):
    return {'default': value}
  is_text = lambda each, key: isinstance(each, dict) and isinstance(each.get(key), str)
  if not isinstance(value, list) or not all(
      is_text(each, 'name') and is_text(each, 'template') for each in value
  ):
    raise ValueError(
        f'{name} must be a text, a list of objects with a name and a template, or null, got '
        f'{hf_keys.shown(value)}.'
    )
  return {each['name']: each['template'] for each in value}


_TEMPLATE: hf_keys.Table = {'chat_template': hf_keys.Key(_templates, default=None, null=True)}
# Each is a text, or an object that has it.
_TOKENS: hf_keys.Table = {
    f'{name}_token': hf_keys.TOKENIZER['eos_token'] for name in ('bos', 'eos', 'unk', 'pad')
}


def load_chat_template(folder: str | os.PathLike) -> str | None:
  """The chat template of a folder: Jinja source, for `render`.

  That is the file `chat_template.jinja`, else `chat_template` in `tokenizer_config.json` or in
  `chat_template.json`; of several with names, the one named 'default'.

  Returns:
    The template, or None where the folder has none.

  Raises:
    FileNotFoundError: when there is no such folder.
    ValueError: when a file holds something else than a template, or none of them is the default.
  """
  folder = _existing(folder)
  file = folder / 'chat_template.jinja'
  if file.exists():
    try:
      return file.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
      raise ValueError(f'{file} is not UTF-8 text ({error}): fetch it again.') from error
  for file in (folder / 'tokenizer_config.json', folder / 'chat_template.json'):
    templates = hf_keys.read_file(file, _TEMPLATE)['chat_template'] if file.exists() else None
    if templates:
      if 'default' not in templates:
        raise ValueError(
            f"{file}: none of the chat templates is named 'default'; there are: "
            f'{", ".join(map(repr, templates))}. Give the text of one of them as the template.'
        )
      return templates['default']
  return None


def special_tokens(folder: str | os.PathLike) -> dict[str, str]:
  """The texts of special tokens that a chat template may write, by the names it has for them.

  Of `tokenizer_config.json`, and of `special_tokens_map.json` what the former says nothing about.

  Returns:
    Those of `bos_token`, `eos_token`, `unk_token` and `pad_token` that the folder names.

  Raises:
    FileNotFoundError: when there is no such folder.
    ValueError: when a file names something else than a token.
  """
  folder = _existing(folder)
  texts = {}
  for file in (folder / 'special_tokens_map.json', folder / 'tokenizer_config.json'):
    if file.exists():
      data = hf_keys.read_json(file)
      values = hf_keys.read(data, _TOKENS, where=str(file))
      texts |= {name: values[name] for name in _TOKENS if name in data}
  return {name: texts[name] for name in _TOKENS if texts.get(name) is not None}


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
  """Refuses what is no chat.

  Raises:
    ValueError: without a message, for a role that is not one of `ROLES`, or where the content is
      missing or no text. Which roles may follow each other is the template's to say.
  """
  wanted = "{'role': 'user', 'content': 'a text'}"
  if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
    raise ValueError(
        f'A chat must be a list of at least one message such as {wanted}, got '
        f'{hf_keys.shown(messages)}.'
    )
  for number, message in enumerate(messages, start=1):
    where = f'Message {number} of {len(messages)}'
    if not isinstance(message, Mapping):
      raise ValueError(f'{where} must be an object such as {wanted}, got {hf_keys.shown(message)}.')
    if message.get('role') not in ROLES:
      raise ValueError(
          f'{where}: role must be one of {", ".join(ROLES)}, got '
          f'{hf_keys.shown(message.get("role"))}. Rename it.'
      )
    content = message.get('content')
    if not isinstance(content, str):
      hint = (
          'Join its parts; images and sounds are not supported.' if isinstance(content, list)
          else "Give it one, '' where nothing is said."
      )
      raise ValueError(
          f'{where} ({message["role"]}): content must be a text, got {hf_keys.shown(content)}. '
          f'{hint}'
      )


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    special_tokens: Mapping[str, str] = NO_TOKENS,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
  """The text of a chat, as transformers' `apply_chat_template(…, tokenize=False)` gives it.

  One thing differs: where transformers writes nothing for a name that is not defined, such as
  the `bos_token` of a tokenizer without one, this is an error; `special_tokens={'bos_token': ''}`
  writes nothing on purpose. A template that writes today's date (`strftime_now`) gives another
  text tomorrow: `date_string='26 Jul 2024'` fixes that of Llama 3, and a function given as
  `strftime_now` any other.

  >>> template = '{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>'
  >>> render(template, [{'role': 'user', 'content': 'Hello!'}])
  '<user>Hello!<assistant>'

  Args:
    template: Jinja source, such as `load_chat_template` reads.
    messages: in their order, each a `role` (`ROLES`) and a `content`; what else a message has is
      handed on to the template.
    add_generation_prompt: whether the text ends where an answer begins.
    special_tokens: texts by name; those of a folder are `special_tokens(folder)`.
    tools: JSON schemas of functions that the model may call.
    **variables: what else the template may use, such as `enable_thinking=False`.

  Returns:
    The text, for `encode`.

  Raises:
    ValueError: for messages as in `check_messages`, for a template that is no text or cannot be
      rendered, that refuses the messages, or that writes a name which is not defined.
  """
  from specjax.models import jinja  # imports jinja2, which nothing else here needs

  if not isinstance(template, str):
    raise ValueError(
        'A chat is rendered by a template, the text that load_chat_template(folder) reads or one '
        f'of your own; got {hf_keys.shown(template)}.'
    )
  check_messages(messages)
  names = dict(
      messages=list(messages), tools=tools, documents=None,
      add_generation_prompt=add_generation_prompt,
  )
  return jinja.render(template, names | dict(special_tokens) | variables)


def encode(text: str, tokenizer: tokenizers.Tokenizer) -> list[int]:
  """The tokens of a rendered chat.

  Special tokens in the text become their ids, those in the messages too. Nothing is added: the
  template has written the BOS where the model expects one.

  Args:
    text: from `render`.
    tokenizer: of the model.

  Returns:
    Token ids, as transformers' `apply_chat_template(…, tokenize=True)` gives them.
  """
  return tokenizer.encode(text, add_special_tokens=False).ids


def chat_end_ids(
    template: str,
    tokenizer: tokenizers.Tokenizer,
    *,
    messages: Sequence[Mapping[str, Any]] = _EXAMPLE,
    special_tokens: Mapping[str, str] = NO_TOKENS,
    **variables: Any,
) -> tuple[int, ...]:
  """The token that a template writes after an answer, with which the model ends its own.

  It is read off a rendered chat that ends with an answer, or, where nothing follows there, from
  one that goes on. With `specjax.models.load_eos_ids`, which often has it too, these are the
  `stop_tokens` of a chat.

  Args:
    template: as for `render`; so are `special_tokens` and `variables`.
    tokenizer: of the model.
    messages: a chat that ends with an answer, whose text is nowhere else in it.

  Returns:
    The token's id; empty where the template ends an answer by plain text, or not at all.

  Raises:
    ValueError: as `render`, or where the rendered chat does not have the answer in it.
  """
  check_messages(messages)
  answer = messages[-1]['content'].strip()
  if messages[-1]['role'] != 'assistant' or not answer:
    raise ValueError(
        f'messages must end with an answer of the assistant, got {hf_keys.shown(messages[-1])}.'
    )
  marks = _marks(tokenizer, special_tokens)
  for following in ((), ({'role': 'user', 'content': 'And at night?'},)):
    text = render(
        template, [*messages, *following], add_generation_prompt=False,
        special_tokens=special_tokens, **variables,
    )
    _, here, after = text.rpartition(answer)
    if not here:
      raise ValueError(
          f'The chat template does not write the answer {answer!r}, so that its end is not known: '
          f'it wrote {hf_keys.shown(text)}. Give the stop tokens yourself.'
      )
    if ids := _first_mark(after, marks):
      return ids
  return ()


class UserTurn(NamedTuple):
  """Where a user speaks in a chat.

  Attributes:
    header: token ids of everything before the first words of the user.
    end_ids: the token after the user's last word.
  """

  header: list[int]
  end_ids: tuple[int, ...]


def user_turn(
    template: str,
    tokenizer: tokenizers.Tokenizer,
    *,
    system: str = '',
    special_tokens: Mapping[str, str] = NO_TOKENS,
    **variables: Any,
) -> UserTurn:
  """What a chat begins with, up to the user's first word, and the token that ends the user's turn.

  A model that was trained on chats goes on from that beginning with a question of its own (Xu et
  al. 2024, Magpie, https://arxiv.org/abs/2406.08464, section 2).

  Args:
    template: as for `render`; so are `special_tokens` and `variables`.
    tokenizer: of the model.
    system: a system's text to begin with; '' leaves it to the template.

  Raises:
    ValueError: as `render`, or where the template ends a user's turn by plain text.
  """
  message = _EXAMPLE[0]
  messages = [{'role': 'system', 'content': system}] if system else []
  text = render(
      template, [*messages, message], add_generation_prompt=False, special_tokens=special_tokens,
      **variables,
  )
  header, here, after = text.partition(message['content'])
  end_ids = _first_mark(after, _marks(tokenizer, special_tokens)) if here else ()
  if not end_ids:
    raise ValueError(
        'The chat template writes no special token after what a user says, so that a question '
        f'which the model asks itself would have no end: it wrote {hf_keys.shown(text)}. Write the '
        'questions yourself, and give them as a file.'
    )
  return UserTurn(encode(header, tokenizer), end_ids)


def _marks(
    tokenizer: tokenizers.Tokenizer, special_tokens: Mapping[str, str]
) -> dict[str, int]:
  """Ids of the special tokens by their texts."""
  ids = {added.content: i for i, added in tokenizer.get_added_tokens_decoder().items()}
  ids |= {text: tokenizer.token_to_id(text) for text in special_tokens.values()}
  return {text: i for text, i in ids.items() if text and i is not None}


def _first_mark(after: str, marks: Mapping[str, int]) -> tuple[int, ...]:
  """The special token with which a text begins, blanks not counted; empty where there is none."""
  after = after.lstrip()
  first = max(filter(after.startswith, marks), key=len, default='')
  return (marks[first],) if first else ()


def _existing(folder: str | os.PathLike) -> pathlib.Path:
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(f'There is no folder {folder}.')
  return folder
