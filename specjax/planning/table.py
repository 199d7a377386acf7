"""What a layout does to a model, as a table: every kind of parameter, and the cache."""

import re
from typing import Any

import jax

from specjax.models import placement
from specjax.sharding import layout as layout_lib

_COLUMNS = ('array', 'shape', 'split over', 'on a device', 'MB per device')


def rows(
    module: Any, *, batch_size: int, cache_length: int, init: Any = None
) -> list[tuple[str, ...]]:
  """One row for every kind of parameter (layers together), and one for a layer's cache.

  Args:
    module: a `specjax.models.Transformer` or a head, with a layout.
    batch_size: rows of the cache.
    cache_length: positions of the cache.
    init: of a head, as `placement.abstract_params` takes it.

  Returns:
    Rows of text, in the order of `_COLUMNS`.
  """
  table_rows: dict[str, tuple[str, ...]] = {}
  params = placement.abstract_params(module, init=init)
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  for path, leaf in leaves:
    name = '/'.join(str(key.key) for key in path)
    name = re.sub(r'layer_\d+/', 'layer/', name)
    table_rows.setdefault(name, _row(name, leaf.shape, leaf.dtype, leaf.sharding))
  if not hasattr(module, 'init_cache'):
    return list(table_rows.values())
  cache = jax.eval_shape(
      lambda: module.init_cache(
          batch_size=batch_size, cache_length=cache_length, max_append=16
      )
  )
  keys, layout = cache.keys[0], module.layout
  split = layout.sharding(layout_lib.CACHE, shape=keys.shape, what='the cache')
  return [*table_rows.values(), _row('layer/keys, values', keys.shape, keys.dtype, split)]


def _row(name, shape, dtype, sharding) -> tuple[str, ...]:
  part = sharding.shard_shape(shape)
  size = dtype.itemsize
  for dimension in part:
    size *= dimension
  text = lambda sizes: ' x '.join(str(each) for each in sizes)
  split = [
      '-' if entry is None else '+'.join(entry) if isinstance(entry, tuple) else entry
      for entry in (*sharding.spec, *[None] * (len(shape) - len(sharding.spec)))
  ]
  return (name, text(shape), ', '.join(split), text(part), f'{size / 1e6:,.2f}')


def text(module: Any, *, batch_size: int, cache_length: int, init: Any = None) -> str:
  """The rows of `rows` as lines with aligned columns, headed by mesh and replication."""
  layout, config = module.layout, module.config
  mesh = ' x '.join(f'{name}={size}' for name, size in layout.mesh.shape.items() if size > 1)
  head = f'{layout.name}: mesh {mesh or "of one device"}'
  if getattr(config, 'kv_repeats', 1) > 1:
    head += (
        f'; {config.num_kv_heads} key-value heads are kept {config.kv_repeats} times, for '
        f'{config.num_stored_kv_heads} devices'
    )
  table_rows = rows(module, batch_size=batch_size, cache_length=cache_length, init=init)
  table = [_COLUMNS, *table_rows]
  widths = [max(len(row[i]) for row in table) for i in range(len(_COLUMNS))]
  lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)) for row in table]
  return '\n'.join([head, *(line.rstrip() for line in lines)]) + '\n'
