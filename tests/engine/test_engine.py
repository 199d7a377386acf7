"""The loop: equality with plain decoding, independence of rows, stops, memory."""

import functools
import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from specjax import drafters
from specjax import engine
from specjax import generation
from specjax import sampling
from specjax import verify
from specjax.models import LanguageModel
from tests.support import tiny

K = 4
OPTIONS = dict(max_new_tokens=48, prefill_chunk=8)
RULES = {'greedy': verify.greedy(), 'coupled': verify.coupled()}
TREE = (0, 0, 1, 1, 2, 3, 5)


@functools.cache
def plain(rule: str) -> generation.GenerateOutput:
  """Plain decoding at the width of K = 4 speculation."""
  return generation.decode(tiny.target(), tiny.PROMPTS, rule=RULES[rule], width=K + 1, **OPTIONS)


def drafter(kind: str, rule: str = 'greedy'):
  """A drafter by kind; synthetic ones are told what plain decoding emitted."""
  if kind == 'model':
    return drafters.model(tiny.related_draft(), num_speculative_tokens=K)
  if kind == 'adaptive':
    return drafters.model(tiny.related_draft(), num_speculative_tokens=K, min_confidence=0.3)
  if kind == 'ngram':
    return drafters.ngram(num_speculative_tokens=K)
  shape = dict(parents=TREE) if kind == 'tree' else dict(num_speculative_tokens=K)
  reference = plain(rule)
  return drafters.synthetic(
      reference.tokens,
      reference_lengths=reference.lengths,
      acceptance=0.8,
      vocab_size=tiny.VOCAB,
      **shape,
  )


def run(kind: str, rule: str = 'greedy', **options) -> generation.GenerateOutput:
  options = dict(drafter=drafter(kind, rule), rule=RULES[rule]) | OPTIONS | options
  return generation.generate(tiny.target(), tiny.PROMPTS, **options)


class IdenticalTest(parameterized.TestCase):

  @parameterized.product(
      kind=['model', 'adaptive', 'ngram', 'synthetic'], rule=['greedy', 'coupled']
  )
  def test_chain_is_bitwise_plain(self, kind, rule):
    output = run(kind, rule, logprobs='raw')
    expected = generation.decode(
        tiny.target(),
        tiny.PROMPTS,
        rule=RULES[rule],
        width=K + 1,
        logprobs='raw',
        **OPTIONS,
    )
    np.testing.assert_array_equal(output.tokens, expected.tokens)
    np.testing.assert_array_equal(output.lengths, expected.lengths)
    np.testing.assert_array_equal(output.logprobs, expected.logprobs)
    if kind in ('model', 'synthetic'):
      self.assertLess(output.target_passes, expected.target_passes)
      self.assertGreater(output.mean_acceptance_length, 1.2)

  @parameterized.parameters('greedy', 'coupled')
  def test_tree_equals_plain(self, rule):
    # A tree's keys do not lie contiguously, so sums are ordered differently: tokens must
    # be equal here because no two logits of this model are within rounding of each other.
    output = run('tree', rule)
    np.testing.assert_array_equal(output.tokens, plain(rule).tokens)
    self.assertGreater(output.mean_acceptance_length, 1.5)

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
        count = jnp.full_like(verification.num_accepted, K)
        path = jnp.broadcast_to(jnp.arange(1, K + 1), verification.path.shape)
        next_token = jnp.argmax(target_law[:, K], axis=-1).astype(jnp.int32)
        return verification.replace(num_accepted=count, path=path, next_token=next_token), source

    output = generation.generate(
        tiny.target(), tiny.PROMPTS, drafter=drafter('model'), rule=AcceptAll(), **OPTIONS
    )
    self.assertFalse(np.array_equal(output.tokens, plain('greedy').tokens))

  @parameterized.parameters(1, 3, 7)
  def test_chunks_change_nothing(self, rounds):
    whole = run('model', 'coupled')
    *_, last = generation.stream(
        tiny.target(),
        tiny.PROMPTS,
        drafter=drafter('model'),
        rule=RULES['coupled'],
        rounds_per_chunk=rounds,
        **OPTIONS,
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

    output = generation.generate(tiny.target(), tiny.PROMPTS, drafter=Counting(), **OPTIONS)
    expected = generation.decode(tiny.target(), tiny.PROMPTS, width=3, **OPTIONS)
    np.testing.assert_array_equal(output.tokens, expected.tokens)


class RowsTest(parameterized.TestCase):

  @parameterized.parameters('coupled', 'block')
  def test_a_row_does_not_depend_on_the_others(self, name):
    rule = getattr(verify, name)()
    options = dict(drafter=drafter('model'), rule=rule, seeds=[3, 4, 5, 6], **OPTIONS)
    first = generation.generate(tiny.target(), tiny.PROMPTS, **options)
    changed = [tiny.PROMPTS[0], [60, 61, 2, 8, 9, 1], [40], tiny.PROMPTS[3]]
    second = generation.generate(tiny.target(), changed, **options)
    for row in (0, 3):
      np.testing.assert_array_equal(first.new_tokens(row), second.new_tokens(row))

  def test_seeds_belong_to_rows(self):
    prompts = [[1, 2, 3]] * 4
    options = dict(drafter=drafter('model'), rule=verify.rejection(), **OPTIONS)
    first = generation.generate(tiny.target(), prompts, seeds=[1, 2, 3, 1], **options)
    second = generation.generate(tiny.target(), prompts, seeds=[3, 1, 9, 2], **options)
    np.testing.assert_array_equal(first.new_tokens(0), first.new_tokens(3))
    np.testing.assert_array_equal(first.new_tokens(0), second.new_tokens(1))
    np.testing.assert_array_equal(first.new_tokens(2), second.new_tokens(0))
    self.assertFalse(np.array_equal(first.new_tokens(0), first.new_tokens(1)))

  def test_limits_of_rows(self):
    output = run('model', max_new_tokens=[1, 48, 5, 17])
    np.testing.assert_array_equal(output.lengths - output.prompt_lengths, [1, 48, 5, 17])
    for row in range(4):
      np.testing.assert_array_equal(
          output.new_tokens(row), plain('greedy').new_tokens(row)[: [1, 48, 5, 17][row]]
      )

  def test_prompt_and_output_fill_the_cache(self):
    output = run('model', cache_length=14 + 48)
    np.testing.assert_array_equal(output.new_tokens(2), plain('greedy').new_tokens(2))


class StopTest(parameterized.TestCase):

  @parameterized.parameters('model', 'synthetic', 'tree')
  def test_stop_token_inside_a_block(self, kind):
    expected = plain('greedy')
    stops = [int(expected.new_tokens(row)[6 + row]) for row in range(4)]
    output = run(kind, stop_tokens=stops)
    for row in range(4):
      tokens = expected.new_tokens(row)
      end = int(np.flatnonzero(np.isin(tokens, stops))[0]) + 1
      np.testing.assert_array_equal(output.new_tokens(row), tokens[:end])
      self.assertEqual(output.finish_reasons[row], 'stop')

  @parameterized.parameters(None, 1, 5)
  def test_stop_strings_are_cut_alike_for_any_chunking(self, rounds):
    class Letters:
      def decode(self, ids):
        return ''.join(chr(ord('A') + i % 26) * (1 + i % 2) for i in ids)

    expected = plain('greedy').new_tokens(0)
    text = Letters().decode(expected)
    stop = text[9:12]
    output = run(
        'model', stop_strings=[stop], tokenizer=Letters(), rounds_per_chunk=rounds
    )
    at = text.index(stop)
    self.assertEqual(output.texts[0], text[:at])
    count = next(n for n in range(49) if stop in Letters().decode(expected[:n]))
    np.testing.assert_array_equal(output.new_tokens(0), expected[:count])
    self.assertEqual(output.finish_reasons[0], 'stop')


class RecordsTest(absltest.TestCase):

  def test_logprobs_are_of_the_law_they_name(self):
    settings = sampling.make(batch_size=4, temperature=0.7, top_k=9)
    options = dict(sampling=settings, drafter=drafter('model'), rule=verify.rejection(), **OPTIONS)
    target = tiny.target()
    for kind in ('raw', 'controlled'):
      output = generation.generate(target, tiny.PROMPTS, logprobs=kind, **options)
      logits = target(jnp.asarray(output.tokens)).logits[:, :-1]
      law = logits if kind == 'raw' else sampling.law(logits, settings)
      law = jax.nn.log_softmax(law)
      expected = jnp.take_along_axis(law, output.tokens[:, 1:, None], axis=-1)[..., 0]
      for row in range(4):
        span = slice(output.prompt_lengths[row], output.lengths[row])
        np.testing.assert_allclose(
            output.logprobs[row, span],
            np.asarray(expected)[row, span.start - 1 : span.stop - 1],
            atol=2e-4,
        )
      self.assertEqual(output.logprobs_of, kind)

  def test_trace_tells_the_whole_output(self):
    for kind, rule in (('model', verify.block()), ('tree', verify.greedy())):
      output = generation.generate(
          tiny.target(), tiny.PROMPTS, drafter=drafter(kind), rule=rule, trace=True, **OPTIONS
      )
      trace = output.trace
      for row in range(4):
        emitted = []
        for index in np.flatnonzero(trace.starts[row]):
          count = trace.num_accepted[row, index]
          nodes = trace.path[row, index, :count] - 1
          emitted += [*trace.tokens[row, index, nodes], trace.next_token[row, index]]
        np.testing.assert_array_equal(
            emitted[: len(output.new_tokens(row))], output.new_tokens(row)
        )

  def test_counts_agree(self):
    output = run('model')
    emitted = (output.lengths - output.prompt_lengths).sum()
    self.assertEqual(output.target_passes, output.stats.rounds.max())
    self.assertLessEqual(output.stats.accepted.sum(), output.stats.proposed.sum())
    self.assertLessEqual(abs(emitted - output.stats.accepted.sum() - output.stats.rounds.sum()), 4)
    self.assertAlmostEqual(
        output.mean_acceptance_length, emitted / output.stats.rounds.sum()
    )


class DeviceTest(parameterized.TestCase):

  def _prepared(self, target, max_new_tokens=48):
    request = generation.Request(
        drafter=drafters.model(target, num_speculative_tokens=K),
        rule=verify.rejection(),
        max_new_tokens=max_new_tokens,
        prefill_chunk=8,
    )
    return generation.prepare(target, tiny.PROMPTS, request)[:2]

  def test_one_program_for_a_bucket(self):
    run('model')
    before = engine.run._cache_size(), engine.prefill_chunk._cache_size()
    for prompt in ([8, 3], list(range(20)), [7] * 33):
      generation.generate(
          tiny.target(),
          [prompt, *tiny.PROMPTS[1:]],
          drafter=drafter('model'),
          rule=verify.greedy(),
          sampling=sampling.make(batch_size=4, temperature=0.3, top_k=4, presence_penalty=1.0),
          stop_tokens=[1, 2],
          **OPTIONS,
      )
    self.assertEqual((engine.run._cache_size(), engine.prefill_chunk._cache_size()), before)

  def test_nothing_leaves_the_device(self):
    setup, state = self._prepared(tiny.target())
    compiled = engine.run.lower(setup, state, jnp.int32(100)).compile()
    text = compiled.as_text()
    self.assertIsNone(re.search(r'callback|infeed|outfeed|\bsend\(|\brecv\(', text))
    rounds = jnp.int32(100)
    engine.run(setup, state, rounds)  # compiled outside of the guard
    setup, state = self._prepared(tiny.target())
    with jax.transfer_guard('disallow'):
      out = engine.run(setup, state, rounds)
    self.assertTrue(bool(out.done.all()))

  def test_state_is_donated(self):
    setup, state = self._prepared(tiny.target())
    engine.run(setup, state, jnp.int32(1))
    self.assertTrue(all(x.is_deleted() for x in state.target_cache.keys))
    self.assertTrue(state.tokens.is_deleted())

  def test_temporaries_do_not_grow_with_layers(self):
    temporaries, caches = [], []
    for num_layers in (2, 8):
      target = tiny.model(0, num_layers=num_layers)
      setup, state = self._prepared(target, max_new_tokens=1000)
      memory = engine.run.lower(setup, state, jnp.int32(100)).compile().memory_analysis()
      cache = sum(x.nbytes for x in jax.tree.leaves((state.target_cache, state.drafter)))
      self.assertGreaterEqual(memory.alias_size_in_bytes, cache)
      temporaries.append(memory.temp_size_in_bytes)
      caches.append(cache)
    grown = temporaries[1] - temporaries[0]
    # Six layers' caches were added twice (target and draft); a copy of one would show.
    self.assertLess(grown, 0.05 * (caches[1] - caches[0]), msg=f'{temporaries} for {caches}')

  def test_nan_logits_are_refused(self):
    base = tiny.target()
    params = jax.tree.map(lambda x: x, base.params)
    params['final_norm'] = {'scale': base.params['final_norm']['scale'].at[3].set(jnp.nan)}
    with self.assertRaisesRegex(FloatingPointError, 'NaN in row'):
      generation.decode(LanguageModel(base.module, params), tiny.PROMPTS, **OPTIONS)


class RefusalTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('no_prompts', dict(prompts=[]), 'list of prompts is empty'),
      ('empty_prompt', dict(prompts=[[1], []]), 'Prompt 1 is empty'),
      ('text', dict(prompts=[['a']]), 'not token ids'),
      ('foreign_token', dict(prompts=[[1, 64]]), '0 to 63'),
      ('too_long', dict(prompts=[[1] * 30], cache_length=32), 'cache_length is 32'),
      ('no_new_tokens', dict(max_new_tokens=0), 'max_new_tokens must be at least 1'),
      ('limits_of_other_rows', dict(max_new_tokens=[1, 2]), 'one a row'),
      ('logprobs', dict(logprobs='both'), "'raw' or 'controlled'"),
      ('stop_strings', dict(stop_strings=['x']), 'need a tokenizer'),
      ('sampling_rows', dict(sampling=sampling.make(batch_size=2)), 'batch_size=1'),
      ('tree_rule', dict(drafter='tree', rule=verify.block()), 'verifies chains only'),
      ('vocabulary', dict(drafter='other'), 'vocabulary of 32 tokens'),
  )
  def test_before_any_compute(self, options, message):
    options = dict(options)
    prompts = options.pop('prompts', [[1, 2, 3]])
    if options.get('drafter') == 'tree':
      options['drafter'] = drafter('tree')
    if options.get('drafter') == 'other':
      options['drafter'] = drafters.model(tiny.model(1, num_layers=1, vocab_size=32))
    with self.assertRaisesRegex(ValueError, message):
      generation.generate(tiny.target(), prompts, **options)

  @parameterized.parameters(
      (lambda: drafters.model(tiny.target(), num_speculative_tokens=0), 'at least 1'),
      (lambda: drafters.model(tiny.target(), min_confidence=1.0), r'in \[0, 1\)'),
      (lambda: drafters.ngram(num_speculative_tokens=0), 'at least 1'),
      (lambda: drafters.ngram(min_ngram=4, max_ngram=3), 'min_ngram <= max_ngram'),
      (
          lambda: drafters.synthetic(
              np.zeros((1, 4)), acceptance=1.5, vocab_size=4, num_speculative_tokens=1
          ),
          r'acceptance must be in \[0, 1\]',
      ),
      (
          lambda: drafters.synthetic(
              np.zeros((1, 4)), acceptance=0.5, vocab_size=4, parents=(0, 2)
          ),
          'smaller number',
      ),
  )
  def test_drafters(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()


if __name__ == '__main__':
  absltest.main()
