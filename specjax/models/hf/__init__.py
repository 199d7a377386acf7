"""Model folders in the layout of transformers: weights, configs, tokenizers."""

from specjax.models.hf.tokenizer import load_eos_ids, load_tokenizer
from specjax.models.hf.weights import load_config, load_hf, save_hf

__all__ = ['load_config', 'load_eos_ids', 'load_hf', 'load_tokenizer', 'save_hf']
