"""Weights at the real widths that need no file: the same numbers for this project and another."""

import numpy as np

VOCAB, TOKENS = 512, 24
# Of one layer: width, heads, key-value heads, size of a head, MLP width, scaling factor, tied.
SHAPES = {
    'Llama-3.1-70B': (8192, 64, 8, 128, 28_672, 8.0, False),
    'Llama-3.2-1B': (2048, 32, 8, 64, 8192, 32.0, True),
}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Float32 of `shape`, uniform with variance 1 / fan-in: a hash of name and place.

  Multiples of 2**-8 before scaling by a power of two: exact in bfloat16 as well.
  """
  size = int(np.prod(shape))
  seed = np.uint32(sum(ord(letter) * 31**i for i, letter in enumerate(name)) % 2**32)
  bits = np.arange(size, dtype=np.uint32)
  bits ^= seed
  bits *= np.uint32(2654435761)
  bits ^= bits >> np.uint32(15)
  bits *= np.uint32(2246822519)
  bits >>= np.uint32(25)  # seven bits: 0 … 127
  values = bits.astype(np.float32)
  values -= 63.5
  values *= np.float32(2.0 ** -(6 + round(0.5 * np.log2(shape[-1] / 3))))
  return values.reshape(shape)


def state(name: str) -> dict[str, np.ndarray]:
  """Tensors of one layer by their names in `transformers`, made one at a time."""
  width, heads, groups, head_dim, mlp, _, tied = SHAPES[name]
  layer = 'model.layers.0.'
  shapes = {
      'model.embed_tokens.weight': (VOCAB, width),
      layer + 'self_attn.q_proj.weight': (heads * head_dim, width),
      layer + 'self_attn.k_proj.weight': (groups * head_dim, width),
      layer + 'self_attn.v_proj.weight': (groups * head_dim, width),
      layer + 'self_attn.o_proj.weight': (width, heads * head_dim),
      layer + 'mlp.gate_proj.weight': (mlp, width),
      layer + 'mlp.up_proj.weight': (mlp, width),
      layer + 'mlp.down_proj.weight': (width, mlp),
  }
  if not tied:
    shapes['lm_head.weight'] = (VOCAB, width)
  ones = ('model.norm', layer + 'input_layernorm', layer + 'post_attention_layernorm')
  for key, shape in shapes.items():
    yield key, weight(key, shape)
  for key in ones:
    yield key + '.weight', np.ones(width, np.float32)


def tokens() -> np.ndarray:
  """[1, TOKENS] int32."""
  return (np.arange(TOKENS, dtype=np.int64) * 37 % VOCAB).astype(np.int32)[None]
