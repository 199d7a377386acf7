"""The acceptance op's TPU kernels, compiled for real TPUs as users get them."""

import pytest

from tests.support import accept_suite
from tests.support import tpu_ahead


@pytest.mark.parametrize('topology, rule, vocab_size', [
    ('v5e:2x2', 'block', 128_256), ('v5p:2x2x1', 'block', 262_144), ('v6e:2x2', 'block', 151_936),
    ('v5e:2x2', 'rejection', 7), ('v5p:2x2x1', 'rejection', 32_000),
    ('v6e:2x2', 'coupled', 128_256), ('v5e:2x2', 'coupled', 262_144),
    ('v5p:2x2x1', 'coupled', 151_936), ('v6e:2x2', 'greedy', 32_000),
])
def test_compiles_for(topology, rule, vocab_size):
  """By the TPU's own compiler; no temporary is as wide as the vocabulary times a few rows."""
  batch = 8
  shapes = accept_suite.shapes(rule, batch=batch, size=8, vocab_size=vocab_size)
  arguments = tpu_ahead.abstract(shapes, tpu_ahead.devices(topology)[0])
  compiled = accept_suite.caller(rule, 'mosaic_tpu').lower(*arguments).compile()
  assert 'tpu_custom_call' in compiled.as_text()
  # Scalars, and what crosses between the kernels. One row of the vocabulary of each sequence
  # would be more.
  limit = max(batch * vocab_size * 4, 2**20)
  assert compiled.memory_analysis().temp_size_in_bytes < limit
