"""The tokenizer of a Hugging Face folder, and the tokens that end its texts."""

import os
import pathlib

import tokenizers

from specjax.models import hf_files


def load_tokenizer(path: str | os.PathLike) -> tokenizers.Tokenizer:
  """The `tokenizers.Tokenizer` of a folder with `tokenizer.json`, or of such a file.

  Truncation and padding, which such a file may ask for, are off: a prompt keeps all of its tokens
  and gets no others.

  Raises:
    FileNotFoundError: when there is none.
    ValueError: when the file does not hold a tokenizer.
  """
  path = pathlib.Path(path)
  file = path / 'tokenizer.json' if path.is_dir() else path
  if not file.exists():
    hint = ''
    if (file.parent / 'tokenizer.model').exists():
      hint = (
          ' There is a SentencePiece tokenizer.model: write it as tokenizer.json with '
          '`AutoTokenizer.from_pretrained(folder).save_pretrained(folder)` of transformers.'
      )
    raise FileNotFoundError(f'{file} does not exist.{hint}')
  try:
    tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding='utf-8-sig'))
  except Exception as error:  # tokenizers raises bare Exception
    raise ValueError(f'{file} does not hold a tokenizer that tokenizers reads: {error}') from error
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


def load_eos_ids(folder: str | os.PathLike) -> tuple[int, ...]:
  """The tokens that end a text: of `generation_config.json`, else of `config.json`.

  Returns:
    Token ids, for `stop_tokens`; empty when the folder names none.
  """
  for name in ('generation_config.json', 'config.json'):
    file = pathlib.Path(folder) / name
    ids = hf_files.read_json(file).get('eos_token_id') if file.exists() else None
    if ids is not None:
      return (ids,) if isinstance(ids, int) else tuple(ids)
  return ()
