"""Attention over a long cache by kernels that read no slot beyond a row's length.

The new tokens of a call lie after the cache and may be a tree; what lies before is seen by all of
them. So the kernel needs no mask: the T * R queries that share a key-value head go through it as
one block, over the first `before` slots, and come back with their log-sum-exps. The few new slots
are attended to in jnp, under the mask, and the two parts are merged: with parts p of outputs o_p
and log-sum-exps s_p, o = sum_p exp(s_p - s) o_p, s = log sum_p exp(s_p) (Dao 2023, 2307.08691,
section 3.1).

`specjax.models.Transformer(attention=…)` asks for one of them; 'xla' is plain jnp, which reads all
slots, and so is the default but on TPUs (`specjax.models.attention`). Neither has been run on a GPU
yet; `experiments.validate` times them there.
"""

import warnings

import jax
import jax.numpy as jnp

Array = jax.Array

IMPLEMENTATIONS = ('auto', 'xla', 'cudnn', 'pallas')


def num_slots(wanted: int, implementation: str) -> int:
  """Slots to allocate where so many are wanted: the Pallas kernel splits them evenly.

  Slots beyond a row's length are not read. Doctest:

  >>> num_slots(8336, 'pallas'), num_slots(8336, 'cudnn')
  (10240, 8336)
  """
  if implementation != 'pallas':
    return wanted
  unit = 2048 if wanted > 2048 else 256  # 16 parts side by side, in blocks of 128 or 16
  return -(-wanted // unit) * unit


def attend(
    queries: Array, keys: Array, values: Array, mask: Array, slots: Array, *, implementation: str
) -> Array:
  """Grouped-query attention over a cache that holds the new tokens already.

  Args:
    queries: [B, T, G, R, hd], scaled; R queries share a key-value head.
    keys: [B, G, S, hd], S a multiple of 16.
    values: [B, G, S, hd].
    mask: [B, T, S] bool, as for `specjax.models.attention.attend`; every slot before
      `slots[:, 0]` is taken to be visible, every slot after `slots` not to be.
    slots: [B, P + T] int32, consecutive: where the new tokens and the P nodes of their tree that
      came before them lie.
    implementation: 'cudnn' or 'pallas'.

  Returns:
    [B, T, G, R, hd] float32.

  Raises:
    ValueError: for another implementation.
  """
  batch, num_new, groups, repeats, head_dim = queries.shape
  # [B, T, G, R, hd] -> [B, G, T * R, hd].
  folded = jnp.swapaxes(queries, 1, 2).reshape(batch, groups, num_new * repeats, head_dim)
  folded = folded.astype(keys.dtype)
  if implementation not in _BEFORE:
    raise ValueError(
        f'attention must be one of {IMPLEMENTATIONS}, got {implementation!r}.'
    )
  parts = [
      _BEFORE[implementation](folded, keys, values, slots[:, 0]),
      _among_new(folded, keys, values, mask, slots, repeats),
  ]
  sums = jnp.stack([log_sum for _, log_sum in parts])
  # A part that sees nothing has a sum of -inf: weight 0. Padding may see nothing at all, and must
  # stay finite, for its keys and values lie in the cache.
  largest = sums.max(axis=0)
  weights = jnp.exp(sums - jnp.where(largest == -jnp.inf, 0.0, largest))[..., None]
  mixed = sum(weight * part for weight, (part, _) in zip(weights, parts))
  mixed /= jnp.maximum(weights.sum(axis=0), jnp.finfo(jnp.float32).tiny)
  mixed = mixed.reshape(batch, groups, num_new, repeats, head_dim)
  return jnp.swapaxes(mixed, 1, 2)


def _among_new(queries, keys, values, mask, slots, repeats: int):
  """Output [B, G, Q, hd] and log-sum-exp [B, G, Q] over the new slots, float32."""
  rows = slots[:, None, :, None]
  keys, values = (jnp.take_along_axis(each, rows, axis=2) for each in (keys, values))
  visible = jnp.take_along_axis(mask, slots[:, None, :], axis=2)
  visible = jnp.repeat(visible, repeats, axis=1)[:, None]
  scores = jnp.einsum('bgqh,bgsh->bgqs', queries, keys, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(scores, axis=-1, where=visible).astype(values.dtype)
  mixed = jnp.einsum('bgqs,bgsh->bgqh', weights, values, preferred_element_type=jnp.float32)
  return mixed, jax.nn.logsumexp(scores, axis=-1, where=visible)


def _before_cudnn(queries, keys, values, before):
  """cuDNN's flash attention: the queries of a group are its sequence, groups are its heads.

  JAX's public face takes keys as [B, S, G, hd]; whether XLA then lays the cache out anew at each
  call is for a measurement to show.
  """
  by_slot = lambda x: jnp.swapaxes(x, 1, 2)
  mixed, log_sum = jax.nn.dot_product_attention(
      by_slot(queries),
      by_slot(keys),
      by_slot(values),
      scale=1.0,
      key_value_seq_lengths=jnp.maximum(before, 1),
      implementation='cudnn',
      return_residual=True,
  )
  log_sum = jnp.swapaxes(log_sum.astype(jnp.float32), 1, 2)
  return (
      by_slot(mixed).astype(jnp.float32),
      jnp.where((before > 0)[:, None, None], log_sum, -jnp.inf),
  )


def _before_pallas(queries, keys, values, before):
  """JAX's decoding kernel on Triton: the queries of a group are its heads."""
  with warnings.catch_warnings():
    # It works as long as it is there; what replaces it in JAX is not there yet.
    warnings.simplefilter('ignore', DeprecationWarning)
    from jax.experimental.pallas.ops.gpu import decode_attention
  batch, groups, count, head_dim = queries.shape
  splits, block = _splits(keys.shape[2])
  by_slot = lambda x: jnp.swapaxes(x, 1, 2)
  mixed, (total, largest) = decode_attention.gqa(
      queries.reshape(batch, groups * count, head_dim),
      by_slot(keys),
      by_slot(values),
      kv_seq_len=before,
      sm_scale=1.0,
      block_k=block,
      k_splits=splits,
      return_residuals=True,
      interpret=jax.default_backend() == 'cpu',
  )
  whole = (batch, groups, count)
  log_sum = (largest + jnp.log(total)).reshape(whole)
  empty = (before <= 0)[:, None, None]
  mixed = jnp.where(empty[..., None], 0.0, mixed.reshape(*whole, -1).astype(jnp.float32))
  return mixed, jnp.where(empty, -jnp.inf, log_sum)


def _splits(num_slots: int) -> tuple[int, int]:
  """In how many parts the slots are read side by side, and slots of a block: both divide."""
  splits = next(n for n in (16, 8, 4, 2, 1) if num_slots % (16 * n) == 0)
  return splits, next(n for n in (128, 64, 32, 16) if num_slots // splits % n == 0)


_BEFORE = {'cudnn': _before_cudnn, 'pallas': _before_pallas}
