"""One call from a folder, a hub id or a `.gguf` file to all that decoding a chat needs."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any

import tokenizers

from specjax.models import chat
from specjax.models import gguf
from specjax.models import hf
from specjax.models import hub
from specjax.models.config import TransformerConfig
from specjax.models.hf import keys as hf_keys
from specjax.models.language_model import LanguageModel

# Sampling settings of a generation_config.json that specjax.sampling.make knows as well.
_SAMPLING = ('temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty')


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A model and what comes with it.

  Attributes:
    model: the model.
    tokenizer: its tokenizer.
    chat_template: Jinja source of its chat template, or None.
    special_tokens: texts of special tokens by name ('bos_token', …), for the template.
    end_tokens: ids that end a text or a turn of a chat.
    sampling: the model's own sampling settings, arguments of `specjax.sampling.make`;
      empty where it names none, `temperature` 0 where it asks for greedy decoding.
    source: where it was read from.
  """

  model: LanguageModel
  tokenizer: tokenizers.Tokenizer
  chat_template: str | None
  special_tokens: Mapping[str, str]
  end_tokens: tuple[int, ...]
  sampling: Mapping[str, Any]
  source: pathlib.Path

  def encode_chat(
      self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
  ) -> list[int]:
    """Token ids of a chat, ready for the model's answer.

    Args:
      messages: turns, each with 'role' ('system', 'user', 'assistant') and 'content'.
      add_generation_prompt: end with the head of the assistant's turn.

    Raises:
      ValueError: if the model has no template, or the template refuses the messages.
    """
    if self.chat_template is None:
      raise ValueError(
          f'{self.source} has no chat template: give one, '
          '`specjax.load(source, chat_template=TEXT)`, or encode a text with the tokenizer.'
      )
    text = chat.render(
        self.chat_template,
        messages,
        add_generation_prompt=add_generation_prompt,
        special_tokens=self.special_tokens,
    )
    return chat.encode(text, self.tokenizer)


def load(
    source: str | os.PathLike,
    *,
    dtype: Any = None,
    layout: Any = None,
    int8: bool = False,
    text_only: bool = True,
    chat_template: str | None = None,
) -> Checkpoint:
  """Loads a model with its tokenizer, chat template, end tokens and sampling settings.

  Args:
    source: a Hugging Face folder; a hub id, 'organisation/model' with '@revision' after it if
      another one than main is meant; or a `.gguf` file, also of a hub repository
      ('organisation/model/file.gguf').
    dtype: of weights, activations and cache; None keeps that of the files (bfloat16 for
      quantised `.gguf` files).
    layout: how the model is split over devices (`specjax.sharding.make`).
    int8: round weights to eight bits.
    text_only: of a model with a vision tower load the language model alone.
    chat_template: Jinja source to use in place of the model's own.

  Returns:
    The `Checkpoint`.

  Raises:
    FileNotFoundError: if there is no such model, or a file is missing in it.
    PermissionError: if a model on the hub is gated.
    ValueError: if the model is not supported or a file is damaged.
  """
  path = hub.fetch(source)
  about = describe(path, chat_template=chat_template)  # what is wrong with it is said at once
  model = load_model(path, dtype=dtype, layout=layout, int8=int8, text_only=text_only)
  return dataclasses.replace(about, model=model)


def load_model(
    source: str | os.PathLike,
    *,
    dtype: Any = None,
    layout: Any = None,
    int8: bool = False,
    text_only: bool = True,
) -> LanguageModel:
  """The model of a source alone, which needs no tokenizer; arguments are as for `load`."""
  path = hub.fetch(source)
  if is_gguf(path):
    return gguf.load_gguf(path, dtype=dtype, layout=layout, int8=int8)
  return hf.load_hf(path, dtype=dtype, text_only=text_only, layout=layout, int8=int8)


def describe(source: str | os.PathLike, *, chat_template: str | None = None) -> Checkpoint:
  """As `load`, but `model` is None and no weights are fetched or read."""
  path = hub.fetch(source, without_weights=True)
  if is_gguf(path):
    tokenizer = gguf.load_gguf_tokenizer(path)
    template = gguf.load_gguf_chat_template(path)
    special_tokens = gguf.load_gguf_special_tokens(path)
    end_tokens, sampling = gguf.load_gguf_eos_ids(path), {}
  else:
    tokenizer = hf.load_tokenizer(_with_tokenizer(path))
    template, special_tokens = chat.load_chat_template(path), chat.special_tokens(path)
    end_tokens, sampling = hf.load_eos_ids(path), _sampling(path)
  template = chat_template or template
  if template is not None:
    try:
      end_tokens += chat.chat_end_ids(template, tokenizer, special_tokens=special_tokens)
    except ValueError:
      # What is wrong with the template is said where it is used; weights load without it.
      pass
  return Checkpoint(
      model=None,
      tokenizer=tokenizer,
      chat_template=template,
      special_tokens=special_tokens,
      end_tokens=tuple(dict.fromkeys(end_tokens)),
      sampling=sampling,
      source=path,
  )


def read_config(source: str | os.PathLike, *, text_only: bool = True) -> TransformerConfig:
  """The `TransformerConfig` of a source of `load`; no weights are fetched or read."""
  path = hub.fetch(source, without_weights=True)
  if is_gguf(path):
    return gguf.load_gguf_config(path)
  return hf.load_config(path, text_only=text_only)


def _with_tokenizer(folder: pathlib.Path) -> pathlib.Path:
  """The folder, or the one that it lies in where the tokenizer is there, as that of a pair is."""
  has_one = lambda path: (path / 'tokenizer.json').exists()
  return folder.parent if has_one(folder.parent) and not has_one(folder) else folder


def is_gguf(path: pathlib.Path) -> bool:
  """Whether a path is read as a GGUF file."""
  return path.is_file() and path.suffix.lower() == '.gguf'


def _sampling(folder: pathlib.Path) -> dict[str, Any]:
  """Settings of `generation_config.json`."""
  file = folder / 'generation_config.json'
  if not file.exists():
    return {}
  values = hf_keys.read_json(file)
  if not values.get('do_sample', False):
    return dict(temperature=0.0) if 'do_sample' in values else {}
  return {name: values[name] for name in _SAMPLING if values.get(name) is not None}
