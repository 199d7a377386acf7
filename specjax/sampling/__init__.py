"""From logits to the law that is sampled: one way, for target and drafter alike.

Two steps, which the engine calls in this order on raw logits:

- `control`: logit bias, penalties, allowed tokens. Depends on the tokens before.
- `law`: temperature, top-k, top-p, min-p; normalised log-probabilities.

`Sampler` does both for a drafter and draws. Settings are arrays with one entry per row
(`make`), so that a batch may mix them and changing one does not recompile anything.
"""

from specjax.sampling.law import argmax
from specjax.sampling.law import bisect
from specjax.sampling.law import control
from specjax.sampling.law import Filters
from specjax.sampling.law import first_at
from specjax.sampling.law import law
from specjax.sampling.law import scaled
from specjax.sampling.law import thresholds
from specjax.sampling.penalties import init_history
from specjax.sampling.penalties import update_history
from specjax.sampling.sampler import Drawn
from specjax.sampling.sampler import Sampler
from specjax.sampling.settings import make

__all__ = [
    'Drawn',
    'Filters',
    'Sampler',
    'argmax',
    'bisect',
    'control',
    'first_at',
    'init_history',
    'law',
    'make',
    'scaled',
    'thresholds',
    'update_history',
]
