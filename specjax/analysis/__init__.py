"""What to expect, what was measured, and whether the two agree."""

from specjax.analysis import calibration
from specjax.analysis import costs
from specjax.analysis import identity
from specjax.analysis import records
from specjax.analysis import sampled_law
from specjax.analysis import statistics
from specjax.analysis import theory
from specjax.analysis import traces
from specjax.analysis.calibration import calibrate
from specjax.analysis.costs import Calibration
from specjax.analysis.records import Record, record

__all__ = [
    'Calibration',
    'Record',
    'calibrate',
    'calibration',
    'costs',
    'identity',
    'record',
    'records',
    'sampled_law',
    'statistics',
    'theory',
    'traces',
]
