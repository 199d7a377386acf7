"""A model's own chats, a head trained on them, and drafting with it: with a padded vocabulary.

The target has 151,936 entries of which its tokenizer knows 151,669, as Qwen's have.
"""

import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from safetensors import numpy as safetensors
import tokenizers
from tokenizers import decoders
from tokenizers import models as tokenizer_models
from tokenizers import pre_tokenizers

from configs import synthesize as synthesize_config
from configs import train_eagle3
from experiments import build
from experiments import synthesize
from experiments import train
from experiments import workdir
import specjax
from specjax import drafters
from specjax import heads
from specjax import models
from specjax.heads import target as target_lib
from specjax.training import chats
from specjax.training import token_files

pytestmark = pytest.mark.usefixtures('compiled_fast')

VOCAB, KNOWN = 151_936, 151_669
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
END = '<|im_end|>'


def tokenizer():
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  special = ['<|endoftext|>', '<|im_start|>', END]
  # Nothing is ever encoded as one of these.
  others = [f'qq{i}' for i in range(KNOWN - len(alphabet) - len(special))]
  vocab = {text: i for i, text in enumerate([*alphabet, *others])}
  made = tokenizers.Tokenizer(tokenizer_models.BPE(vocab, []))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens(special)
  assert made.get_vocab_size() == KNOWN
  return made


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A tiny chat model that writes small letters, and ends what it writes now and then."""
  path = tmp_path_factory.mktemp('model')
  words = tokenizer()
  config = models.TransformerConfig(
      vocab_size=VOCAB, width=16, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=8,
      mlp_width=16, tie_embeddings=False, max_positions=256,
  )
  module = models.Transformer(config)
  params = module.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))['params']
  params = jax.tree.map(lambda x: 3 * x, params)
  says = words.encode('abcdefghijklmnopqrstuvwxyz ').ids + [words.token_to_id(END)]
  kernel = np.zeros((VOCAB, 16), np.float32)
  # The logits of all others are zero: the largest few are always of these.
  kernel[says] = np.random.default_rng(0).normal(size=(len(says), 16)) / 4
  kernel[says[-1]] *= 1.4
  params['head'] = jnp.asarray(kernel)
  models.save_hf(
      models.LanguageModel(module, params), path, eos_ids=(words.token_to_id('<|endoftext|>'),)
  )
  words.save(str(path / 'tokenizer.json'))
  (path / 'tokenizer_config.json').write_text(json.dumps(
      dict(chat_template=TEMPLATE, eos_token='<|endoftext|>')
  ))
  return path


def console():
  return rich.console.Console(file=io.StringIO(), width=200)


def settings(folder, **fields):
  config = synthesize_config.get_config('smoke')
  config.dtype, config.target.path, config.shard_size = 'float32', str(folder), 16
  config.filters.exclude = ()
  config.question.update(max_tokens=24, top_k=6)
  config.answer.update(max_tokens=24, top_k=6)
  config.update(fields)
  return config


@pytest.fixture(scope='module')
def written(folder, tmp_path_factory):
  path = tmp_path_factory.mktemp('chats') / 'run'
  return synthesize.run(settings(folder, num_chats=20), str(path), console=console())


class TestChats:

  def test_rows(self, written, folder):
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert len(rows) == 20
    for row in rows:
      assert [m['role'] for m in row['messages']] == ['user', 'assistant']
      assert row['finish_reason'] in ('stop', 'length')
    questions = [chats.normalized(row['messages'][0]['content']) for row in rows]
    assert len(set(questions)) == 20
    assert any(row['finish_reason'] == 'stop' for row in rows)
    # The answer is the target's own: sampled after the question in the template.
    loaded = specjax.load(folder)
    assert loaded.encode_chat(rows[0]['messages'][:1])

  def test_the_card_says_how(self, written):
    text = (written.parent / 'README.md').read_text()
    assert '20 chats of one question' in text and 'Magpie' in text and 'left out' in text
    metrics = (written.parent / 'metrics.jsonl').read_text().splitlines()
    assert len(metrics) == len(list((written.parent / 'shards').iterdir()))

  def test_killed_and_resumed_it_writes_the_same_bytes(self, written, folder, tmp_path):
    path = tmp_path / 'run'
    shutil.copytree(written.parent, path)
    (path / 'chats.jsonl').unlink()
    shards = sorted((path / 'shards').iterdir())
    shards[-1].unlink()
    again = synthesize.run(settings(folder, num_chats=20), str(path), console=console())
    assert again.read_bytes() == written.read_bytes()
    assert (path / 'README.md').read_bytes() == (written.parent / 'README.md').read_bytes()
    # Fewer chats are a beginning of more; other ones have no place there.
    fewer = synthesize.run(settings(folder, num_chats=5), str(path), console=console())
    assert written.read_text().startswith(fewer.read_text())
    with pytest.raises(ValueError, match='holds chats of another config or model'):
      synthesize.run(settings(folder, seed=1), str(path), console=console())

  def test_answers_to_given_questions(self, folder, tmp_path):
    file = tmp_path / 'questions.jsonl'
    # The last one leaves an answer no room.
    texts = ['abc', 'abc', 'xyz', 'abc' * 100]
    file.write_text(''.join(json.dumps(dict(prompt=text)) + '\n' for text in texts))
    path = synthesize.run(
        settings(folder, num_chats=9, instructions=str(file)), str(tmp_path / 'run'),
        console=console(),
    )
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    asked = {row['messages'][0]['content'] for row in rows}
    assert asked <= {'abc', 'xyz'} and len(rows) == len(asked)
    assert '1 too long' in (path.parent / 'README.md').read_text()

  def test_questions_that_go_on_from_a_chat_are_refused(self, folder, tmp_path):
    file = tmp_path / 'questions.jsonl'
    said = [dict(role=role, content='abc') for role in ('user', 'assistant', 'user')]
    file.write_text(json.dumps(dict(messages=said)) + '\n')
    with pytest.raises(ValueError, match='row 1 has 3 messages'):
      synthesize.run(
          settings(folder, instructions=str(file)), str(tmp_path / 'run'), console=console()
      )

  def test_what_files_hold_and_dtypes_are_part_of_what_chats_depend_on(self, folder, tmp_path):
    template, file = tmp_path / 'template.jinja', tmp_path / 'questions.jsonl'

    def key(question='abc', comment='', dtype='float32'):
      template.write_text(TEMPLATE + comment)
      file.write_text(json.dumps(dict(prompt=question)) + '\n')
      config = settings(folder, instructions=str(file), dtype=dtype)
      config.target.chat_template = str(template)
      return build.synthesis(config).key

    assert key() == key(dtype='float32') != key(dtype='bfloat16')
    assert key() != key(question='xyz') and key() != key(comment='{# other #}')

  @pytest.mark.parametrize(
      'fields, message',
      [
          (dict(num_chats=0), 'config.num_chats must be at least 1'),
          (dict(target=dict(name='', path='', chat_template='')), 'no model to write chats'),
          (dict(target=dict(name='stdlib', path='', chat_template='')), 'has no chat template'),
      ],
  )
  def test_what_cannot_be_written_is_refused_before_weights_are_read(
      self, folder, fields, message, tmp_path
  ):
    with pytest.raises(ValueError, match=message):
      synthesize.run(settings(folder, **fields), str(tmp_path / 'run'), console=console())
    assert not (tmp_path / 'run').exists()

  def test_a_model_that_writes_nothing_that_is_kept(self, folder, tmp_path):
    config = settings(folder, shard_size=4)
    config.filters.min_characters = 10_000
    screen = console()
    with pytest.raises(ValueError, match='None of the chats is kept: 1[0-9] short'):
      synthesize.run(config, str(tmp_path / 'run'), console=screen)
    assert 'The last 4 shards of 4 chats' in ' '.join(screen.file.getvalue().split())

  def test_a_turn_that_ends_in_plain_text(self, folder, tmp_path):
    plain = tmp_path / 'plain.jinja'
    plain.write_text("{% for m in messages %}{{ m['content'] + ' and ' }}{% endfor %}")
    config = settings(folder)
    config.target.chat_template = str(plain)
    with pytest.raises(ValueError, match='no special token after what a user says'):
      build.synthesis(config)


def training(folder, written, **fields):
  config = train_eagle3.get_config('smoke')
  config.dtype, config.target.path = 'float32', str(folder)
  config.corpus.chats = str(written)
  config.held_out_windows = 2
  config.update(fields)
  return config


def head_training(folder, written, **fields):
  config = training(folder, written, **fields)
  config.head.update(own_output=False, fuse_norm='each', norm_output=True)
  return config


@pytest.fixture(scope='module')
def trained(folder, written, tmp_path_factory):
  """A head with the target's own output head, which is neither trained nor stored."""
  config = head_training(folder, written)
  path = tmp_path_factory.mktemp('head') / 'run'
  return train.run(config, str(path), console=console())


class TestHead:

  def test_the_corpus_is_the_chats(self, trained, written):
    corpus = trained.parent / 'corpus'
    train_tokens = token_files.open_tokens(corpus / 'train.npy')
    assert train_tokens.ids.dtype == np.uint32 and train_tokens.mask.any()
    held_out = token_files.open_tokens(corpus / 'held_out.npy')
    assert train_tokens.info['chats'] + held_out.info['chats'] == 20
    assert json.loads((corpus / 'prompts.json').read_text())

  def test_the_head_drafts_its_own_vocabulary_and_output_is_plain(self, trained, folder):
    target = specjax.load(folder).model
    head = heads.load_eagle(trained, target)
    assert head.draft_to_target.shape == (64,)
    assert head.config.fuse_norm == 'each' and head.config.norm_output
    assert 'lm_head.weight' not in safetensors.load_file(trained / 'model.safetensors')
    rows = target_lib.output_head(target)[head.draft_to_target]
    np.testing.assert_array_equal(head.params['head'], rows.astype(head.module.dtype))
    assert tokenizer().token_to_id(END) in head.draft_to_target.tolist()
    prompts = [tokenizer().encode(text).ids for text in ('abc', 'hello you')]
    options = dict(max_new_tokens=12, cache_length=64)
    drafter = drafters.eagle(head, target, num_speculative_tokens=2)
    plain = specjax.decode(target, prompts, **options)
    drafted = specjax.generate(target, prompts, drafter=drafter, **options)
    np.testing.assert_array_equal(plain.tokens, drafted.tokens)

  def test_it_is_trained_on(self, folder, written, trained, tmp_path):
    config = head_training(folder, written, num_steps=10, start=str(trained))
    path = train.run(config, str(tmp_path / 'run'), console=console())
    first = lambda run: workdir.read_rows(run.parent)[0]['loss']
    assert first(path) < first(trained)
    one, other = (heads.load_eagle(each, specjax.load(folder).model) for each in (trained, path))
    np.testing.assert_array_equal(one.draft_to_target, other.draft_to_target)
    config.head.vocab_size = 32
    with pytest.raises(ValueError, match='drafts 64 tokens: set --config.head.vocab_size=64'):
      train.run(config, str(tmp_path / 'a'), console=console())
    config.head.update(vocab_size=64, fuse_norm='')
    with pytest.raises(ValueError, match="its fuse_norm is 'each', and None is trained"):
      train.run(config, str(tmp_path / 'b'), console=console())

  @pytest.mark.parametrize('kind', ['medusa', 'early_exit', 'model', 'dflash', 'dspark'])
  def test_other_kinds_by_the_same_config(self, folder, written, trained, kind, tmp_path):
    config = training(folder, written, kind=kind, num_steps=10)
    if kind in ('dflash', 'dspark'):
      config.kind, config.head.loss = 'dflash', 'cross_entropy'
    if kind == 'dspark':
      config.head.update(loss='dspark', markov='rnn', confidence=True)
    config.corpus.path = str(trained.parent / 'corpus')
    path = train.run(config, str(tmp_path / 'run'), console=console())
    rows = [json.loads(line) for line in (path.parent / 'metrics.jsonl').read_text().splitlines()]
    assert rows[-1]['acceptance_length'] >= 1.0
    assert (path / 'config.json').exists()

  def test_what_does_not_fit(self, folder, written, tmp_path):
    with pytest.raises(ValueError, match='needs a target with a chat template'):
      config = training(folder, written)
      config.target.path = 'specjax/zoo/stdlib/target'
      train.run(config, str(tmp_path / 'a'), console=console())
    with pytest.raises(ValueError, match='None of the chats .* is held out'):
      config = training(folder, written)
      config.corpus.held_out_one_in = 0
      train.run(config, str(tmp_path / 'b'), console=console())
    with pytest.raises(ValueError, match='lower n or seq_len'):
      config = training(folder, written, held_out_windows=99)
      config.features.stored = True
      train.run(config, str(tmp_path / 'd'), console=console())
    assert not (tmp_path / 'd' / 'features').exists()
    with pytest.raises(FileNotFoundError, match='no file of chats'):
      train.run(training(folder, 'nowhere.jsonl'), str(tmp_path / 'c'), console=console())
