"""The tokenizer of a GGUF file, its end tokens, and its chat template."""

import os

import tokenizers
from tokenizers import processors

from specjax.models.gguf import byte_level
from specjax.models.gguf import files
from specjax.models.gguf import pieces
from specjax.models.gguf import vocabulary as vocabulary_lib
from specjax.models.hf import keys as hf_keys

_TEMPLATE = 'tokenizer.chat_template'
_SPECIAL = (vocabulary_lib.CONTROL, vocabulary_lib.UNKNOWN)


def load_gguf_tokenizer(path: str | os.PathLike) -> tokenizers.Tokenizer:
  """The tokenizer of a GGUF file.

  `tokenizer.ggml.model` may be 'gpt2', with a splitting rule (`tokenizer.ggml.pre`) that is known,
  or 'llama' (SentencePiece). Ids are those of the model's own `tokenizer.json` for the rules, and
  those that `transformers` reads for SentencePiece: a space is put before a text but not after a
  control token within it, where llama.cpp puts one as well. Control tokens and user-defined ones
  are found anywhere in a text.

  A text gets a BOS before it and an EOS after it where the file says so. One that begins with its
  BOS already, as chat templates write it, is encoded with `add_special_tokens=False`.

  Raises:
    FileNotFoundError: when there is no such file.
    ValueError: when the tokenizer is of a kind that is not supported, or is damaged.
  """
  header = files.read_header(path)
  vocabulary = vocabulary_lib.read(header)
  if vocabulary.model == 'gpt2':
    tokenizer, add_bos = byte_level.build(vocabulary)
  else:
    architecture = header.metadata.get('general.architecture')
    is_gemma = isinstance(architecture, str) and architecture.startswith('gemma')
    tokenizer, add_bos = pieces.build(vocabulary, gemma=is_gemma), True
  _add_tokens(tokenizer, vocabulary)
  _add_ends(tokenizer, vocabulary, add_bos)
  return tokenizer


def load_gguf_eos_ids(path: str | os.PathLike) -> tuple[int, ...]:
  """The tokens that end a text or a turn of a chat, that which the file names first.

  Files name one or two (`tokenizer.ggml.eos_token_id`, `eot_token_id`, `eom_token_id`); others
  are known by their texts (`<|im_end|>`, `<|endoftext|>`, `<end_of_turn>`, …).

  Returns:
    Token ids, for `stop_tokens`.

  Raises:
    FileNotFoundError: when there is no such file.
    ValueError: as `load_gguf_tokenizer`.
  """
  return vocabulary_lib.read(files.read_header(path)).end_ids()


def load_gguf_special_tokens(path: str | os.PathLike) -> dict[str, str]:
  """The texts of the tokens that a file names, by 'bos_token', 'eos_token', …; raises as above."""
  vocabulary = vocabulary_lib.read(files.read_header(path))
  return {name: vocabulary.tokens[number] for name, number in vocabulary.ids.items()}


def load_gguf_chat_template(path: str | os.PathLike) -> str | None:
  """The Jinja source of a file's chat template, or None.

  Raises:
    FileNotFoundError: when there is no such file.
    ValueError: when it is no GGUF file, or the template is no text.
  """
  header = files.read_header(path)
  table = {_TEMPLATE: hf_keys.text(default=None)}
  return hf_keys.read(header.metadata, table, where=str(header.path))[_TEMPLATE]


def _add_tokens(
    tokenizer: tokenizers.Tokenizer, vocabulary: vocabulary_lib.Vocabulary
) -> None:
  """Adds the tokens that are found before texts are split; they have ids already."""
  special, others = [], []
  for text, kind in zip(vocabulary.tokens, vocabulary.kinds):
    if kind in _SPECIAL:
      special.append(tokenizers.AddedToken(text, normalized=False, special=True))
    # Gemma's tokens of spaces have become pieces, and are merged like them.
    elif kind == vocabulary_lib.USER_DEFINED and tokenizer.token_to_id(text) is not None:
      others.append(tokenizers.AddedToken(text, normalized=False, special=False))
  tokenizer.add_special_tokens(special)
  tokenizer.add_tokens(others)


def _add_ends(
    tokenizer: tokenizers.Tokenizer, vocabulary: vocabulary_lib.Vocabulary, add_bos: bool
) -> None:
  """Lets texts begin and end with the tokens that the file asks for."""
  names = []
  if add_bos if vocabulary.add_bos is None else vocabulary.add_bos:
    names.append('bos_token')
  if vocabulary.add_eos:
    names.append('eos_token')
  for name in names:
    if name not in vocabulary.ids:
      raise ValueError(
          f'{vocabulary.where}: tokenizer.ggml.add_{name} is true, but tokenizer.ggml.{name}_id is '
          'missing.'
      )
  if not names:
    return
  around = lambda text: [
      name for name in ('bos_token', text, 'eos_token') if name in (text, *names)
  ]
  tokenizer.post_processor = processors.TemplateProcessing(
      single=around('$A'),
      pair=[*around('$A'), *(f'{name}:1' for name in around('$B'))],
      special_tokens=[
          {
              'id': name,
              'ids': [vocabulary.ids[name]],
              'tokens': [vocabulary.tokens[vocabulary.ids[name]]],
          }
          for name in names
      ],
  )
