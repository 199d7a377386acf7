"""The algebra of sweeps, and every named sweep of configs/sweeps.py."""

import jax
import ml_collections
import pytest

from configs import sweeps
from experiments import build
from experiments import sweep
from tests.support import tiny_pair


def test_products_vary_the_last_sweep_fastest():
  found = sweep.prod(sweep.param('a', 1, 2), sweep.param('b.c', 'x', 'y'), sweep.fixed(d__e=0.5))
  assert [dict(arm) for arm in found] == [
      {'a': a, 'b.c': c, 'd.e': 0.5} for a in (1, 2) for c in ('x', 'y')
  ]


def test_zip_and_chain():
  pairs = sweep.zipit(sweep.param('a', 1, 2), sweep.param('b', 3, 4))
  assert pairs == ((('a', 1), ('b', 3)), (('a', 2), ('b', 4)))
  assert sweep.chain(pairs, sweep.param('a', 1), pairs[:1]) == (*pairs, (('a', 1),))
  assert sweep.prod() == ((),)


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: sweep.param('a'), 'at least one value'),
        (lambda: sweep.zipit(sweep.param('a', 1), sweep.param('b', 1, 2)), r'\[1, 2\]'),
        (lambda: sweep.prod(sweep.param('a', 1), sweep.param('a', 2)), "'a' is set twice: to 1"),
        (lambda: sweep.apply(config(), (('b.d', 1),)), 'b.d=1, which the config refuses'),
        (lambda: sweep.apply(config(), (('b.c', 1),)), 'refuses'),
    ],
)
def test_mistakes_are_named(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def config():
  return ml_collections.ConfigDict(dict(a=1, b=dict(c='x')))


def test_an_arm_changes_a_copy():
  base = config()
  changed = sweep.apply(base, (('b.c', 'y'), ('a', 5)))
  assert changed.to_dict() == {'a': 5, 'b': {'c': 'y'}} and base.b.c == 'x'


class TestNamedSweeps:

  @pytest.mark.parametrize('name', sorted(sweeps.SWEEPS))
  @pytest.mark.parametrize('smoke', ['', ',smoke'])
  def test_every_arm_can_be_run(self, name, smoke):
    made = sweeps.get_config(name + smoke)
    arms = build.sweep(made).arms
    assert made.question.endswith('?') and made.title
    for arm in arms:
      if arm.recipe.kind.endswith('_tree'):
        assert build.tree(dict(arm.fields)['drafter.tree']).num_nodes == 12
    assert made.x in dict(arms[0].fields)
    if made.baseline and not smoke:
      wanted = [dict(arm.fields) for arm in arms]
      for arm in arms:
        assert dict(arm.fields) | dict(made.baseline) in wanted

  def test_the_docstring_names_them_all(self):
    for name, function in sweeps.SWEEPS.items():
      assert f'\n    {name} ' in sweeps.__doc__ and function.__doc__

  def test_what_does_not_exist_is_refused(self):
    with pytest.raises(ValueError, match="draft_length, .*'draft_lenght'"):
      sweeps.get_config('draft_lenght')

  def test_the_order_of_arms_and_titles_are_no_part_of_a_key(self):
    made = sweeps.get_config('rule,smoke')
    keys = [arm.key for arm in build.sweep(made).arms]
    made.arms, made.title = made.arms[::-1], 'another'
    assert [arm.key for arm in build.sweep(made).arms] == keys[::-1]
    made.max_new_tokens += 1
    assert not set(keys) & {arm.key for arm in build.sweep(made).arms}


def test_a_draft_alone_can_have_eight_bits():
  loaded = tiny_pair.loaded()
  made = sweeps.get_config('quantisation')
  size = lambda model: sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
  before = size(build.draft(made, loaded))
  made.drafter.int8 = True
  assert size(build.draft(made, loaded)) < before == size(loaded.pair.draft)
