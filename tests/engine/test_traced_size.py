"""What is traced of a round does not grow with the batch, whatever the drafter."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from specjax import drafters
from specjax import engine
from specjax import verify
from specjax.planning import ahead
from tests.support import tiny


def equations(jaxpr) -> Iterator[str]:
  """The names of all primitives of a jaxpr, those inside of loops and branches included."""
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from equations(inner)


def draft():
  return tiny.model(1, num_layers=1)


CASES = {
    'chain': (verify.block(), lambda: drafters.model(draft(), num_speculative_tokens=3)),
    'tree': (verify.recursive(), lambda: drafters.model_tree(draft(), tree=(2, 2))),
    'dynamic tree': (
        verify.traversal(),
        lambda: drafters.model_tree(
            draft(), tree=drafters.dynamic_tree(num_nodes=4, depth=2, width=2)
        ),
    ),
    'suffix': (verify.coupled(), lambda: drafters.suffix(vocab_size=tiny.VOCAB)),
}


@pytest.mark.parametrize('case', CASES)
def test_a_round_is_traced_once_for_all_rows(case):
  """Of the whole loop; `cache_rows` treats one row, 64 and 1,024 in three ways."""
  rule, drafter = CASES[case]
  sizes = {}
  for batch_size in (1, 64, 1024):
    setup, state = ahead.abstract_run(
        tiny.model(0), drafter=drafter(), rule=rule, batch_size=batch_size, context=64
    )
    traced = engine.run.trace(setup, state, jnp.int32(1)).jaxpr
    sizes[batch_size] = sum(1 for _ in equations(traced.jaxpr))
  # The three ways differ by some equations per layer; unrolled while tracing, 64 rows were 1.8
  # times and 1,024 rows 12 times as many as one.
  assert min(sizes.values()) > 500
  assert max(sizes.values()) < 1.25 * min(sizes.values()), sizes


def test_equations_inside_of_loops_are_counted():
  def loop(x):
    return jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), x)

  assert 'sin' in equations(jax.make_jaxpr(loop)(1.0).jaxpr)
