"""The loop: rows and their limits, stops, records, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import generation
from specjax import sampling
from specjax import verify
from specjax.models import LanguageModel
from tests.support import engine_runs as runs
from tests.support import tiny
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')


class TestRows:

  def test_seeds_belong_to_rows(self):
    prompts = [[1, 2, 3]] * 4
    options = dict(drafter=runs.drafter('model'), rule=verify.rejection(), **runs.OPTIONS)
    first = generation.generate(tiny.target(), prompts, seeds=[1, 2, 3, 1], **options)
    second = generation.generate(tiny.target(), prompts, seeds=[3, 1, 9, 2], **options)
    np.testing.assert_array_equal(first.new_tokens(0), first.new_tokens(3))
    np.testing.assert_array_equal(first.new_tokens(0), second.new_tokens(1))
    np.testing.assert_array_equal(first.new_tokens(2), second.new_tokens(0))
    assert not np.array_equal(first.new_tokens(0), first.new_tokens(1))

  def test_limits_of_rows(self):
    output = runs.run('model', max_new_tokens=[1, 48, 5, 17])
    np.testing.assert_array_equal(output.lengths - output.prompt_lengths, [1, 48, 5, 17])
    for row in range(4):
      np.testing.assert_array_equal(
          output.new_tokens(row), runs.plain('greedy').new_tokens(row)[: [1, 48, 5, 17][row]]
      )

  def test_prompt_and_output_fill_the_cache(self):
    output = runs.run('model', cache_length=14 + 48)
    np.testing.assert_array_equal(output.new_tokens(2), runs.plain('greedy').new_tokens(2))


class TestStop:

  @pytest.mark.parametrize('kind', ['model', 'synthetic', 'tree'])
  def test_stop_token_inside_a_block(self, kind):
    expected = runs.plain('greedy')
    stops = [int(expected.new_tokens(row)[6 + row]) for row in range(4)]
    output = runs.run(kind, stop_tokens=stops)
    for row in range(4):
      tokens = expected.new_tokens(row)
      end = int(np.flatnonzero(np.isin(tokens, stops))[0]) + 1
      np.testing.assert_array_equal(output.new_tokens(row), tokens[:end])
      assert output.finish_reasons[row] == 'stop'

  @pytest.mark.parametrize('rounds', [None, 1, 5])
  def test_stop_strings_are_cut_alike_for_any_chunking(self, rounds):
    class Letters:
      def decode(self, ids):
        return ''.join(chr(ord('A') + i % 26) * (1 + i % 2) for i in ids)

    expected = runs.plain('greedy').new_tokens(0)
    text = Letters().decode(expected)
    stop = text[9:12]
    output = runs.run(
        'model', stop_strings=[stop], tokenizer=Letters(), rounds_per_chunk=rounds
    )
    at = text.index(stop)
    assert output.texts[0] == text[:at]
    count = next(n for n in range(49) if stop in Letters().decode(expected[:n]))
    np.testing.assert_array_equal(output.new_tokens(0), expected[:count])
    assert output.finish_reasons[0] == 'stop'


class TestRecords:

  def test_logprobs_are_of_the_law_they_name(self):
    settings = sampling.make(batch_size=4, temperature=0.7, top_k=9)
    options = dict(
        sampling=settings, drafter=runs.drafter('model'), rule=verify.rejection(), **runs.OPTIONS
    )
    target = tiny.target()
    for kind in ('raw', 'controlled'):
      output = generation.generate(target, tiny.PROMPTS, logprobs=kind, **options)
      logits = target(jnp.asarray(output.tokens)).logits[:, :-1]
      tolerated = tolerance.of_logprobs(
          target.module.config, size=tolerance.largest(logits),
          temperature=1.0 if kind == 'raw' else 0.7,
      )
      law = logits if kind == 'raw' else sampling.law(logits, settings)
      law = jax.nn.log_softmax(law)
      expected = jnp.take_along_axis(law, output.tokens[:, 1:, None], axis=-1)[..., 0]
      for row in range(4):
        span = slice(output.prompt_lengths[row], output.lengths[row])
        wanted = np.asarray(expected)[row, span.start - 1 : span.stop - 1]
        tolerance.assert_close(output.logprobs[row, span], wanted, tolerated)
      assert output.logprobs_of == kind

  def test_trace_tells_the_whole_output(self):
    for kind, rule in (('model', verify.block()), ('tree', verify.greedy())):
      output = generation.generate(
          tiny.target(), tiny.PROMPTS, drafter=runs.drafter(kind), rule=rule, trace=True,
          **runs.OPTIONS,
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
    output = runs.run('model')
    emitted = (output.lengths - output.prompt_lengths).sum()
    assert output.target_passes == output.stats.rounds.max()
    assert output.stats.accepted.sum() <= output.stats.proposed.sum()
    assert abs(emitted - output.stats.accepted.sum() - output.stats.rounds.sum()) <= 4
    assert output.mean_acceptance_length == tolerance.approx(emitted / output.stats.rounds.sum())


class TestRefusal:

  @pytest.mark.parametrize('options, message', [
      pytest.param(dict(prompts=[]), 'list of prompts is empty', id='no_prompts'),
      pytest.param(dict(prompts=[[1], []]), 'Prompt 1 is empty', id='empty_prompt'),
      pytest.param(dict(prompts=[['a']]), 'not token ids', id='text'),
      pytest.param(dict(prompts=[[1, 64]]), '0 to 63', id='foreign_token'),
      pytest.param(dict(prompts=[[1] * 30], cache_length=32), 'cache_length is 32', id='too_long'),
      pytest.param(dict(max_new_tokens=0), 'max_new_tokens must be at least 1', id='no_new_tokens'),
      pytest.param(dict(max_new_tokens=[1, 2]), 'one per row', id='limits_of_other_rows'),
      pytest.param(dict(logprobs='both'), "'raw' or 'controlled'", id='logprobs'),
      pytest.param(dict(stop_strings=['x']), 'need a tokenizer', id='stop_strings'),
      pytest.param(dict(sampling=sampling.make(batch_size=2)), 'batch_size=1', id='sampling_rows'),
      pytest.param(
          dict(drafter='tree', rule=verify.block()), 'verifies chains only', id='tree_rule'
      ),
      pytest.param(dict(drafter='other'), 'vocabulary of 32 tokens', id='vocabulary'),
  ])
  def test_before_any_compute(self, options, message):
    options = dict(options)
    prompts = options.pop('prompts', [[1, 2, 3]])
    if options.get('drafter') == 'tree':
      options['drafter'] = runs.drafter('tree')
    if options.get('drafter') == 'other':
      options['drafter'] = drafters.model(tiny.model(1, num_layers=1, vocab_size=32))
    with pytest.raises(ValueError, match=message):
      generation.generate(tiny.target(), prompts, **options)

  @pytest.mark.parametrize('make, message', [
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
  ])
  def test_drafters(self, make, message):
    with pytest.raises(ValueError, match=message):
      make()

  def test_nan_logits_are_refused(self):
    base = tiny.target()
    params = jax.tree.map(lambda x: x, base.params)
    params['final_norm'] = {'scale': base.params['final_norm']['scale'].at[3].set(jnp.nan)}
    with pytest.raises(FloatingPointError, match='NaN in row'):
      generation.decode(LanguageModel(base.module, params), tiny.PROMPTS, **runs.OPTIONS)
