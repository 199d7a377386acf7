"""Lossless speculative decoding in JAX: the public names."""

from specjax import _moved
from specjax import analysis
from specjax import drafters
from specjax import heads
from specjax import models
from specjax import sampling
from specjax import testing
from specjax import verify
from specjax import zoo
from specjax.generation import decode
from specjax.generation import generate
from specjax.generation import stream
from specjax.models.loading import load
from specjax.output import GenerateOutput

__version__ = '0.1.0'

_moved.install()

__all__ = [
    'GenerateOutput',
    'analysis',
    'decode',
    'drafters',
    'generate',
    'heads',
    'load',
    'models',
    'sampling',
    'stream',
    'testing',
    'verify',
    'zoo',
]
