"""Chats of files as tokens with a mask of the answers, and losses that count these alone."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers

from specjax.training import chats
from specjax.training import data
from specjax.training import features
from specjax.training import heads as head_losses
from specjax.training import losses
from specjax.training import synthesis
from specjax.training import token_files
from tests.support import tiny
from tests.support import tiny_heads

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ':' + m['content'] | trim + '</s>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)
ROW = dict(messages=[
    dict(role='user', content='one'), dict(role='assistant', content=' two '),
    dict(role='user', content='two'), dict(role='assistant', content='two three'),
])


def tokenizer():
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  made = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens(['<s>', '</s>'])
  return made


def encoder():
  return chats.Encoder(tokenizer(), TEMPLATE)


def write(path, *rows):
  path.write_text(''.join(
      (row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows
  ))
  return path


def answers(ids, mask):
  """Pieces of the text that count."""
  decode = lambda part: tokenizer().decode(part, skip_special_tokens=False)
  edges = np.flatnonzero(np.diff([0, *mask, 0]))
  return [decode(ids[a:b]) for a, b in zip(edges[::2], edges[1::2])]


class TestReading:

  def test_both_forms(self, tmp_path):
    shared = dict(conversations=[
        {'from': 'system', 'value': 'be brief'}, {'from': 'human', 'value': 'hi'},
        {'from': 'gpt', 'value': 'ho'},
    ])
    asked = dict(messages=[dict(role='user', content='nobody answers')])
    cut = dict(ROW, finish_reason='length')
    found = list(chats.read_chats([write(tmp_path / 'a.jsonl', ROW, '', shared, asked, cut)]))
    assert [each.is_finished for each in found] == [True, True, False]
    assert [m['role'] for m in found[1].messages] == ['system', 'user', 'assistant']
    assert found[1].where.endswith('line 3')

  @pytest.mark.parametrize(
      'row, message',
      [
          ('{', 'line 2 is not JSON'),
          ({'text': 'x'}, 'line 2 must be an object with "messages" .*or\n?.*"conversations"'),
          ('[1]', 'line 2 must be an object'),
          ({'messages': [{'role': 'king', 'content': 'x'}]}, 'line 2: .*king'),
          ({'conversations': [{'from': 'king', 'value': 'x'}]}, 'line 2, "conversations": each'),
          ({'conversations': 'x'}, 'line 2, "conversations": each'),
      ],
  )
  def test_a_broken_row_is_named_and_nothing_is_written(self, row, message, tmp_path):
    file = write(tmp_path / 'a.jsonl', ROW, row)
    with pytest.raises(ValueError, match=message):
      chats.encode_chats(
          chats.read_chats([file]), encoder(), out=tmp_path / 'out.npy', vocab_size=300
      )
    assert [path.name for path in tmp_path.iterdir()] == ['a.jsonl']

  def test_no_file_and_no_chat(self, tmp_path):
    with pytest.raises(FileNotFoundError, match='no file of chats'):
      list(chats.read_chats([tmp_path / 'b.jsonl']))
    with pytest.raises(chats.NoChats):
      chats.encode_chats([], encoder(), out=tmp_path / 'out.npy', vocab_size=300)
    assert not list(tmp_path.iterdir())


class TestEncoding:

  def test_the_answers_and_their_ends_count(self):
    chat = chats.Chat(tuple(ROW['messages']), 'here')
    ids, mask = encoder().encode(chat)
    text = tokenizer().decode(ids, skip_special_tokens=False)
    assert text == (
        '<s>user:one</s>\n<s>assistant:two</s>\n<s>user:two</s>\n<s>assistant:two three</s>\n'
    )
    assert answers(ids, mask) == ['two</s>', 'two three</s>']

  def test_an_answer_that_was_cut_has_no_end(self):
    chat = chats.Chat(tuple(ROW['messages']), 'here', is_finished=False)
    ids, mask = encoder().encode(chat)
    assert answers(ids, mask) == ['two</s>', 'two three']
    assert tokenizer().decode(ids, skip_special_tokens=False).endswith('assistant:two three')

  def test_a_template_that_leaves_an_answer_out(self):
    wrong = chats.Encoder(tokenizer(), "{% for m in messages %}{{ m['role'] }}{% endfor %}")
    with pytest.raises(ValueError, match="here: the chat template does not write the answer 'two'"):
      wrong.encode(chats.Chat(tuple(ROW['messages']), 'here'))

  def test_a_file_and_its_mask(self, tmp_path):
    rows = [chats.Chat(tuple(ROW['messages']), str(i)) for i in range(3)]
    made = chats.encode_chats(
        rows, encoder(), out=tmp_path / 'a.npy', vocab_size=70_000, max_tokens=50
    )
    assert made.ids.dtype == np.uint32 and made.mask.dtype == bool
    assert made.info['chats'] == 3 and made.info['cut'] == 3 and len(made) == 150
    assert made.info['answer_tokens'] == made.mask.sum() == made.counts(70_000).sum()
    again = token_files.open_tokens(tmp_path / 'a.npy')
    np.testing.assert_array_equal(again.mask, made.mask)
    np.save(token_files.mask_file(tmp_path / 'a.npy'), np.ones(3, bool))
    with pytest.raises(ValueError, match='do not belong together'):
      token_files.open_tokens(tmp_path / 'a.npy')

  def test_a_full_disk_leaves_nothing(self, tmp_path, monkeypatch):
    def full(*args):
      raise OSError(28, 'No space left on device')

    monkeypatch.setattr(token_files.shutil, 'copyfileobj', full)
    with pytest.raises(OSError, match='No space left'):
      chats.encode_chats(
          [chats.Chat(tuple(ROW['messages']), '')], encoder(), out=tmp_path / 'a.npy',
          vocab_size=300,
      )
    assert not list(tmp_path.iterdir())

  def test_prompts_end_where_the_first_answer_begins(self):
    (prompt,) = chats.prompts([chats.Chat(tuple(ROW['messages']), '')], encoder(), count=4)
    text = tokenizer().decode(prompt, skip_special_tokens=False)
    assert text == '<s>user:one</s>\n<s>assistant:'


def test_chats_that_begin_alike_are_on_one_side():
  chat = lambda text: chats.Chat((dict(role='user', content=text),), '')
  assert chat('How are  you?').key == chat(' how ARE you?').key
  held_out = [chats.is_held_out(chat(str(i)), one_in=8) for i in range(2000)]
  assert 200 < sum(held_out) < 300
  assert not any(chats.is_held_out(chat(str(i)), one_in=0) for i in range(99))


def test_the_draft_vocabulary_has_the_most_frequent_tokens_and_the_ends():
  counts = np.asarray([5, 0, 9, 9, 1, 0, 2])
  assert chats.draft_vocabulary(counts, 3).tolist() == [0, 2, 3]
  assert chats.draft_vocabulary(counts, 3, always=(5,)).tolist() == [2, 3, 5]
  assert chats.draft_vocabulary(counts, 6).tolist() == [0, 1, 2, 3, 4, 6]
  with pytest.raises(ValueError, match='2 … 7 tokens, got 8'):
    chats.draft_vocabulary(counts, 8, always=(1,))


class TestMasks:

  def test_windows_and_stored_features_carry_them(self, tmp_path):
    tokens = np.arange(200) % tiny.VOCAB
    mask = tokens % 3 == 0
    batches = data.TokenBatches(tokens, batch_size=4, seq_len=16, mask=mask)
    batch = batches.batch(3)
    np.testing.assert_array_equal(batch['mask'], batch['tokens'] % 3 == 0)
    windows = data.held_out_windows(tokens, seq_len=16, mask=mask)
    np.testing.assert_array_equal(windows['mask'], windows['tokens'] % 3 == 0)
    options = dict(target=tiny.target(), tokens=tokens, seq_len=16, layers=(3,), batch_size=4)
    store = features.write(tmp_path / 'f', mask=mask, say=lambda line: None, **options)
    stored = features.FeatureBatches(store, batch_size=2).batch(0)
    np.testing.assert_array_equal(stored['mask'], stored['tokens'] % 3 == 0)
    with pytest.raises(ValueError, match='holds other features: mask differ'):
      features.write(tmp_path / 'f', mask=~mask, say=lambda line: None, **options)

  def test_a_loss_is_the_mean_over_the_tokens_that_count(self):
    values = jnp.asarray([[1.0, 2.0], [3.0, 5.0]])
    mask = jnp.asarray([[True, False], [True, False]])
    assert losses.mean(values, mask) == 2.0 and losses.mean(values, None) == 2.75
    assert losses.mean(values, jnp.zeros_like(mask)) == 0.0

  @pytest.mark.parametrize('kind', ['eagle3', 'medusa', 'early_exit'])
  def test_a_head_learns_from_the_answers_alone(self, kind):
    target = tiny.target()
    if kind == 'eagle3':
      both = tiny_heads.head()
      loss = head_losses.eagle3(both.module, target, num_steps=2)
      first = 2  # the earliest token that a step can foretell
    elif kind == 'medusa':
      both = tiny_heads.medusa()
      loss, first = head_losses.medusa(both.module, target), 2
    else:
      both = tiny_heads.adapter()
      loss, first = head_losses.early_exit(both.module, target), 1
    tokens = np.asarray([[7, 3, 9, 1, 4, 8, 2, 6, 5, 9, 3, 1]], np.int32)
    # All that can be foretold counts: as without a mask.
    everything = np.arange(tokens.shape[1])[None] >= first
    plain, _ = loss(both.params, tokens)
    masked, _ = loss(both.params, dict(tokens=tokens, mask=everything))
    np.testing.assert_allclose(plain, masked, rtol=1e-6)
    # One token alone: another one's value is of no account, what comes after it neither.
    mask = np.zeros_like(everything)
    mask[:, 6] = True
    alone, metrics = loss(both.params, dict(tokens=tokens, mask=mask))
    other = tokens.copy()
    other[:, 7:] = 11
    same, _ = loss(both.params, dict(tokens=other, mask=mask))
    assert float(alone) == float(same) and 0 <= float(metrics['acceptance_1']) <= 1
    assert abs(float(alone) - float(plain)) > 1e-4


class TestFilters:

  def test_reasons(self):
    filters = synthesis.Filters(
        min_characters=5, max_repetition=0.5,
        excluded=('Name the nine tall hills that are near Rome today.', 'Hello there!'),
    )
    assert filters.question('hi') == 'short'
    assert filters.question('one two three four ' * 9) == 'repetitive'
    assert filters.question('  hello   THERE! ') == 'excluded'
    assert filters.question('Please name the nine tall hills that are near Rome.') == 'excluded'
    assert filters.question('Name the nine tall hills of another town.') == ''
    assert filters.answer(' \n') == 'empty answer'
    assert filters.answer('a b c d ' * 9) == 'repetitive answer'
    assert filters.answer('Seven.') == ''
