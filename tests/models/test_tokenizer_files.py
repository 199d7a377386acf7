"""What a folder's text files may hold: truncation and padding, byte-order marks."""

import pathlib

import pytest

from specjax import models
from specjax.training import data
from tests.support import scripted

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
  tokenizer = scripted.llama_2(['cat', ' w8'])
  tokenizer.enable_truncation(8)
  tokenizer.enable_padding(length=64)
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  return tmp_path


def with_mark(path: pathlib.Path) -> None:
  path.write_text(path.read_text(encoding='utf-8'), encoding='utf-8-sig')


@pytest.mark.parametrize('text', ['\x01' * 33, '\x01'])
def test_a_prompt_keeps_all_of_its_tokens_and_gets_no_pads(folder, text):
  tokenizer = models.load_tokenizer(folder)
  assert tokenizer.truncation is None and tokenizer.padding is None
  assert len(tokenizer.encode(text).ids) == 1 + len(text)


def test_a_byte_order_mark_is_no_part_of_a_folders_json(folder):
  with_mark(folder / 'tokenizer.json')
  assert models.load_tokenizer(folder).token_to_id('cat') is not None
  for name in ('config.json', 'generation_config.json'):
    (folder / name).write_text('{"eos_token_id": [2, 3]}', encoding='utf-8-sig')
    assert models.load_eos_ids(folder) == (2, 3)
    (folder / name).unlink()


def test_a_byte_order_mark_is_no_part_of_a_corpus(tmp_path):
  (tmp_path / 'a.py').write_text('x = 1\n', encoding='utf-8-sig')
  assert list(data.read_texts([tmp_path / 'a.py'])) == ['x = 1\n']


@pytest.mark.parametrize('part', ['specjax', 'experiments', 'scripts'])
def test_every_text_that_is_read_may_begin_with_a_byte_order_mark(part):
  """Plain `utf-8` reads the mark as text; no encoding at all reads what the machine is set to."""
  wrong = []
  for path in sorted((ROOT / part).rglob('*.py')):
    for line in path.read_text(encoding='utf-8').splitlines():
      if '.read_text(' in line and 'utf-8-sig' not in line and '/proc/' not in line:
        wrong.append(f'{path.relative_to(ROOT)}: {line.strip()}')
  # Of /proc/cpuinfo, which has no encoding.
  assert [line for line in wrong if "errors='replace'" not in line] == []
