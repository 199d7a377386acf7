"""GGUF files: weights, configuration, tokenizer and chat template from one file."""

from specjax.models.gguf.config import load_gguf_config
from specjax.models.gguf.tokenizer import (
    load_gguf_chat_template,
    load_gguf_eos_ids,
    load_gguf_special_tokens,
    load_gguf_tokenizer,
)
from specjax.models.gguf.weights import load_gguf

__all__ = [
    'load_gguf',
    'load_gguf_chat_template',
    'load_gguf_config',
    'load_gguf_eos_ids',
    'load_gguf_special_tokens',
    'load_gguf_tokenizer',
]
