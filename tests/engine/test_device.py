"""The compiled loop, as users get it: one program, nothing to the host, caches in place."""

import re

import jax
import jax.numpy as jnp

from specjax import drafters
from specjax import engine
from specjax import generation
from specjax import sampling
from specjax import verify
from tests.support import compiles
from tests.support import engine_runs as runs
from tests.support import tiny


class TestDevice:

  def _prepared(self, target, max_new_tokens=48):
    request = generation.Request(
        drafter=drafters.model(target, num_speculative_tokens=runs.K),
        rule=verify.rejection(),
        max_new_tokens=max_new_tokens,
        prefill_chunk=8,
    )
    return generation.prepare(target, tiny.PROMPTS, request)[:2]

  def test_one_program_for_a_bucket(self):
    for program in (engine.run, engine.prefill_chunk):
      program.clear_cache()
    with compiles.counted() as first:
      runs.run('model')
    assert (first['run'], first['prefill_chunk']) == (1, 1)
    for prompt in ([8, 3], list(range(20)), [7] * 33):
      with compiles.counted() as more:
        generation.generate(
            tiny.target(),
            [prompt, *tiny.PROMPTS[1:]],
            drafter=runs.drafter('model'),
            rule=verify.greedy(),
            sampling=sampling.make(batch_size=4, temperature=0.3, top_k=4, presence_penalty=1.0),
            stop_tokens=[1, 2],
            **runs.OPTIONS,
        )
      assert (more['run'], more['prefill_chunk']) == (0, 0)

  def test_nothing_leaves_the_device(self):
    setup, state = self._prepared(tiny.target())
    compiled = engine.run.lower(setup, state, jnp.int32(100)).compile()
    text = compiled.as_text()
    assert re.search(r'callback|infeed|outfeed|\bsend\(|\brecv\(', text) is None
    rounds = jnp.int32(100)
    engine.run(setup, state, rounds)  # compiled outside of the guard
    setup, state = self._prepared(tiny.target())
    with jax.transfer_guard('disallow'):
      out = engine.run(setup, state, rounds)
    assert bool(out.done.all())

  def test_state_is_donated(self):
    setup, state = self._prepared(tiny.target())
    engine.run(setup, state, jnp.int32(1))
    assert all(x.is_deleted() for x in state.target_cache.keys)
    assert state.tokens.is_deleted()

  def test_temporaries_do_not_grow_with_layers(self):
    temporaries, caches = [], []
    for num_layers in (2, 8):
      target = tiny.model(0, num_layers=num_layers)
      setup, state = self._prepared(target, max_new_tokens=1000)
      memory = engine.run.lower(setup, state, jnp.int32(100)).compile().memory_analysis()
      cache = sum(x.nbytes for x in jax.tree.leaves((state.target_cache, state.drafter)))
      assert memory.alias_size_in_bytes >= cache
      temporaries.append(memory.temp_size_in_bytes)
      caches.append(cache)
    grown = temporaries[1] - temporaries[0]
    # Six layers' caches were added twice (target and draft); a copy of one would show.
    assert grown < 0.05 * (caches[1] - caches[0]), f'{temporaries} for {caches}'


def test_a_tree_copies_no_cache():
  """Three more layers, of target and draft, and not a twentieth of their caches as temporaries."""
  temporaries, caches = [], []
  for num_layers in (1, 4):
    target = tiny.model(0, num_layers=num_layers)
    request = generation.Request(
        drafter=drafters.model_tree(
            target, tree=drafters.dynamic_tree(num_nodes=16, depth=2, width=4)
        ),
        rule=verify.traversal(),
        max_new_tokens=2000,
        prefill_chunk=8,
    )
    setup, state = generation.prepare(target, tiny.PROMPTS, request)[:2]
    memory = engine.run.lower(setup, state, jnp.int32(100)).compile().memory_analysis()
    cache = sum(x.nbytes for x in jax.tree.leaves((state.target_cache, state.drafter)))
    assert memory.alias_size_in_bytes >= cache
    temporaries.append(memory.temp_size_in_bytes)
    caches.append(cache)
  assert temporaries[1] - temporaries[0] < 0.05 * (caches[1] - caches[0]), (temporaries, caches)
