"""Large dynamic trees: one program for all prompts, nothing to the host, no copy of a cache."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import engine
from specjax import generation
from specjax import heads
from specjax import verify
from specjax.heads import dflash as dflash_lib
from specjax.heads import eagle as eagle_lib
from specjax.models import TransformerConfig
from tests.support import tiny

# Caches that are large beside everything else: long, and with few heads, whose scores are as
# long. (Of a single key-value head XLA's CPU compiler does copy caches: an axis of one.)
SIZES = dict(num_heads=2, num_kv_heads=2, head_dim=64)
LENGTH = 2048
OTHER_PROMPTS = [[8, 3], list(range(20)), [7] * 9, [1]]


def target():
  return tiny.model(0, num_layers=2, **SIZES)


@functools.cache
def eagle() -> heads.Eagle:
  cfg = target().module.config
  config = heads.EagleConfig(
      decoder=TransformerConfig(
          vocab_size=48, width=cfg.width, num_layers=1, mlp_width=64, **SIZES
      ),
      target_width=cfg.width,
      target_vocab_size=cfg.vocab_size,
      feature_layers=(0, 1, 2),
  )
  module = heads.EagleHead(config)
  params = jax.jit(lambda: eagle_lib.init_params(module, jax.random.key(3)))()
  return heads.Eagle(module, params, None, jnp.arange(8, 56, dtype=jnp.int32))


@functools.cache
def block() -> heads.DFlash:
  cfg = target().module.config
  config = heads.DFlashConfig(
      decoder=TransformerConfig(
          vocab_size=cfg.vocab_size, width=cfg.width, num_layers=2, mlp_width=64, qk_norm=True,
          **SIZES,
      ),
      target_width=cfg.width,
      target_vocab_size=cfg.vocab_size,
      feature_layers=(0, 1),
      block_size=6,
      mask_token=0,
      shift=dflash_lib.NEXT,
  )
  module = heads.DFlashHead(config)
  params = jax.jit(lambda: dflash_lib.init_params(module, jax.random.key(3)))()
  return heads.DFlash(module, params)


def prepared(kind: str, num_nodes: int, prompts):
  """Setup and state of four rows with a tree six deep."""
  tree = drafters.dynamic_tree(num_nodes=num_nodes, depth=6, width=10)
  if kind == 'dflash':
    tree = drafters.best_first_tree(num_nodes=num_nodes, depth=6, width=10)
    drafter = drafters.dflash(block(), target(), tree=tree)
  elif kind == 'eagle3':
    drafter = drafters.eagle(eagle(), target(), tree=tree)
  else:
    drafter = drafters.model_tree(tiny.model(0, num_layers=1, **SIZES), tree=tree)
  request = generation.Request(
      drafter=drafter,
      rule=verify.greedy(),
      max_new_tokens=24,
      cache_length=LENGTH,
      prefill_chunk=32,
  )
  return generation.prepare(target(), prompts, request)[:2]


@functools.cache
def compiled(kind: str, num_nodes: int):
  """The loop's program, and the bytes of the caches that it carries."""
  setup, state = prepared(kind, num_nodes, tiny.PROMPTS)
  cached = sum(x.nbytes for x in jax.tree.leaves((state.target_cache, state.drafter)))
  return engine.run.lower(setup, state, jnp.int32(100)).compile(), cached


@functools.cache
def plain(prompts: tuple):
  return generation.decode(
      target(), prompts, max_new_tokens=24, cache_length=LENGTH, prefill_chunk=32
  )


@pytest.mark.parametrize('kind', ['eagle3', 'draft model', 'dflash'])
def test_sixty_nodes_compile_once_and_stay_on_the_device(kind):
  """A program that was compiled for the first prompts and cannot compile again runs others."""
  program, _ = compiled(kind, 60)
  assert re.search(r'callback|infeed|outfeed|\bsend\(|\brecv\(', program.as_text()) is None
  rounds = jnp.int32(100)  # on the device, as the guard wants it
  for prompts in (tiny.PROMPTS, OTHER_PROMPTS):
    setup, state = prepared(kind, 60, prompts)
    with jax.transfer_guard('disallow'):
      state = program(setup, state, rounds)
    assert bool(state.done.all()) and state.trace is None
    expected = plain(tuple(map(tuple, prompts)))
    np.testing.assert_array_equal(state.tokens, expected.tokens)


@pytest.mark.parametrize('kind', ['eagle3', 'draft model', 'dflash'])
def test_sixty_nodes_copy_no_cache(kind):
  """The path is gathered in place: neither program nor temporaries have a layer's cache twice."""
  program, cached = compiled(kind, 60)
  memory = program.memory_analysis()
  assert memory.alias_size_in_bytes >= cached
  assert memory.temp_size_in_bytes < 0.4 * cached
  copies = re.findall(r'= f32\[4,2,(\d+),64\]\S* copy\(', program.as_text())
  assert not [size for size in copies if int(size) >= LENGTH], copies


def test_more_nodes_take_their_scores_and_no_cache():
  """Forty-eight nodes more: attention's scores and weights of each, masks, and little else."""
  (few, _), (many, _) = compiled('eagle3', 12), compiled('eagle3', 60)
  few, many = (x.memory_analysis().temp_size_in_bytes for x in (few, many))
  scores = 4 * SIZES['num_heads'] * (60 - 12) * LENGTH * np.dtype(np.float32).itemsize
  assert many - few < 2.5 * scores, (few, many, scores)
