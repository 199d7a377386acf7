"""Runs of the tiny target, speculative and plain."""

import functools

from specjax import drafters
from specjax import generation
from specjax import verify
from specjax.output import GenerateOutput
from tests.support import tiny

K = 4
OPTIONS = dict(max_new_tokens=48, prefill_chunk=8)
RULES = {'greedy': verify.greedy(), 'coupled': verify.coupled()}
TREE = (0, 0, 1, 1, 2, 3, 5)


@functools.cache
def plain(rule: str) -> GenerateOutput:
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


def run(kind: str, rule: str = 'greedy', **options) -> GenerateOutput:
  options = dict(drafter=drafter(kind, rule), rule=RULES[rule]) | OPTIONS | options
  return generation.generate(tiny.target(), tiny.PROMPTS, **options)
