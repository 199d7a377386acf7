"""The acceptance op and the engine on eight devices and on one, compared: a program of its own.

    JAX_NUM_CPU_DEVICES=8 python -m tests.support.accept_on_eight FUNCTION
"""

import functools
import sys
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from specjax import drafters
from specjax import generation
from specjax import sampling as sampling_lib
from specjax import sharding
from specjax import verify
from specjax.kernels import accept as accept_lib
from specjax.kernels.accept import base
from specjax.kernels.accept import op_rule
from specjax.kernels.accept import sharded
from specjax.models import LanguageModel, place
from tests.support import accept_suite
from tests.support import tiny
from tests.support import tolerance

RULES = ('greedy', 'rejection', 'block', 'coupled')
VOCAB = 16 * 40


def compare_with_one_device():
  assert jax.device_count() == 8, jax.devices()
  suite = accept_suite.AcceptSuite()
  for shape, names, size in (
      ((8,), ('model',), 1), ((8,), ('model',), 3), ((2, 4), ('data', 'model'), 3)
  ):
    mesh = Mesh(np.asarray(jax.devices()).reshape(shape), names)
    split = accept_lib.Split(mesh, 'model', names[:-1])
    # One token: the block rule has no inner rows to sum over the shards.
    for rule in RULES if size > 1 else ('block',):
      case = accept_suite.random_case(6, size, VOCAB, seed=2, **accept_suite.MIXED)
      case.tokens[:, size // 2] = case.target[:, size // 2].argmax(axis=-1)
      numbers = suite.uniforms(6, size)
      if rule in ('greedy', 'coupled'):
        numbers = suite.noise(6, size) if rule == 'coupled' else None
      arguments = (
          jnp.asarray(case.target, jnp.float32).reshape(-1, VOCAB),
          jnp.asarray(case.tokens, jnp.int32),
          numbers,
          sampling_lib.make(batch_size=6, **case.settings),
          jnp.asarray(case.draft, jnp.float32).reshape(-1, VOCAB),
      )
      results = [jax.jit(functools.partial(call, rule=rule, split=s))(*arguments)
                 for s in (None, split)]
      for one, many in zip(*map(jax.tree.leaves, results)):
        if jnp.issubdtype(one.dtype, jnp.floating):
          # Inside a tile the compiler may add in another order.
          tolerated = tolerance.of_sum(base.tile_size(VOCAB), size=one)
          tolerance.assert_close(many, one, tolerated, f'{shape} {rule}')
        else:
          np.testing.assert_array_equal(one, many, err_msg=f'{shape} {rule}')
  print('eight equal one')


def compare_engines(rule: str):
  """The engine's default on a mesh, and one device."""
  target = tiny.model(0, num_layers=1, num_heads=8)
  draft = LanguageModel(target.module, jax.tree.map(lambda x: 1.1 * x, target.params))
  hot = sampling_lib.make(batch_size=len(tiny.PROMPTS), temperature=0.9, top_p=0.95)
  # On CPUs the default is another one at a vocabulary as small as this.
  op_rule.CPU_VOCABULARY = 0
  outputs = []
  for layout in (None, sharding.make('tensor', data=2, model=4, draft=4)):
    models = [target, draft]
    if layout is not None:
      models = [place(m, x) for m, x in zip(models, (layout.target, layout.draft))]
    with mock.patch.object(sharded, 'decide', wraps=sharded.decide) as run:
      outputs.append(generation.generate(
          models[0], tiny.PROMPTS, rule=getattr(verify, rule)(), max_new_tokens=10, seeds=3,
          drafter=drafters.model(models[1], num_speculative_tokens=3), prefill_chunk=16,
          sampling=hot,
      ))
    assert run.called == (layout is not None), (rule, layout)
  np.testing.assert_array_equal(*(output.tokens for output in outputs), err_msg=rule)
  np.testing.assert_array_equal(*(output.stats.accepted for output in outputs))
  assert int(outputs[0].stats.accepted.sum()) > 3
  print('engines agree')


def call(target, tokens, numbers, sampling, draft, *, rule, split):
  return accept_lib.accept(
      target, tokens, rule=rule, numbers=numbers, sampling=sampling,
      draft_logits=draft if rule in ('rejection', 'block') else None, split=split,
  )


if __name__ == '__main__':
  {
      'compare_with_one_device': compare_with_one_device,
      'compare_block_engines': functools.partial(compare_engines, 'block'),
      'compare_coupled_engines': functools.partial(compare_engines, 'coupled'),
  }[sys.argv[1]]()
