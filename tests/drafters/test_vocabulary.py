"""Drafts with another tokenizer: what is the same token, exact laws, clear refusals."""

import functools

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders
from tokenizers import models as tokenizer_models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from specjax import drafters
from specjax import generation
from specjax import testing
from specjax import verify
from specjax.drafters import vocabulary
from specjax.models import LanguageModel
from tests.support import exact_laws
from tests.support import tiny

pytestmark = pytest.mark.usefixtures('compiled_fast')
TEXT = ['def add(a, b):\n  return a + b\n', 'while True:\n  print("über", 12)\n'] * 3
OPTIONS = dict(max_new_tokens=32, prefill_chunk=8)


@functools.cache
def byte_level(size: int, end: str = '<end>') -> tokenizers.Tokenizer:
  tokenizer = tokenizers.Tokenizer(tokenizer_models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=size,
      special_tokens=[end],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
  )
  tokenizer.train_from_iterator(TEXT, trainer)
  return tokenizer


def pieces(vocab: list[str], decoder) -> tokenizers.Tokenizer:
  """A vocabulary as it stands, whatever cuts texts into it."""
  model = tokenizer_models.WordLevel({token: i for i, token in enumerate(vocab)}, vocab[0])
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.decoder = decoder
  return tokenizer


def test_texts_of_tokens():
  tokenizer = byte_level(300)
  texts = vocabulary.token_texts(tokenizer)
  assert len(texts) == tokenizer.get_vocab_size()
  for text, token in texts.items():
    if token:  # 0 is the special one
      # Parts of a character decode to a replacement character.
      assert tokenizer.decode([token]) == text.decode(errors='replace')
  assert texts[b'<end>'] == 0 and 'ü'.encode()[:1] in texts and b' ' in texts
  sentences = decoders.Sequence([decoders.Replace('\u2581', ' '), decoders.ByteFallback()])
  found = vocabulary.token_texts(pieces(['<unk>', '\u2581the', 'the', '<0x0A>'], sentences))
  assert found == {b'<unk>': 0, b' the': 1, b'the': 2, b'\n': 3}
  found = vocabulary.token_texts(pieces(['[UNK]', 'the', '##re'], decoders.WordPiece()))
  assert found == {b' [UNK]': 0, b' the': 1, b're': 2}


def tables(model: LanguageModel) -> tuple[np.ndarray, np.ndarray]:
  return np.asarray(model.params['output_ids']), np.asarray(model.params['input_ids'])


def test_translation_by_texts():
  ours, theirs = byte_level(340), byte_level(290, end='</s>')
  draft = tiny.model(1, num_layers=1, vocab_size=290)
  model = drafters.translate(
      draft,
      draft_tokenizer=theirs,
      target_tokenizer=ours,
      target_vocab_size=350,
      same={'<end>': '</s>'},
  )
  said, read = tables(model)
  assert model.vocab_size == 350 and said.shape == read.shape == (350,)
  names = {number: token for token, number in theirs.get_vocab().items()}
  for token, number in ours.get_vocab().items():
    if token != '<end>':
      expected = theirs.get_vocab().get(token, -1)
      assert said[number] == expected
      if expected >= 0:
        assert read[number] == expected
      else:
        # The last of its pieces ends as the token does.
        assert token.endswith(names[read[number]])
  assert names[said[ours.token_to_id('<end>')]] == '</s>'
  assert (said[340:] == -1).all() and 256 < (said >= 0).sum() <= 290
  logits = np.asarray(model(np.asarray([[5, 9]])).logits)
  own = np.asarray(draft(read[np.asarray([[5, 9]])]).logits)
  np.testing.assert_array_equal(logits[..., said >= 0], own[..., said[said >= 0]])
  assert (logits[..., said < 0] == -np.inf).all()


def renumbered(share: float) -> LanguageModel:
  """The target under other token numbers, of which the target knows a share."""
  base, order = tiny.target(), np.random.default_rng(0).permutation(tiny.VOCAB)
  params = jax.tree.map(lambda x: x, base.params)
  for name in ('embedding', 'head'):
    if name in params:
      params[name] = params[name][order]
  said = np.argsort(order)
  read = said.copy()
  said[np.random.default_rng(1).permutation(tiny.VOCAB)[int(share * tiny.VOCAB) :]] = -1
  return vocabulary.with_tables(
      LanguageModel(base.module, params), output_ids=said, input_ids=read
  )


@pytest.mark.parametrize('rule, make', [
    (verify.greedy(), drafters.model), (verify.coupled(), drafters.model_tree)
])
def test_output_is_plain_decodings(rule, make):
  plain = generation.decode(tiny.target(), tiny.PROMPTS, rule=rule, **OPTIONS)
  lengths = {}
  for share in (1.0, 0.5):
    output = generation.generate(
        tiny.target(), tiny.PROMPTS, drafter=make(renumbered(share)), rule=rule, **OPTIONS
    )
    np.testing.assert_array_equal(output.tokens, plain.tokens)
    lengths[share] = output.mean_acceptance_length
  # All tokens known, it is the target; half of them unknown, they are never drafted.
  assert lengths[1.0] > 4.0 and 1.0 < lengths[0.5] < 0.9 * lengths[1.0]


@pytest.mark.parametrize('rule', [verify.rejection(), verify.block()])
def test_output_law_is_the_targets(rule):
  """Two of three tokens are known; the draft has two of its own."""
  draft = vocabulary.with_tables(
      testing.table_model(vocab_size=4, seed=9), output_ids=[2, -1, 0], input_ids=[2, 3, 0]
  )
  drafter = drafters.model(draft, num_speculative_tokens=2)
  laws = exact_laws.output_laws(rule, drafter, max_new_tokens=3)
  exact_laws.assert_equal(laws, exact_laws.plain_laws(max_new_tokens=3))


@pytest.mark.parametrize('options, message', [
    # Their names for the end differ.
    (dict(min_overlap=1.0), r'share 289 tokens, 99\.7 % .* asks for 100 %'),
    (dict(same={'<none>': '</s>'}), "'<none>' is no token"),
])
def test_too_little_in_common_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    drafters.translate(
        tiny.model(1, num_layers=1, vocab_size=290),
        draft_tokenizer=byte_level(290, end='</s>'),
        target_tokenizer=byte_level(340),
        target_vocab_size=340,
        **options,
    )


def test_nothing_in_common_is_refused():
  other = pieces(['\u4e00', '\u4e8c'], decoders.Metaspace())
  with pytest.raises(ValueError, match='share 0 tokens'):
    drafters.translate(
        tiny.model(1, num_layers=1, vocab_size=32),
        draft_tokenizer=other,
        target_tokenizer=byte_level(340),
        target_vocab_size=340,
        min_overlap=0.0,
    )


@pytest.mark.parametrize('said, read, message', [
    ([0, 1], [0], r'must be \[V\] both'),
    ([0, 4], [0, 1], 'knows 0 to 3'),
    ([-1, -1], [0, 1], 'at least one'),
    ([1, 1], [0, 1], 'none of them twice'),
])
def test_tables_that_make_no_sense(said, read, message):
  with pytest.raises(ValueError, match=message):
    vocabulary.with_tables(testing.table_model(vocab_size=4), output_ids=said, input_ids=read)
