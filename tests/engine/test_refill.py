"""A batch that stays full gives every prompt what `generate` gives it."""

import numpy as np
import pytest

import specjax
from specjax import drafters
from specjax import engine
from specjax import refill
from specjax import sampling
from tests.support import tiny
from tests.support import tiny_heads

pytestmark = pytest.mark.usefixtures('compiled_fast')

PROMPTS = [[1, 2, 3], [9], [5] * 9, [3, 4], [7, 8], [60], [2, 2], [11, 12, 13, 14]]
LIMITS = [20, 3, 9, 5, 12, 1, 16, 7]
OPTIONS = dict(stop_tokens=(17, 40), cache_length=48, prefill_chunk=8)


def drafter(kind):
  if kind == 'plain':
    return None
  if kind == 'model':
    return drafters.model(tiny.related_draft(), num_speculative_tokens=2)
  return drafters.eagle(tiny_heads.head(), tiny.target(), tree=(2, 1))


@pytest.mark.parametrize('kind, temperature', [('plain', 1.0), ('model', 1.0), ('eagle tree', 0.0)])
def test_every_prompt_has_the_tokens_that_it_has_alone(kind, temperature):
  made = drafter(kind)
  settings = lambda size: sampling.make(batch_size=size, temperature=temperature)
  # Prompts alone, in one batch: a row depends on no other.
  rule = 'greedy' if not temperature else 'coupled'
  whole = specjax.generate(
      tiny.target(), PROMPTS, drafter=made, rule=rule, sampling=settings(len(PROMPTS)),
      max_new_tokens=LIMITS, seeds=5, **OPTIONS,
  )
  found = list(refill.generate_each(
      tiny.target(), PROMPTS, batch_size=3, drafter=made, rule=rule, sampling=settings(1),
      max_new_tokens=LIMITS, seeds=5, rounds_per_chunk=2, refill=2, **OPTIONS,
  ))
  assert sorted(each.number for each in found) == list(range(len(PROMPTS)))
  for each in found:
    np.testing.assert_array_equal(each.tokens, whole.new_tokens(each.number))
    assert each.finish_reason == whole.finish_reasons[each.number]
    assert each.rounds == whole.stats.rounds[each.number]
  # Rows that end early are yielded before longer ones that began with them.
  assert found[0].number != 0
  again = list(refill.generate_each(
      tiny.target(), PROMPTS, batch_size=3, drafter=made, rule=rule, sampling=settings(1),
      max_new_tokens=LIMITS, seeds=5, rounds_per_chunk=2, refill=2, **OPTIONS,
  ))
  assert [each.number for each in again] == [each.number for each in found]


@pytest.mark.parametrize(
    'kind, temperature, length', [('plain', 1.0, 13), ('eagle tree', 0.0, 33)]
)
def test_what_all_prompts_begin_with_is_read_once(kind, temperature, length, monkeypatch):
  prompts = [[1, 2, 3, 4, 5] * (length // 5) + [6] * (length % 5) + prompt for prompt in PROMPTS]
  prompts.append(prompts[1][:length])
  made, passes = drafter(kind), []
  settings = lambda size: sampling.make(batch_size=size, temperature=temperature)
  rule = 'coupled' if temperature else 'greedy'
  options = dict(OPTIONS, cache_length=66, max_new_tokens=[*LIMITS, 4], seeds=5)
  whole = specjax.generate(
      tiny.target(), prompts, drafter=made, rule=rule, sampling=settings(len(prompts)), **options
  )
  read = engine.prefill_chunk
  monkeypatch.setattr(
      engine, 'prefill_chunk', lambda *args: passes.append(args[3].shape[0]) or read(*args)
  )
  found = list(refill.generate_each(
      tiny.target(), prompts, batch_size=3, drafter=made, rule=rule, sampling=settings(1),
      refill=2, **options,
  ))
  assert sorted(each.number for each in found) == list(range(len(prompts)))
  for each in found:
    np.testing.assert_array_equal(each.tokens, whole.new_tokens(each.number))
  # One row reads the prefix, all others read what follows it, of which at most 9 tokens are left.
  assert passes.count(1) == -(-(length - 1) // 8)
  assert passes.count(3) <= 2 and passes.count(2) <= 6


def test_prompts_that_are_the_same_are_read_once():
  whole = specjax.generate(tiny.target(), [PROMPTS[7]] * 5, max_new_tokens=4, **OPTIONS)
  found = refill.generate_each(
      tiny.target(), [PROMPTS[7]] * 5, batch_size=2, max_new_tokens=4, **OPTIONS
  )
  for each in found:
    np.testing.assert_array_equal(each.tokens, whole.new_tokens(each.number))


@pytest.mark.parametrize('batch_size, fill', [(1, 1), (2, 2), (20, None)])
def test_batches_of_any_size(batch_size, fill):
  whole = specjax.generate(tiny.target(), PROMPTS, max_new_tokens=LIMITS, **OPTIONS)
  found = refill.generate_each(
      tiny.target(), PROMPTS, batch_size=batch_size, max_new_tokens=LIMITS, rounds_per_chunk=5,
      refill=fill, **OPTIONS,
  )
  tokens = {each.number: each.tokens.tolist() for each in found}
  assert tokens == {i: whole.new_tokens(i).tolist() for i in range(len(PROMPTS))}


def test_a_place_is_filled_by_one_row_that_alone_would_read_another_width():
  """bfloat16 on a CPU: one row reads two tokens per pass, several rows one."""
  target = tiny.model(0, dtype='bfloat16')
  found = list(refill.generate_each(
      target, PROMPTS, batch_size=4, refill=1, max_new_tokens=LIMITS, prefill_chunk=8,
      cache_length=47,
  ))
  assert [len(each.tokens) for each in sorted(found, key=lambda each: each.number)] == LIMITS


def test_what_cannot_be_run_is_refused_at_once():
  call = lambda **options: refill.generate_each(tiny.target(), PROMPTS, **options)
  with pytest.raises(ValueError, match='batch_size must be at least 1, got 0'):
    call(batch_size=0)
  with pytest.raises(ValueError, match='refill=5 prompts have no room in a batch of 4'):
    call(batch_size=4, refill=5)
  with pytest.raises(ValueError, match='takes the settings of one row, for all; got 3'):
    call(batch_size=4, sampling=sampling.make(batch_size=3))
  with pytest.raises(TypeError, match="did you mean 'rounds_per_chunk'"):
    call(batch_size=4, rounds_per_chunks=3)
  with pytest.raises(ValueError, match='the target knows 0 to 63'):
    refill.generate_each(tiny.target(), [[99]], batch_size=1)
