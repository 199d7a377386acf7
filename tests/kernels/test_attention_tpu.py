"""The TPU's attention kernel: interpreted against plain attention, in the engine, compiled."""

import functools

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

import specjax
from specjax import drafters
from specjax import verify
from specjax.kernels import attention_tpu
from specjax.models import attention
from specjax.planning import chips
from specjax.planning import program as program_lib
from specjax.planning import times
from tests.support import tiny
from tests.support import tolerance
from tests.support import tpu_ahead

# Node 2 hangs on the root beside node 1, node 3 on node 2.
TREE = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], bool)
CHAIN = np.tril(np.ones((4, 4), bool))
# What the new tokens see of each other; the last two of a tree, after the first two; padding.
SEEN = {
    'chain': CHAIN, 'tree': TREE, 'level': TREE[2:], 'padded': CHAIN & (np.arange(4) < 3)[:, None],
}
# Slots, head size: wide heads, of which the last block is not whole, and narrow ones.
SHAPES = {'wide': (400, 128), 'narrow': (384, 64)}


def numbers(*shape, seed: int) -> jnp.ndarray:
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    'shape, seen', [('wide', 'chain'), ('wide', 'padded'), ('narrow', 'tree'), ('narrow', 'level')]
)
def test_outputs_are_those_of_plain_attention(shape, seen, monkeypatch):
  slots, head_dim = SHAPES[shape]
  among = jnp.broadcast_to(SEEN[seen], (3, *SEEN[seen].shape))
  num_new, width = among.shape[1:]
  monkeypatch.setattr(attention_tpu, '_BLOCK_BYTES', 128 * 2 * head_dim * 4)
  size = attention_tpu._block(slots, num_new * 2, 2 * head_dim * 4)
  assert size < slots
  # Empty, across the edge of a block, at the end of the cache.
  first = jnp.asarray([0, size - 1, slots - width], jnp.int32)
  queries = numbers(3, num_new, 2, 2, head_dim, seed=0) * head_dim**-0.5
  # What lies beyond a row's new slots is large: whoever reads it differs.
  stale = 1e4 * (jnp.arange(slots) >= first[:, None] + width)[:, None, :, None]
  cache = [numbers(3, 2, slots, head_dim, seed=seed) + stale for seed in (1, 2)]
  # Copies run as late as they may, memory begins as NaN, and races raise.
  mode = pltpu.InterpretParams(
      dma_execution_mode='on_wait', detect_races=True, uninitialized_memory='nan'
  )
  found = attention_tpu.attend(queries, *cache, among, first, interpret=mode)
  view = attention.view_of(
      jnp.zeros((3, width), jnp.int32), first + width - num_new, first + width, slots,
      window=None, ring=False, chain=False, tree_mask=among,
  )
  np.testing.assert_array_equal(view.among_new, among)
  np.testing.assert_array_equal(view.first, first)
  expected = attention.attend(queries, *cache, view.mask)
  real = 3 if seen == 'padded' else num_new
  # A softmax over the slots of scores below 8, then a sum over them of values below 5.
  tolerance.assert_close(
      np.asarray(found[:, :real]), np.asarray(expected[:, :real]),
      tolerance.of_probs(slots, logits=np.array([8.0]), probs=5.0)
      + tolerance.of_sum(slots, size=5.0),
  )
  assert np.isfinite(found).all()


def test_speculation_with_the_kernel_gives_plain_tokens(monkeypatch, compiled_fast):
  """Prefill, levels of a tree and their verification, for the TPU's branch of the engine."""

  def on_tpu(*args, default, **branches):
    is_kernel = getattr(branches.get('tpu'), 'func', None) is attention._kernel
    return (branches['tpu'] if is_kernel else default)(*args)

  calls = []

  def interpreted(*args):
    calls.append(args[0].shape)
    return kernel(*args, interpret=True)

  kernel = attention_tpu.attend
  monkeypatch.setattr(jax.lax, 'platform_dependent', on_tpu)
  monkeypatch.setattr(attention_tpu, 'attend', interpreted)
  monkeypatch.setattr(attention_tpu, '_FEWEST_SLOTS', 32)
  monkeypatch.setattr(attention_tpu, '_BLOCK_BYTES', 1)
  model = tiny.model(11, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=128)
  plain = model.replace(module=model.module.clone(attention='xla'))
  options = dict(rule=verify.greedy(), max_new_tokens=9, cache_length=140, prefill_chunk=8)
  prompts = tiny.PROMPTS[:2]
  # The draft is the target: it reads a tree level by level, all of which is right.
  drafter = drafters.model_tree(model, tree=(2, 1))
  output = specjax.generate(model, prompts, drafter=drafter, **options)
  assert {shape[1] for shape in calls} >= {2, 5, 8}
  expected = specjax.decode(plain, prompts, **options)
  np.testing.assert_array_equal(output.tokens, expected.tokens)
  assert output.draft_acceptance_rate == 0.5 and output.mean_acceptance_length == 3.0


@pytest.mark.parametrize('topology, head_dim, groups, dtype', [
    ('v5e:2x2', 64, 1, 'bfloat16'),
    ('v5p:2x2x1', 128, 1, 'bfloat16'),
    ('v6e:2x2', 128, 8, 'float32'),
])
def test_it_compiles_for_a_tpu_and_takes_less_than_plain_attention(
    topology, head_dim, groups, dtype
):
  """A pass of five tokens per row over 8,320 slots, which are no whole number of blocks."""
  (device, *_) = tpu_ahead.devices(topology)
  array = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.dtype(dtype))
  cache = array((8, groups, 8320, head_dim))
  arguments = tpu_ahead.abstract(
      (
          array((8, 5, groups, 8, head_dim)), cache, cache, array((8, 5, 5), dtype=bool),
          array((8,), dtype=jnp.int32),
      ),
      device,
  )

  def plain(queries, keys, values, among, first):
    view = attention.view_of(
        first[:, None] + jnp.arange(5), first, first + 5, keys.shape[2], window=None, ring=False,
        chain=True, tree_mask=among,
    )
    return attention.attend(queries, keys, values, view.mask)

  def compiled(attend):
    made = jax.jit(attend).lower(*arguments).compile()
    program = program_lib.parse(made.as_text())
    seconds = times.walk(program, chips.slice_of(topology)).seconds
    return program, made.memory_analysis().temp_size_in_bytes, seconds

  program, temporaries, seconds = compiled(attention_tpu.attend)
  assert [each.opcode for _, each in program].count('custom-call') == 1
  # No copy of a cache, and no scores: those of plain attention are 8 x 40 x 8,320 in float32.
  assert temporaries < 8 * groups * 40 * 8320 * 4 / 10
  assert seconds < compiled(plain)[2]


def test_what_it_cannot_or_may_not_read_is_left_to_plain_attention(monkeypatch):
  shape = lambda *sizes, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(sizes, dtype)
  fits = lambda keys, num_new=5, repeats=8: attention_tpu.fits(num_new, repeats, num_new, keys)
  assert fits(shape(1, 1, 1040, 128))
  assert fits(shape(1, 8, 8336, 128), repeats=4)
  assert not fits(shape(1, 8, 8336, 128), num_new=128, repeats=4)  # what is kept fills the memory
  assert not fits(shape(1, 1, 1040, 64))  # not whole lanes
  assert not fits(shape(1, 1, 512, 128))  # short: nothing to save
  assert not fits(shape(1, 1, 1040, 128, dtype=jnp.int8))
  monkeypatch.setenv('SPECJAX_ATTENTION', 'xla')
  assert not fits(shape(1, 1, 1040, 128))
