"""One drafted token per round (K = 1) through the op: the exact law of the output."""

import pytest

from specjax import drafters
from specjax import sampling as sampling_lib
from specjax import testing
from specjax import verify
from specjax.kernels import accept as accept_lib

pytestmark = pytest.mark.usefixtures('compiled_fast')
TARGET, DRAFT = testing.table_model(seed=1), testing.table_model(seed=9)
ROWS = [dict(), dict(temperature=0.5), dict(top_k=2), dict(top_p=0.7), dict(temperature=0.0)]
DRAFTERS = {
    'model': drafters.model(DRAFT, num_speculative_tokens=1),
    'combined': drafters.combined(
        drafters.ngram(num_speculative_tokens=1), drafters.model(DRAFT, num_speculative_tokens=1)
    ),
    'tree': drafters.model_tree(DRAFT, tree=(1,)),
}


@pytest.mark.parametrize('rule, name', [
    ('rejection', 'model'), ('block', 'model'), ('block', 'combined'), ('recursive', 'tree')
])
def test_the_output_law_is_the_targets(rule, name):
  columns = {
      key: [row.get(key, default) for row in ROWS]
      for key, default in (('temperature', 1.0), ('top_k', 0), ('top_p', 1.0))
  }
  sampling = sampling_lib.make(batch_size=len(ROWS), **columns)
  prompts = [(0, 1, 0)] * len(ROWS)
  laws = testing.output_law(
      TARGET, prompts, rule=accept_lib.through(getattr(verify, rule)(), 'xla'),
      drafter=DRAFTERS[name], sampling=sampling, max_new_tokens=3,
  )
  expected = testing.plain_law(TARGET, prompts, sampling=sampling, max_new_tokens=3)
  for law, right in zip(laws, expected):
    assert testing.max_difference(law, right) < 1e-6
