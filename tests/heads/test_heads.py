"""Heads as drafters: the same tokens as plain decoding, and the laws that a fresh pass gives."""

import dataclasses
import functools
import sys
import types
from unittest import mock

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import generation
from specjax import heads
from specjax import verify
from specjax.drafters.dflash import DFlashDrafter
from specjax.drafters.eagle import EagleDrafter
from specjax.drafters.early_exit import EarlyExitDrafter
from specjax.drafters.medusa import MedusaDrafter
from specjax.heads import dflash as dflash_lib
from specjax.heads import eagle as eagle_lib
from specjax.heads import target as target_lib
from specjax.models import layers
from specjax.models import TransformerConfig
from tests.support import tiny
from tests.support import tiny_heads

pytestmark = pytest.mark.usefixtures('compiled_fast')
OPTIONS = dict(max_new_tokens=16, prefill_chunk=4)
RULES = {'greedy': verify.greedy(), 'coupled': verify.coupled()}
TREE = (2, 2, 1)
PROMPTS = tiny.PROMPTS


@functools.cache
def plain(rule: str):
  return generation.decode(
      tiny.target(), PROMPTS, rule=RULES[rule], width=tiny_heads.K + 1, **OPTIONS
  )


@functools.cache
def drafted(kind: str):
  """A greedy run with its trace."""
  return generation.generate(
      tiny.target(), PROMPTS, drafter=tiny_heads.make(kind), rule=verify.greedy(), trace=True,
      **OPTIONS,
  )


KINDS = ('eagle3', 'eagle1', 'reduced', 'medusa', 'exit', 'plain exit', 'dflash', 'dspark')


@pytest.mark.parametrize('kind', KINDS)
def test_a_chain_is_bit_for_bit_plain_decoding(kind):
  np.testing.assert_array_equal(drafted(kind).tokens, plain('greedy').tokens)


@pytest.mark.parametrize(
    'kind, rule',
    [
        ('eagle3', 'coupled'), ('medusa', 'coupled'), ('exit', 'greedy'), ('dflash', 'greedy'),
        ('dspark', 'coupled'),
    ],
)
def test_a_tree_gives_the_tokens_of_plain_decoding(kind, rule):
  output = generation.generate(
      tiny.target(), PROMPTS, drafter=tiny_heads.make(kind, tree=TREE), rule=RULES[rule], **OPTIONS
  )
  np.testing.assert_array_equal(output.tokens, plain(rule).tokens)


@pytest.mark.parametrize('kind, rule', [('eagle3', 'greedy'), ('eagle1', 'coupled')])
def test_a_dynamic_tree_gives_the_tokens_of_plain_decoding(kind, rule):
  tree = drafters.dynamic_tree(num_nodes=8, depth=3, width=3)
  output = generation.generate(
      tiny.target(), PROMPTS, drafter=tiny_heads.make(kind, tree=tree), rule=RULES[rule], **OPTIONS
  )
  np.testing.assert_array_equal(output.tokens, plain(rule).tokens)


def test_an_early_exit_has_room_for_what_it_keeps():
  with pytest.raises(ValueError, match='has room for those that are kept'):
    tiny_heads.make('exit', tree=drafters.dynamic_tree(num_nodes=4, depth=3, width=3))


def stale_rounds(kind: str, output) -> list[tuple[int, int]]:
  """(row, round) of those looked at whose drafts are not what a fresh pass drafts."""
  trace, stale = output.trace, []
  for row in (0, 1):
    starts = trace.starts[row]
    for turn in np.flatnonzero(starts)[[0, 3]]:
      length = starts[turn]
      if length == 1 and kind not in ('exit', 'dflash', 'dspark'):
        # One token has no feature before it.
        assert not trace.valid[row, turn].any()
        continue
      assert trace.valid[row, turn].all()
      expected = tiny_heads.fresh_chain(kind, output.tokens[row, :length].tolist())
      if trace.tokens[row, turn].tolist() != expected:
        stale.append((row, int(turn)))
  return stale


@pytest.mark.parametrize(
    'kind', ['eagle3', 'eagle1', 'reduced', 'medusa', 'exit', 'dflash', 'dspark']
)
def test_every_round_drafts_what_a_fresh_pass_would(kind):
  assert stale_rounds(kind, drafted(kind)) == []


# Wrong on purpose, in ways that only make drafts worse: the rule makes up for any draft, so the
# output stays plain decoding's. (What biases the output is in test_heads_lossless.py.)


class FeaturesOneBack:
  """Takes each token with the feature of the position before the right one."""

  def propose(self, context, state):
    return super().propose(context.replace(features=jnp.roll(context.features, 1, 1)), state)


@struct.dataclass
class OneBack(FeaturesOneBack, EagleDrafter):
  """EAGLE with wrong features."""


@struct.dataclass
class NotRolledBack(EagleDrafter):
  """Leaves in its cache what was rejected."""

  def propose(self, context, state):
    as_it_is = types.SimpleNamespace(roll_back=lambda cache, lengths: cache)
    with mock.patch.object(sys.modules[EagleDrafter.__module__], 'kv_cache', as_it_is):
      return super().propose(context, state)


@struct.dataclass
class MedusaOneBack(FeaturesOneBack, MedusaDrafter):
  """Medusa with wrong features."""


@struct.dataclass
class BlockOneBack(FeaturesOneBack, DFlashDrafter):
  """DFlash with wrong features."""


@struct.dataclass
class KeepsTheBlock(DFlashDrafter):
  """Takes its own block for context, as if it had been accepted."""

  def propose(self, context, state):
    proposal, state, after = super().propose(context, state)
    return proposal, state.replace(lengths=state.lengths + 1), after


@struct.dataclass
class ForgetsTheRoot(EarlyExitDrafter):
  """Reads the token before the root in the root's place."""

  def propose(self, context, state):
    shifted = context.replace(tokens=jnp.roll(context.tokens, 1, axis=1))
    proposal, state, after = super().propose(shifted, state)
    return proposal, state, after.replace(tokens=context.tokens)


@pytest.mark.parametrize('fault, kind', [
    (OneBack, 'eagle3'), (NotRolledBack, 'eagle3'), (MedusaOneBack, 'medusa'),
    (ForgetsTheRoot, 'exit'), (BlockOneBack, 'dflash'), (KeepsTheBlock, 'dspark'),
])
def test_what_only_drafts_worse_is_caught_by_a_fresh_pass(fault, kind):
  right = tiny_heads.make(kind)
  drafter = fault(**{f.name: getattr(right, f.name) for f in dataclasses.fields(fault)})
  output = generation.generate(
      tiny.target(), PROMPTS, drafter=drafter, rule=verify.greedy(), trace=True, **OPTIONS
  )
  np.testing.assert_array_equal(output.tokens, plain('greedy').tokens)
  assert stale_rounds(kind, output)


def test_a_row_does_not_depend_on_the_others():
  alone = generation.generate(
      tiny.target(), [PROMPTS[0]] * 4, drafter=tiny_heads.make('eagle3'), rule=verify.greedy(),
      trace=True,
      **OPTIONS
  )
  beside = drafted('eagle3')
  rounds = np.count_nonzero(beside.trace.starts[0])
  for field in ('tokens', 'num_accepted', 'starts'):
    np.testing.assert_array_equal(
        getattr(alone.trace, field)[0, :rounds], getattr(beside.trace, field)[0, :rounds]
    )


def test_misfits_are_refused():
  other = tiny.model(0, width=32, num_layers=2)
  with pytest.raises(ValueError, match='target of width 48, this target has 32'):
    drafters.eagle(tiny_heads.head(), other)
  with pytest.raises(ValueError, match='target of another shape'):
    drafters.early_exit(tiny_heads.adapter(), other)
  with pytest.raises(ValueError, match='not both'):
    drafters.eagle(tiny_heads.head(), tiny.target(), num_speculative_tokens=2, tree=(2, 1))
  with pytest.raises(ValueError, match='must be at least 1, got 0'):
    drafters.eagle(tiny_heads.head(), tiny.target(), num_speculative_tokens=0)
  with pytest.raises(ValueError, match='3 heads draft at most 3 tokens deep, 4'):
    drafters.medusa(tiny_heads.medusa(), tiny.target(), num_speculative_tokens=4)
  with pytest.raises(ValueError, match='4 slots drafts at most 3 tokens, 4 were asked'):
    drafters.dflash(tiny_heads.block(), tiny.target(), num_speculative_tokens=4)
  with pytest.raises(ValueError, match='min_confidence needs a head with a confidence head'):
    drafters.dflash(tiny_heads.block(), tiny.target(), min_confidence=0.5)
  with pytest.raises(ValueError, match='exit_layer must be 1 … 2, got 3'):
    heads.plain_exit(tiny.target(), 3)
  with pytest.raises(ValueError, match='EAGLE-3 head has one layer, got num_layers=2'):
    cfg = tiny_heads.head().config
    heads.EagleConfig(
        decoder=TransformerConfig(
            vocab_size=8, width=48, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8,
            mlp_width=8,
        ),
        target_width=48, target_vocab_size=64, feature_layers=cfg.feature_layers,
    )


def test_sizes_are_counted():
  for each in (tiny_heads.head(), tiny_heads.head(1)):
    assert sum(x.size for x in jax.tree.leaves(each.params)) == each.config.num_parameters
  for each in (
      tiny_heads.medusa(), tiny_heads.adapter(), tiny_heads.block(), tiny_heads.block('dspark'),
  ):
    assert sum(x.size for x in jax.tree.leaves(each.params)) == each.config.num_parameters


def one_round(build, *, batch: int, context: int, width: int):
  """Prefill of a chunk and a round, to be traced: `build()` gives target and drafter."""
  from specjax import engine
  from specjax import sampling as sampling_lib

  large, drafter = build()
  setup = engine.Setup(
      target=large, drafter=drafter, sampling=sampling_lib.make(batch_size=batch),
      stop_tokens=jnp.full((8,), -1, jnp.int32), rule=verify.greedy(), width=width,
  )
  tokens = jnp.zeros((batch, context), jnp.int32)
  sizes = generation.cache_sizes(batch, context, width=width, prefill_chunk=64)
  num_new = jnp.full((batch,), 64, jnp.int32)
  cache, drafter_state, features = engine.prefill_chunk(
      setup, large.init_cache(**sizes), drafter.init(**sizes), tokens[:, :64], num_new
  )
  zeros = lambda *shape: jnp.zeros((batch, *shape), jnp.int32)
  history = sampling_lib.init_history(
      tokens, num_new + 1, vocab_size=large.vocab_size, constraint=None
  )
  depth = drafter.depth
  state = engine.DecodeState(
      tokens=tokens, lengths=num_new + 1, limits=num_new + 100, done=zeros() > 0,
      finish=zeros(), keys=jnp.zeros((batch, 2), jnp.uint32), target_cache=cache,
      drafter=drafter_state, history=history,
      features=jnp.pad(features[:, None], ((0, 0), (0, depth), (0, 0))),
      features_valid=zeros(depth + 1) == 0, logprobs=None,
      stats=engine.Stats.zeros(batch, depth), trace=None,
      round=jnp.int32(0),
  )
  return engine.speculative_round(setup, state)


def large_target(name: str):
  """A function that gives the target of a preset; to be traced, for it has no weights."""
  from specjax.models import LanguageModel, Transformer, presets

  module = Transformer(presets.get(name), jnp.bfloat16, jnp.bfloat16)

  def make():
    params = module.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))['params']
    return LanguageModel(module, params)

  return make


@pytest.mark.parametrize('offset', [0.0, 1.0])
def test_the_targets_norm_for_a_head_that_has_no_offset(offset):
  target = tiny.model(norm_offset=offset)
  stream = jax.random.normal(jax.random.key(0), (3, 48))
  norm = layers.RMSNorm(target.module.config.norm_epsilon)
  normed = norm.apply({'params': {'scale': target_lib.norm_scale(target)}}, stream)
  np.testing.assert_array_equal(normed, target_lib.final_norm(target, stream))
  assert np.abs(target_lib.norm_scale(target)).max() > 0


def test_a_70b_target_with_a_1b_head_traces_without_memory():
  """Every array is a shape: prefill of a chunk, and one round of a tree of 60 nodes."""
  config = heads.presets.eagle3('Llama-3.1-70B')
  assert round(config.num_parameters / 1e9, 2) == 1.05
  module = heads.EagleHead(config, jnp.bfloat16, jnp.bfloat16)
  target = large_target('Llama-3.1-70B')

  def build():
    large, ids = target(), jnp.arange(32_000, dtype=jnp.int32)
    head_ = heads.Eagle(module, eagle_lib.init_params(module, jax.random.key(1)), None, ids)
    tree = drafters.dynamic_tree(num_nodes=60, depth=6, width=10)
    return large, drafters.eagle(head_, large, tree=tree)

  after = jax.eval_shape(lambda: one_round(build, batch=2, context=256, width=61))
  assert after.features.shape == (2, 7, 3 * 8192)
  held = sum(x.size for x in jax.tree.leaves(jax.eval_shape(build)))
  assert held > 71e9


@pytest.mark.parametrize('rank, size', [(0, 1.05e9), (256, 1.13e9)])
def test_an_8b_target_with_a_head_of_blocks_traces_without_memory(rank, size):
  """DFlash and DSpark as DeepSpec trains them: a chain of seven."""
  config = heads.presets.dflash('Qwen3-8B', markov_rank=rank)
  assert config.feature_layers == (2, 10, 18, 26, 34) and config.depth == 7
  assert abs(config.num_parameters / size - 1) < 0.01
  module, target = heads.DFlashHead(config, jnp.bfloat16, jnp.bfloat16), large_target('Qwen3-8B')

  def build():
    large = target()
    head_ = heads.DFlash(module, dflash_lib.init_params(module, jax.random.key(1)))
    return large, drafters.dflash(head_, large)

  after = jax.eval_shape(lambda: one_round(build, batch=4, context=256, width=8))
  assert after.features.shape == (4, 8, 5 * 4096)
  # Nothing but what the context left is kept: five layers of a cache.
  assert len(after.drafter.keys) == 5 and after.drafter.lengths.shape == (4,)
