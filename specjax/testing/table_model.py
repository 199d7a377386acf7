"""A language model whose law is a table: what it says is known exactly.

It keeps the cache's contract in full (appends, rolling back, trees, padding), so that an
engine that leaves a rejected token in the cache, or reads a wrong one, changes its law.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from specjax import models
from specjax.cache import kv_cache

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class TableModel:
  """Logits are looked up by the last `order` tokens that are visible to a query.

  The module of a `specjax.models.LanguageModel`; `params['table']` is [V + 1] * (order - 1)
  + [V, V] float32: the tokens before the last one, oldest first, index V where there is
  none; the last token; the next one. The cache holds the row's tokens in the place of keys
  and values.

  Attributes:
    vocab_size: V.
    order: how many tokens the law depends on, at least 1.
  """

  vocab_size: int
  order: int = 2

  def init_cache(
      self, *, batch_size: int, cache_length: int, max_append: int
  ) -> kv_cache.KVCache:
    """An empty cache; arguments as in `specjax.cache.kv_cache.init`."""
    return kv_cache.init(
        batch_size=batch_size,
        cache_length=cache_length,
        num_kv_heads=1,
        head_dim=1,
        windows=(None,),
        max_append=max_append,
        dtype=jnp.int32,
    )

  def apply(
      self,
      variables: dict,
      tokens: Array,
      positions: Array | None = None,
      cache: kv_cache.KVCache | None = None,
      *,
      tree_mask: Array | None = None,
      num_new: Array | None = None,
      feature_layers: tuple[int, ...] = (),
      with_logits: bool = True,
  ) -> models.Output:
    """As `specjax.models.Transformer.__call__`; features are the logits, once a layer."""
    table = variables['params']['table']
    batch, width = tokens.shape
    held = cache
    if held is None:
      held = self.init_cache(batch_size=batch, cache_length=0, max_append=width)
    lengths = held.lengths
    if positions is None:
      positions = lengths[:, None] + jnp.arange(width)
    # Of a tree that is read level by level, the nodes read last are in the mask too.
    first = lengths - (positions.shape[1] - width)
    keys = tokens[..., None, None]
    held = kv_cache.append(held, 0, keys, keys)
    before = _before(held.keys[0][:, 0, :, 0], first, positions, tree_mask, self)
    logits = table[(*before, tokens)]
    features = jnp.concatenate([logits] * len(feature_layers) + [logits[..., :0]], axis=-1)
    if cache is not None:
      new = width if num_new is None else num_new
      cache = held.replace(lengths=lengths + new)
    return models.Output(logits if with_logits else logits[..., :0], features, cache)


def _before(buffer, lengths, positions, tree_mask, model: TableModel) -> list[Array]:
  """The `order - 1` tokens before each query's own, oldest first, each [B, T] int32.

  Slot `lengths + j` holds the token at `positions[:, j]`; the last T of them are queries.
  """
  width, num_slots = positions.shape[1], buffer.shape[1]
  slots = jnp.arange(num_slots)
  offset = slots - lengths[:, None]
  inside = (offset >= 0) & (offset < width)
  offset = jnp.clip(offset, 0, width - 1)
  slot_positions = jnp.where(inside, jnp.take_along_axis(positions, offset, axis=1), slots)
  if tree_mask is None:
    tree_mask = jnp.broadcast_to(jnp.tri(width, dtype=bool), (buffer.shape[0], width, width))
  queries = positions[:, width - tree_mask.shape[1] :]
  index = jnp.broadcast_to(offset[:, None], (*queries.shape, num_slots))
  among_new = jnp.take_along_axis(tree_mask, index, axis=2)
  visible = jnp.where(inside[:, None], among_new, slots < lengths[:, None, None])
  tokens = []
  for back in range(model.order - 1, 0, -1):
    here = visible & (slot_positions[:, None] == queries[..., None] - back)
    token = jnp.max(jnp.where(here, buffer[:, None], -1), axis=-1)
    tokens.append(jnp.where(token < 0, model.vocab_size, token))
  return tokens


def table_model(
    table: np.ndarray | Array | None = None,
    *,
    vocab_size: int = 3,
    order: int = 2,
    scale: float = 1.5,
    seed: int = 0,
) -> models.LanguageModel:
  """A model that looks its logits up: in `table`, or in one drawn from a normal law.

  >>> model = table_model([[0.0, 1.0], [2.0, 0.0]])
  >>> model(jnp.array([[1, 0]])).logits[0].tolist()
  [[2.0, 0.0], [0.0, 1.0]]

  Args:
    table: logits, [V, V] by the last token, [V + 1, V, V] by the last two (index V of the
      first axis where there is only one), and so on; None draws one.
    vocab_size: V of a drawn table.
    order: how many tokens a drawn table depends on.
    scale: standard deviation of a drawn table.
    seed: of a drawn table.

  Returns:
    A `LanguageModel`, usable as target and as draft.

  Raises:
    ValueError: if the table's shape is none of these.
  """
  if table is None:
    shape = (vocab_size + 1,) * (order - 1) + (vocab_size, vocab_size)
    table = scale * np.random.default_rng(seed).normal(size=shape)
  table = np.asarray(table, np.float32)
  size = table.shape[-1]
  if table.ndim < 2 or table.shape != (size + 1,) * (table.ndim - 2) + (size, size):
    raise ValueError(
        f'table must have the shape [V, V], [V + 1, V, V], …; got {table.shape}.'
    )
  module = TableModel(vocab_size=size, order=table.ndim - 1)
  return models.LanguageModel(module=module, params={'table': jnp.asarray(table)})
