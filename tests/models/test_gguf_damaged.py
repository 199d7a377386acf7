"""Damaged GGUF files, tried systematically: one clear error, or a load of what is written there."""

import random
import struct

import pytest

from specjax.models import gguf
from specjax.models.gguf import files as gguf_files_lib
from specjax.models.gguf import weights as gguf_weights
from tests.support import gguf_files


class Read(Exception):
  """A tensor was asked for: every check was passed."""


@pytest.fixture
def unread(monkeypatch):
  def read(self):
    raise Read

  monkeypatch.setattr(gguf_weights._Tensor, 'read', read)


def write(tmp_path, name='llama Q4_1'):
  """A file with a small vocabulary, and where its header ends."""
  case = gguf_files.CASES[name]
  vocabulary = {
      'tokenizer.ggml.model': 'llama',
      'tokenizer.ggml.tokens': ['<unk>', '<s>', '</s>', *(f't{i}' for i in range(61))],
      'tokenizer.ggml.scores': [-float(i) for i in range(64)],
      'tokenizer.ggml.token_type': [2, 3, 3] + [1] * 61,
      'tokenizer.ggml.add_bos_token': True,
      'tokenizer.chat_template': '{{ messages }}',
  }
  path = gguf_files.write(
      tmp_path / 'model.gguf', gguf_files.metadata(case) | vocabulary, gguf_files.tensors(case)
  )
  return path, gguf_files_lib.read_header(path).start


def test_a_file_that_is_cut_anywhere(tmp_path, unread):
  path, start = write(tmp_path)
  whole = path.read_bytes()
  places = [*range(0, start, 37), *range(start, len(whole), 1511), len(whole) - 33]
  for place in places:
    path.write_bytes(whole[:place])
    for load in (gguf.load_gguf, gguf.load_gguf_config, gguf.load_gguf_tokenizer):
      if load is not gguf.load_gguf and place >= start:
        continue  # all that they read is there
      with pytest.raises(ValueError, match='is truncated') as info:
        load(path)
      assert str(path) in str(info.value) and 'etch it again' in str(info.value)


def test_bytes_of_the_header_that_are_others(tmp_path, unread):
  path, start = write(tmp_path)
  whole = path.read_bytes()
  generator = random.Random(0)
  loads = 0
  for _ in range(400):
    damaged = bytearray(whole)
    place = generator.randrange(start)
    damaged[place] = generator.choice([0, 1, 0xFF, damaged[place] ^ (1 << generator.randrange(8))])
    path.write_bytes(damaged)
    for load in (gguf.load_gguf, gguf.load_gguf_tokenizer, gguf.load_gguf_chat_template):
      try:
        load(path)
        loads += 1
      except Read:
        loads += 1
      except ValueError as error:
        assert str(path) in str(error)
        assert str(error).count('\n') == 0 and len(str(error)) < 600
  assert 0 < loads < 1200


@pytest.mark.parametrize('place, value, message', [
    (8, 2**60, 'truncated or damaged: its header goes on beyond its end'),  # tensors
    (16, 2**60, 'truncated or damaged: its header goes on beyond its end'),  # pairs
    (24, 2**60, 'truncated or damaged: its header goes on beyond its end'),  # the first key
])
def test_counts_that_no_file_holds(place, value, message, tmp_path):
  path, _ = write(tmp_path)
  data = bytearray(path.read_bytes())
  data[place : place + 8] = struct.pack('<Q', value)
  path.write_bytes(data)
  with pytest.raises(ValueError, match=message):
    gguf.load_gguf(path)


def pair(kind: int, value: bytes) -> bytes:
  """A file whose metadata is one pair of this type."""
  start = b'GGUF' + struct.pack('<IQQ', 3, 0, 1)
  return start + struct.pack('<Q', 1) + b'x' + struct.pack('<I', kind) + value


ARRAY = 9
DEEP = struct.pack('<IQ', ARRAY, 1) * 50


@pytest.mark.parametrize('content, message', [
    (b'', 'is truncated: it has 0 bytes'),
    (b'GG', 'is truncated: it has 2 bytes'),
    (b'GGML' + bytes(40), "is not a GGUF file: it begins with b'GGML', where b'GGUF' was expected"),
    (b'PK\x03\x04' + bytes(40), r"begins with b'PK\\x03\\x04'"),
    (b'version https://git-lfs.github.com/spec/v1\n', 'is a Git LFS pointer.*git lfs pull'),
    (b'GGUF' + struct.pack('<I', 1) + bytes(40), 'has version 1 of the format.*to version 2 or 3'),
    (b'GGUF' + struct.pack('<I', 99) + bytes(40), 'has version 99 of the format'),
    (b'GGUF' + struct.pack('>I', 3) + bytes(40), 'is big-endian.*gguf-convert-endian COPY little'),
    (pair(13, b'\0' * 8), 'is damaged: x has type 13, which is none'),
    (pair(7, b'\2'), 'is damaged: x is neither true nor false'),
    (pair(8, struct.pack('<Q', 1) + b'\xff'), 'is damaged: x is not UTF-8'),
    (pair(ARRAY, struct.pack('<IQ', 4, 2**61)), 'its header goes on beyond its end'),
    (pair(ARRAY, struct.pack('<IQ', 8, 2**61)), 'its header goes on beyond its end'),
    (pair(ARRAY, DEEP), 'is damaged: x has type 9, which is none'),
])
def test_files_of_another_kind(content, message, tmp_path):
  path = tmp_path / 'model.gguf'
  path.write_bytes(content)
  for load in (gguf.load_gguf, gguf.load_gguf_tokenizer, gguf.load_gguf_eos_ids):
    with pytest.raises(ValueError, match=message) as info:
      load(path)
    assert str(path) in str(info.value)


def test_a_file_of_the_other_byte_order(tmp_path):
  case = gguf_files.CASES['llama']
  path = gguf_files.write(
      tmp_path / 'model.gguf', gguf_files.metadata(case), gguf_files.tensors(case), big_endian=True
  )
  with pytest.raises(ValueError, match='is big-endian, which is not supported: convert a copy'):
    gguf.load_gguf(path)


def test_no_file_or_a_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere.gguf does not exist'):
    gguf.load_gguf(tmp_path / 'nowhere.gguf')
  with pytest.raises(ValueError, match='is a folder: give the path of a GGUF file.$'):
    gguf.load_gguf(tmp_path)
  write(tmp_path)
  with pytest.raises(ValueError, match='give the path of a GGUF file, such as .*model.gguf'):
    gguf.load_gguf_tokenizer(tmp_path)


@pytest.mark.parametrize('change, message', [
    (lambda offset, kind: (offset + 32, kind), 'is damaged at tensor output_norm.weight'),
    (lambda offset, kind: (offset + 2**40, kind), 'is damaged at tensor output_norm.weight'),
    (lambda offset, kind: (offset, 24), 'has type I8, of which the package gguf'),
    (lambda offset, kind: (offset, 4), 'has type 4, of which the package gguf'),
    (lambda offset, kind: (offset, 12), 'has rows of 32, but its type has blocks of 256'),
])
def test_entries_of_tensors(change, message, tmp_path, unread):
  path, _ = write(tmp_path)
  data = bytearray(path.read_bytes())
  name = b'output_norm.weight'
  # After the name: the number of dimensions, the one size, the type, the offset.
  place = data.index(name) + len(name) + 4 + 8
  kind, offset = struct.unpack('<IQ', data[place : place + 12])
  offset, kind = change(offset, kind)
  data[place : place + 12] = struct.pack('<IQ', kind, offset)
  path.write_bytes(data)
  with pytest.raises(ValueError, match=message):
    gguf.load_gguf(path)
