"""Targets and drafts: one decoder for all families, and a model with its weights."""

from specjax.models import chat
from specjax.models import presets
from specjax.models.config import RopeScaling, TransformerConfig
from specjax.models.gguf import (
    load_gguf,
    load_gguf_chat_template,
    load_gguf_config,
    load_gguf_eos_ids,
    load_gguf_special_tokens,
    load_gguf_tokenizer,
)
from specjax.models.hf import load_config, load_eos_ids, load_hf, load_tokenizer, save_hf
from specjax.models.language_model import LanguageModel
from specjax.models.loading import Checkpoint, load
from specjax.models.placement import abstract_params, init_params, place
from specjax.models.transformer import Output, Transformer
from specjax.models.widths import fast_dtype, fast_width

__all__ = [
    'Checkpoint',
    'LanguageModel',
    'Output',
    'RopeScaling',
    'Transformer',
    'TransformerConfig',
    'abstract_params',
    'chat',
    'fast_dtype',
    'fast_width',
    'init_params',
    'load',
    'load_config',
    'load_eos_ids',
    'load_gguf',
    'load_gguf_chat_template',
    'load_gguf_config',
    'load_gguf_eos_ids',
    'load_gguf_special_tokens',
    'load_gguf_tokenizer',
    'load_hf',
    'load_tokenizer',
    'place',
    'presets',
    'save_hf',
]
