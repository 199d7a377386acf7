"""What is fast here: the dtype of a model, how many tokens a pass reads, and padding up to that."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Padded(NamedTuple):
  """What a pass reads, at least as wide as asked for.

  Attributes:
    tokens: [B, W] int32.
    positions: [B, R + W] int32, or None where none were given.
    tree_mask: [B, W, R + W] bool, likewise.
    num_new: [B] int32, how many of the W tokens are real; None means all.
  """

  tokens: Array
  positions: Array | None
  tree_mask: Array | None
  num_new: Array | None


def fast_dtype() -> Any:
  """The dtype in which models are fast on this machine.

  That is bfloat16 on an accelerator, and on a CPU from JAX 0.12 on; the CPU products of older
  releases are ten times slower in bfloat16 than in float32, and the oldest lack some of them.
  """
  version = tuple(int(part) for part in jax.__version__.split('.')[:2])
  slow = jax.default_backend() == 'cpu' and version < (0, 12)
  return jnp.dtype('float32' if slow else 'bfloat16')


def fast_width(model: Any, batch_size: int = 1) -> int:
  """The narrowest pass that is not slower than a wider one.

  That is 2 for one row of bfloat16 on CPU, and else 1: XLA's CPU products of a single bfloat16 row
  take a path that is up to ten times slower. With more rows the second token is only work: plain
  decoding of 8 and of 64 rows is 1.2 and 1.4 times as fast without it.

  Args:
    model: a `specjax.models.LanguageModel` or a head.
    batch_size: rows of the pass.
  """
  dtype = getattr(model.module, 'dtype', None)
  on_cpu = jax.default_backend() == 'cpu'
  is_slow = on_cpu and dtype is not None and jnp.dtype(dtype) == jnp.bfloat16
  return 2 if is_slow and batch_size == 1 else 1


def step_width(given: int | None, model: Any) -> int:
  """How many tokens a draft step of `model` reads at least: `given`, or else `fast_width`.

  Raises:
    ValueError: for a width below 1.
  """
  if given is None:
    return fast_width(model)
  if given < 1:
    raise ValueError(f'step_width must be at least 1, got {given}. None takes what is fast.')
  return given


def pad_to(x: Array, width: int, *, axis: int = 1) -> Array:
  """`x` with zeros after its entries along `axis`, where it has fewer than `width` there."""
  missing = width - x.shape[axis]
  if missing <= 0:
    return x
  return jnp.pad(x, [(0, missing if at == axis else 0) for at in range(x.ndim)])


def pad_pass(
    tokens: Array,
    positions: Array | None = None,
    tree_mask: Array | None = None,
    *,
    width: int,
) -> Padded:
  """Pads what a pass reads to `width` tokens; the tokens added see nothing and nobody sees them.

  >>> one, three = jnp.ones((1, 1), int), jnp.ones((1, 3), int)
  >>> padded = pad_pass(one, three, three[None], width=2)
  >>> padded.tokens.tolist(), padded.positions.tolist(), padded.num_new.tolist()
  ([[1, 0]], [[1, 1, 1, 0]], [1])
  >>> padded.tree_mask.tolist()
  [[[1, 1, 1, 0], [0, 0, 0, 0]]]

  Args:
    tokens: [B, T] int32.
    positions: [B, R + T] int32 of the tree's R nodes before and of these (R may be 0), or None.
    tree_mask: [B, T, R + T] bool or None.
    width: static; a pass that is as wide already stays as it is.
  """
  num_tokens = tokens.shape[1]
  missing = max(width - num_tokens, 0)
  if positions is not None:
    positions = pad_to(positions, positions.shape[1] + missing)
  if tree_mask is not None:
    tree_mask = pad_to(pad_to(tree_mask, width), tree_mask.shape[2] + missing, axis=2)
  return Padded(
      tokens=pad_to(tokens, width),
      positions=positions,
      tree_mask=tree_mask,
      num_new=jnp.full(tokens.shape[:1], num_tokens, jnp.int32) if missing else None,
  )
