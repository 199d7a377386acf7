"""The tokenizer of a Hugging Face folder, and the tokens that end its texts."""

import os
import pathlib

import tokenizers

from specjax.models.hf import keys as hf_keys


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
  """The tokens that end a text, of the first of these files that names any.

  `generation_config.json`, `config.json`, and `tokenizer_config.json`, whose `eos_token` is a
  text: its id is that of `added_tokens_decoder` there, or of `tokenizer.json`.

  Returns:
    Token ids, for `stop_tokens`; empty when the folder names none.

  Raises:
    ValueError: when a file names something else than tokens, or a text that is no token.
  """
  folder = pathlib.Path(folder)
  for file in (folder / 'generation_config.json', folder / 'config.json'):
    if file.exists():
      ids = hf_keys.read_file(file, hf_keys.GENERATION)['eos_token_id']
      if ids:  # an empty list names none
        return ids
  file = folder / 'tokenizer_config.json'
  if not file.exists():
    return ()
  values = hf_keys.read_file(file, hf_keys.TOKENIZER)
  token = values['eos_token']
  if token is None:
    return ()
  for number, added in (values['added_tokens_decoder'] or {}).items():
    if added['content'] == token and number.isdecimal():
      return (int(number),)
  end_token = None
  if (folder / 'tokenizer.json').exists():
    end_token = load_tokenizer(folder).token_to_id(token)
  if end_token is None:
    raise ValueError(
        f'{file}: eos_token={token!r} has no id in added_tokens_decoder there, nor in '
        f'{folder / "tokenizer.json"}.'
    )
  return (end_token,)
