"""Sampling settings, checked before any compute; users reach `make` as `specjax.sampling.make`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax import types

Array = jax.Array

# What each setting may be: dtype, test of float64 values, and how to say it.
_RANGES = {
    'temperature': (
        jnp.float32, lambda x: (x >= 0) & (x < np.inf), 'finite and >= 0 (0 is greedy)'
    ),
    'top_k': (
        jnp.int32, lambda x: (x >= 0) & (x < 2**31) & (x == np.floor(x)),
        'a whole number >= 0 (0 keeps all tokens)',
    ),
    'top_p': (
        jnp.float32, lambda x: (x > 0) & (x <= 1),
        'in (0, 1] (1 keeps all tokens; greedy is temperature=0)',
    ),
    'min_p': (jnp.float32, lambda x: (x >= 0) & (x <= 1), 'in [0, 1] (0 keeps all tokens)'),
    'repetition_penalty': (
        jnp.float32, lambda x: (x > 0) & (x < np.inf), 'finite and > 0 (1 is no penalty)'
    ),
    'presence_penalty': (jnp.float32, np.isfinite, 'finite (0 is no penalty)'),
    'frequency_penalty': (jnp.float32, np.isfinite, 'finite (0 is no penalty)'),
}


def make(
    *,
    batch_size: int,
    temperature: Any = 1.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    repetition_penalty: Any = 1.0,
    presence_penalty: Any = 0.0,
    frequency_penalty: Any = 0.0,
    logit_bias: Any = None,
    constraint: types.Constraint | None = None,
) -> types.Sampling:
  """Checked settings; each one a number for all rows, or one entry per row.

  Args:
    batch_size: B.
    temperature: >= 0; 0 is greedy.
    top_k: how many tokens are kept; 0 keeps all.
    top_p: the mass that is kept (Holtzman et al. 2020), in (0, 1]; 1 keeps all.
    min_p: the least probability kept, relative to the largest (Nguyen et al. 2024), in
      [0, 1]; 0 keeps all.
    repetition_penalty: > 0; 1 is none (see `specjax.sampling.penalties.penalize`).
    presence_penalty: subtracted from logits of tokens in the output; 0 is none.
    frequency_penalty: the same for each time that a token was emitted; 0 is none.
    logit_bias: added to the logits, [V] or [B, V]; `-inf` forbids a token.
    constraint: an allowed-token hook (`specjax.types.Constraint`) or None.

  Returns:
    A `Sampling` with arrays on the default device.

  Raises:
    ValueError: a setting out of its range or of the wrong length, before any compute.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size must be at least 1; got {batch_size}.')
  given = dict(
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      min_p=min_p,
      repetition_penalty=repetition_penalty,
      presence_penalty=presence_penalty,
      frequency_penalty=frequency_penalty,
  )
  settings = {name: _checked(name, value, batch_size) for name, value in given.items()}
  # Numbers that are not normal are zero on some processors: a temperature below the normal
  # ones is zero on all, and none is so large that its reciprocal is not normal.
  tiny = np.finfo(np.float32).tiny
  heat = settings['temperature']
  settings['temperature'] = np.where(heat < tiny, 0, np.minimum(heat, 1e30))
  bias = None if logit_bias is None else _checked_bias(logit_bias, batch_size)
  missing = [
      name for name in ('initial', 'advance', 'allowed')
      if constraint is not None and not callable(getattr(constraint, name, None))
  ]
  if missing:
    raise ValueError(
        'constraint must have the methods of specjax.types.Constraint; '
        f'{type(constraint).__name__} lacks {", ".join(missing)}.'
    )
  arrays = {name: jnp.asarray(value, _RANGES[name][0]) for name, value in settings.items()}
  return types.Sampling(**arrays, logit_bias=bias, constraint=constraint)


def _checked(name: str, value: Any, batch_size: int) -> np.ndarray:
  """[B] values of a setting, of its dtype."""
  dtype, accept, expected = _RANGES[name]
  try:
    values = np.asarray(value, np.float64)
  except (TypeError, ValueError):
    raise ValueError(f'{name} must be {expected}; got {value!r}.') from None
  if values.shape not in ((), (batch_size,)):
    raise ValueError(
        f'{name} must be one number, or one for each of the {batch_size} rows of the batch; '
        f'got shape {values.shape}.'
    )
  values = np.broadcast_to(values, [batch_size])
  with np.errstate(over='ignore', under='ignore', invalid='ignore'):
    # What counts is the number as it will be stored: 1e-50 is 0 there.
    wrong = np.flatnonzero(~(accept(values) & accept(values.astype(dtype))))
  if wrong.size:
    raise ValueError(
        f'{name} must be {expected}; got {values[wrong[0]]:g} for row {wrong[0]}. '
        f'Change {name}= where the sampling settings are made.'
    )
  return values.astype(dtype)


def _checked_bias(value: Any, batch_size: int) -> Array:
  """[B, V] float32."""
  try:
    values = np.asarray(value, np.float32)
  except (TypeError, ValueError):
    raise ValueError(
        'logit_bias must be an array of shape [vocabulary] or [batch, vocabulary]; '
        f'got {type(value).__name__}. For a few tokens start from zeros and set their entries.'
    ) from None
  if values.ndim not in (1, 2) or values.ndim == 2 and values.shape[0] != batch_size:
    raise ValueError(
        f'logit_bias must have shape [vocabulary] or [{batch_size}, vocabulary]; '
        f'got {values.shape}.'
    )
  if np.isnan(values).any() or np.isposinf(values).any():
    raise ValueError(
        'logit_bias must be finite, or -inf to forbid a token; got NaN or +inf. To force a '
        'token, forbid the others.'
    )
  if np.isneginf(values).all(axis=-1).any():
    raise ValueError('logit_bias must leave at least one token in every row; got only -inf.')
  return jnp.asarray(np.broadcast_to(values, [batch_size, values.shape[-1]]))
