"""The acceptance op: which drafted tokens stay, without a row of probabilities.

One op (`accept`), which runs the rules of `specjax.verify` over rows of logits, and one file per
implementation of these rows: in jnp (`xla`), which the others inherit from or are held to, for
shards of a vocabulary, and in Pallas for TPUs and GPUs. `through` makes a rule of `specjax.verify`
that decides with it in the engine.
"""

from specjax.kernels.accept.api import accept
from specjax.kernels.accept.base import Accepted
from specjax.kernels.accept.base import IMPLEMENTATIONS
from specjax.kernels.accept.base import Noise
from specjax.kernels.accept.base import RULES
from specjax.kernels.accept.base import Uniforms
from specjax.kernels.accept.op_rule import through
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
