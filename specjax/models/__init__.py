"""Targets and drafts: one decoder for all families, and a model with its weights."""

from specjax.models import presets
from specjax.models.config import RopeScaling, TransformerConfig
from specjax.models.hf import load_config, load_hf, save_hf
from specjax.models.language_model import LanguageModel
from specjax.models.tokenizer import load_eos_ids, load_tokenizer
from specjax.models.transformer import Output, Transformer

__all__ = [
    'LanguageModel',
    'Output',
    'RopeScaling',
    'Transformer',
    'TransformerConfig',
    'load_config',
    'load_eos_ids',
    'load_hf',
    'load_tokenizer',
    'presets',
    'save_hf',
]
