"""Bit for bit: speculation and plain decoding, any chunking, rows among others.

On programs as users get them: what must be identical is not compiled fast.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import generation
from specjax import verify
from tests.support import engine_runs as runs
from tests.support import tiny


class TestIdentical:

  @pytest.mark.parametrize('kind', ['model', 'adaptive', 'ngram', 'synthetic'])
  @pytest.mark.parametrize('rule', ['greedy', 'coupled'])
  def test_chain_is_bitwise_plain(self, kind, rule):
    output = runs.run(kind, rule, logprobs='raw')
    expected = generation.decode(
        tiny.target(),
        tiny.PROMPTS,
        rule=runs.RULES[rule],
        width=runs.K + 1,
        logprobs='raw',
        **runs.OPTIONS,
    )
    np.testing.assert_array_equal(output.tokens, expected.tokens)
    np.testing.assert_array_equal(output.lengths, expected.lengths)
    np.testing.assert_array_equal(output.logprobs, expected.logprobs)
    if kind in ('model', 'synthetic'):
      assert output.target_passes < expected.target_passes
      assert output.mean_acceptance_length > 1.2

  @pytest.mark.parametrize('rule', ['greedy', 'coupled'])
  def test_tree_equals_plain(self, rule):
    # A tree's keys do not lie contiguously, so sums are ordered differently: tokens must
    # be equal here because no two logits of this model are within rounding of each other.
    output = runs.run('tree', rule)
    np.testing.assert_array_equal(output.tokens, runs.plain(rule).tokens)
    assert output.mean_acceptance_length > 1.5

  def test_wrong_acceptance_would_be_seen(self):
    # The equality above can fail: a rule that accepts everything differs at once.
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class AcceptAll:
      name = 'accept all'
      mode = 'greedy'
      lossless = False
      handles_trees = False

      def __call__(self, *, target_law, proposal, positions, source):
        verification, source = verify.greedy()(
            target_law=target_law, proposal=proposal, positions=positions, source=source
        )
        count = jnp.full_like(verification.num_accepted, runs.K)
        path = jnp.broadcast_to(jnp.arange(1, runs.K + 1), verification.path.shape)
        next_token = jnp.argmax(target_law[:, runs.K], axis=-1).astype(jnp.int32)
        return verification.replace(num_accepted=count, path=path, next_token=next_token), source

    output = generation.generate(
        tiny.target(), tiny.PROMPTS, drafter=runs.drafter('model'), rule=AcceptAll(), **runs.OPTIONS
    )
    assert not np.array_equal(output.tokens, runs.plain('greedy').tokens)

  @pytest.mark.parametrize('rounds', [1, 3, 7])
  def test_chunks_change_nothing(self, rounds):
    whole = runs.run('model', 'coupled')
    *_, last = generation.stream(
        tiny.target(),
        tiny.PROMPTS,
        drafter=runs.drafter('model'),
        rule=runs.RULES['coupled'],
        rounds_per_chunk=rounds,
        **runs.OPTIONS,
    )
    np.testing.assert_array_equal(last.tokens, whole.tokens)
    np.testing.assert_array_equal(last.stats.accepted, whole.stats.accepted)

  def test_users_own_drafter(self):
    # Proposes "the last token plus one" for ever: the triple is all that the engine needs.
    from flax import struct

    from specjax import tree
    from specjax import types

    @struct.dataclass
    class Counting(drafters.Plain):
      num_nodes: int = struct.field(pytree_node=False, default=2)
      depth: int = struct.field(pytree_node=False, default=2)

      def propose(self, context, state):
        root = jnp.take_along_axis(context.tokens, context.lengths[:, None] - 1, axis=1)
        parents = tree.chain_parents(root.shape[0], 2)
        tokens = (root + 1 + jnp.arange(2)) % tiny.VOCAB
        proposal = types.Proposal(
            tokens=tokens,
            parents=parents,
            valid=jnp.ones(tokens.shape, bool),
            law=None,
            rows=parents,
            kind=types.ONE_HOT,
        )
        return proposal, state, context

    output = generation.generate(tiny.target(), tiny.PROMPTS, drafter=Counting(), **runs.OPTIONS)
    expected = generation.decode(tiny.target(), tiny.PROMPTS, width=3, **runs.OPTIONS)
    np.testing.assert_array_equal(output.tokens, expected.tokens)


class TestRows:

  @pytest.mark.parametrize('name', ['coupled', 'block'])
  def test_a_row_does_not_depend_on_the_others(self, name):
    rule = getattr(verify, name)()
    options = dict(drafter=runs.drafter('model'), rule=rule, seeds=[3, 4, 5, 6], **runs.OPTIONS)
    first = generation.generate(tiny.target(), tiny.PROMPTS, **options)
    changed = [tiny.PROMPTS[0], [60, 61, 2, 8, 9, 1], [40], tiny.PROMPTS[3]]
    second = generation.generate(tiny.target(), changed, **options)
    for row in (0, 3):
      np.testing.assert_array_equal(first.new_tokens(row), second.new_tokens(row))
