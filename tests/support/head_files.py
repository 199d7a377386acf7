"""Files of EAGLE-3 heads as other projects write them, and what such a head computes, in numpy.

Written from the definitions, not from this library's code: what a test of reading compares with.
"""

import functools
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from specjax.models import LanguageModel, Transformer, TransformerConfig

WIDTH, VOCAB, DEPTH, HEADS, GROUPS, HEAD_DIM, MLP = 16, 40, 8, 4, 2, 8, 24
EPSILON, THETA = 0.003, 1000.0
DECODER = dict(
    hidden_size=WIDTH, vocab_size=VOCAB, intermediate_size=MLP, num_hidden_layers=1,
    num_attention_heads=HEADS, num_key_value_heads=GROUPS, head_dim=HEAD_DIM, hidden_act='silu',
    max_position_embeddings=64, rms_norm_eps=EPSILON, rope_theta=THETA, attention_bias=False,
)


@functools.cache
def target(width: int = WIDTH) -> LanguageModel:
  """What a head's loader reads of a target: its shape, its embedding and its output head."""
  config = TransformerConfig(
      vocab_size=VOCAB, width=width, num_layers=DEPTH, num_heads=2, num_kv_heads=1, head_dim=8,
      mlp_width=16,
  )
  rng = np.random.default_rng(7)
  values = {name: rng.normal(size=(VOCAB, width)) for name in ('embedding', 'head')}
  params = {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
  params['final_norm'] = {'scale': jnp.ones(width)}
  return LanguageModel(Transformer(config), params)


def tensors(
    prefix: str = 'midlayer.',
    *,
    count: int = 3,
    vocab_size: int = VOCAB,
    fuse_norm: str | None = None,
    qk_norm: bool = False,
    embedding: bool = True,
    seed: int = 0,
) -> dict[str, np.ndarray]:
  """The tensors of an EAGLE-3 head that reads `count` layers."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: (rng.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32)
  scale = lambda size: (1 + 0.5 * rng.normal(size=size)).astype(np.float32)
  names = {
      'fc.weight': draw(WIDTH, count * WIDTH),
      'norm.weight': scale(WIDTH),
      'lm_head.weight': draw(vocab_size, WIDTH) * 4,
      f'{prefix}hidden_norm.weight': scale(WIDTH),
      f'{prefix}input_layernorm.weight': scale(WIDTH),
      f'{prefix}post_attention_layernorm.weight': scale(WIDTH),
      f'{prefix}self_attn.q_proj.weight': draw(HEADS * HEAD_DIM, 2 * WIDTH),
      f'{prefix}self_attn.k_proj.weight': draw(GROUPS * HEAD_DIM, 2 * WIDTH),
      f'{prefix}self_attn.v_proj.weight': draw(GROUPS * HEAD_DIM, 2 * WIDTH),
      f'{prefix}self_attn.o_proj.weight': draw(WIDTH, HEADS * HEAD_DIM),
      f'{prefix}mlp.gate_proj.weight': draw(MLP, WIDTH),
      f'{prefix}mlp.up_proj.weight': draw(MLP, WIDTH),
      f'{prefix}mlp.down_proj.weight': draw(WIDTH, MLP),
  }
  if embedding:
    names['embed_tokens.weight'] = draw(VOCAB, WIDTH) * 4
  if fuse_norm == 'each':
    names |= {f'fc_norm.{number}.weight': scale(WIDTH) for number in range(count)}
  if fuse_norm == 'joint':
    names['input_norm.weight'] = scale(count * WIDTH)
  if qk_norm:
    names[f'{prefix}self_attn.q_norm.weight'] = scale(HEAD_DIM)
    names[f'{prefix}self_attn.k_norm.weight'] = scale(HEAD_DIM)
  return names


def write(folder: pathlib.Path, config: dict[str, Any], values: dict[str, np.ndarray]):
  """A folder with `config.json` and `model.safetensors`."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config))
  safetensors.numpy.save_file(values, folder / 'model.safetensors')
  return folder


def _rms(x, scale):
  return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPSILON) * scale


def _rotate(x, positions):
  """[T, heads, hd] by the angles of `positions` [T], halves against each other."""
  half = x.shape[-1] // 2
  angles = positions[:, None, None] * THETA ** (-np.arange(half) / half)
  first, second = x[..., :half], x[..., half:]
  cos, sin = np.cos(angles), np.sin(angles)
  return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def reference(
    values: dict[str, np.ndarray],
    tokens: np.ndarray,
    features: np.ndarray,
    *,
    norm_output: bool = False,
    norm_before_residual: bool = False,
):
  """Two passes of a head: over T pairs, then one more on its own last output.

  Args:
    values: its tensors, in float64.
    tokens: [T + 1] int.
    features: [T, count * width] of the target, for all but the last token.

  Returns:
    What it feeds back [T + 1, width], and its logits [T + 1, V_draft].
  """
  prefix = 'midlayer.' if 'midlayer.hidden_norm.weight' in values else 'layers.0.'
  get = lambda name: values[f'{name}.weight'].astype(np.float64)
  layer = lambda name: get(prefix + name)
  count = values['fc.weight'].shape[1] // WIDTH
  if 'input_norm.weight' in values:
    features = _rms(features, get('input_norm'))
  if 'fc_norm.0.weight' in values:
    parts = np.split(features, count, axis=-1)
    parts = [_rms(part, get(f'fc_norm.{number}')) for number, part in enumerate(parts)]
    features = np.concatenate(parts, axis=-1)
  hidden = features @ get('fc').T
  embedded = get('embed_tokens')[tokens]
  keys, held, backs, logits = [], [], [], []
  for position in range(len(tokens)):
    before = hidden[position] if position < len(hidden) else backs[-1]
    normed = _rms(before, layer('hidden_norm'))
    x = np.concatenate([_rms(embedded[position], layer('input_layernorm')), normed])
    heads = lambda name: (layer(f'self_attn.{name}_proj') @ x).reshape(1, -1, HEAD_DIM)
    query, key = heads('q'), heads('k')
    if f'{prefix}self_attn.q_norm.weight' in values:
      query, key = _rms(query, layer('self_attn.q_norm')), _rms(key, layer('self_attn.k_norm'))
    here = np.asarray([position])
    keys.append(_rotate(key, here)[0])
    held.append(heads('v')[0])
    query = _rotate(query, here)[0]
    mixed = []
    for head in range(HEADS):
      group = head // (HEADS // GROUPS)
      scores = np.asarray([query[head] @ k[group] for k in keys]) / HEAD_DIM**0.5
      weights = np.exp(scores - scores.max())
      weights /= weights.sum()
      mixed.append(sum(weight * v[group] for weight, v in zip(weights, held)))
    x = (normed if norm_before_residual else before) + layer('self_attn.o_proj') @ np.concatenate(
        mixed
    )
    inner = _rms(x, layer('post_attention_layernorm'))
    gate = layer('mlp.gate_proj') @ inner
    gate = gate / (1 + np.exp(-gate))
    x = x + layer('mlp.down_proj') @ (gate * (layer('mlp.up_proj') @ inner))
    output = _rms(x, get('norm'))
    backs.append(output if norm_output else x)
    logits.append(get('lm_head') @ output)
  return np.stack(backs), np.stack(logits)
