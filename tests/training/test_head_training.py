"""Losses of drafts and heads, whole and in parts; stored features; samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from specjax.heads import eagle as eagle_lib
from specjax.heads import target as target_lib
from specjax.training import chunked
from specjax.training import drafts
from specjax.training import features
from specjax.training import heads as head_losses
from specjax.training import losses
from specjax.training import samples
from specjax.training import train
from tests.support import tiny
from tests.support import tiny_heads
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')

LAYERS = (1, 2, 3)


def laws(seed: int = 0, size: int = 12):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(2, 3, size)) * 2, rng.normal(size=(2, 3, size)) * 2


def definition(kind: str, target, draft):
  p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (target, draft))
  m = (p + q) / 2
  return {
      'forward_kl': (p * np.log(p / q)).sum(-1),
      'reverse_kl': (q * np.log(q / p)).sum(-1),
      'jsd': (p * np.log(p / m) + q * np.log(q / m)).sum(-1) / 2,
      'total_variation': abs(p - q).sum(-1) / 2,
      'acceptance': -np.log(np.minimum(p, q).sum(-1)),
  }[kind]


@pytest.mark.parametrize('kind', sorted(losses.TERMS))
def test_divergences_are_their_definitions_whole_and_in_parts(kind):
  target, draft = laws()
  value = losses.divergence(jnp.asarray(target), jnp.asarray(draft), kind=kind)
  wanted = definition(kind, target, draft)
  size = 1 + wanted  # of what is added
  tolerance.assert_close(value, wanted, tolerance.of_probs(12, logits=(target, draft), probs=size))
  same = losses.divergence(jnp.asarray(target), jnp.asarray(target), kind=kind)
  tolerance.assert_close(same, 0.0, tolerance.of_sum(12, size=1.0))

  rng = np.random.default_rng(1)
  hidden, kernel = rng.normal(size=(2, 2, 3, 5)), rng.normal(size=(2, 12, 5))
  sides = [chunked.Side(jnp.asarray(h, jnp.float32), jnp.asarray(k, jnp.float32), cap)
           for h, k, cap in zip(hidden, kernel, (3.0, None))]

  def in_parts(draft_hidden, draft_kernel):
    side = chunked.Side(draft_hidden, draft_kernel)
    return chunked.compare(sides[0], side, kind=kind, num_chunks=3).divergence.sum()

  def whole(draft_hidden, draft_kernel):
    goal = 3.0 * jnp.tanh(sides[0].hidden @ sides[0].kernel.T / 3.0)
    return losses.divergence(goal, draft_hidden @ draft_kernel.T, kind=kind).sum()

  goal = 3.0 * jnp.tanh(sides[0].hidden @ sides[0].kernel.T / 3.0)
  logits = sides[1].hidden @ sides[1].kernel.T
  arguments = (sides[1].hidden, sides[1].kernel)
  for mine, right in zip(
      jax.tree.leaves(jax.value_and_grad(in_parts, (0, 1))(*arguments)),
      jax.tree.leaves(jax.value_and_grad(whole, (0, 1))(*arguments)),
  ):
    # The terms of a gradient have either sign: they are the arguments' entries, weighted with
    # probabilities and with how far the laws are apart.
    apart = tolerance.largest(goal - logits)
    size = tolerance.largest(right) + apart * tolerance.largest(arguments)
    tolerance.assert_close(mine, right, tolerance.of_probs(12, logits=(goal, logits), probs=size))
  compared = chunked.compare(*sides, kind=kind, num_chunks=4)
  np.testing.assert_array_equal(compared.agrees, goal.argmax(-1) == logits.argmax(-1))
  wanted = losses.acceptance(goal, logits)
  tolerance.assert_close(
      compared.acceptance.mean(), wanted,
      tolerance.of_probs(12, logits=(goal, logits), probs=wanted),
  )


@pytest.mark.parametrize('kind', ['forward_kl', 'acceptance'])
def test_the_loss_of_a_distilled_draft_is_its_definition_whole_and_in_parts(kind):
  target, draft = tiny.target(), tiny.related_draft()
  batch = jnp.asarray(np.random.default_rng(0).integers(tiny.VOCAB, size=(2, 9)), jnp.int32)

  def by_definition(params):
    logits = draft.module.apply({'params': params}, batch[:, :-1]).logits
    goal = target(batch[:, :-1]).logits
    divergence = losses.divergence(goal, logits, kind=kind).mean()
    return 0.7 * divergence + 0.3 * losses.cross_entropy(logits, batch[:, 1:])

  right = jax.value_and_grad(by_definition)(draft.params)
  for num_chunks in (1, 4):
    loss = drafts.distilled(
        draft.module, target, weight=0.7, kind=kind, num_chunks=num_chunks
    )
    (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(draft.params, batch)
    logits = draft(batch[:, :-1]).logits
    of_loss = tolerance.of_loss(
        draft.module.config, size=tolerance.largest(logits), terms=16, positions=8
    )
    tolerance.assert_close(value, right[0], of_loss)
    # A gradient is a sum with what probabilities are off from the target's as weights.
    of_logprobs = tolerance.of_logprobs(
        draft.module.config, size=tolerance.largest(logits), positions=8
    )
    tolerance.assert_trees_close(
        gradients, right[1], lambda leaf: of_logprobs * tolerance.largest(leaf)
    )
    expected = losses.acceptance(target(batch[:, :-1]).logits, logits)
    tolerance.assert_close(metrics['acceptance'], expected, of_loss)
    plain = drafts.language_model(draft.module, num_chunks=num_chunks)
    value, _ = plain(draft.params, batch)
    tolerance.assert_close(value, losses.cross_entropy(logits, batch[:, 1:]), of_loss)


def test_a_loss_that_cannot_be_is_refused():
  target, draft = laws()
  with pytest.raises(ValueError, match="must be one of .*; got 'other'"):
    losses.divergence(target, draft, kind='other')
  with pytest.raises(ValueError, match='must have one shape'):
    losses.divergence(target, draft[..., 1:], kind='jsd')
  small = tiny.model(0, vocab_size=8)
  with pytest.raises(ValueError, match='vocabulary of 8 tokens, the target of 64'):
    drafts.distilled(small.module, tiny.target())
  with pytest.raises(ValueError, match=r'must be in \[0, 1\], got 2'):
    drafts.distilled(small.module, small, weight=2)
  side = chunked.Side(jnp.ones((1, 4)), jnp.ones((12, 4)))
  with pytest.raises(ValueError, match='num_chunks=5 does not divide'):
    chunked.compare(side, side, kind='jsd', num_chunks=5)


def test_no_array_over_the_whole_vocabulary_is_made():
  """Forwards and backwards, in the compiled program."""
  vocab = 4096
  side = lambda h, k: chunked.Side(h, k)
  fn = lambda h, k: chunked.compare(
      side(h, k), side(h * 2, k), kind='acceptance', num_chunks=8
  ).divergence.sum() + chunked.cross_entropy(
      side(h, k), jnp.zeros(64, jnp.int32), num_chunks=8
  ).sum()
  text = jax.jit(jax.grad(fn)).lower(jnp.ones((64, 8)), jnp.ones((vocab, 8))).compile().as_text()
  assert f'f32[64,{vocab // 8}]' in text
  assert f'[64,{vocab}]' not in text and f'[8,64,{vocab // 8}]' not in text


@functools.cache
def text() -> np.ndarray:
  return np.random.default_rng(3).integers(tiny.VOCAB, size=300).astype(np.uint16)


def test_training_unrolls_what_decoding_does():
  """Row i of step j against a cache that read pairs 0 … i and then drafted j tokens."""
  head = tiny_heads.head()
  apply = lambda *args, **kw: head.module.apply({'params': head.params}, *args, **kw)
  tokens = jnp.asarray(text()[None, :9].astype(np.int32))
  stream = tiny.target()(tokens, feature_layers=LAYERS).features[:, :6]
  embedded = target_lib.embed(tiny.target(), tokens[:, 1:])
  unrolled = apply(embedded, stream, 3, method='unroll')
  for row in (0, 4):
    cache = head.module.init_cache(batch_size=1, cache_length=16, max_append=8)
    out = apply(embedded[:, : row + 1], stream[:, : row + 1], None, cache)
    for step in range(3):
      # The last sum, over the width of the MLP, is of products as large as the largest entry.
      hidden = np.asarray(out.hidden[:, -1])
      tolerated = tolerance.of_sum(
          head.config.decoder.mlp_width, size=tolerance.largest(hidden)
      )
      tolerance.assert_close(unrolled[step, :, row], hidden, tolerated)
      if step < 2:
        next_token = embedded[:, row + 1 + step : row + 2 + step]
        out = apply(next_token, out.hidden[:, -1:], None, out.cache, own_features=True)


def loss_of(kind: str, num_chunks: int = 1):
  target = tiny.target()
  if kind == 'eagle3':
    head = tiny_heads.head()
    params = eagle_lib.init_params(head.module, jax.random.key(9))
    loss = head_losses.eagle3(head.module, target, num_steps=2, num_chunks=num_chunks)
    return loss, params, (*LAYERS,)
  if kind == 'medusa':
    both = tiny_heads.medusa()
    return head_losses.medusa(both.module, target, num_chunks=num_chunks), both.params, (3,)
  exit_ = tiny_heads.adapter()
  return head_losses.early_exit(exit_.module, target, num_chunks=num_chunks), exit_.params, (2, 3)


@pytest.mark.parametrize('kind', ['eagle3', 'medusa', 'early_exit'])
def test_stored_features_and_chunks_give_the_same_loss_and_training_lowers_it(kind, tmp_path):
  loss, params, layers = loss_of(kind)
  store = features.write(
      tmp_path / 'store', target=tiny.target(), tokens=text(), seq_len=16, layers=LAYERS,
      batch_size=4, say=lambda line: None,
  )
  batches = features.FeatureBatches(store, batch_size=4, layers=layers)
  batch = batches.batch(0)
  run = jax.jit(lambda loss, params, batch: loss(params, batch))
  value, metrics = run(loss, params, batch)
  online, _ = run(loss, params, batch['tokens'])
  in_parts, others = run(loss_of(kind, 4)[0], params, batch)
  target = tiny.target()
  tolerated = tolerance.of_loss(
      target.module.config, size=tolerance.largest(target(batch['tokens']).logits),
      terms=4 * 15, positions=16,
  )
  tolerance.assert_close(online, value, tolerated)
  tolerance.assert_close(in_parts, value, tolerated)
  for name in metrics:
    tolerance.assert_close(others[name], metrics[name], tolerated, name)
  records = []
  train.fit(
      params=params, loss_fn=loss, optimizer=optax.adam(3e-3), batches=batches.batch,
      num_steps=20, workdir=tmp_path / 'run', record_every=10, checkpoint_every=20,
      train_metrics=('loss',), held_out=lambda: iter([batch]), evaluate_every=20,
      record=records.append,
      measure=lambda params: {'acceptance_length': 1.5},
  )
  assert set(records[0].metrics) == {'loss', 'gradient_norm'}
  assert records[-1].metrics['acceptance_length'] == 1.5
  assert records[-1].metrics['acceptance_1'] > metrics['acceptance_1']
  assert records[-1].metrics['loss'] < 0.95 * value


def test_features_are_stored_once_and_of_one_target(tmp_path):
  said = []
  options = dict(target=tiny.target(), tokens=text(), seq_len=16, layers=(2, 3), batch_size=5)
  store = features.write(tmp_path / 'f', say=said.append, **options)
  assert store.features.shape == (18, 16, 2 * 48) and '110' not in said[0]
  assert features.disk_bytes(
      num_tokens=300, seq_len=16, width=48, num_layers=2, dtype=jnp.float32
  ) == store.features.nbytes
  windows = np.asarray(store.tokens)
  np.testing.assert_array_equal(windows[:, 1:].reshape(-1), text()[1:289])
  direct = tiny.target()(jnp.asarray(windows[7:8, :-1]), feature_layers=(2, 3)).features
  tolerated = tolerance.of_logits(
      tiny.target().module.config, size=tolerance.largest(direct), positions=16
  )
  tolerance.assert_close(store.features[7:8], direct, tolerated)
  batches = features.FeatureBatches(store, batch_size=6, layers=(3,))
  assert batches.batches_per_epoch == 3
  epoch = np.concatenate([batches.batch(step)['tokens'] for step in range(3)])
  assert sorted(map(tuple, epoch)) == sorted(map(tuple, windows))
  np.testing.assert_array_equal(
      batches.take(np.asarray([2]))['features'][0], store.features[2, :, 48:]
  )
  # An interrupted run goes on; a finished one is opened.
  (tmp_path / 'f' / 'features.json').rename(tmp_path / 'f' / 'gone')
  again = features.write(tmp_path / 'f', say=said.append, **options)
  np.testing.assert_array_equal(again.features, store.features)
  for changed in (dict(layers=(3,)), dict(target=tiny.related_draft()), dict(tokens=text()[1:])):
    with pytest.raises(ValueError, match='holds other features'):
      features.write(tmp_path / 'f', **(options | changed))
  with pytest.raises(ValueError, match=r'layers \[1\] are not among'):
    features.FeatureBatches(store, batch_size=2, layers=(1,))
  with pytest.raises(ValueError, match='at least seq_len'):
    features.write(tmp_path / 'g', **(options | dict(seq_len=400)))
  with pytest.raises(FileNotFoundError, match='no complete features'):
    features.open_store(tmp_path)


def test_an_interrupted_store_goes_on_and_a_full_disk_is_said_first(tmp_path, monkeypatch):
  options = dict(target=tiny.target(), tokens=text(), seq_len=16, layers=(2,), batch_size=4)
  monkeypatch.setattr(features, '_NOTE_EVERY', 4)

  def stop(line):
    if line.startswith('8 of'):
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    features.write(tmp_path / 'f', say=stop, **options)
  said = []
  whole = features.write(tmp_path / 'f', say=said.append, **options)
  assert not any(line.startswith(('4 of', '8 of')) for line in said)
  other = features.write(tmp_path / 'g', say=said.append, **options)
  np.testing.assert_array_equal(whole.features, other.features)
  full = lambda path: type('Usage', (), {'free': 1000})
  monkeypatch.setattr(features.shutil, 'disk_usage', full)
  with pytest.raises(OSError, match='Make room, give another folder, keep fewer layers'):
    features.write(tmp_path / 'h', **options)


def test_a_head_of_another_width_is_refused_before_training():
  other = tiny.model(0, width=32, num_layers=2)
  with pytest.raises(ValueError, match='target of width 48, this target has 32'):
    head_losses.eagle3(tiny_heads.head().module, other, num_steps=2)
  batch = {'tokens': np.zeros((1, 5), np.int32), 'features': np.zeros((1, 4, 48), np.float32)}
  loss, params, _ = loss_of('eagle3')
  with pytest.raises(ValueError, match='48 wide; the head reads layers'):
    loss(params, batch)


def test_samples_are_the_targets_own_and_a_function_of_the_seed(tmp_path):
  options = dict(
      target=tiny.target(), tokens=text(), num_samples=6, prompt_tokens=4, new_tokens=5,
      batch_size=4, temperature=0.0, say=lambda line: None,
  )
  made = samples.write(tmp_path / 's', **options)
  rows = np.asarray(made).reshape(-1, 9)
  assert made.dtype == np.uint16 and len(rows) == 8
  known = [tuple(text()[i : i + 4]) for i in range(len(text()))]
  assert all(tuple(row[:4]) in known for row in rows)
  logits = tiny.target()(jnp.asarray(rows.astype(np.int32))).logits
  np.testing.assert_array_equal(logits.argmax(-1)[:, 3:-1], rows[:, 4:])
  again = samples.write(tmp_path / 't', **options)
  np.testing.assert_array_equal(made, again)
  with pytest.raises(ValueError, match='holds other samples'):
    samples.write(tmp_path / 's', **(options | dict(seed=1)))
  with pytest.raises(ValueError, match='prompt_tokens must be 1'):
    samples.write(tmp_path / 'u', **(options | dict(prompt_tokens=300)))
