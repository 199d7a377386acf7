"""The acceptance op's TPU kernels, compiled for real TPUs as users get them."""

import functools

import jax
import jax.numpy as jnp
import pytest

from specjax import sampling as sampling_lib
from specjax.kernels import accept as accept_lib
from tests.support import tpu_ahead


@pytest.mark.parametrize('topology, rule, vocab_size', [
    ('v5e:2x2', 'block', 128_256), ('v5p:2x2x1', 'block', 262_144), ('v6e:2x2', 'block', 151_936),
    ('v5e:2x2', 'rejection', 7), ('v5p:2x2x1', 'rejection', 32_000),
    ('v6e:2x2', 'coupled', 128_256), ('v5e:2x2', 'coupled', 262_144),
    ('v5p:2x2x1', 'coupled', 151_936), ('v6e:2x2', 'greedy', 32_000),
])
def test_compiles_for(topology, rule, vocab_size):
  """By the TPU's own compiler; no temporary is as wide as the vocabulary times a few rows."""
  batch, size = 8, 8
  of = jax.ShapeDtypeStruct
  numbers = {
      'greedy': None,
      'coupled': accept_lib.Noise(of((batch, 2), jnp.uint32), of((batch, size + 1), jnp.int32)),
  }.get(rule, accept_lib.Uniforms(
      of((batch, size), jnp.float32), of((batch, size + 1), jnp.float32)
  ))
  with_draft = rule in ('rejection', 'block')
  arguments = tpu_ahead.abstract((
      of((batch * (size + 1), vocab_size), jnp.float32),
      of((batch, size), jnp.int32),
      numbers,
      sampling_lib.make(batch_size=batch),
      of((batch * size, vocab_size), jnp.float32) if with_draft else None,
  ), tpu_ahead.devices(topology)[0])
  call = jax.jit(functools.partial(ahead, rule=rule))
  compiled = call.lower(*arguments).compile()
  assert 'tpu_custom_call' in compiled.as_text()
  # Scalars, and what crosses between the kernels. One row of the vocabulary of each sequence
  # would be more.
  limit = max(batch * vocab_size * 4, 2**20)
  assert compiled.memory_analysis().temp_size_in_bytes < limit


def ahead(target, tokens, numbers, sampling, draft, *, rule):
  return accept_lib.accept(
      target, tokens, rule=rule, numbers=numbers, sampling=sampling, draft_logits=draft,
      implementation='mosaic_tpu',
  )
