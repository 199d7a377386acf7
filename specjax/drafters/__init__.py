"""Drafters: everything that can propose tokens, one file each.

A drafter of your own is any pytree with the methods of `specjax.types.Drafter`.
"""

from specjax.drafters.model import ModelDrafter, model
from specjax.drafters.model_tree import ModelTreeDrafter, model_tree
from specjax.drafters.ngram import NgramDrafter, ngram
from specjax.drafters.plain import Plain, plain
from specjax.drafters.synthetic import SyntheticDrafter, synthetic
from specjax.tree import dynamic_tree, static_tree

__all__ = [
    'ModelDrafter',
    'ModelTreeDrafter',
    'NgramDrafter',
    'Plain',
    'SyntheticDrafter',
    'dynamic_tree',
    'model',
    'model_tree',
    'ngram',
    'plain',
    'static_tree',
    'synthetic',
]
