"""What heads take from their target besides features: its final norm, head and embedding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.models import LanguageModel
from specjax.models import layers
from specjax.models import quantization
from specjax.sharding import layout as layout_lib

Array = jax.Array


def final_norm(target: LanguageModel, stream: Array) -> Array:
  """The last residual stream [..., width] after the target's final norm."""
  cfg = target.module.config
  norm = layers.RMSNorm(cfg.norm_epsilon, cfg.norm_offset, target.module.param_dtype)
  return norm.apply({'params': target.params['final_norm']}, stream)


def norm_scale(target: LanguageModel) -> Array:
  """The final norm's scale [width] float32, for a head whose norm has no offset."""
  scale = target.params['final_norm']['scale'].astype(jnp.float32)
  return scale + target.module.config.norm_offset


def head_kernel(target: LanguageModel) -> Array:
  """The output head [V, width]; the embedding where the two are tied."""
  return target.params['embedding' if target.module.config.tie_embeddings else 'head']


def logits(target: LanguageModel, stream: Array) -> Array:
  """The target's logits [..., V] float32 of its last residual stream [..., width]."""
  return output_logits(target, final_norm(target, stream))


def output_logits(target: LanguageModel, normed: Array) -> Array:
  """What the target's output head makes of `normed` [..., width]: logits [..., V] float32."""
  raw = layers.dense(normed, head_kernel(target), jnp.float32)
  return layers.soft_cap(raw, target.module.config.logit_soft_cap)


def embed(
    target: LanguageModel, tokens: Array, *, dtype: Any = None, own: Array | None = None
) -> Array:
  """Embeddings [..., width] of tokens [...].

  Args:
    target: whose embedding it is.
    tokens: [...] int32.
    dtype: of the result; None is the target's compute dtype.
    own: [V, width], of a head that brings an embedding of its own, in the place of the target's.
  """
  cfg = target.module.config
  dtype = target.module.dtype if dtype is None else dtype
  if own is not None:
    return own[tokens].astype(dtype)
  embedded = target.params['embedding'][tokens].astype(dtype)
  if cfg.embedding_scale != 1.0:
    embedded = embedded * jnp.asarray(cfg.embedding_scale, embedded.dtype)
  return embedded


def inverse(draft_to_target: Array | None, vocab_size: int) -> Array | None:
  """[V] int32, the draft's id of each target token, -1 where it has none.

  Args:
    draft_to_target: [V_draft] int32, or None where the vocabularies are the same.
    vocab_size: V.
  """
  if draft_to_target is None:
    return None
  ids = jnp.arange(draft_to_target.shape[0], dtype=jnp.int32)
  return jnp.full((vocab_size,), -1, jnp.int32).at[draft_to_target].set(ids)


def to_target(
    logits: Array, target_to_draft: Array | None, *, layout: layout_lib.Layout | None = None
) -> Array:
  """Draft logits [B, T, V_draft] over the target's vocabulary [B, T, V]; -inf where it has none.

  Args:
    logits: of the draft.
    target_to_draft: [V] int32 of `inverse`, or None where the vocabularies are the same.
    layout: how the head that made them is split over devices; None leaves it to the compiler.
  """
  split = lambda logits: layout_lib.constrain(layout, logits, layout_lib.LOGITS)
  logits = split(logits)
  if target_to_draft is None:
    return logits
  # Each device needs the draft's logits of its own part of the target's vocabulary, which may lie
  # on any other: the few rows over the smaller vocabulary go round.
  logits = layout_lib.constrain(layout, logits, layout_lib.RESIDUAL)
  known = target_to_draft >= 0
  return split(jnp.where(known, logits[..., jnp.maximum(target_to_draft, 0)], -jnp.inf))


def output_head(target: LanguageModel) -> Array:
  """The output head [V, width] as floats, whatever it is stored as."""
  kernel = head_kernel(target)
  is_rounded = isinstance(kernel, quantization.Quantized)
  return quantization.dequantize(kernel) if is_rounded else kernel


def check_copy(stored: np.ndarray, target: LanguageModel, where: str) -> None:
  """Refuses a copy of the target's output head that is none.

  Args:
    stored: the copy, of a head's file.
    target: the target.
    where: the file, for messages.

  Raises:
    ValueError: if it differs by more than the rounding to bfloat16 or eight bits.
  """
  kernel = np.asarray(output_head(target))
  same = stored.shape == kernel.shape
  # Rows in blocks, for memory.
  for start in range(0, len(stored) if same else 0, 4096):
    one, other = (
        np.asarray(x[start : start + 4096]).astype(np.float32) for x in (stored, kernel)
    )
    same &= bool(np.max(np.abs(one - other)) <= 2**-6 * np.max(np.abs(other)))
  if not same:
    raise ValueError(
        f"{where}: lm_head.weight is not the target's output head, which this head drafts with. "
        'Use the head that was made for the target.'
    )


def check_fits(config, target: LanguageModel) -> None:
  """Refuses a head that was not made for a target of this shape.

  Raises:
    ValueError: naming what differs.
  """
  cfg = target.module.config
  for name, mine, its in (
      ('width', config.target_width, cfg.width),
      ('vocabulary', config.target_vocab_size, cfg.vocab_size),
  ):
    if mine != its:
      raise ValueError(
          f'The head is for a target of {name} {mine}, this target has {its}. Use the head '
          'that was made for it.'
      )
  if max(config.feature_layers) > cfg.num_layers:
    raise ValueError(
        f'The head reads layers {config.feature_layers}, the target has {cfg.num_layers}.'
    )
