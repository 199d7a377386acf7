"""Trees from a draft model: shapes, laws, dynamic selection, caches from round to round."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specjax import drafters
from specjax import generation
from specjax import sampling
from specjax import tree as tree_lib
from specjax import types
from specjax import verify
from specjax.drafters import expansion
from specjax.output import GenerateOutput
from tests.support import tiny
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')

OPTIONS = dict(max_new_tokens=40, prefill_chunk=8)
RULES = {'greedy': verify.greedy(), 'coupled': verify.coupled()}
PATHS = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
SHAPES = {
    'static': tree_lib.static_tree(paths=PATHS),
    'dynamic': tree_lib.dynamic_tree(num_nodes=9, depth=3, width=3),
}


def test_shapes_by_hand():
  shape = tree_lib.static_tree(paths=reversed(PATHS))
  assert shape.parents == (0, 0, 0, 1, 1, 2, 4)
  assert shape.depths == (0, 1, 1, 1, 2, 2, 2, 3) and shape.depth == 3
  assert shape.num_reads == 3 and not shape.is_chain
  assert shape.levels() == (
      tree_lib.Level(rows=(0,), counts=(3,), first=1),
      tree_lib.Level(rows=(1, 2), counts=(2, 1), first=4),
      tree_lib.Level(rows=(4,), counts=(1,), first=7),
  )
  assert shape.path(7) == (1, 4, 7)
  assert tree_lib.as_tree([1, 1, 1]).is_chain
  assert tree_lib.as_tree(PATHS) == tree_lib.as_tree(shape) == shape
  assert tree_lib.dynamic_tree(num_nodes=60, depth=6).num_reads == 50


@pytest.mark.parametrize('make, message', [
    (lambda: tree_lib.static_tree(), 'either paths= or widths='),
    (lambda: tree_lib.static_tree(widths=(2, 0)), 'from 1 on'),
    (lambda: tree_lib.static_tree(paths=[()]), 'at least one path'),
    (lambda: tree_lib.static_tree(paths=[(0,), (1, 0)]), r'needs \(1,\)'),
    (lambda: tree_lib.static_tree(paths=[(0,), (2,)]), r'needs \(1,\)'),
    (lambda: tree_lib.static_tree(paths=[(0,), (-1,)]), 'negative'),
    (lambda: tree_lib.dynamic_tree(num_nodes=0, depth=1), 'at least 1'),
    (lambda: tree_lib.dynamic_tree(num_nodes=7, depth=2, width=2), '6 candidates'),
    (
        lambda: drafters.model_tree(
            tiny.target(), tree=SHAPES['dynamic'], siblings='with_replacement'
        ),
        "had they been drawn.*siblings='rank'",
    ),
    (lambda: drafters.model_tree(tiny.target(), siblings='best'), 'siblings must be one of'),
])
def test_refusals(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@functools.cache
def plain(rule: str) -> GenerateOutput:
  return generation.decode(tiny.target(), tiny.PROMPTS, rule=RULES[rule], **OPTIONS)


@functools.cache
def run(shape: str, rule: str = 'greedy', draft: str = 'related', **options):
  model = tiny.target() if draft == 'target' else tiny.related_draft()
  drafter = drafters.model_tree(model, tree=SHAPES[shape])
  return generation.generate(
      tiny.target(),
      tiny.PROMPTS,
      drafter=drafter,
      rule=RULES[rule],
      trace=True,
      **(OPTIONS | options),
  )


@pytest.mark.parametrize('shape, rule', [
    ('static', 'greedy'), ('static', 'coupled'), ('dynamic', 'greedy')
])
def test_output_is_plain_decodings(shape, rule):
  output = run(shape, rule)
  np.testing.assert_array_equal(output.tokens, plain(rule).tokens)
  assert output.mean_acceptance_length > 1.3
  # The other branches are of use: some accepted path leaves the first one.
  parents, path = output.trace.parents[0, 0], output.trace.path
  first = np.flatnonzero(parents == 0)[0] + 1
  assert ((path[..., 0] > first).any()) or shape == 'dynamic'


@pytest.mark.parametrize('shape', SHAPES)
def test_a_draft_that_is_the_target_is_always_right(shape):
  """So nothing that it reads, in any round, may differ from what the target reads."""
  output = run(shape, draft='target')
  depth = SHAPES[shape].depth
  for row in range(4):
    rounds = np.flatnonzero(output.trace.starts[row])
    assert (output.trace.num_accepted[row, rounds] >= depth - (shape == 'dynamic')).all()


def ranked(model, tokens):
  """The draft's next tokens by log-probability after `tokens`, from scratch."""
  padded = np.zeros((1, 64), np.int32)
  padded[0, : len(tokens)] = tokens
  law = np.asarray(from_scratch(model, jnp.asarray(padded)))[0, len(tokens) - 1]
  order = np.argsort(-law, kind='stable')
  return order, law


@jax.jit
def from_scratch(model, tokens):
  return jax.nn.log_softmax(model(tokens).logits)


jitted_law = jax.jit(sampling.law)


def naive_tree(model, prefix, shape: tree_lib.DynamicTree):
  """EAGLE-2's tree, node by node: the set of (path, score) that is kept."""
  expand, candidates = [((), 0.0)], []
  for _ in range(shape.depth):
    found = []
    for path, score in expand:
      order, law = ranked(model, [*prefix, *path])
      found += [((*path, int(t)), score + law[t]) for t in order[: shape.width]]
    expand = sorted(found, key=lambda x: -x[1])[: shape.width]
    candidates += found
  return {path for path, _ in sorted(candidates, key=lambda x: -x[1])[: shape.num_nodes]}


@pytest.mark.parametrize('shape', SHAPES)
def test_nodes_are_the_most_probable_after_their_path(shape):
  """In every round, of every row: against a draft that reads each path from scratch."""
  output, draft, spec = run(shape), tiny.related_draft(), SHAPES[shape]
  trace = output.trace
  for row in (0, 1, 3):
    for index in np.flatnonzero(trace.starts[row])[:5]:
      prefix = output.tokens[row, : trace.starts[row, index]].tolist()
      nodes, parents = trace.tokens[row, index], trace.parents[row, index]
      paths = {0: ()}
      for node, (token, parent) in enumerate(zip(nodes.tolist(), parents.tolist()), start=1):
        paths[node] = (*paths[parent], token)
      found = [paths[node] for node in range(1, spec.num_nodes + 1)]
      assert trace.valid[row, index].all() and len(set(found)) == len(found)
      if shape == 'dynamic':
        assert set(found) == naive_tree(draft, prefix, spec)
        continue
      for node, parent in enumerate(spec.parents, start=1):
        rank = node - 1 - spec.parents.index(parent)
        order, _ = ranked(draft, [*prefix, *paths[parent]])
        assert paths[node][-1] == order[rank]


def test_trees_of_a_dynamic_shape_differ_by_row():
  parents = run('dynamic').trace.parents
  assert len(np.unique(parents[:, :4].reshape(-1, parents.shape[-1]), axis=0)) > 3


def propose(siblings, tree=PATHS, **settings):
  """A proposal of the first round, whose draws are sampled, and the draft."""
  draft = tiny.related_draft()
  rule = verify.coupled() if siblings == 'coupled' else verify.rejection()
  drafter = drafters.model_tree(
      draft, tree=tree, siblings=None if siblings == 'coupled' else siblings
  )
  request = generation.Request(
      # The rule is not asked, only its mode: the chain stands for the tree.
      drafter=drafters.model_tree(draft, tree=(1,)),
      rule=rule,
      sampling=sampling.make(batch_size=4, **settings),
      seeds=5,
      prefill_chunk=8,
  )
  setup, state, _, _ = generation.prepare(tiny.target(), tiny.PROMPTS, request)
  sampler = sampling.Sampler(
      source=setup.source(state.keys, state.lengths),
      sampling=setup.sampling,
      history=state.history,
      mode=rule.mode,
      keep_law=True,
  )
  context = types.Context(
      state.tokens, state.lengths, state.done, sampler, None, None, None, None
  )
  cache = drafter.init(batch_size=4, cache_length=64, max_append=16)

  @jax.jit
  def first_round(context, cache):
    num_new = context.lengths - 1
    cache = drafter.prefill(
        cache, target=None, tokens=context.tokens[:, :16], num_new=num_new, features=None
    )
    return drafter.propose(context, cache)[0]

  proposal = first_round(context, cache)
  return jax.tree.map(np.asarray, proposal)


@pytest.mark.parametrize('shape', [(2, 1, 1), 'dynamic'])
def test_no_level_is_read_where_no_row_wants_a_tree(shape):
  if shape == 'dynamic':
    shape = tree_lib.dynamic_tree(num_nodes=5, depth=3, width=2)
  nothing = jnp.zeros((2, 5), bool)
  sampler = sampling.Sampler(
      source=None,
      sampling=sampling.make(batch_size=2),
      history=types.History(nothing, nothing.astype(jnp.int32)),
      mode='greedy',
  )
  context = types.Context(
      None, jnp.full((2,), 3), jnp.zeros((2,), bool), sampler, None, None, None, None
  )

  def step(count, frontier):
    return jnp.zeros((*frontier.tokens.shape, 5)), count + 1

  @jax.jit
  def levels(active):
    drafted = expansion.expand(
        context.replace(active=active), jnp.zeros((2, 5)), step, jnp.int32(0),
        shape=tree_lib.as_tree(shape),
    )
    return drafted.state, drafted.proposal.valid.any(-1)

  for active, count in (([False, False], 0), ([True, False], 2), ([True, True], 2)):
    read, valid = levels(jnp.asarray(active))
    assert int(read) == count
    assert valid.tolist() == active


@pytest.mark.parametrize('siblings', ['with_replacement', 'without_replacement', 'coupled'])
def test_laws_are_the_drafts_after_each_parent(siblings):
  settings = dict(temperature=0.7, top_k=20)
  proposal = propose(siblings, **settings)
  kinds = {
      'with_replacement': types.SAMPLED,
      'without_replacement': types.WITHOUT_REPLACEMENT,
      'coupled': types.COUPLED,
  }
  assert proposal.kind == kinds[siblings] and proposal.valid.all()
  one = sampling.make(batch_size=1, **settings)
  repeated = False
  for row, prompt in enumerate(tiny.PROMPTS):
    paths = {0: ()}
    for node, parent in enumerate(proposal.parents[row], start=1):
      paths[node] = (*paths[parent], proposal.tokens[row, node - 1])
      _, raw = ranked(tiny.related_draft(), [*prompt, *paths[parent]])
      expected = np.asarray(jitted_law(jnp.asarray(raw)[None, None], one))[0, 0]
      law = proposal.law[row, proposal.rows[row, node - 1]]
      tolerated = tolerance.of_logprobs(
          tiny.target().module.config, size=tolerance.largest(raw), temperature=0.7
      )
      np.testing.assert_array_equal(law > -np.inf, expected > -np.inf)
      tolerance.assert_close(law, expected, tolerated)
      assert law[paths[node][-1]] > -np.inf
    for parent in range(4):
      children = proposal.tokens[row][proposal.parents[row] == parent]
      repeated |= len(set(children)) < len(children)
  assert repeated <= (siblings == 'with_replacement')


def test_draws_of_all_nodes_are_independent():
  """Two parents with the same law draw different children now and then, and siblings differ."""
  proposal = propose('with_replacement', tree=(4, 3))
  assert len(np.unique(proposal.tokens[:, :4])) > 4
  assert len(np.unique(proposal.tokens[:, 4:])) > 8


def test_a_law_that_is_exhausted_has_no_more_siblings():
  proposal = propose('without_replacement', tree=(4,), top_k=2)
  assert proposal.valid.tolist() == [[True, True, False, False]] * 4
  proposal = propose('without_replacement', tree=(2, 1), temperature=0.0)
  assert proposal.valid.tolist() == [[True, False, True, True]] * 4
  # With replacement the one token is drawn again and again.
  assert propose('with_replacement', tree=(3,), temperature=0.0).valid.all()


def test_sliding_windows_and_rings():
  """A draft with local layers, whose cache is a ring: it must read as the target does."""
  model = tiny.model(0, num_layers=3, sliding_window=6, local_layers=(True, False, True))
  output = generation.generate(
      model,
      tiny.PROMPTS,
      drafter=drafters.model_tree(model, tree=PATHS),
      trace=True,
      **OPTIONS,
  )
  expected = generation.decode(model, tiny.PROMPTS, **OPTIONS)
  np.testing.assert_array_equal(output.tokens, expected.tokens)
  for row in range(4):
    rounds = np.flatnonzero(output.trace.starts[row])
    assert (output.trace.num_accepted[row, rounds] == 3).all()
