"""From a config to objects: the only readers of configs.

What comes out are the library's own objects and the records of `experiments.runs.records`; nothing
that runs them sees a config.
"""

from experiments.build.drafters import draft, recipe
from experiments.build.rules import rule, sampling
from experiments.build.generations import chat, generation
from experiments.build.memory import fitting
from experiments.build.plans import plan
from experiments.build.requests import check
from experiments.build.sources import digests
from experiments.build.studies import benchmark, method, streamed, sweep
from experiments.build.synthesis import synthesis
from experiments.build.targets import load
from experiments.build.training import training
from experiments.build.values import choice, dtype, layouts, tree

__all__ = [
    'benchmark',
    'chat',
    'check',
    'choice',
    'digests',
    'draft',
    'dtype',
    'fitting',
    'generation',
    'layouts',
    'load',
    'method',
    'plan',
    'recipe',
    'rule',
    'sampling',
    'streamed',
    'sweep',
    'synthesis',
    'training',
    'tree',
]
