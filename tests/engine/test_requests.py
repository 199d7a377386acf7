"""What a request may say, what is filled in, and what is refused before any compute."""

import dataclasses
import inspect
import re

import jax
import numpy as np
import pytest

import specjax
from specjax import checks
from specjax import drafters
from specjax import generation
from specjax import sampling as sampling_lib
from specjax import testing
from specjax import verify
from specjax.analysis import statistics
from specjax.planning import roofline
from specjax.sampling import constraints

pytestmark = pytest.mark.usefixtures('compiled_fast')
TARGET = testing.table_model(vocab_size=4, seed=1)
DRAFT = testing.table_model(vocab_size=4, seed=9)
PROMPTS = [[0, 1], [2], [3, 3, 3]]
CHAIN = drafters.ngram(num_speculative_tokens=2)
TREE = drafters.model_tree(DRAFT, tree=(2, 1))
EMPTY = inspect.Parameter.empty
OPTIONS = dict(max_new_tokens=6, prefill_chunk=4, cache_length=9)


def checked(prompts=PROMPTS, **options):
  return checks.request(TARGET, prompts, generation.Request(**options))


def heat(*temperatures):
  return sampling_lib.make(batch_size=3, temperature=temperatures)


@pytest.mark.parametrize('options, wanted', [
    (dict(sampling=heat(0, 0, 0)), 'greedy'),
    (dict(sampling=heat(0, 0, 0), drafter=TREE), 'greedy'),
    (dict(sampling=heat(0, 0.5, 0)), 'block'),
    (dict(sampling=heat(1, 1, 1), drafter=CHAIN), 'block'),
    (dict(sampling=heat(0, 0.5, 0), drafter=TREE), 'recursive'),
    (dict(sampling=heat(1, 1, 1), rule=verify.greedy()), 'greedy'),
    (dict(sampling=heat(1, 1, 1), rule='coupled', drafter=TREE), 'coupled'),
    (dict(), 'greedy'),
    *[(dict(rule=name), getattr(verify, name)().name) for name in verify.NAMES],
])
def test_the_rule_that_decides(options, wanted):
  assert checked(**options).rule.name == wanted


def test_settings_that_nobody_gave():
  """Temperature 1 for a rule that samples; nothing is sampled where neither is given."""
  assert checked(rule='block').sampling.temperature.tolist() == [1, 1, 1]
  assert checked().sampling.temperature.tolist() == [0, 0, 0]


def test_settings_alone_are_sampled_and_reported():
  """Tokens and their log-probabilities are those of the rule by its name, not greedy ones."""
  settings, rule = sampling_lib.make(batch_size=3, temperature=0.9, top_k=3), 'block'
  options = dict(drafter=CHAIN, sampling=settings, logprobs='controlled', seeds=4) | OPTIONS
  found = specjax.generate(TARGET, PROMPTS, **options)
  named = specjax.generate(TARGET, PROMPTS, rule=rule, **options)
  np.testing.assert_array_equal(found.tokens, named.tokens)
  np.testing.assert_array_equal(found.logprobs, named.logprobs)
  greedy = specjax.generate(TARGET, PROMPTS, **options | dict(rule='greedy'))
  assert (greedy.tokens != found.tokens).any()


def test_a_model_is_a_drafter_and_decode_takes_none():
  made = checked(drafter=DRAFT).drafter
  assert isinstance(made, drafters.ModelDrafter) and made.draft is DRAFT
  assert isinstance(checked().drafter, drafters.Plain)
  with pytest.raises(ValueError, match='takes no drafter.*specjax.generate'):
    specjax.decode(TARGET, PROMPTS, drafter=CHAIN)
  specjax.decode(TARGET, PROMPTS, drafter=None, **OPTIONS)


@pytest.mark.parametrize('given, seeds', [
    (7, [7, 8, 9]), ([5, 5, 1], [5, 5, 1]), (-1, [2**32 - 1, 0, 1]), (np.int64(3), [3, 4, 5]),
    (np.asarray([1, 2, 3]), [1, 2, 3]), ((2**80, 1, 2), [0, 1, 2]),
])
def test_seeds(given, seeds):
  assert checked(seeds=given).seeds.tolist() == seeds


@pytest.mark.parametrize('given, stops', [
    (None, ()), (3, (3,)), (np.int32(3), (3,)), ([1, 3], (1, 3)), (np.asarray([2]), (2,)),
    ({2}, (2,)), ((), ()),
])
def test_stop_tokens(given, stops):
  assert checked(stop_tokens=given).stop_tokens == stops


def test_one_stop_token_ends_a_row():
  free = specjax.decode(TARGET, PROMPTS, stop_tokens=None, stop_strings=None, **OPTIONS)
  stop = int(free.new_tokens(0)[2])
  output = specjax.decode(TARGET, PROMPTS, stop_tokens=stop, **OPTIONS)
  assert output.finish_reasons[0] == 'stop' and output.new_tokens(0)[-1] == stop


def test_a_checked_request_is_checked_again_for_nothing():
  once = checked(drafter=DRAFT, sampling=heat(1, 0, 1), seeds=3, stop_tokens=2, max_new_tokens=5)
  twice = checks.request(TARGET, PROMPTS, once)
  for field in dataclasses.fields(once):
    one, two = (getattr(request, field.name) for request in (once, twice))
    same = np.array_equal(one, two) if isinstance(one, np.ndarray) else one is two or one == two
    assert same, field.name


AUTOMATON = constraints.TokenAutomaton.create([[0, 0, 0]])


@pytest.mark.parametrize('options, message', [
    (dict(rounds_per_chunk=0), 'rounds_per_chunk must be at least 1, got 0'),
    (dict(rounds_per_chunk=-1), 'rounds_per_chunk must be at least 1, got -1'),
    (dict(rounds_per_chunk=0.5), 'rounds_per_chunk must be a whole number, got 0.5'),
    (dict(prefill_chunk=0), 'prefill_chunk must be at least 1, got 0'),
    (dict(prefill_chunk=None), 'prefill_chunk must be a whole number, got NoneType'),
    (dict(width=-1), 'width must be at least 0'),
    (dict(width='2'), "width must be a whole number, got '2'"),
    (dict(cache_length=0), 'cache_length must be at least 1'),
    (dict(cache_length='9'), "cache_length must be a whole number, got '9'"),
    (dict(seeds=[1]), r'seeds must be one whole number or one per row \(3 rows\); got 1 of them'),
    (dict(seeds=[[1, 2, 3]]), r'seeds must be one whole number .* got \[\[1, 2, 3\]\]'),
    (dict(seeds=1.5), r'seeds must be one whole number .* got 1\.5'),
    (dict(seeds='1'), "seeds must be one whole number .* got '1'"),
    (dict(seeds=None), 'seeds must be one whole number .* got NoneType'),
    (dict(max_new_tokens=3.7), r'max_new_tokens must be one whole number .* got 3\.7'),
    (dict(max_new_tokens='12'), "max_new_tokens must be one whole number .* got '12'"),
    (dict(max_new_tokens=None), 'max_new_tokens must be one whole number .* got NoneType'),
    (dict(max_new_tokens=[1, 2]), r'one per row \(3 rows\); got 2 of them'),
    (dict(max_new_tokens=[1, 0, 2]), 'max_new_tokens must be at least 1, got 0'),
    (dict(max_new_tokens=2**40), 'max_new_tokens must be at most 2147483647'),
    (dict(stop_tokens='</s>'), "stop_tokens must be one token id or a flat list .* got '</s>'"),
    (dict(stop_tokens=[[1]]), r'stop_tokens must be one token id .* got \[\[1\]\]'),
    (dict(stop_tokens=4), 'stop_tokens has 4; the target knows 0 to 3'),
    (dict(stop_tokens=[-1]), 'stop_tokens has -1'),
    (dict(drafter='ngram'), "drafter must be one of specjax.drafters, .* got 'ngram'"),
    (dict(drafter=drafters.ngram), 'got ngram itself, which was not called'),
    (dict(drafter=drafters.NgramDrafter), 'got NgramDrafter itself'),
    (dict(drafter=[1]), r'got \[1\]\. A head becomes one by drafters\.eagle'),
    (dict(rule='blok'), "rule must be one of 'greedy', 'rejection', 'block'.* got 'blok'"),
    (dict(rule=verify.block), 'rule must be one of specjax.verify.* block itself'),
    (dict(rule=3), 'rule must be one of specjax.verify.* got 3'),
    (dict(rule='block', drafter=TREE), 'verifies chains only'),
    (dict(sampling=dict(temperature=0.5)), r'sampling\.make\(batch_size=3, \.\.\.\); got \{'),
    (dict(sampling=0.7), r'sampling\.make\(batch_size=3, \.\.\.\); got 0\.7'),
    (dict(sampling=sampling_lib.make(batch_size=2)), 'are for 2 rows .* the batch has 3'),
    (
        dict(sampling=heat(1, 1, 1).replace(top_k=np.zeros(2, np.int32))),
        r'are for 2 rows \(top_k\), the batch has 3',
    ),
    (
        dict(sampling=sampling_lib.make(batch_size=3, logit_bias=[0.0] * 3)),
        r'logit_bias is for .* \(3, 3\), and the request for \(3, 4\)',
    ),
    (
        dict(sampling=sampling_lib.make(batch_size=3, constraint=AUTOMATON)),
        r'constraint allows tokens of .* \(3, 3\), and the request is for \(3, 4\)',
    ),
    (dict(logprobs=True), "logprobs must be None, 'raw' or 'controlled', got True"),
    (dict(tokenizer='gpt2'), r"tokenizer must have decode\(list of ids\) -> str; got 'gpt2'"),
    (dict(prompts='text'), "prompts must be a list of token lists, .* got 'text'"),
    (dict(prompts=None), 'prompts must be a list of token lists, .* got NoneType'),
    (dict(prompts=[1, 2, 3]), 'Prompt 0 is empty or not a flat list'),
])
def test_refused_before_any_compute(options, message, monkeypatch):
  monkeypatch.setattr(generation.engine, 'prefill_chunk', None)
  prompts = options.get('prompts', PROMPTS)
  options = {name: value for name, value in options.items() if name != 'prompts'}
  # Streams too are refused when they are made, not when they are read.
  for call in (specjax.generate, specjax.stream):
    with pytest.raises(ValueError, match=message):
      call(TARGET, prompts, **options)


def test_arguments_that_do_not_exist():
  message = "Unexpected argument 'max_tokens'; did you mean 'max_new_tokens'? The arguments of "
  for call in (specjax.generate, specjax.decode, specjax.stream):
    with pytest.raises(TypeError, match=re.escape(message + f'{call.__name__} are target, pr')):
      call(TARGET, PROMPTS, max_tokens=3)
  with pytest.raises(TypeError, match=r"Unexpected argument 'zzz'\. The arguments of decode are t"):
    specjax.decode(TARGET, PROMPTS, zzz=3)


def defaults(function):
  parameters = inspect.signature(function).parameters.values()
  return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


@pytest.mark.parametrize('function, other', [
    (specjax.stream, {}),
    # Nothing is yielded between chunks, so that all rounds are one.
    (specjax.generate, dict(rounds_per_chunk=None)),
    (specjax.decode, dict(rounds_per_chunk=None)),
])
def test_defaults_in_a_signature_are_the_requests(function, other):
  fields = {field.name: field.default for field in dataclasses.fields(generation.Request)}
  assert defaults(function) == fields | other


@pytest.mark.parametrize('function, of', [
    (statistics.ratio_of_sums, statistics.jackknife),
    (statistics.paired_speedup, statistics.jackknife),
    (roofline.largest_paying_batch, roofline.predict),
])
def test_defaults_of_arguments_that_are_passed_on(function, of):
  passed_on = {name: value for name, value in defaults(of).items() if value is not EMPTY}
  assert passed_on and passed_on.items() <= defaults(function).items()


def test_a_target_that_is_none():
  with pytest.raises(ValueError, match=r"must be a specjax\.models\.LanguageModel; got \{'a'"):
    specjax.generate(dict(a=1), PROMPTS)


def test_a_traced_temperature_needs_a_rule():
  def call(temperature):
    sampling = heat(1, 1, 1).replace(temperature=temperature)
    return checked(sampling=sampling).rule.name

  with pytest.raises(ValueError, match='rule must be given where the temperature is traced'):
    jax.eval_shape(call, heat(1, 1, 1).temperature)
