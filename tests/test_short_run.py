"""The short run leaves out no factor's only level, and its table is up to date."""

import types

import pytest

from tests.support import short_run


def case(name: str, **params):
  parameters = f'[{"-".join(params.values())}]' if params else ''
  made = types.SimpleNamespace(nodeid=f'tests/test_a.py::{name}{parameters}')
  if params:
    made.callspec = types.SimpleNamespace(params=params)
  return made


ITEMS = [
    *(case('test_product', rule=rule, tree=tree) for rule in 'rs' for tree in 'tu'),
    case('test_long'),
    case('test_same'),
]


def table(**entries) -> dict:
  return {f'tests/test_a.py::{name}': entry for name, entry in entries.items()}


def test_every_level_of_every_factor_is_in_the_short_run(request):
  assert short_run.problems(request.config.stash[short_run.COLLECTED]) == []


def test_cases_that_the_table_does_not_name_are_left_out():
  right = table(test_product=short_run.Short(('r-t', 's-u'), 'pairs'))
  kept, left = short_run.split(ITEMS, right)
  assert [short_run.case_of(item) for item in left] == ['r-u', 's-t']
  assert len(kept) == 4
  assert short_run.problems(ITEMS, right) == []


@pytest.mark.parametrize(
    'entry, message',
    [
        (short_run.Short(('r-t', 'r-u'), ''), "no case of rule='s' is kept"),
        (short_run.Short(('r-t', 's-v', 's-u'), ''), "'s-v', which is none of its cases"),
        (short_run.Short(('r-t', 'r-u', 's-t', 's-u'), ''), 'nothing of it is left out'),
        (short_run.Short((), ''), 'or name the test that holds the same instead'),
        (short_run.Short((), '', 'tests/test_a.py::test_other'), 'is not kept'),
    ],
)
def test_a_wrong_table_is_found(entry, message):
  found = short_run.problems(ITEMS, table(test_product=entry))
  assert any(message in problem for problem in found), found


def test_a_test_that_is_gone_is_found():
  gone = table(test_gone=short_run.Short((), '', 'tests/test_a.py::test_same'))
  assert 'there is no such test' in short_run.problems(ITEMS, gone)[0]


def test_a_whole_test_may_be_left_out_where_another_holds_the_same():
  assert not short_run.problems(
      ITEMS, table(test_long=short_run.Short((), 'long', 'tests/test_a.py::test_same'))
  )
