"""The acceptance op: which drafted tokens stay, without a row of probabilities.

One op (`accept`), one definition (`xla`), one file a backend. `through` makes a rule of
`specjax.verify` that decides with it in the engine.
"""

from specjax.kernels.accept.api import accept
from specjax.kernels.accept.base import IMPLEMENTATIONS
from specjax.kernels.accept.base import RULES
from specjax.kernels.accept.base import Accepted
from specjax.kernels.accept.base import Noise
from specjax.kernels.accept.base import Uniforms
from specjax.kernels.accept.rule import through
from specjax.kernels.accept.sharded import Split

__all__ = [
    'IMPLEMENTATIONS',
    'RULES',
    'Accepted',
    'Noise',
    'Split',
    'Uniforms',
    'accept',
    'through',
]
