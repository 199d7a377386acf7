"""For tests of rules and drafters, yours included: exactly known models, enumeration, statistics.

The output law of the shipped engine, drafter and rule, computed exactly and compared with
plain decoding's:

>>> from specjax import drafters, testing, verify
>>> target, draft = testing.table_model(seed=0), testing.table_model(seed=1)
>>> drafter = drafters.model(draft, num_speculative_tokens=2)
>>> speculative = testing.output_law(
...     target, [[0]], drafter=drafter, rule=verify.rejection(), max_new_tokens=2)
>>> plain = testing.plain_law(target, [[0]], max_new_tokens=2)
>>> testing.max_difference(speculative[0], plain[0]) < 1e-6
True
"""

from specjax.testing.chi_square import chi_square
from specjax.testing.chi_square import ChiSquare
from specjax.testing.chi_square import max_difference
from specjax.testing.chi_square import total_variation
from specjax.testing.enumeration import enumerate_round
from specjax.testing.enumeration import expected_accepted
from specjax.testing.enumeration import output_law
from specjax.testing.enumeration import RoundLaw
from specjax.testing.plain import plain_law
from specjax.testing.replay import ReplaySource
from specjax.testing.table_model import table_model
from specjax.testing.table_model import TableModel

__all__ = [
    'ChiSquare',
    'ReplaySource',
    'RoundLaw',
    'TableModel',
    'chi_square',
    'enumerate_round',
    'expected_accepted',
    'max_difference',
    'output_law',
    'plain_law',
    'table_model',
    'total_variation',
]
