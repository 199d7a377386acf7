"""The comparison with other engines: the pair, what their output is read as, and the rows."""

import dataclasses
import itertools
import json
import pathlib

import ml_collections
import ml_dtypes
import numpy as np
import pytest

import specjax
from configs import benchmark_peers
from experiments import peers
from experiments.peers import pair
from experiments.peers import prompts as prompts_lib
from experiments.peers import runs
from experiments.peers import tokenizer as tokenizer_lib
from specjax import drafters
from specjax import models
from specjax import verify

SHAPE = models.TransformerConfig(
    vocab_size=96, width=64, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=16, mlp_width=96
)
RECIPE = pair.Recipe(num_live=24, late_scale=2.0)
PIECES = [
    '<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(16)), '\u2581t', 'he',
    '\u2581the', 'in', '\u2581a', 'er', '\u2581', *'abcdefghijklmnopqrstuvwxyz.,',
]


@pytest.fixture(scope='module')
def tiny():
  """A tiny target and draft, with live tokens 40 … 95."""
  return pair.make(range(40, 96), config=SHAPE, recipe=RECIPE)


@pytest.fixture(scope='module')
def folder(tiny, tmp_path_factory):
  """What scripts/make_peer_pair.py leaves, at a tiny size."""
  root = tmp_path_factory.mktemp('peers') / 'pair'
  pieces = PIECES + [f'\u2581w{index}' for index in range(SHAPE.vocab_size - len(PIECES))]
  root.mkdir()
  tokenizer_lib.from_pieces(pieces).save(str(root / 'tokenizer.json'))
  for name, model in zip(('target', 'draft'), tiny):
    models.save_hf(
        model, root / name, dtype=ml_dtypes.bfloat16, extra_files=[root / 'tokenizer.json']
    )
  prompts = [prompts_lib.Prompt('', (41, 50, 60)), prompts_lib.Prompt('', (44, 45, 46, 47))]
  prompts_lib.write(prompts, root / 'prompts.jsonl')
  return root


def make_task(folder: pathlib.Path, **more) -> runs.Task:
  config = make_config(folder)
  return dataclasses.replace(peers.tasks(config)[0], **more)


def make_config(folder) -> ml_collections.ConfigDict:
  config = benchmark_peers.get_config('smoke')
  config.peers.pair, config.peers.zoo = str(folder), ''
  config.peers.threads = 1
  config.peers.dtypes = ('float32',)
  return config


class TestTokenizer:

  def test_merges_as_sentencepiece_does(self):
    tokenizer = tokenizer_lib.from_pieces(PIECES)
    rng = np.random.default_rng(0)
    for _ in range(100):
      text = ''.join(rng.choice(list('thein ar'), size=30))
      ids = tokenizer.encode(text, add_special_tokens=False).ids
      assert [tokenizer.id_to_token(i) for i in ids] == join_greedily(text)
      assert tokenizer.decode(ids) == text
      assert tokenizer_lib.to_bytes(tokenizer, ids) == text.encode()

  def test_bytes_of_byte_pieces(self):
    tokenizer = tokenizer_lib.from_pieces(PIECES)
    ids = tokenizer.encode('a\n\tb', add_special_tokens=False).ids
    assert tokenizer_lib.to_bytes(tokenizer, ids) == b'a\n\tb'

  def test_words(self):
    tokenizer = tokenizer_lib.from_pieces(PIECES)
    assert [tokenizer.id_to_token(i) for i in tokenizer_lib.words(tokenizer)] == ['\u2581the']

  def test_trained_one_is_read_alike(self, tmp_path):
    sentencepiece = pytest.importorskip('sentencepiece')
    text = pathlib.Path(json.__file__).read_text()
    model = tokenizer_lib.train([text], 400)
    tokenizer_lib.write(model, tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = models.load_tokenizer(tmp_path)
    assert ours.get_vocab_size() == 400
    for start in range(0, 4000, 500):
      cut = text[start : start + 500]
      assert ours.encode(cut, add_special_tokens=False).ids == theirs.encode(cut)


def join_greedily(text: str) -> list[str]:
  """SentencePiece's BPE, straight from its definition."""
  pieces = list(text.replace(' ', '\u2581'))
  while True:
    joined = [
        (PIECES.index(a + b), i)
        for i, (a, b) in enumerate(itertools.pairwise(pieces))
        if a + b in PIECES
    ]
    if not joined:
      return pieces
    place = min(joined)[1]
    pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


class TestPair:

  def test_the_draft_is_a_part_of_the_target(self, tiny):
    target, draft = tiny
    assert draft.module.config.num_layers == RECIPE.draft_layers
    assert set(draft.params) < set(target.params)
    for name, value in draft.params.items():
      assert value is target.params[name]

  def test_every_weight_is_a_bfloat16_number(self, tiny):
    import jax

    for value in jax.tree.leaves(tiny[0].params):
      value = np.asarray(value)
      np.testing.assert_array_equal(value, value.astype(ml_dtypes.bfloat16).astype(np.float32))

  def test_every_live_token_has_two_successors_and_none_is_itself(self, tiny):
    embedding, head = (np.asarray(tiny[0].params[name]) for name in ('embedding', 'head'))
    live = np.flatnonzero(np.linalg.norm(head, axis=1) > 1.0)
    assert len(live) == RECIPE.num_live and live.min() >= 40
    scores = embedding[live] @ head[live].T
    following = scores > 0.5 * scores.max()
    np.testing.assert_array_equal(following.sum(1), 2)
    assert not np.diag(following).any()

  def test_same_seed_same_weights(self, tiny):
    again, _ = pair.make(range(40, 96), config=SHAPE, recipe=RECIPE)
    np.testing.assert_array_equal(again.params['head'], tiny[0].params['head'])
    other, _ = pair.make(
        range(40, 96), config=SHAPE, recipe=dataclasses.replace(RECIPE, seed=1)
    )
    assert (other.params['head'] != again.params['head']).any()

  @pytest.mark.parametrize(
      'shape, recipe, message',
      [
          (dict(tie_embeddings=True), {}, 'tie_embeddings'),
          ({}, dict(draft_layers=4), 'draft_layers'),
          ({}, dict(num_live=100), 'num_live'),
      ],
  )
  def test_refuses(self, shape, recipe, message):
    with pytest.raises(ValueError, match=message):
      pair.make(
          range(40, 96),
          config=dataclasses.replace(SHAPE, **shape),
          recipe=dataclasses.replace(RECIPE, **recipe),
      )

  def test_full_size(self):
    assert round(pair.TARGET.num_parameters / 1e6) == 97
    draft = dataclasses.replace(pair.TARGET, num_layers=2)
    assert round(draft.num_parameters / 1e6) == 26


class TestPrompts:

  def test_passes_are_those_of_the_engine(self, tiny):
    target, draft = tiny
    prompts = [prompts_lib.Prompt('', (41, 50, 60)), prompts_lib.Prompt('', (70, 71))]
    chosen = prompts_lib.choose(
        target, draft, prompts, count=2, num_speculative_tokens=3, new_tokens=24
    )
    assert chosen[0].flips <= chosen[1].flips
    for prompt in chosen:
      output = specjax.generate(
          target,
          [prompt.tokens],
          drafter=drafters.model(draft, num_speculative_tokens=3),
          rule=verify.greedy(),
          max_new_tokens=24,
      )
      assert output.target_passes == prompt.passes
      assert 6 < prompt.passes < 24

  def test_written_and_read(self, tmp_path):
    prompts = [prompts_lib.Prompt('a\n', (1, 2), 7, 0, 1.5), prompts_lib.Prompt('b', (3,))]
    prompts_lib.write(prompts, tmp_path / 'prompts.jsonl')
    assert prompts_lib.read(tmp_path / 'prompts.jsonl') == prompts
