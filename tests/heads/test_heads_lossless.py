"""Heads are lossless: the exact law of the output, under every rule that takes what they draft."""

import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import heads
from specjax import sampling as sampling_lib
from specjax import testing
from specjax import verify
from specjax.drafters.dflash import DFlashDrafter
from specjax.drafters.eagle import EagleDrafter
from specjax.drafters.early_exit import EarlyExitDrafter
from specjax.drafters.medusa import MedusaDrafter
from specjax.heads import dflash as dflash_lib
from specjax.heads import eagle as eagle_lib
from specjax.heads import medusa as medusa_lib
from specjax.models import TransformerConfig
from tests.support import by_row
from tests.support import exact_laws
from tests.support import tiny
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')
VOCAB = 3
PROMPT = (0, 1, 0)
SIZES = dict(num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=16)
# Two siblings, the first of which goes on: three nodes, two deep.
UNEVEN = [(0,), (1,), (0, 0)]
CHAIN = dict(num_speculative_tokens=2)
SHAPES = {
    'chain': CHAIN,
    'with replacement': dict(tree=UNEVEN, siblings='with_replacement'),
    'without replacement': dict(tree=UNEVEN, siblings='without_replacement'),
    'dynamic': dict(tree=drafters.dynamic_tree(num_nodes=3, depth=2, width=2)),
    'best first': dict(tree=drafters.best_first_tree(num_nodes=3, depth=2, width=2)),
}
TREE_RULES = verify.recursive(), verify.traversal()
RULES = {
    'chain': (verify.rejection(), verify.block()),
    'with replacement': (*TREE_RULES, verify.k_sequential()),
    'without replacement': TREE_RULES,
    'dynamic': TREE_RULES,
    'best first': TREE_RULES,
}
# EAGLE-2 is EAGLE-1's head with a dynamic tree.
KINDS = ('eagle1', 'eagle3', 'medusa', 'exit', 'dflash', 'dspark', 'gated', 'rnn')
CASES = [(kind, shape) for kind in KINDS for shape in SHAPES if shape != 'best first']
# Their laws depend on the depth alone.
CASES += [('medusa', 'best first'), ('dflash', 'best first')]
SETTINGS = [
    dict(temperature=1.0),
    dict(temperature=0.8, top_p=0.9, frequency_penalty=-0.6, logit_bias=(0.0, 0.5, -0.5)),
]


@functools.cache
def target():
  """Weights as they are initialised: its law is not so steep that float32 cannot say it."""
  model = tiny.model(5, num_layers=2, width=16, vocab_size=VOCAB, **SIZES)
  return model.replace(params=jax.tree.map(lambda x: x / 2, model.params))


@functools.cache
def eagle(version: int) -> heads.Eagle:
  """EAGLE-3's knows two of the three tokens."""
  is_third = version == 3
  config = heads.EagleConfig(
      decoder=TransformerConfig(
          vocab_size=2 if is_third else VOCAB, width=16, num_layers=1, **SIZES
      ),
      target_width=16,
      target_vocab_size=VOCAB,
      feature_layers=(1, 2) if is_third else (2,),
      version=version,
  )
  module = heads.EagleHead(config)
  params = jax.jit(lambda: eagle_lib.init_params(module, jax.random.key(4)))()
  params = jax.tree.map(lambda x: x * 2, params)
  return heads.Eagle(module, params, None, jnp.asarray([0, 2], jnp.int32) if is_third else None)


@functools.cache
def medusa() -> heads.Medusa:
  config = heads.MedusaConfig(
      num_heads=2, target_width=16, target_vocab_size=VOCAB, target_layers=2
  )
  module = heads.MedusaHeads(config, jnp.float32, jnp.float32)
  params = jax.jit(lambda: medusa_lib.init_params(module, jax.random.key(2)))()
  return heads.Medusa(module, params)


@functools.cache
def dflash(kind: str) -> heads.DFlash:
  """DFlash drafts from the masks' slots, the others from the root's on; 'rnn' knows two tokens."""
  is_plain, is_reduced = kind == 'dflash', kind == 'rnn'
  config = heads.DFlashConfig(
      decoder=TransformerConfig(
          vocab_size=2 if is_reduced else VOCAB, width=16, num_layers=2, qk_norm=True,
          sliding_window=2 if is_plain else None, local_layers=(True, False) if is_plain else (),
          **SIZES,
      ),
      target_width=16,
      target_vocab_size=VOCAB,
      feature_layers=(0, 1),
      block_size=3 if is_plain else 2,
      mask_token=1,
      shift=dflash_lib.MASKS if is_plain else dflash_lib.NEXT,
      has_head=is_reduced,
      markov={'dspark': 'plain', 'gated': 'gated', 'rnn': 'rnn'}.get(kind),
      markov_rank=0 if is_plain else 4,
      has_confidence=not is_plain,
      confidence_sees_token=kind in ('gated', 'rnn'),
  )
  module = heads.DFlashHead(config)
  params = jax.jit(lambda: dflash_lib.init_params(module, jax.random.key(6)))()
  ids = jnp.asarray([0, 2], jnp.int32) if is_reduced else None
  return heads.DFlash(module, jax.tree.map(lambda x: x * 2, params), None, ids)


def make(kind: str, **shape):
  if kind in ('dflash', 'dspark', 'gated', 'rnn'):
    # Of one row in two a confidence below which nothing more is drafted.
    least = None if kind == 'dflash' or len(shape) > 1 else 0.4
    return drafters.dflash(dflash(kind), target(), min_confidence=least, **shape)
  if kind == 'exit':
    return drafters.early_exit(heads.plain_exit(target(), 1), target(), **shape)
  if kind == 'medusa':
    return drafters.medusa(medusa(), target(), **shape)
  return drafters.eagle(eagle(int(kind[-1])), target(), **shape)


def sampling(num_rules: int = 1):
  """Rows: all rules for the first of `SETTINGS`, then for the second."""
  columns = dict(temperature=1.0, top_p=1.0, frequency_penalty=0.0, logit_bias=(0.0,) * VOCAB)
  columns = {
      name: np.repeat([row.get(name, value) for row in SETTINGS], num_rules, axis=0)
      for name, value in columns.items()
  }
  top_k = np.tile(VOCAB + np.arange(num_rules), len(SETTINGS))
  return sampling_lib.make(batch_size=len(top_k), top_k=top_k, **columns)


@functools.cache
def plain_laws(max_new_tokens: int):
  return testing.plain_law(
      target(), [PROMPT] * len(SETTINGS), sampling=sampling(), max_new_tokens=max_new_tokens
  )


def errors(drafter, rules, max_new_tokens: int = 3) -> dict:
  """The largest error of every rule, at the setting where it is largest."""
  laws = testing.output_law(
      target(),
      [PROMPT] * len(SETTINGS) * len(rules),
      rule=by_row.ByRow(tuple(rules), VOCAB),
      drafter=drafter,
      sampling=sampling(len(rules)),
      max_new_tokens=max_new_tokens,
  )
  found = {}
  for index, law in enumerate(laws):
    setting, rule = divmod(index, len(rules))
    error = testing.max_difference(law, plain_laws(max_new_tokens)[setting])
    found[rules[rule].name] = max(found.get(rules[rule].name, 0.0), error)
  return found


@pytest.mark.parametrize('kind, shape', CASES)
def test_the_output_law_is_the_targets(kind, shape):
  """Four tokens, a round after a full acceptance, for EAGLE-3's chain; three elsewhere."""
  length = 4 if (kind, shape) == ('eagle3', 'chain') else 3
  found = errors(make(kind, **SHAPES[shape]), RULES[shape], length)
  assert len(found) == len(RULES[shape])
  tolerance.assert_close([*found.values()], 0.0, tolerance.of_expectation(length), found)


def test_each_row_has_its_own_rule():
  """So that a wrong one among several is seen."""

  class StruckOut(type(verify.recursive())):

    def residual(self, scale, share, whole):
      return scale, share

  shape = SHAPES['with replacement']
  found = errors(make('medusa', **shape), (verify.traversal(), StruckOut(name='wrong')))
  tolerance.assert_close(found['traversal'], 0.0, tolerance.of_expectation(3))
  assert found['wrong'] > exact_laws.SEEN, found


# Wrong on purpose, in ways that change the output. (What only drafts worse cannot: that is
# caught in test_heads.py, by a fresh pass.)


@struct.dataclass
class OtherLaw(MedusaDrafter):
  """Has its tokens verified on another law than it drew them from."""

  def propose(self, context, state):
    proposal, state, context = super().propose(context, state)
    return proposal.replace(law=jax.nn.log_softmax(0.5 * proposal.law)), state, context


@struct.dataclass
class PrunesDrawn(EagleDrafter):
  """Draws two siblings and keeps the more probable one, as a dynamic tree keeps nodes."""

  def propose(self, context, state):
    proposal, state, context = super().propose(context, state)
    batch = jnp.arange(proposal.tokens.shape[0])[:, None]
    scores = proposal.law[batch, proposal.rows, proposal.tokens]
    kept = jnp.arange(scores.shape[1]) == jnp.argmax(scores, axis=1, keepdims=True)
    return proposal.replace(valid=proposal.valid & kept), state, context


@struct.dataclass
class LeavesKeys(EarlyExitDrafter):
  """Leaves what it drafted in the target's cache, where the target then sees it."""

  def propose(self, context, state):
    proposal, state, context = super().propose(context, state)
    cache = context.target_cache
    cache = cache.replace(lengths=cache.lengths + self.num_nodes)
    return proposal, state, context.replace(target_cache=cache)


@struct.dataclass
class LooksAtTheToken(DFlashDrafter):
  """Stops before a token that was drawn and is not likely, instead of deciding before the draw."""

  def propose(self, context, state):
    proposal, state, context = super().propose(context, state)
    return proposal.replace(valid=proposal.valid & (proposal.tokens != 0)), state, context


def planted(fault: type, drafter):
  """`drafter` with a fault."""
  return fault(**{field.name: getattr(drafter, field.name) for field in dataclasses.fields(fault)})


FAULTS = {
    OtherLaw: ('medusa', CHAIN, verify.rejection()),
    PrunesDrawn: ('eagle1', dict(tree=(2,), siblings='with_replacement'), verify.recursive()),
    LeavesKeys: ('exit', CHAIN, verify.rejection()),
    LooksAtTheToken: ('dspark', CHAIN, verify.rejection()),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_head_that_biases_the_output_is_caught(fault):
  kind, shape, rule = FAULTS[fault]
  found = errors(planted(fault, make(kind, **shape)), [rule])
  assert found[rule.name] > exact_laws.SEEN, found
