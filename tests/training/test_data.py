"""The corpus: which files, tokens that spell them back, batches that depend on the step alone."""

import dataclasses
import errno
import hashlib
import json
import pathlib
import platform
import sysconfig
import types

import numpy as np
import pytest
import tokenizers

from specjax.training import data

VOCAB = 400
CODE = '''"""Queues: naïve, but 100 % tested. 数 🙂"""
import os


class Queue_{i}(object):
    """Holds item_{i} and {i}{i}{i}."""

    def __init__(self, items=None, *, limit={i}0):
        self.items = list(items or [])
        self._limit = limit

    def push(self, item):
        if len(self.items) >= self._limit:
            raise IndexError(f"expected fewer than {{self._limit}} items")
        self.items.append(item)


def test_{i}():
    for number in range(12345):
        assert number == number + 0, "number_{i}"
'''


def write(root, relative, content):
  path = root / relative
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


@pytest.fixture(scope='module')
def library(tmp_path_factory):
  """Like a standard library: 12 modules to train on, 2 held out, and what is left out."""
  root = tmp_path_factory.mktemp('library')
  for i in range(10):
    write(root, f'module_{i}.py', CODE.format(i=i))
  write(root, 'json/__init__.py', CODE.format(i=10))
  write(root, 'crlf.py', CODE.format(i=11).replace('\n', '\r\n'))
  for name in ('json/decoder.py', 'textwrap.py'):
    write(root, name, CODE.format(i=12))
  left_out = (
    'site-packages/numpy/core.py dist-packages/apt.py test/test_csv.py json/tests/test_decoder.py '
    'idlelib/idle_test/test_run.py idlelib/run.py __pycache__/x.py ensurepip/_bundled/pip.py '
    'encodings/cp037.py pydoc_data/topics.py turtledemo/clock.py lib2to3/tests/data/py2.py '
    'html/entities.py stringprep.py _sysconfigdata__linux_x86_64-linux-gnu.py '
    'config-3.13-x86_64-linux-gnu/python-config.py sitecustomize.py'
  )
  for name in left_out.split():
    write(root, name, 'left_out = True\n')
  write(root, 'latin_1.py', b'# \xe9\n')
  write(root, 'empty.py', '')
  write(root, 'notes.txt', 'not Python\n')
  return root


@pytest.fixture(scope='module')
def files(library):
  return data.stdlib_files(library)


@pytest.fixture(scope='module')
def tokenizer(files):
  return data.train_tokenizer(data.read_texts(files), vocab_size=VOCAB)


def pieces(tokenizer, text):
  return [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


class TestFiles:
  def test_only_the_corpus_in_a_fixed_order(self, library, files):
    names = [path.relative_to(library.resolve()).as_posix() for path in files]
    assert names == sorted([*(f'module_{i}.py' for i in range(10)), 'json/__init__.py', 'crlf.py'])

  def test_held_out_is_what_the_list_names_and_apart_from_training(self, library, files):
    held_out = data.stdlib_files(library, held_out=True)
    assert [path.name for path in held_out] == ['decoder.py', 'textwrap.py']
    assert not set(held_out) & set(files)

  def test_this_interpreter_has_every_held_out_file(self):
    root = pathlib.Path(sysconfig.get_path('stdlib')).resolve()
    train, held_out = data.stdlib_files(), data.stdlib_files(held_out=True)
    assert [path.relative_to(root).as_posix() for path in held_out] == sorted(data.HELD_OUT)
    assert not set(train) & set(held_out)
    held_out_bytes = sum(path.stat().st_size for path in held_out)
    assert 0.03 < held_out_bytes / sum(path.stat().st_size for path in train + held_out) < 0.06

  def test_no_training_file_repeats_a_held_out_one(self):
    # concurrent/futures/thread.py fails this: a third of its long lines stand in process.py too.
    def long_lines(path):
      return {
        line.strip() for line in path.read_text('utf-8').splitlines() if len(line.strip()) > 40
      }

    train = set().union(*map(long_lines, data.stdlib_files()))
    for path in data.stdlib_files(held_out=True):
      mine = long_lines(path)
      assert len(mine & train) < 0.2 * len(mine), path

  def test_folders_that_do_not_serve(self, tmp_path):
    with pytest.raises(
      FileNotFoundError, match='expected the folder of a standard library, got .*missing'
    ):
      data.stdlib_files(tmp_path / 'missing')
    write(tmp_path, 'module.py', 'x = 1\n')
    with pytest.raises(
      FileNotFoundError, match='expected held-out files .* among 1 Python files; pass root='
    ):
      data.stdlib_files(tmp_path, held_out=True)


class TestTokenizer:
  def test_size_and_first_tokens(self, tokenizer):
    assert tokenizer.get_vocab_size() == VOCAB
    assert tokenizer.token_to_id('<|endoftext|>') == 0
    assert sorted(tokenizer.get_vocab().values()) == list(range(VOCAB))

  def test_any_text_comes_back(self, tokenizer):
    rng = np.random.default_rng(0)
    points = np.concatenate(
      [rng.integers(0, 0xD800, 3000), rng.integers(0xE000, 0x110000, 3000), np.arange(512)]
    )
    texts = [
      ''.join(map(chr, rng.permutation(points))),
      ''.join(rng.choice(list(' \t\r\n\f\v\u00a0\u2028ab_1.e\u0301'), 5000)),
      CODE.format(i=3),
      '',
      ' ',
      '\n',
      '  x',
      'a<|endoftext|>b\n',
      'ﬁ Å e\u0301 \x00',  # a normaliser would change these
    ]
    for text in texts:
      assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text

  def test_what_a_piece_may_be(self, tokenizer):
    text = 'def f(x_1):\n        return  x[12345] == 7\r\n\r\n\tself.__init__  # end\n'
    lines = (
      'def| f|(|x_|1|):',
      '\n        |return| | x|[|123|45|]| ==| 7',
      '\r\n\r\n\t|self|.|__init__| | #| end',
      '\n',
    )
    assert pieces(tokenizer, text) == '|'.join(lines).split('|')

  def test_a_line_end_with_its_indentation_is_one_token(self, tokenizer):
    assert len(tokenizer.encode('\n        ').ids) == 1
    assert len(tokenizer.encode(' self').ids) == 1

  def test_the_file_reads_back(self, tokenizer, tmp_path):
    path = str(tmp_path / 'tokenizer.json')
    tokenizer.save(path)
    again = tokenizers.Tokenizer.from_file(path)
    text = CODE.format(i=5)
    assert again.encode(text).ids == tokenizer.encode(text).ids
    assert again.decode(again.encode(text).ids) == text

  def test_training_repeats(self, tokenizer, files):
    again = data.train_tokenizer(data.read_texts(files), vocab_size=VOCAB)
    assert again.to_str() == tokenizer.to_str()

  def test_sizes_that_do_not_serve(self):
    with pytest.raises(ValueError, match='expected vocab_size of at least 257 .* got 256'):
      data.train_tokenizer(['x'], vocab_size=256)
    with pytest.raises(
      ValueError, match='vocab_size=400 tokens, these yield only 2.*pass more text or a smaller'
    ):
      data.train_tokenizer(['x = 1\n'], vocab_size=400)


class TestEncode:
  def test_tokens_spell_the_files_with_an_end_after_each(self, files, tokenizer, tmp_path):
    info = data.encode_files(files, tokenizer, out=tmp_path / 'train.npy')
    tokens = np.load(tmp_path / 'train.npy', mmap_mode='r')
    assert tokens.dtype == np.uint16 and tokens.shape == (info.tokens,)
    ends = np.flatnonzero(tokens == 0)
    assert len(ends) == len(files) and ends[-1] == len(tokens) - 1
    texts = [tokenizer.decode(part.tolist()) for part in np.split(tokens, ends + 1)[:-1]]
    assert texts == list(data.read_texts(files))

  def test_the_description_beside_it(self, files, tokenizer, tmp_path):
    info = data.encode_files(files, tokenizer, out=tmp_path / 'train.npy')
    content = b''.join(path.read_bytes() for path in files)
    assert json.loads((tmp_path / 'train.json').read_text()) == dataclasses.asdict(info)
    assert info.python == platform.python_version()
    assert (info.files, info.bytes) == (len(files), len(content))
    assert info.bytes_per_token == info.bytes / info.tokens > 1
    assert info.sha256 == hashlib.sha256(content).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['train.json', 'train.npy']

  def test_an_end_spelled_in_a_file_is_no_end(self, tokenizer, tmp_path):
    path = write(tmp_path, 'a.py', 'end = "<|endoftext|>"\n')
    data.encode_files([path], tokenizer, out=tmp_path / 'a.npy')
    tokens = np.load(tmp_path / 'a.npy')
    assert (tokens == 0).sum() == 1
    assert tokenizer.decode(tokens.tolist()) == path.read_text()
    assert tokenizer.encode('<|endoftext|>').ids == [0]  # as before the call

  @pytest.mark.parametrize('older', [None, b'older'])
  @pytest.mark.parametrize('failing', ['encode', 'write', 'sync'])
  def test_a_failure_leaves_what_was_there(
    self, files, tokenizer, tmp_path, monkeypatch, failing, older
  ):
    names = ('train.npy', 'train.json')
    if older:
      for name in names:
        write(tmp_path, name, older)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half_written(source, file, size):
      file.write(b'half')
      raise OSError(errno.ENOSPC, 'no space left')

    def not_synced(handle):
      raise OSError(errno.EIO, 'no space left')

    if failing == 'encode':
      bad = write(tmp_path.parent, 'bad.py', b'x = 1 # \xff\n')
      with pytest.raises(UnicodeDecodeError):
        data.encode_files([*files, bad], tokenizer, out=tmp_path / 'train.npy')
    else:
      name, fake = 'os.fsync', not_synced
      if failing == 'write':
        name, fake = 'shutil.copyfileobj', half_written
      monkeypatch.setattr(f'specjax.training.token_files.{name}', fake)
      with pytest.raises(OSError, match='no space left'):
        data.encode_files(files, tokenizer, out=tmp_path / 'train.npy')
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

  def test_room_on_the_disk_is_checked_first(self, files, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(data.shutil, 'disk_usage', lambda folder: types.SimpleNamespace(free=10))
    monkeypatch.setattr(data, 'read_texts', lambda files: pytest.fail('encoded before the check'))
    with pytest.raises(
      OSError, match=r'expected up to [\d,]+ bytes free in .* found 10; make room'
    ) as caught:
      data.encode_files(files, tokenizer, out=tmp_path / 'train.npy')
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())

  def test_arguments_that_do_not_serve(self, files, tokenizer, tmp_path):
    out = tmp_path / 'train.npy'
    with pytest.raises(ValueError, match='expected at least one file'):
      data.encode_files([], tokenizer, out=out)
    with pytest.raises(ValueError, match='expected out= to end in .npy, got .*train.bin'):
      data.encode_files(files, tokenizer, out=tmp_path / 'train.bin')
    with pytest.raises(FileNotFoundError, match='create .*missing first'):
      data.encode_files(files, tokenizer, out=tmp_path / 'missing' / 'train.npy')
    with pytest.raises(ValueError, match='expected a tokenizer with the token <|endoftext|>'):
      data.encode_files(files, tokenizers.Tokenizer(tokenizers.models.BPE()), out=out)
    assert not list(tmp_path.iterdir())

  def test_large_vocabularies_and_another_end(self, tmp_path):
    size = 2**16 + 1
    words = tokenizers.models.WordLevel({f't{i}': i for i in range(size)}, 't0')
    tokenizer = tokenizers.Tokenizer(words)
    path = write(tmp_path, 'a.txt', f't{size - 1}')
    data.encode_files([path], tokenizer, out=tmp_path / 'a.npy', end=7)
    tokens = np.load(tmp_path / 'a.npy')
    assert tokens.dtype == np.uint32 and tokens.tolist() == [size - 1, 7]
    # A small tokenizer of a model whose embeddings are padded beyond it.
    small = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0}, 'a'))
    file = write(tmp_path, 'b.txt', 'a')
    data.encode_files([file], small, out=tmp_path / 'b.npy', vocab_size=size, end=1)
    assert np.load(tmp_path / 'b.npy').dtype == np.uint32


class TestBatches:
  # Token = position, so that a window says where it was cut.
  tokens = np.arange(103, dtype=np.uint16)

  def batches(self, **changes):
    return data.TokenBatches(
      **{'tokens': self.tokens, 'batch_size': 4, 'seq_len': 5, 'seed': 7, **changes}
    )

  def test_windows_are_runs_of_the_corpus(self):
    batches = self.batches()
    for step in range(3 * batches.batches_per_epoch):
      batch = batches.batch(step)
      assert batch.shape == (4, 6) and batch.dtype == np.int32 and type(batch) is np.ndarray
      np.testing.assert_array_equal(np.diff(batch), 1)

  def test_no_target_twice_in_an_epoch_and_every_offset_comes(self):
    batches = self.batches()
    assert batches.batches_per_epoch == (103 // 5 - 1) // 4 == 4
    offsets = set()
    for epoch in range(60):
      windows = np.concatenate([batches.batch(4 * epoch + i) for i in range(4)])
      targets = windows[:, 1:].ravel()
      assert len(set(targets)) == len(targets) == 4 * 4 * 5
      assert len(set(windows[:, 0] % 5)) == 1
      offsets.add(int(windows[0, 0] % 5))
    assert offsets == set(range(5))

  def test_orders_differ_between_epochs_and_seeds(self):
    batches = self.batches()
    assert (batches.batch(0) != batches.batch(4)).any()
    assert (batches.batch(0) != self.batches(seed=8).batch(0)).any()

  def test_a_resumed_run_sees_what_an_unbroken_one_would(self, tmp_path):
    np.save(tmp_path / 'tokens.npy', self.tokens)
    unbroken = self.batches()
    expected = [unbroken.batch(step) for step in range(20)]
    resumed = self.batches(tokens=np.load(tmp_path / 'tokens.npy', mmap_mode='r'))
    for step in reversed(range(7, 20)):
      np.testing.assert_array_equal(resumed.batch(step), expected[step])

  def test_a_batch_that_is_known(self):
    # Pinned: a change here would break the runs that resume across it.
    np.testing.assert_array_equal(self.batches().batch(9)[:, 0], [21, 6, 16, 26])

  def test_the_shortest_corpus_that_serves(self):
    shortest = self.batches(tokens=np.arange(25))
    assert shortest.batches_per_epoch == 1
    assert max(shortest.batch(step).max() for step in range(50)) == 24
    with pytest.raises(
      ValueError, match=r'\* seq_len = 25 tokens for one batch, got 24; lower batch_size=4'
    ):
      self.batches(tokens=np.arange(24))

  def test_arguments_that_do_not_serve(self):
    for changes, message in (
      ({'batch_size': 0}, 'expected batch_size of at least 1, got 0'),
      ({'seq_len': 0}, 'expected seq_len of at least 1, got 0'),
      ({'tokens': np.zeros([50, 2], np.int32)}, r'integers \[tokens\], got int32 \[50, 2\]'),
      ({'tokens': np.zeros([50])}, r'integers \[tokens\], got float64 \[50\]'),
    ):
      with pytest.raises(ValueError, match=message):
        self.batches(**changes)
    with pytest.raises(ValueError, match='expected a step of at least 0, got -1'):
      self.batches().batch(-1)


class TestHeldOutWindows:
  def test_consecutive_windows(self):
    windows = data.held_out_windows(np.arange(12, dtype=np.uint16), seq_len=3)
    assert windows.dtype == np.int32
    np.testing.assert_array_equal(windows, [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]])
    np.testing.assert_array_equal(data.held_out_windows(np.arange(12), seq_len=3, n=2), windows[:2])
    assert data.held_out_windows(np.arange(4), seq_len=3).shape == (1, 4)

  def test_arguments_that_do_not_serve(self):
    with pytest.raises(
      ValueError, match=r'n \* seq_len \+ 1 = 13 tokens for 4 windows, got 12; lower n'
    ):
      data.held_out_windows(np.arange(12), seq_len=3, n=4)
    with pytest.raises(ValueError, match='= 4 tokens for 1 windows, got 3'):
      data.held_out_windows(np.arange(3), seq_len=3)
    with pytest.raises(ValueError, match='expected n of at least 1, got 0'):
      data.held_out_windows(np.arange(12), seq_len=3, n=0)
