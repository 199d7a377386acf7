"""The corpus of a training run in one folder: tokenizer, training tokens, held-out tokens."""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib

import tokenizers

from specjax import atomic
from specjax import models
from specjax.training import chats as chats_lib
from specjax.training import data
from specjax.training import token_files

TOKENIZER, TRAIN, HELD_OUT = 'tokenizer.json', 'train.npy', 'held_out.npy'
PROMPTS, SOURCE = 'prompts.json', 'source.json'
LICENCE = (
    'The corpus is the standard library of Python: PSF License Agreement version 2, '
    'https://docs.python.org/3/license.html'
)
# Held-out chats of which the beginnings are kept as prompts.
_NUM_PROMPTS = 64


@dataclasses.dataclass(frozen=True)
class Corpus:
  """What a training run reads.

  Attributes:
    tokenizer: of the tokens.
    tokenizer_file: where it lies.
    train: the tokens to train on.
    held_out: of texts or chats that are not in `train`.
    end_tokens: ids that end a text or an answer.
    prompts: token ids of held-out chats up to their first answer; empty where there are texts.
    licence: of the text, in a sentence; '' where it is the user's own.
  """

  tokenizer: tokenizers.Tokenizer
  tokenizer_file: pathlib.Path
  train: token_files.Tokens
  held_out: token_files.Tokens
  end_tokens: tuple[int, ...]
  prompts: tuple[list[int], ...] = ()
  licence: str = ''

  @property
  def info(self) -> dict[str, dict]:
    """What training and held-out tokens were made from."""
    return {'train': self.train.info, 'held_out': self.held_out.info}


def prepare(
    folder: str | os.PathLike,
    *,
    vocab_size: int,
    root: str | os.PathLike | None = None,
    tokenizer: tokenizers.Tokenizer | None = None,
    end: int | None = None,
    is_padded: bool = False,
    max_files: int | None = None,
    say: Callable[[str], None] = print,
) -> Corpus:
  """Opens the corpus of Python's standard library in `folder`, or makes it there first.

  Args:
    folder: where it lies; what is there is used as it is.
    vocab_size: of the model; of a tokenizer that is trained for it.
    root: a standard library; None takes the running interpreter's.
    tokenizer: an existing one to encode with; None trains one.
    end: id that ends a text, of an existing tokenizer.
    is_padded: whether the model may have more entries than the tokenizer has tokens.
    max_files: use that many files only.
    say: called with what is being done.

  Raises:
    FileNotFoundError: if there are no files.
    ValueError: if the tokenizer does not fit the model, or is not the one in `folder`.
  """
  folder = pathlib.Path(folder)
  files = {name: folder / name for name in (TOKENIZER, TRAIN, HELD_OUT)}
  if all(file.exists() for file in files.values()):
    say(f'Using the corpus in {folder}.')
    found = models.load_tokenizer(files[TOKENIZER])
    _check_vocabulary(found, vocab_size, files[TOKENIZER], is_padded)
    if tokenizer is not None:
      _check_same(found, tokenizer, files[TOKENIZER])
    return _open(files, found, end)

  train = data.stdlib_files(root)[:max_files]
  held_out = data.stdlib_files(root, held_out=True)[:max_files]
  if tokenizer is None:
    say(f'Training a tokenizer of {vocab_size} tokens on {len(train)} files …')
    tokenizer = data.train_tokenizer(data.read_texts(train), vocab_size)
  else:
    _check_vocabulary(tokenizer, vocab_size, 'to encode with', is_padded)
  say(f'Encoding {len(train)} files to train on and {len(held_out)} held out …')
  folder.mkdir(parents=True, exist_ok=True)
  for texts, name in ((train, TRAIN), (held_out, HELD_OUT)):
    data.encode_files(texts, tokenizer, out=files[name], vocab_size=vocab_size, end=end)
  # The tokenizer last: a folder that holds one is complete.
  with atomic.replacing(files[TOKENIZER]) as (temporary,):
    tokenizer.save(str(temporary))
  return _open(files, tokenizer, end)


def prepare_chats(
    folder: str | os.PathLike,
    files: Sequence[str | os.PathLike],
    encoder: chats_lib.Encoder,
    *,
    vocab_size: int,
    end_tokens: tuple[int, ...],
    held_out_one_in: int,
    max_tokens: int = 0,
    say: Callable[[str], None] = print,
) -> Corpus:
  """Opens the corpus of chats in `folder`, or makes it there first.

  Args:
    folder: where it lies.
    files: `.jsonl` of chats (`specjax.training.chats`).
    encoder: of the target.
    vocab_size: of the target.
    end_tokens: ids that end an answer.
    held_out_one_in: one chat in so many is held out, chosen by what the user says first.
    max_tokens: a longer chat keeps its first so many; 0 keeps all.
    say: called with what is being done.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: for a broken row, if the folder holds the corpus of other chats, or if there are
      too few to hold any out.
  """
  folder = pathlib.Path(folder)
  paths = [pathlib.Path(file).expanduser() for file in files]
  names = {name: folder / name for name in (TOKENIZER, TRAIN, HELD_OUT)}
  _check_vocabulary(encoder.tokenizer, vocab_size, 'of the target', is_padded=True)
  for path in paths:
    if not path.is_file():
      raise FileNotFoundError(f'There is no file of chats {path}.')
  source = dict(
      files=[_digest(path) for path in paths],
      template=hashlib.sha256(encoder.template.encode()).hexdigest(),
      tokenizer=hashlib.sha256(encoder.tokenizer.to_str().encode()).hexdigest(),
      vocab_size=vocab_size, held_out_one_in=held_out_one_in, max_tokens=max_tokens,
  )
  if (folder / SOURCE).exists():
    stored = json.loads((folder / SOURCE).read_text(encoding='utf-8-sig'))
    if other := sorted(key for key in source if stored.get(key) != source[key]):
      raise ValueError(
          f'{folder} holds the corpus of other chats ({", ".join(other)} differ). Give another '
          'config.corpus.path, or remove it.'
      )
    say(f'Using the corpus in {folder}.')
    return _open_chats(names, encoder.tokenizer, end_tokens)
  say(f'Encoding the chats of {", ".join(map(str, paths))} …')
  folder.mkdir(parents=True, exist_ok=True)
  for name, is_wanted in ((TRAIN, False), (HELD_OUT, True)):
    try:
      chats_lib.encode_chats(
          _side(paths, held_out_one_in, is_wanted), encoder, out=names[name],
          vocab_size=vocab_size, max_tokens=max_tokens,
      )
    except chats_lib.NoChats:
      raise ValueError(
          f'None of the chats in {", ".join(map(str, paths))} is '
          f'{"held out" if is_wanted else "left to train on"}, of which one in {held_out_one_in} '
          'is. Give more chats, or another config.corpus.held_out_one_in.'
      ) from None
  kept = chats_lib.prompts(
      _side(paths, held_out_one_in, True), encoder, count=_NUM_PROMPTS
  )
  atomic.write(folder / PROMPTS, json.dumps(kept) + '\n')
  with atomic.replacing(names[TOKENIZER]) as (temporary,):
    encoder.tokenizer.save(str(temporary))
  # Last: a folder that holds it is complete.
  atomic.write(folder / SOURCE, json.dumps(source, indent=2) + '\n')
  return _open_chats(names, encoder.tokenizer, end_tokens)


def _side(paths, one_in: int, is_wanted: bool):
  """The chats that are held out, or the others."""
  return (
      chat for chat in chats_lib.read_chats(paths)
      if chats_lib.is_held_out(chat, one_in=one_in) == is_wanted
  )


def _digest(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _open(files: dict[str, pathlib.Path], tokenizer: tokenizers.Tokenizer, end) -> Corpus:
  end = tokenizer.token_to_id(data.END_OF_TEXT) if end is None else end
  return Corpus(
      tokenizer=tokenizer,
      tokenizer_file=files[TOKENIZER],
      train=token_files.open_tokens(files[TRAIN]),
      held_out=token_files.open_tokens(files[HELD_OUT]),
      end_tokens=(end,),
      licence=LICENCE,
  )


def _open_chats(files: dict[str, pathlib.Path], tokenizer, end_tokens) -> Corpus:
  kept = (files[TOKENIZER].parent / PROMPTS).read_text(encoding='utf-8-sig')
  return dataclasses.replace(
      _open(files, tokenizer, end_tokens[0] if end_tokens else None),
      end_tokens=end_tokens, prompts=tuple(json.loads(kept)), licence='',
  )


def _check_vocabulary(tokenizer, vocab_size: int, file, is_padded: bool) -> None:
  known = tokenizer.get_vocab_size()
  # Models that were not trained here pad their vocabulary to a round number.
  if known > vocab_size or known != vocab_size and not is_padded:
    raise ValueError(
        f'The tokenizer {file} has {known} tokens, the model '
        f'{vocab_size}. Set config.model.vocab_size, or give another tokenizer.'
    )


def _check_same(tokenizer: tokenizers.Tokenizer, wanted: tokenizers.Tokenizer, file) -> None:
  if wanted.to_str() != tokenizer.to_str():
    raise ValueError(
        f'The corpus was encoded with {file}, which is another tokenizer than the one to train '
        'with. Give another config.corpus.path: the corpus is then encoded anew.'
    )
