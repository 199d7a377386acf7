"""Configurations of the published sizes, by name.

`get('Llama-3.1-8B')` gives the `TransformerConfig` that `load_hf` would read from that
model's folder; no weights are needed, so sizes, memory and compilation can be studied
first. Values are those of the base models' `config.json`; their instruction-tuned siblings
share the architecture (in Qwen2.5 from 14B they lower `norm_epsilon` to 1e-6).
`TransformerConfig.num_parameters` equals the published counts, which a test pins.
"""

from collections.abc import Mapping
import math
import types

from specjax.models.config import RopeScaling, TransformerConfig


def get(name: str) -> TransformerConfig:
  """The configuration of a published model.

  >>> get('Llama-3.2-1B').num_parameters
  1235814400

  Raises:
    ValueError: for an unknown name, listing the known ones.
  """
  if name not in PRESETS:
    raise ValueError(f'Unknown model {name!r}. Known are {", ".join(sorted(PRESETS))}.')
  return PRESETS[name]


def _llama(
    width: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    mlp_width: int,
    *,
    head_dim: int = 128,
    **changes,
) -> TransformerConfig:
  """Llama 3; what other families change is given by name."""
  settings = dict(vocab_size=128_256, rope_theta=500_000.0, norm_epsilon=1e-5)
  return TransformerConfig(
      width=width,
      num_layers=num_layers,
      num_heads=num_heads,
      num_kv_heads=num_kv_heads,
      head_dim=head_dim,
      mlp_width=mlp_width,
      **settings | changes,
  )


_LLAMA_2 = dict(vocab_size=32_000, rope_theta=10_000.0, max_positions=4096)


def _llama_31(factor: float = 8.0, **changes) -> dict:
  """What Llama 3.1, 3.2 and 3.3 change in Llama 3."""
  return dict(
      rope_scaling=RopeScaling('llama3', factor, 1.0, 4.0, 8192),
      max_positions=131_072,
      **changes,
  )


def _qwen(
    *sizes: int,
    tie: bool = False,
    vocab_size: int = 151_936,
    norm_epsilon: float = 1e-6,
    max_positions: int = 32_768,
    **changes,
) -> TransformerConfig:
  return _llama(
      *sizes,
      vocab_size=vocab_size,
      rope_theta=1_000_000.0,
      norm_epsilon=norm_epsilon,
      tie_embeddings=tie,
      max_positions=max_positions,
      **changes,
  )


def _qwen25_large(*sizes: int) -> TransformerConfig:
  return _qwen(
      *sizes, vocab_size=152_064, norm_epsilon=1e-5, max_positions=131_072, qkv_bias=True
  )


def _qwen3(*sizes: int, tie: bool = False) -> TransformerConfig:
  return _qwen(*sizes, tie=tie, max_positions=40_960, qk_norm=True)


def _gemma(*sizes: int, head_dim: int, query_scalar: int, **changes) -> TransformerConfig:
  settings = dict(
      norm_epsilon=1e-6,
      tie_embeddings=True,
      post_norms=True,
      norm_offset=1.0,
      embedding_scale=math.sqrt(sizes[0]),
      activation='gelu_tanh',
      query_scale=query_scalar**-0.5 if query_scalar != head_dim else None,
  )
  return _llama(*sizes, head_dim=head_dim, **settings | changes)


def _gemma2(
    *sizes: int, head_dim: int = 256, query_scalar: int = 256
) -> TransformerConfig:
  return _gemma(
      *sizes,
      head_dim=head_dim,
      query_scalar=query_scalar,
      vocab_size=256_000,
      rope_theta=10_000.0,
      attention_soft_cap=50.0,
      logit_soft_cap=30.0,
      sliding_window=4096,
      local_layers=tuple(layer % 2 == 0 for layer in range(sizes[1])),
      max_positions=8192,
  )


def _gemma3(
    *sizes: int, head_dim: int = 256, query_scalar: int = 256, **changes
) -> TransformerConfig:
  settings = dict(
      vocab_size=262_208,
      rope_theta=1_000_000.0,
      rope_scaling=RopeScaling('linear', 8.0),
      local_rope_theta=10_000.0,
      qk_norm=True,
      sliding_window=1024,
      local_layers=tuple(layer % 6 != 5 for layer in range(sizes[1])),
      max_positions=131_072,
  )
  return _gemma(*sizes, head_dim=head_dim, query_scalar=query_scalar, **settings | changes)


# Sizes: width, layers, heads, key-value heads, MLP width.
PRESETS: Mapping[str, TransformerConfig] = types.MappingProxyType({
    'Llama-2-7B': _llama(4096, 32, 32, 32, 11_008, **_LLAMA_2),
    'Llama-2-13B': _llama(5120, 40, 40, 40, 13_824, **_LLAMA_2),
    'Llama-2-70B': _llama(8192, 80, 64, 8, 28_672, **_LLAMA_2),
    'Llama-3-8B': _llama(4096, 32, 32, 8, 14_336),
    'Llama-3-70B': _llama(8192, 80, 64, 8, 28_672),
    'Llama-3.1-8B': _llama(4096, 32, 32, 8, 14_336, **_llama_31()),
    'Llama-3.1-70B': _llama(8192, 80, 64, 8, 28_672, **_llama_31()),
    'Llama-3.1-405B': _llama(16_384, 126, 128, 8, 53_248, **_llama_31()),
    'Llama-3.2-1B': _llama(
        2048, 16, 32, 8, 8192, head_dim=64, **_llama_31(32.0, tie_embeddings=True)
    ),
    'Llama-3.2-3B': _llama(3072, 28, 24, 8, 8192, **_llama_31(32.0, tie_embeddings=True)),
    'Llama-3.3-70B': _llama(8192, 80, 64, 8, 28_672, **_llama_31()),
    'Mistral-7B-v0.1': _llama(
        4096,
        32,
        32,
        8,
        14_336,
        vocab_size=32_000,
        rope_theta=10_000.0,
        sliding_window=4096,
        max_positions=32_768,
    ),
    'Mistral-7B-v0.3': _llama(
        4096, 32, 32, 8, 14_336, vocab_size=32_768, rope_theta=1e6, max_positions=32_768
    ),
    'Qwen2.5-0.5B': _qwen(896, 24, 14, 2, 4864, head_dim=64, tie=True, qkv_bias=True),
    'Qwen2.5-1.5B': _qwen(
        1536, 28, 12, 2, 8960, tie=True, qkv_bias=True, max_positions=131_072
    ),
    'Qwen2.5-3B': _qwen(2048, 36, 16, 2, 11_008, tie=True, qkv_bias=True),
    'Qwen2.5-7B': _qwen(
        3584, 28, 28, 4, 18_944, vocab_size=152_064, qkv_bias=True, max_positions=131_072
    ),
    'Qwen2.5-14B': _qwen25_large(5120, 48, 40, 8, 13_824),
    'Qwen2.5-32B': _qwen25_large(5120, 64, 40, 8, 27_648),
    'Qwen2.5-72B': _qwen25_large(8192, 80, 64, 8, 29_568),
    'Qwen3-0.6B': _qwen3(1024, 28, 16, 8, 3072, tie=True),
    'Qwen3-1.7B': _qwen3(2048, 28, 16, 8, 6144, tie=True),
    'Qwen3-4B': _qwen3(2560, 36, 32, 8, 9728, tie=True),
    'Qwen3-8B': _qwen3(4096, 36, 32, 8, 12_288),
    'Qwen3-14B': _qwen3(5120, 40, 40, 8, 17_408),
    'Qwen3-32B': _qwen3(5120, 64, 64, 8, 25_600),
    'Gemma-2-2B': _gemma2(2304, 26, 8, 4, 9216),
    'Gemma-2-9B': _gemma2(3584, 42, 16, 8, 14_336),
    'Gemma-2-27B': _gemma2(4608, 46, 32, 16, 36_864, head_dim=128, query_scalar=144),
    'Gemma-3-1B': _gemma3(
        1152,
        26,
        4,
        1,
        6912,
        vocab_size=262_144,
        rope_scaling=None,
        sliding_window=512,
        max_positions=32_768,
    ),
    'Gemma-3-4B': _gemma3(2560, 34, 8, 4, 10_240),
    'Gemma-3-12B': _gemma3(3840, 48, 16, 8, 15_360),
    'Gemma-3-27B': _gemma3(5376, 62, 32, 16, 21_504, head_dim=128, query_scalar=168),
})
