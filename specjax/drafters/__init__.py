"""Drafters: everything that can propose tokens, one file each.

A drafter of your own is any pytree with the members of `specjax.types.Drafter`; classes to derive
from, with their defaults, are in `specjax.drafters.base`.
"""

from specjax.drafters import expansion
from specjax.drafters.combined import CombinedDrafter, combined
from specjax.drafters.dflash import DFlashDrafter, dflash
from specjax.drafters.eagle import EagleDrafter, eagle
from specjax.drafters.early_exit import EarlyExitDrafter, early_exit
from specjax.drafters.medusa import MedusaDrafter, medusa
from specjax.drafters.model import ModelDrafter, model
from specjax.drafters.model_tree import ModelTreeDrafter, model_tree
from specjax.drafters.ngram import NgramDrafter, ngram
from specjax.drafters.plain import Plain, plain
from specjax.drafters.suffix import SuffixDrafter, suffix
from specjax.drafters.synthetic import SyntheticDrafter, synthetic
from specjax.drafters.vocabulary import translate
from specjax.tree import best_first_tree, dynamic_tree, static_tree

__all__ = [
    'CombinedDrafter',
    'DFlashDrafter',
    'EagleDrafter',
    'EarlyExitDrafter',
    'MedusaDrafter',
    'ModelDrafter',
    'ModelTreeDrafter',
    'NgramDrafter',
    'Plain',
    'SuffixDrafter',
    'SyntheticDrafter',
    'best_first_tree',
    'combined',
    'dflash',
    'dynamic_tree',
    'eagle',
    'early_exit',
    'expansion',
    'medusa',
    'model',
    'model_tree',
    'ngram',
    'plain',
    'static_tree',
    'suffix',
    'synthetic',
    'translate',
]
