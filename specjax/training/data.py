"""The corpus of the shipped pair: the source of Python's own standard library.

Every machine that runs this package has it, so a training run needs no download. The way from files
to batches:

    files = stdlib_files()
    tokenizer = train_tokenizer(read_texts(files), vocab_size=4096)
    encode_files(files, tokenizer, out="train.npy")
    batches = TokenBatches(np.load("train.npy", mmap_mode="r"), batch_size=32, seq_len=512, seed=0)
    batches.batch(step)  # int32 [32, 513], a function of the step alone
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import pathlib
import platform
import shutil
import sysconfig
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from specjax.training import token_files

END_OF_TEXT = '<|endoftext|>'

# Never trained on; all of them exist in Python 3.11 to 3.13, and none has a near copy among the
# other files.
HELD_OUT: tuple[str, ...] = (
  'asyncio/queues.py',
  'base64.py',
  'bisect.py',
  'calendar.py',
  'csv.py',
  'dbm/dumb.py',
  'email/header.py',
  'fileinput.py',
  'gettext.py',
  'graphlib.py',
  'heapq.py',
  'html/parser.py',
  'http/cookies.py',
  'json/decoder.py',
  'multiprocessing/pool.py',
  'poplib.py',
  'queue.py',
  'shlex.py',
  'symtable.py',
  'textwrap.py',
  'unittest/suite.py',
  'urllib/robotparser.py',
  'wsgiref/validate.py',
  'zipapp.py',
)

_EXCLUDED_FOLDERS = frozenset(
  'site-packages dist-packages test tests idle_test __pycache__ _bundled '
  'encodings pydoc_data idlelib turtledemo lib-dynload'.split()
)
# Generated tables, and what a machine's owner put there: neither is Python that a person wrote for
# others.
_EXCLUDED_FILES = frozenset(
  'html/entities.py stringprep.py _opcode_metadata.py sitecustomize.py usercustomize.py'.split()
)
# These hold the paths and flags of one build: config-3.13-x86_64-linux-gnu/,
# _sysconfigdata__linux_….py.
_EXCLUDED_PREFIXES = ('config-', '_sysconfigdata', '_sysconfig_vars')

# One pre-token each, tried in this order. Merges never cross a pre-token, so this says what a token
# may be.
_PIECES = '|'.join(
  (
    # Line ends with the indentation after them: "\n        " can become one token.
    r'(?:\r?\n)+[ \t]*',
    r' ?[\p{L}\p{M}_]+',  # " snake_case", "__init__"
    r' ?\p{N}{1,3}',  # "12345" is "123", "45"
    r' ?[^\s\p{L}\p{M}\p{N}_]+',  # "):", " =="
    r'[^\S\r\n]+(?!\S)',  # blanks; the last one before a word goes with the word
    r'\s',
  )
)
_MAX_TOKEN_BYTES = 32  # keeps banners ("# -----…") from eating the vocabulary


@dataclasses.dataclass(frozen=True)
class CorpusInfo:
  """What `encode_files` wrote.

  Attributes:
    python: version of the interpreter that ran, such as "3.13.0".
    files: number of files.
    bytes: bytes of text, ends of text not counted.
    tokens: number of tokens, one end of text per file included.
    bytes_per_token: bytes / tokens.
    sha256: of that text's bytes one after the other, in the order given.
  """

  python: str
  files: int
  bytes: int
  tokens: int
  bytes_per_token: float
  sha256: str


def stdlib_files(
  root: str | os.PathLike | None = None, held_out: bool = False
) -> list[pathlib.Path]:
  """Python files of the standard library that are the corpus, sorted by their path below `root`.

  Left out are tests, bundled and installed packages, generated tables, files that describe one
  build or one machine, empty files, and files that are not UTF-8.

  Args:
    root: folder of a standard library; by default that of the running interpreter.
    held_out: False for the files to train on, True for those of `HELD_OUT` that exist. The two
      never meet.

  Returns:
    Absolute paths, at least one.

  Raises:
    FileNotFoundError: `root` is not a folder, or no such file is in it.
  """
  root = pathlib.Path(sysconfig.get_path('stdlib') if root is None else root).resolve()
  if not root.is_dir():
    raise FileNotFoundError(f'expected the folder of a standard library, got {root}; pass root=')
  relative = sorted(path.relative_to(root).as_posix() for path in root.rglob('*.py'))
  files = [
    root / path for path in relative if (path in HELD_OUT) == held_out and _is_corpus(root, path)
  ]
  if not files:
    kind = 'held-out' if held_out else 'training'
    raise FileNotFoundError(
      f'expected {kind} files below {root}, found none of them among {len(relative)} Python files; '
      f'pass root= a folder such as {sysconfig.get_path("stdlib")}'
    )
  return files


def _is_corpus(root: pathlib.Path, relative: str) -> bool:
  folders = relative.split('/')[:-1]
  if _EXCLUDED_FOLDERS.intersection(folders):
    return False
  if relative in _EXCLUDED_FILES or relative.startswith(_EXCLUDED_PREFIXES):
    return False
  try:
    return bool((root / relative).read_bytes().decode('utf-8-sig'))
  except UnicodeDecodeError:
    return False


def read_texts(files: Iterable[str | os.PathLike]) -> Iterator[str]:
  """The files' texts one by one, line ends as they stand, without a byte-order mark.

  Raises:
    UnicodeDecodeError: a file is not UTF-8.
  """
  for path in files:
    yield pathlib.Path(path).read_bytes().decode('utf-8-sig')


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  """A byte-level BPE for code, of exactly `vocab_size` tokens.

  `<|endoftext|>` is 0 and the 256 bytes follow. Any text comes back exactly:
  `decode(encode(text).ids, skip_special_tokens=False) == text`. There is no normaliser.
  `save(path)` writes the standard tokenizer.json that `tokenizers.Tokenizer.from_file` and
  transformers' `PreTrainedTokenizerFast(tokenizer_file=path)` read.

  Raises:
    ValueError: `vocab_size` below 257 (256 bytes and the end of text), or texts too small for that
      many tokens.

  References:
    Sennrich et al. 2016, https://arxiv.org/abs/1508.07909.
  """
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  if vocab_size <= len(alphabet):
    raise ValueError(
      f'expected vocab_size of at least {len(alphabet) + 1} (bytes, end of text), got {vocab_size}'
    )
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior='isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[END_OF_TEXT],
    initial_alphabet=alphabet,
    max_token_length=_MAX_TOKEN_BYTES,
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  if tokenizer.get_vocab_size() != vocab_size:
    raise ValueError(
      f'expected texts that yield vocab_size={vocab_size} tokens, these yield only '
      f'{tokenizer.get_vocab_size()}; pass more text or a smaller vocab_size'
    )
  return tokenizer


def encode_files(
  files: Sequence[str | os.PathLike],
  tokenizer: tokenizers.Tokenizer,
  *,
  out: str | os.PathLike,
  vocab_size: int | None = None,
  end: int | None = None,
) -> CorpusInfo:
  """Writes the files' tokens to `out`, `[tokens]`, each file followed by the end of text.

  `np.load(out, mmap_mode="r")` reads it: uint16, or uint32 for a vocabulary of more than 65,536
  tokens (`specjax.training.token_files`). What was written stands as JSON beside it (`train.npy`,
  `train.json`). Both appear whole or not at all: older ones stay untouched until the new ones are
  complete on disk. A file that spells `<|endoftext|>` is encoded letter by letter, so that its id
  always is a real end.

  Args:
    files: UTF-8 files, in the order wanted.
    tokenizer: to encode with.
    out: path that ends in `.npy`, in a folder that exists.
    vocab_size: of the model; None is the tokenizer's.
    end: id that ends a text; None takes that of `<|endoftext|>`.

  Raises:
    ValueError: no files, a wrong name, or a tokenizer without `<|endoftext|>` and no `end`.
    FileNotFoundError: a file, or the folder of `out`, is missing.
    UnicodeDecodeError: a file is not UTF-8.
    OSError: the disk lacks the room that is needed; said before anything is encoded.
  """
  out, files = pathlib.Path(out), [pathlib.Path(path) for path in files]
  if not files:
    raise ValueError('expected at least one file to encode, got none; see stdlib_files()')
  end = tokenizer.token_to_id(END_OF_TEXT) if end is None else end
  if end is None:
    raise ValueError(
      f'expected a tokenizer with the token {END_OF_TEXT}, got one without; give end=, the id that '
      'ends a text'
    )
  vocab_size = tokenizer.get_vocab_size() if vocab_size is None else vocab_size
  digest, size = hashlib.sha256(), 0
  with token_files.writing(out, vocab_size=vocab_size) as file:
    _check_disk(out.parent, files, token_files.dtype_of(vocab_size).itemsize)
    with _special_tokens_as_text(tokenizer):
      for text in read_texts(files):
        data = text.encode('utf-8')
        digest.update(data)
        size += len(data)
        file.add([*tokenizer.encode(text, add_special_tokens=False).ids, end])
    info = CorpusInfo(
      python=platform.python_version(),
      files=len(files),
      bytes=size,
      tokens=file.num_tokens,
      bytes_per_token=size / file.num_tokens,
      sha256=digest.hexdigest(),
    )
    file.info.update(dataclasses.asdict(info))
  return info


def _check_disk(folder: pathlib.Path, files: list[pathlib.Path], itemsize: int) -> None:
  # A byte-level token is at least one byte long, so this is the most that the tokens can take.
  # They lie there twice before the raw ones are removed.
  need = 2 * itemsize * sum(path.stat().st_size + 1 for path in files) + 2**12
  free = shutil.disk_usage(folder).free
  if free < need:
    raise OSError(
      errno.ENOSPC,
      f'expected up to {need:,} bytes free in {folder} for {len(files)} files, found {free:,}; '
      'make room or choose another out=',
    )


@contextlib.contextmanager
def _special_tokens_as_text(tokenizer: tokenizers.Tokenizer) -> Iterator[None]:
  before = tokenizer.encode_special_tokens
  tokenizer.encode_special_tokens = True
  try:
    yield
  finally:
    tokenizer.encode_special_tokens = before


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no single truth value
class TokenBatches:
  """Batches of windows as a function of the step: a resumed run sees what an unbroken one would.

  In every epoch the corpus is cut, from a random offset below `seq_len`, into windows of `seq_len`
  tokens and the one after them, and the windows come in random order, each at most once. With 10
  tokens, seq_len 3 and offset 1 the windows are 1..4 and 4..7: token 4 is the last target of one
  and the first input of the other, never twice a target. The number of windows,
  `tokens // seq_len - 1`, leaves room for every offset.

  Attributes:
    tokens: integers `[tokens]`; a memory map serves.
    batch_size: windows in a batch.
    seq_len: inputs in a window.
    seed: of offsets and orders.
    mask: bool `[tokens]`, which of them count in a loss, or None for all.

  Raises:
    ValueError: a size below 1, tokens not one-dimensional integers, or fewer than `(batch_size + 1)
      * seq_len`.
  """

  tokens: np.ndarray
  _: dataclasses.KW_ONLY
  batch_size: int
  seq_len: int
  seed: int = 0
  mask: np.ndarray | None = None

  def __post_init__(self):
    _check_tokens(self.tokens, seq_len=self.seq_len)
    if self.batch_size < 1:
      raise ValueError(f'expected batch_size of at least 1, got {self.batch_size}')
    need = (self.batch_size + 1) * self.seq_len
    if len(self.tokens) < need:
      raise ValueError(
        f'expected at least (batch_size + 1) * seq_len = {need} tokens for one batch, got '
        f'{len(self.tokens)}; '
        f'lower batch_size={self.batch_size} or seq_len={self.seq_len}, or pass a longer corpus'
      )

  @property
  def batches_per_epoch(self) -> int:
    """Batches in an epoch, at least 1; the windows short of a full batch are left out."""
    return (len(self.tokens) // self.seq_len - 1) // self.batch_size

  def batch(self, step: int) -> np.ndarray | dict[str, np.ndarray]:
    """The batch of a step, int32 [batch_size, seq_len + 1]: inputs [:, :-1], targets [:, 1:].

    With a mask it is a dict of `tokens` and `mask`, bool of the same shape.

    Raises:
      ValueError: `step` below 0.
    """
    if step < 0:
      raise ValueError(f'expected a step of at least 0, got {step}')
    epoch, index = divmod(step, self.batches_per_epoch)
    rng = np.random.default_rng([self.seed, epoch])
    offset = rng.integers(self.seq_len)
    order = rng.permutation(len(self.tokens) // self.seq_len - 1)
    chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
    starts = offset + chosen * self.seq_len
    return _windows_at(self.tokens, self.mask, starts, self.seq_len)


def _windows_at(tokens, mask, starts: np.ndarray, seq_len: int):
  """The windows that begin at `starts`, with their masks where there is one."""
  index = starts[:, None] + np.arange(seq_len + 1)
  windows = tokens[index].astype(np.int32)
  return windows if mask is None else {'tokens': windows, 'mask': mask[index]}


def held_out_windows(
  tokens: np.ndarray, *, seq_len: int, n: int | None = None, mask: np.ndarray | None = None
) -> np.ndarray | dict[str, np.ndarray]:
  """The first `n` windows one after the other, int32 `[n, seq_len + 1]`; all of them by default.

  Window i holds tokens `[i * seq_len, (i + 1) * seq_len]`, both ends included: every token but the
  first is a target once. With a mask, which has an entry per token, it is a dict of `tokens` and
  `mask`.

  >>> held_out_windows(np.arange(8), seq_len=3)
  array([[0, 1, 2, 3],
         [3, 4, 5, 6]], dtype=int32)

  Raises:
    ValueError: a size below 1, tokens not one-dimensional integers, or too few for the windows
      asked for.
  """
  _check_tokens(tokens, seq_len=seq_len)
  available = (len(tokens) - 1) // seq_len
  wanted = max(available, 1) if n is None else n
  if wanted < 1:
    raise ValueError(f'expected n of at least 1, got {n}')
  if wanted > available:
    raise ValueError(
      f'expected at least n * seq_len + 1 = {wanted * seq_len + 1} tokens for {wanted} windows, '
      f'got {len(tokens)}; lower n or seq_len={seq_len}, or pass a longer corpus'
    )
  return _windows_at(tokens, mask, np.arange(wanted) * seq_len, seq_len)


def _check_tokens(tokens: np.ndarray, *, seq_len: int) -> None:
  if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
    raise ValueError(
      f'expected tokens as integers [tokens], got {tokens.dtype} {list(tokens.shape)}; see '
      'encode_files'
    )
  if seq_len < 1:
    raise ValueError(f'expected seq_len of at least 1, got {seq_len}')
