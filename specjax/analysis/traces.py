"""Traces of runs, as `specjax.traces` reads them."""

from specjax.traces import ACCEPTED, BONUS, PLAIN, RECOVERED
from specjax.traces import Node, Round, expected_accepted, pieces, rounds, sources

__all__ = [
    'ACCEPTED',
    'BONUS',
    'PLAIN',
    'RECOVERED',
    'Node',
    'Round',
    'expected_accepted',
    'pieces',
    'rounds',
    'sources',
]
