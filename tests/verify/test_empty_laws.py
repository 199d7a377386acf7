"""Exact laws where there is nothing to draw from: at a node for the draft, at a row for the target.

One program enumerates all rules, and drafters that say of such nodes that they are valid.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import heads
from specjax import testing
from specjax import verify
from specjax.heads import eagle as eagle_lib
from specjax.kernels import accept
from specjax.models import LanguageModel, Transformer, TransformerConfig
from tests.support import by_row
from tests.support import nothing_to_draw as nothing

pytestmark = pytest.mark.usefixtures('compiled_fast')
THROUGH = {
    name: accept.through(getattr(verify, name)(), 'xla')
    for name in ('rejection', 'block', 'recursive')
}
TREE_RULES = verify.recursive(), verify.traversal(), THROUGH['recursive']
REPLACED_RULES = *TREE_RULES, verify.k_sequential()
CHAIN_RULES = verify.rejection(), verify.block(), verify.traversal(), THROUGH['block']
OTHER_RULES = verify.recursive(), verify.k_sequential(), THROUGH['rejection'], THROUGH['recursive']
# Two siblings, the first of which goes on: three nodes, two deep.
UNEVEN = [(0,), (1,), (0, 0)]
DYNAMIC = drafters.dynamic_tree(num_nodes=3, depth=2, width=2)
SIZES = dict(width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=16)


@functools.cache
def head_target() -> LanguageModel:
  module = Transformer(TransformerConfig(vocab_size=nothing.VOCAB, num_layers=2, **SIZES))
  params = jax.jit(lambda: module.init(jax.random.key(5), jnp.zeros((1, 4), jnp.int32)))()
  return LanguageModel(module, params['params'])


@functools.cache
def head() -> heads.Eagle:
  """EAGLE-3's, which knows the tokens that the draft model knows."""
  config = heads.EagleConfig(
      decoder=TransformerConfig(vocab_size=2, num_layers=1, **SIZES), target_width=16,
      target_vocab_size=nothing.VOCAB, feature_layers=(1, 2), version=3,
  )
  module = heads.EagleHead(config)
  params = jax.jit(lambda: eagle_lib.init_params(module, jax.random.key(4)))()
  return heads.Eagle(module, params, None, jnp.asarray([0, 1], jnp.int32))


def eagle(**shape):
  return lambda draft: drafters.eagle(head(), head_target(), **shape)


def tree(siblings, shape=UNEVEN):
  return lambda draft: drafters.model_tree(draft, tree=shape, siblings=siblings)


def chain(**options):
  return lambda draft: drafters.model(draft, num_speculative_tokens=3, **options)


# What drafts, the rules that verify it, and how many tokens are enumerated.
REPLACED, LEFT = 'with_replacement', 'without_replacement'
DRAFTERS = {
    'chain': (chain(), CHAIN_RULES, 4),
    'chain, other rules': (chain(), OTHER_RULES, 4),
    'adaptive': (chain(min_confidence=0.3), CHAIN_RULES, 4),
    'tree with replacement': (tree(REPLACED), REPLACED_RULES, 3),
    'tree without replacement': (tree(LEFT), TREE_RULES, 3),
    'tree by rank': (tree('rank'), TREE_RULES, 3),
    'dynamic tree': (tree(None, DYNAMIC), TREE_RULES, 3),
    'head': (eagle(num_speculative_tokens=2), CHAIN_RULES, 3),
    'head, other rules': (eagle(num_speculative_tokens=2), OTHER_RULES, 3),
    'head, tree with replacement': (eagle(tree=UNEVEN, siblings=REPLACED), REPLACED_RULES, 3),
    'head, tree without replacement': (eagle(tree=UNEVEN, siblings=LEFT), TREE_RULES, 3),
    'head, dynamic tree': (eagle(tree=DYNAMIC), TREE_RULES, 3),
}
# Independent draws: of siblings that exhaust a law the engine cannot know.
INDEPENDENT = 'chain', 'chain, other rules', 'tree with replacement'


def check(name: str, case: str, *, manner=nothing.SHIPPED, target=None, draft=nothing.DRAFT):
  """The law of every rule's output is the target's."""
  make, rules, length = DRAFTERS[name]
  if target is None:
    target = head_target() if name.startswith('head') else nothing.TARGET
  laws = testing.output_law(
      target,
      [nothing.PROMPT] * 2 * len(rules),
      rule=by_row.ByRow(rules, nothing.VOCAB),
      drafter=nothing.Mannered(make(draft), len(rules)),
      sampling=nothing.settings(case, manner=manner, num_rules=len(rules)),
      max_new_tokens=length,
  )
  expected = testing.plain_law(
      target, [nothing.PROMPT] * 2, sampling=nothing.settings(case), max_new_tokens=length
  )
  found = np.zeros(len(rules))
  for index, law in enumerate(laws):
    setting, rule = divmod(index, len(rules))
    found[rule] = max(found[rule], testing.max_difference(law, expected[setting]))
  assert found.max() < 1e-6, dict(zip([str(rule) for rule in rules], found))


@pytest.mark.parametrize('name', DRAFTERS)
def test_output_law_is_the_targets(name):
  for case in ('grammar', 'bias'):
    check(name, case)


@pytest.mark.parametrize('name', INDEPENDENT)
def test_whatever_a_drafter_says_is_valid(name):
  for manner in (nothing.SAYS_NAN, nothing.SAYS_EMPTY):
    for case in ('grammar', 'bias'):
      check(name, case, manner=manner)


@pytest.mark.parametrize('name', INDEPENDENT)
def test_rows_that_plain_decoding_never_sees(name):
  """After token 2, which is never said but drafted, the target has no law."""
  for value in (np.nan, -np.inf):
    check(
        name, 'never 2', manner=nothing.UNRULY, target=nothing.broken_after_two(value),
        draft=nothing.OTHER_DRAFT,
    )
