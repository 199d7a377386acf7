"""Heads on a target's hidden features: modules, weights, and published layouts."""

from specjax.heads import presets
from specjax.heads.dflash import DFlash, DFlashConfig, DFlashHead
from specjax.heads.eagle import Eagle, EagleConfig, EagleHead
from specjax.heads.early_exit import EarlyExit, ExitAdapter, ExitConfig, plain_exit
from specjax.heads.hf.dflash import LAYOUTS as DFLASH_LAYOUTS
from specjax.heads.hf.dflash import load_dflash, save_dflash
from specjax.heads.hf.eagle import LAYOUTS, load_eagle, save_eagle
from specjax.heads.hf.early_exit import load_early_exit, save_early_exit
from specjax.heads.hf.medusa import LAYOUTS as MEDUSA_LAYOUTS
from specjax.heads.hf.medusa import load_medusa, save_medusa
from specjax.heads.medusa import Medusa, MedusaConfig, MedusaHeads

__all__ = [
    'DFLASH_LAYOUTS',
    'LAYOUTS',
    'MEDUSA_LAYOUTS',
    'DFlash',
    'DFlashConfig',
    'DFlashHead',
    'Eagle',
    'EagleConfig',
    'EagleHead',
    'EarlyExit',
    'ExitAdapter',
    'ExitConfig',
    'Medusa',
    'MedusaConfig',
    'MedusaHeads',
    'load_dflash',
    'load_eagle',
    'load_early_exit',
    'load_medusa',
    'plain_exit',
    'presets',
    'save_dflash',
    'save_eagle',
    'save_early_exit',
    'save_medusa',
]
