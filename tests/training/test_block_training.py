"""Training of DFlash and DSpark heads: blocks as in decoding, and losses by their definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from specjax.heads import target as target_lib
from specjax.training import blocks
from specjax.training import train
from tests.support import tiny
from tests.support import tiny_heads
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')

TOKENS = np.random.default_rng(3).integers(0, tiny.VOCAB, (2, 15)).astype(np.int32)
LENGTH = TOKENS.shape[1] - 1


def with_config(head, **changes):
  return head.replace(
      module=head.module.clone(config=dataclasses.replace(head.config, **changes))
  )


def features_of(config):
  return tiny.target()(
      TOKENS[:, :-1], feature_layers=config.feature_layers, with_logits=False
  ).features


def apply(head, *args, **kwargs):
  return head.module.apply({'params': head.params}, *args, **kwargs)


def block_at(config, root):
  block = np.full((len(TOKENS), config.block_size), config.mask_token)
  block[:, 0] = TOKENS[:, root]
  return target_lib.embed(tiny.target(), jnp.asarray(block))


@pytest.mark.parametrize('windows', [
    {}, dict(window_from_root=True), dict(window_from_root=True, causal_windows=True)
])
def test_many_blocks_at_once_are_those_of_decoding(windows):
  head = with_config(tiny_heads.block('dspark'), **windows)
  features, roots = features_of(head.config), [0, 3, 9, LENGTH - 1]
  embedded = jnp.stack([block_at(head.config, root) for root in roots], axis=1)
  at = jnp.broadcast_to(jnp.asarray(roots), (len(TOKENS), len(roots)))
  found = apply(head, features, embedded, at, method='unroll')
  for number, root in enumerate(roots):
    cache = head.module.init_cache(batch_size=2, cache_length=LENGTH, max_append=LENGTH)
    if root:
      cache = apply(
          head, features[:, :root], cache, jnp.full(2, root), method='context'
      )
    expected, _ = apply(head, embedded[:, number], cache)
    tolerated = tolerance.of_logits(
        head.config.decoder, size=tolerance.largest(expected), positions=LENGTH + 4
    )
    tolerance.assert_close(found[:, number], expected, tolerated)


def laws(head, root):
  """p and q [B, K, V] and the confidences, one root and one token at a time."""
  config, target = head.config, tiny.target()
  features = features_of(config)
  cache = head.module.init_cache(batch_size=2, cache_length=LENGTH, max_append=LENGTH)
  if root:
    cache = apply(head, features[:, :root], cache, jnp.full(2, root), method='context')
  hidden, _ = apply(head, block_at(config, root), cache)
  hidden = hidden if config.shift == 'next' else hidden[:, 1:]
  state, drafts, said = jnp.zeros((2, config.markov_rank)), [], []
  for k in range(config.depth):
    before = jnp.asarray(TOKENS[:, min(root + k, LENGTH)])
    logits = target_lib.output_logits(target, hidden[:, k])
    if config.markov:
      bias, state = apply(head, before, hidden[:, k], state, method='markov_bias')
      logits = logits + bias
      said.append(apply(head, before, hidden[:, k], method='confidence'))
    drafts.append(jax.nn.softmax(logits))
  goal = jax.nn.softmax(target(TOKENS[:, :-1]).logits)
  index = np.minimum(root + np.arange(config.depth), LENGTH - 1)
  return np.asarray(goal[:, index]), np.asarray(jnp.stack(drafts, 1)), said


@pytest.mark.parametrize('kind, loss', [('dflash', 'cross_entropy'), ('dspark', 'dspark'),
                                        ('dflash', 'forward_kl')])
@pytest.mark.parametrize('num_chunks', [1, 4])
def test_a_loss_is_its_definition(kind, loss, num_chunks):
  head, gamma = tiny_heads.block(kind), 2.0
  depth = head.config.depth
  mask = np.zeros(TOKENS.shape, bool)
  mask[0, 4:9], mask[1, 11:] = True, True
  # All roots after which a token counts.
  fn = blocks.dflash(
      head.module, tiny.target(), num_roots=LENGTH, kind=loss, gamma=gamma, num_chunks=num_chunks
  )
  value, metrics = fn(head.params, dict(tokens=TOKENS, mask=mask))
  sums = dict(loss=0.0, confidence=0.0, weight=0.0, accepted=0.0, first=0.0)
  for root in range(LENGTH):
    goal, draft, said = laws(head, root)
    for row in range(2):
      for k in range(depth):
        if root + k + 1 > LENGTH or not mask[row, root + k + 1]:
          break
        p, q, weight = goal[row, k], draft[row, k], np.exp(-k / gamma)
        entropy = -np.log(q[TOKENS[row, root + k + 1]])
        distance, accepted = np.abs(p - q).sum(), np.minimum(p, q).sum()
        term = {
            'cross_entropy': entropy, 'dspark': 0.1 * entropy + 0.9 * distance,
            'forward_kl': (p * np.log(p / q)).sum(),
        }[loss]
        sums['loss'] += weight * term
        sums['weight'] += weight
        if kind == 'dspark':
          c = float(said[k][row])
          sums['confidence'] -= weight * (
              accepted * np.log(c) + (1 - accepted) * np.log(1 - c)
          )
        if k == 0:
          sums['accepted'] += accepted
          sums['first'] += 1
  expected = (sums['loss'] + sums['confidence']) / sums['weight']
  tolerated = tolerance.of_loss(
      tiny.target().module.config, size=tolerance.largest(tiny.target()(TOKENS).logits),
      terms=2 * LENGTH * depth, positions=LENGTH,
  )
  tolerance.assert_close(value, expected, tolerated)
  tolerance.assert_close(metrics['acceptance_1'], sums['accepted'] / sums['first'], tolerated)
  assert ('confidence_error' in metrics) == (kind == 'dspark')


def test_roots_are_those_of_the_batch_and_only_where_something_counts():
  counted = np.zeros(TOKENS.shape, bool)
  counted[0, 5:9] = True
  roots, used = blocks._roots(jnp.asarray(TOKENS), jnp.asarray(counted), 6)
  assert sorted(np.asarray(roots[0])[np.asarray(used[0])]) == [4, 5, 6, 7]
  assert not used[1].any()
  again, _ = blocks._roots(jnp.asarray(TOKENS), jnp.asarray(counted), 6)
  np.testing.assert_array_equal(roots, again)
  everything = np.ones(TOKENS.shape, bool)
  one, _ = blocks._roots(jnp.asarray(TOKENS), jnp.asarray(everything), 5)
  other, _ = blocks._roots(jnp.asarray(TOKENS + 1), jnp.asarray(everything), 5)
  assert (np.asarray(one) != np.asarray(other)).any()


@pytest.mark.parametrize('kind, loss', [('dflash', 'cross_entropy'), ('dspark', 'dspark')])
def test_training_lowers_the_loss_and_resumes(kind, loss, tmp_path):
  head = tiny_heads.block(kind, 32) if kind == 'dspark' else tiny_heads.block(kind)
  fn = blocks.dflash(
      head.module, tiny.target(), num_roots=6, kind=loss, draft_to_target=head.draft_to_target
  )
  records = []
  options = dict(
      params=head.params, loss_fn=fn, optimizer=optax.adam(3e-3),
      batches=lambda step: TOKENS, record_every=5, checkpoint_every=10, evaluate_every=30,
      held_out=lambda: iter([TOKENS]), record=records.append,
  )
  train.fit(num_steps=30, workdir=tmp_path / 'a', **options)
  assert records[-2].metrics['loss'] < 0.8 * records[0].metrics['loss']
  whole = records[-1].metrics
  records.clear()
  train.fit(num_steps=10, workdir=tmp_path / 'b', **options)
  records.clear()
  train.fit(num_steps=30, workdir=tmp_path / 'b', **options)
  assert records[-1].metrics == whole


def test_what_does_not_fit_is_refused():
  head = tiny_heads.block()
  with pytest.raises(ValueError, match='loss must be one of cross_entropy, dspark, acceptance'):
    blocks.dflash(head.module, tiny.target(), num_roots=4, kind='mse')
  with pytest.raises(ValueError, match='needs an output head of its own'):
    blocks.dflash(
        head.module, tiny.target(), num_roots=4, draft_to_target=jnp.arange(tiny.VOCAB)
    )
  capped = tiny.model(0, logit_soft_cap=20.0)
  with pytest.raises(ValueError, match='without a cap'):
    blocks.dflash(tiny_heads.block('dspark').module, capped, num_roots=4)
  with pytest.raises(ValueError, match='target of width 48, this target has 32'):
    blocks.dflash(head.module, tiny.model(0, width=32), num_roots=4)
