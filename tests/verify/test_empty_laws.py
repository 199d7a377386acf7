"""Exact laws where a draft knows none of the tokens that are allowed next.

The draft knows tokens 0 and 1 of three. Constraints and biases leave it nothing to draw from
at the first, a middle and the last node, or at all of them, depending on what was drawn before.
"""

import dataclasses
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import constraints
from specjax import drafters
from specjax import generation
from specjax import heads
from specjax import sampling as sampling_lib
from specjax import testing
from specjax import verify
from specjax.drafters import vocabulary
from specjax.heads import eagle as eagle_lib
from specjax.kernels import accept
from specjax.models import LanguageModel, Transformer, TransformerConfig

pytestmark = pytest.mark.usefixtures('compiled_fast')
VOCAB = 3
PROMPT = (0, 1, 0)
INF = np.inf
TABLE = testing.table_model(seed=1)
DRAFT = vocabulary.with_tables(
    testing.table_model(vocab_size=2, seed=9), said=[0, 1, -1], read=[0, 1, 0]
)
# What may follow: 0, then the unknown token; 1, another known one, then the unknown one; or the
# unknown token twice; and then anything, and so on from the start.
GRAMMAR = constraints.TokenAutomaton.create([
    [1, 2, 3], [-1, -1, 4], [1, 1, -1], [-1, -1, 4], [0, 0, 0]
])
FREE = constraints.TokenAutomaton.create(np.zeros((5, VOCAB), int))
# Two rows of settings for each: a bias that leaves the unknown token alone, and one that leaves
# it and a known one.
CASES = {
    'grammar': (GRAMMAR, dict(temperature=(1.0, 0.6), logit_bias=[(0.0, 0.0, 0.0)] * 2)),
    'bias': (FREE, dict(
        temperature=(1.0, 0.6), logit_bias=[(-INF, -INF, 0.0), (-INF, 0.4, 0.0)]
    )),
}
# Two siblings, the first of which goes on: three nodes, two deep.
UNEVEN = [(0,), (1,), (0, 0)]
DYNAMIC = drafters.dynamic_tree(num_nodes=3, depth=2, width=2)
THROUGH = tuple(
    accept.through(rule, 'xla') for rule in (verify.rejection(), verify.block(), verify.recursive())
)
TREE_RULES = (verify.recursive(), verify.traversal(), THROUGH[-1])
CHAIN_RULES = (
    verify.rejection(), verify.block(), verify.recursive(), verify.traversal(),
    verify.k_sequential(), *THROUGH,
)


@dataclasses.dataclass(frozen=True)
class ByRow:
  """Another rule for each row, so that one program enumerates them all.

  A row names its rule with a top-k that keeps the whole vocabulary: VOCAB for the first one,
  VOCAB + 1 for the second.
  """

  rules: tuple
  name: str = 'by row'
  mode: str = 'sample'
  handles_trees: bool = True
  lossless: bool = True
  takes_logits: bool = True

  def __call__(self, *, logits, sampling, **kwargs):
    law = sampling_lib.law(logits, sampling)
    which = sampling.top_k - VOCAB

    def decide(rule):
      if getattr(rule, 'takes_logits', False):
        return rule(logits=logits, sampling=sampling, **kwargs)
      return rule(target_law=law, **kwargs)

    def choose(*results):
      picked = results[0]
      for index, result in enumerate(results):
        own = (which == index).reshape(-1, *[1] * (result.ndim - 1))
        picked = jnp.where(own, result, picked)
      return picked

    return jax.tree.map(choose, *map(decide, self.rules))


def label(rule) -> str:
  return f'{rule.name} through the op' if hasattr(rule, 'implementation') else rule.name


def settings(case: str, num_rules: int = 1):
  """Rows: all rules under the first settings of a case, then under the second."""
  constraint, columns = CASES[case]
  columns = {name: np.repeat(values, num_rules, axis=0) for name, values in columns.items()}
  return sampling_lib.make(
      batch_size=2 * num_rules, constraint=constraint,
      top_k=np.tile(VOCAB + np.arange(num_rules), 2), **columns,
  )


@functools.cache
def plain_laws(case: str, max_new_tokens: int, is_head: bool):
  return testing.plain_law(
      target() if is_head else TABLE, [PROMPT] * 2, sampling=settings(case),
      max_new_tokens=max_new_tokens,
  )


def errors(drafter, rules, case: str, max_new_tokens: int, is_head: bool = False) -> dict:
  """The largest error of every rule."""
  laws = testing.output_law(
      target() if is_head else TABLE,
      [PROMPT] * 2 * len(rules),
      rule=ByRow(tuple(rules)),
      drafter=drafter,
      sampling=settings(case, len(rules)),
      max_new_tokens=max_new_tokens,
  )
  found = {}
  for index, law in enumerate(laws):
    setting, rule = divmod(index, len(rules))
    error = testing.max_difference(law, plain_laws(case, max_new_tokens, is_head)[setting])
    found[label(rules[rule])] = max(found.get(label(rules[rule]), 0.0), error)
  return found


def check(found: dict, rules):
  assert len(found) == len(rules) and max(found.values()) < 1e-6, found


# A head that knows two of the three tokens, on a target with features.


@functools.cache
def target() -> LanguageModel:
  module = Transformer(TransformerConfig(
      vocab_size=VOCAB, num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8,
      mlp_width=16,
  ))
  params = jax.jit(lambda: module.init(jax.random.key(5), jnp.zeros((1, 4), jnp.int32)))()
  return LanguageModel(module, params['params'])


@functools.cache
def head() -> heads.Eagle:
  config = heads.EagleConfig(
      decoder=TransformerConfig(
          vocab_size=2, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8,
          mlp_width=16,
      ),
      target_width=16, target_vocab_size=VOCAB, feature_layers=(1, 2), version=3,
  )
  module = heads.EagleHead(config)
  params = jax.jit(lambda: eagle_lib.init_params(module, jax.random.key(4)))()
  return heads.Eagle(module, params, None, jnp.asarray([0, 1], jnp.int32))


def eagle(**shape):
  return lambda: drafters.eagle(head(), target(), **shape)


def tree(siblings, shape=UNEVEN):
  return lambda: drafters.model_tree(DRAFT, tree=shape, siblings=siblings)


def chain(**options):
  return lambda: drafters.model(DRAFT, num_speculative_tokens=3, **options)


# What drafts, the rules that verify it, and how many tokens are enumerated.
REPLACED, LEFT = 'with_replacement', 'without_replacement'
DRAFTERS = {
    'chain': (chain(), CHAIN_RULES, 4),
    'adaptive': (chain(min_confidence=0.3), CHAIN_RULES, 4),
    'tree with replacement': (tree(REPLACED), (*TREE_RULES, verify.k_sequential()), 3),
    'tree without replacement': (tree(LEFT), TREE_RULES, 3),
    'tree by rank': (tree('rank'), TREE_RULES, 3),
    'dynamic tree': (tree(None, DYNAMIC), TREE_RULES, 3),
    'head': (eagle(num_speculative_tokens=2), CHAIN_RULES, 3),
    'head, tree with replacement': (
        eagle(tree=UNEVEN, siblings=REPLACED), (*TREE_RULES, verify.k_sequential()), 3
    ),
    'head, tree without replacement': (eagle(tree=UNEVEN, siblings=LEFT), TREE_RULES, 3),
    'head, dynamic tree': (eagle(tree=DYNAMIC), TREE_RULES, 3),
}


@pytest.mark.parametrize('name', DRAFTERS)
def test_output_law_is_the_targets(name):
  make, rules, length = DRAFTERS[name]
  drafter = make()
  for case in CASES:
    check(errors(drafter, rules, case, length, name.startswith('head')), rules)


def test_the_draft_is_empty_at_the_first_a_middle_and_the_last_node():
  """So that the grammar is one that tries them all."""
  output = generation.generate(
      TABLE, [PROMPT] * 200, drafter=chain()(), rule=verify.block(), max_new_tokens=6, trace=True,
      sampling=sampling_lib.make(batch_size=200, constraint=GRAMMAR),
  )
  real = output.trace.starts > 0
  assert set(output.trace.valid[real].sum(axis=-1).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize('rule', [verify.greedy(), verify.coupled()], ids=lambda rule: rule.name)
def test_output_is_plain_decodings(rule):
  rows = 64
  for case, (constraint, columns) in CASES.items():
    options = dict(
        rule=rule, max_new_tokens=6, cache_length=16, prefill_chunk=8, seeds=0,
        sampling=sampling_lib.make(
            batch_size=rows, constraint=constraint,
            **{name: np.repeat(values, rows // 2, axis=0) for name, values in columns.items()},
        ),
    )
    plain = generation.decode(TABLE, [PROMPT] * rows, **options)
    for make in (chain(), tree(None)):
      output = generation.generate(TABLE, [PROMPT] * rows, drafter=make(), **options)
      np.testing.assert_array_equal(output.tokens, plain.tokens, case)
      # What cannot be drawn is not proposed, in these modes either.
      if case == 'bias':
        assert (output.stats.proposed[: rows // 2] == 0).all()


# Drafters of one's own.


@struct.dataclass
class Careless:
  """Says that all that it hands over is valid, and has `fill` for a law where it has none."""

  inner: Any
  fill: float = struct.field(pytree_node=False, default=np.nan)

  def __getattr__(self, name: str):
    return getattr(object.__getattribute__(self, 'inner'), name)

  def propose(self, context, state):
    proposal, state, context = self.inner.propose(context, state)
    is_empty = jnp.max(proposal.law, axis=-1, keepdims=True) == -jnp.inf
    law = jnp.where(is_empty, self.fill, proposal.law)
    valid = jnp.ones_like(proposal.valid)
    return proposal.replace(valid=valid, law=law), state, context


@pytest.mark.parametrize('fill', [np.nan, -INF])
@pytest.mark.parametrize('name', ['chain', 'tree with replacement'])
def test_whatever_a_drafter_says_is_valid(name, fill):
  """Independent draws: none of them is exhausted by its siblings."""
  make, rules, _ = DRAFTERS[name]
  check(errors(Careless(make(), fill), rules, 'grammar', 3), rules)
