"""The corpus of a training run in one folder: tokenizer, training tokens, held-out tokens."""

from collections.abc import Callable
import dataclasses
import json
import os
import pathlib

import numpy as np
import tokenizers

from specjax import atomic
from specjax import models
from specjax.training import data

TOKENIZER, TRAIN, HELD_OUT = 'tokenizer.json', 'train.npy', 'held_out.npy'
LICENCE = (
    'The corpus is the standard library of Python: PSF License Agreement version 2, '
    'https://docs.python.org/3/license.html'
)


@dataclasses.dataclass(frozen=True)
class Corpus:
  """What a training run reads.

  Attributes:
    tokenizer: of the tokens.
    tokenizer_file: where it lies.
    train: [tokens] uint16, memory-mapped.
    held_out: [tokens] uint16, memory-mapped, of files that are not in `train`.
    info: what the two were made from (`specjax.training.data.CorpusInfo` as dicts).
  """

  tokenizer: tokenizers.Tokenizer
  tokenizer_file: pathlib.Path
  train: np.ndarray
  held_out: np.ndarray
  info: dict[str, dict]


def prepare(
    folder: str | os.PathLike,
    *,
    vocab_size: int,
    root: str | os.PathLike | None = None,
    tokenizer_file: str | os.PathLike | None = None,
    max_files: int | None = None,
    say: Callable[[str], None] = print,
) -> Corpus:
  """Opens the corpus in `folder`, or makes it there first.

  Args:
    folder: where it lies; what is there is used as it is.
    vocab_size: that the tokenizer must have.
    root: a standard library; None takes the running interpreter's.
    tokenizer_file: an existing tokenizer to encode with; None trains one.
    max_files: use that many files only.
    say: called with what is being done.

  Raises:
    FileNotFoundError: if there are no files, or no such tokenizer.
    ValueError: if the tokenizer has another vocabulary, or is not the one in `folder`.
  """
  folder = pathlib.Path(folder)
  files = {name: folder / name for name in (TOKENIZER, TRAIN, HELD_OUT)}
  if all(file.exists() for file in files.values()):
    say(f'Using the corpus in {folder}.')
    tokenizer = models.load_tokenizer(files[TOKENIZER])
    _check_vocabulary(tokenizer, vocab_size, files[TOKENIZER])
    if tokenizer_file is not None:
      _check_same(tokenizer, tokenizer_file, files[TOKENIZER])
    return _open(files, tokenizer)

  train = data.stdlib_files(root)[:max_files]
  held_out = data.stdlib_files(root, held_out=True)[:max_files]
  if tokenizer_file is None:
    say(f'Training a tokenizer of {vocab_size} tokens on {len(train)} files …')
    tokenizer = data.train_tokenizer(data.read_texts(train), vocab_size)
  else:
    tokenizer = models.load_tokenizer(tokenizer_file)
    _check_vocabulary(tokenizer, vocab_size, tokenizer_file)
  say(f'Encoding {len(train)} files to train on and {len(held_out)} held out …')
  folder.mkdir(parents=True, exist_ok=True)
  data.encode_files(train, tokenizer, out=files[TRAIN])
  data.encode_files(held_out, tokenizer, out=files[HELD_OUT])
  # The tokenizer last: a folder that holds one is complete.
  with atomic.replacing(files[TOKENIZER]) as (temporary,):
    tokenizer.save(str(temporary))
  return _open(files, tokenizer)


def _open(files: dict[str, pathlib.Path], tokenizer: tokenizers.Tokenizer) -> Corpus:
  info = {}
  for name in (TRAIN, HELD_OUT):
    described = files[name].with_suffix('.json')
    text = described.read_text(encoding='utf-8-sig') if described.exists() else '{}'
    info[files[name].stem] = json.loads(text)
  return Corpus(
      tokenizer=tokenizer,
      tokenizer_file=files[TOKENIZER],
      train=np.load(files[TRAIN], mmap_mode='r'),
      held_out=np.load(files[HELD_OUT], mmap_mode='r'),
      info=info,
  )


def _check_vocabulary(tokenizer: tokenizers.Tokenizer, vocab_size: int, file) -> None:
  if tokenizer.get_vocab_size() != vocab_size:
    raise ValueError(
        f'The tokenizer {file} has {tokenizer.get_vocab_size()} tokens, the model '
        f'{vocab_size}. Set config.model.vocab_size, or give another tokenizer.'
    )


def _check_same(tokenizer: tokenizers.Tokenizer, wanted, file) -> None:
  if models.load_tokenizer(wanted).to_str() != tokenizer.to_str():
    raise ValueError(
        f'The corpus was encoded with {file}, which is another tokenizer than {wanted}. Give '
        'another config.corpus.path: the corpus is then encoded anew.'
    )
