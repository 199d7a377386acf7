"""The loop compiled for a real TPU: caches in place there too, and the kernel in the loop."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from specjax import drafters
from specjax import engine
from specjax import models
from specjax import sharding
from specjax import verify
from specjax.cache import kv_cache
from specjax.cache import rows as cache_rows
from specjax.kernels import accept
from specjax.kernels import append as append_kernel
from specjax.planning import ahead
from tests.support import tiny
from tests.support import tpu_ahead

# Long enough that a layer's keys do not fit into a chip's own memory (128 MiB on a v5e): what does,
# the compiler may carry there through the draft's loop, and copy out for the kernel that writes it.
LENGTH = 8 * 16384
# Of one layer's keys: 4 rows, LENGTH positions, one head of 128, bfloat16.
ONE_ARRAY = 4 * LENGTH * 128 * 2


@pytest.fixture(autouse=True)
def traced_anew():
  """Some tests replace what is traced."""
  yield
  jax.clear_caches()


def model(num_layers: int):
  """Heads of 128, the width of a TPU's lanes: narrower ones are padded in memory."""
  return tiny.model(
      0, num_layers=num_layers, width=128, num_heads=2, num_kv_heads=1, head_dim=128,
      dtype='bfloat16',
  )


def chain():
  return drafters.model(model(1), num_speculative_tokens=4, step_width=1)


def synthetic_tree():
  reference = jnp.zeros((4, 16), jnp.int32)
  return drafters.synthetic(
      reference, acceptance=0.5, vocab_size=tiny.VOCAB, parents=(0, 0, 1, 1)
  )


def compiled(num_layers: int, rule, drafter, batch_size: int = 4):
  """Bytes of both caches, and the compiled loop."""
  setup, state = ahead.abstract_run(
      model(num_layers), drafter=drafter, rule=rule, batch_size=batch_size, context=LENGTH,
      prefill_chunk=16,
  )
  caches = jax.tree.leaves((state.target_cache, state.drafter))
  cache = sum(leaf.size * leaf.dtype.itemsize for leaf in caches)
  device = tpu_ahead.devices('v5e:2x2')[0]
  arguments = tpu_ahead.abstract((setup, state, jnp.int32(4)), device)
  return cache, engine.run.lower(*arguments).compile()


def compiled_memory(num_layers: int, rule, drafter):
  """Bytes of both caches, and what the compiler says of the loop's memory."""
  cache, program = compiled(num_layers, rule, drafter)
  return cache, program.memory_analysis()


@pytest.mark.parametrize(
    'rule, drafter',
    [(verify.block(), chain), (verify.coupled(), synthetic_tree)],
    ids=['block chain', 'coupled tree'],
)
def test_caches_are_in_place_on_a_tpu(rule, drafter):
  few, many = (compiled_memory(num_layers, rule, drafter()) for num_layers in (1, 4))
  for cache, memory in (few, many):
    assert memory.alias_size_in_bytes >= cache
  grown = many[1].temp_size_in_bytes - few[1].temp_size_in_bytes
  # Keys and values of three layers came on top: a copy of one of these six arrays would show,
  # and so would one buffer that all layers take turns in.
  assert grown < 0.05 * (many[0] - few[0])
  assert many[1].temp_size_in_bytes < 0.5 * ONE_ARRAY


def test_slots_that_fill_no_tile_would_be_copied(monkeypatch):
  monkeypatch.setattr(kv_cache, 'SLOT_TILE', 1)
  _, memory = compiled_memory(4, verify.block(), chain())
  assert memory.temp_size_in_bytes >= ONE_ARRAY


def temporaries_of_one_row_a_device() -> int:
  """Bytes beside the caches where a device holds one row of one head, the draft's 64 wide."""
  layouts = sharding.make('tensor', model=4, draft=4, devices=tpu_ahead.devices('v5p:2x2x1'))

  def model(layout, head_dim):
    config = models.TransformerConfig(
        vocab_size=64, width=128, num_layers=1, num_heads=16, num_kv_heads=4, head_dim=head_dim,
        mlp_width=128,
    )
    kind = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    return ahead.abstract_model(models.Transformer(config, layout=layout, **kind))

  drafter = drafters.model(model(layouts.draft, 64), num_speculative_tokens=2, step_width=1)
  setup, state = ahead.abstract_run(
      model(layouts.target, 128), drafter=drafter, rule=verify.greedy(), batch_size=1,
      context=8 * LENGTH,
  )
  return ahead.compile_run(setup, state).temporary_bytes


def draft_of_narrow_heads():
  return tiny.model(
      0, num_layers=2, width=128, num_heads=2, num_kv_heads=1, head_dim=64, dtype='bfloat16'
  )


def tree_of_narrow_heads():
  """The loop of one chip: four rows, two layers, and levels of several nodes to read."""
  drafter = drafters.model_tree(draft_of_narrow_heads(), tree=(3, 2, 1), step_width=1)
  return compiled(1, verify.traversal(), drafter)[1]


# Keys and values of one row of one head and eight times LENGTH (of four rows and two layers:
# as much), with narrow heads padded to a tile's lanes.
PADDED = 2 * 8 * LENGTH * 128 * 2


def test_narrow_heads_are_not_copied_into_padded_ones():
  assert temporaries_of_one_row_a_device() < 0.25 * PADDED


def test_narrow_heads_left_to_the_compiler_would_be_copied(monkeypatch):
  monkeypatch.setattr(cache_rows, 'LANES', 1)
  assert temporaries_of_one_row_a_device() > PADDED


SLOTS = r'\[4,(1,)?131[0-9]{3},64\]'  # LENGTH and what one call may append
PADDED_SLOTS = re.compile(SLOTS + r'\{(3,)?2,1,0:')  # the heads along the lanes


def test_a_tree_copies_narrow_heads_neither_for_its_levels_nor_for_its_path():
  loop = tree_of_narrow_heads()
  assert loop.memory_analysis().temp_size_in_bytes < 0.25 * PADDED
  text = ahead.text_of(loop)
  assert re.search(SLOTS, text) and not PADDED_SLOTS.search(text)


def test_a_tree_read_by_a_gather_or_left_to_the_compiler_would_copy_them(monkeypatch):
  with monkeypatch.context() as patch:
    gather = lambda buffer, first, offsets, most: cache_rows.read(
        buffer, first[:, None] + offsets
    )
    patch.setattr(cache_rows, 'read_at', gather)
    assert PADDED_SLOTS.search(ahead.text_of(tree_of_narrow_heads()))
  monkeypatch.setattr(cache_rows, 'LANES', 1)
  jax.clear_caches()
  assert tree_of_narrow_heads().memory_analysis().temp_size_in_bytes > PADDED


def temporaries_of_many_rows() -> int:
  """Of a loop whose draft holds four arrays of sixteen rows, LENGTH and heads of 64."""
  drafter = drafters.model(draft_of_narrow_heads(), num_speculative_tokens=2, step_width=1)
  loop = compiled(1, verify.greedy(), drafter, batch_size=16)[1]
  return loop.memory_analysis().temp_size_in_bytes


ARRAY_OF_MANY_ROWS = 16 * LENGTH * 64 * 2


def test_many_rows_of_narrow_heads_are_written_in_place():
  assert temporaries_of_many_rows() < ARRAY_OF_MANY_ROWS


def test_many_rows_written_by_a_scatter_would_be_copied(monkeypatch):
  monkeypatch.setattr(append_kernel, 'fits', lambda *_: False)
  monkeypatch.setattr(kv_cache, '_LONG', 1 << 40)  # no whole lanes of slots
  monkeypatch.setattr(cache_rows, '_write_rows', _scattered)
  assert temporaries_of_many_rows() > 4 * ARRAY_OF_MANY_ROWS


def _scattered(buffer, new, first, *, part, unroll):
  del part, unroll
  return cache_rows.write(buffer, new, first[:, None] + jnp.arange(new.shape[1]))


def run_ahead(num_devices: int):
  """Setup and state of a greedy run as `generation` would set it up on so many chips."""
  here = tpu_ahead.devices('v5p:2x2x1')[:num_devices]
  layouts = sharding.make('tensor', model=num_devices, draft=1, devices=here)
  config = models.TransformerConfig(
      vocab_size=4096, width=128, num_layers=1, num_heads=4, num_kv_heads=4, head_dim=32,
      mlp_width=128,
  )
  target = ahead.abstract_model(models.Transformer(config, layout=layouts.target))
  drafter = drafters.ngram(num_speculative_tokens=2)
  return ahead.abstract_run(
      target, drafter=drafter, rule=verify.greedy(), batch_size=8, context=LENGTH
  )


def test_the_loop_of_one_chip_decides_through_the_kernel():
  setup, state = run_ahead(1)
  assert setup.rule == dataclasses.replace(
      accept.through(verify.greedy(), 'mosaic_tpu'), is_chain=True
  )
  assert 'tpu_custom_call' in ahead.compile_run(setup, state).text


def test_chips_that_split_the_vocabulary_decide_together():
  setup, _ = run_ahead(4)
  assert setup.rule.implementation == 'xla' and setup.rule.split.vocab == ('model',)
