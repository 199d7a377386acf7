"""Drafters: everything that can propose tokens, one file each.

A drafter of your own is any pytree with the methods of `specjax.types.Drafter`.
"""

from specjax.drafters.model import ModelDrafter, model
from specjax.drafters.ngram import NgramDrafter, ngram
from specjax.drafters.plain import Plain, plain
from specjax.drafters.synthetic import SyntheticDrafter, synthetic

__all__ = [
    'ModelDrafter',
    'NgramDrafter',
    'Plain',
    'SyntheticDrafter',
    'model',
    'ngram',
    'plain',
    'synthetic',
]
