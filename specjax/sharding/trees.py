"""Shardings of whole trees: parameters, caches, the engine's state, an optimiser's state."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from specjax.sharding.layout import Layout

PyTree = Any


def params_shardings(params: PyTree, layout: Layout) -> PyTree:
  """A `NamedSharding` for every parameter."""

  def one(path, x):
    spec = layout.parameter_spec(names_of(path), x.shape)
    return NamedSharding(layout.mesh, spec)

  return jax.tree_util.tree_map_with_path(one, params)


def place_head(head: Any, layout: Layout | None) -> Any:
  """A head of a target, split over devices.

  Args:
    head: a `specjax.heads.Eagle`, `Medusa`, `EarlyExit` or `DFlash`.
    layout: that of the draft (`Layouts.draft`), on the target's mesh; None leaves it where it
      is. A head without a layout is repeated on every device, and what it computes may be
      split and gathered as the compiler likes.

  Raises:
    ValueError: for an axis that cannot be split evenly, naming it and what would do.
  """
  if layout is None:
    return head
  cfg = getattr(head.config, 'decoder', None)
  if cfg is not None:
    layout.spec(('kv_heads',), shape=(cfg.num_kv_heads,), what='key-value heads of the head')
  return put(head.replace(module=head.module.clone(layout=layout)), layout)


def shardings(tree: PyTree, layout: Layout) -> PyTree:
  """Shardings of setup or state: models and caches by their own layout, the rest whole.

  Args:
    tree: any tree of arrays or shapes. Models and heads (nodes with `module` and `params`) and
      caches (nodes with `layout` and `shardings()`) may lie anywhere in it.
    layout: of the target; what is neither model nor cache is repeated on all its devices,
      unless it already lies on them in some other way (a head's weights, say).

  Returns:
    A tree of `NamedSharding` of the same structure.
  """
  whole = layout.replicated

  def kept(x):
    own = None if isinstance(x, jax.core.Tracer) else getattr(x, 'sharding', None)
    return own if isinstance(own, NamedSharding) and own.mesh == layout.mesh else whole

  def one(node):
    if _has_module(node):
      own = getattr(node.module, 'layout', None)
      return jax.tree.map(kept, node) if own is None else params_shardings(node, own)
    if _says(node) and node.layout is not None:
      return node.shardings()
    return jax.tree.map(kept, node)

  is_leaf = lambda node: _has_module(node) or _says(node)
  return jax.tree.map(one, tree, is_leaf=is_leaf)


def _says(node: Any) -> bool:
  """Whether a node says how its arrays are split: a cache."""
  return callable(getattr(node, 'shardings', None))


def _has_module(node: Any) -> bool:
  """Whether a node is a module with its weights: a model or a head."""
  return hasattr(node, 'module') and hasattr(node, 'params')


def constrain(tree: PyTree, layout: Layout | None) -> PyTree:
  """Under `jit`: the tree, split as `shardings` says; itself without a layout."""
  if layout is None:
    return tree
  return jax.lax.with_sharding_constraint(tree, shardings(tree, layout))


def abstract(tree: PyTree, layout: Layout) -> PyTree:
  """The tree as shapes with shardings, for `lower`."""
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      tree,
      shardings(tree, layout),
  )


def put(tree: PyTree, layout: Layout | None) -> PyTree:
  """Places a tree of arrays as `shardings` says; arrays that lie right are not touched.

  Every process gives the same values and keeps its part of them.
  """
  if layout is None:
    return tree
  return jax.tree.map(put_array, tree, shardings(tree, layout))


def put_array(x: Any, sharding: NamedSharding) -> jax.Array:
  """One array, placed; see `put`."""
  if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
    return x
  value = np.asarray(x)
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def like_params(tree: PyTree, params: PyTree, layout: Layout) -> PyTree:
  """Shardings of an optimiser's state: what mirrors a parameter lies as it does.

  Args:
    tree: the state (or its shapes). A leaf whose path ends with a parameter's path and that
      has its shape is split likewise; all else is repeated.
    params: the parameters or their shapes.
    layout: theirs.

  Returns:
    A tree of `NamedSharding` of the structure of `tree`.
  """
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  known = {(names_of(path), x.shape) for path, x in leaves}
  depths = {len(path) for path, _ in known}

  def one(path, x):
    names = names_of(path)
    for depth in depths:
      if (names[-depth:], x.shape) in known:
        return NamedSharding(layout.mesh, layout.parameter_spec(names[-depth:], x.shape))
    return NamedSharding(layout.mesh, PartitionSpec())

  return jax.tree_util.tree_map_with_path(one, tree)


def put_batch(batch: PyTree, layout: Layout | None) -> PyTree:
  """A batch of arrays [B, ...], rows split as the layout says; see `put` for processes."""
  if layout is None:
    return batch
  split = lambda x: layout.sharding(
      ('batch', *(None,) * (np.ndim(x) - 1)), shape=np.shape(x), what='the batch'
  )
  return jax.tree.map(lambda x: put_array(x, split(x)), batch)


def names_of(path: tuple[Any, ...]) -> tuple[str, ...]:
  """A path's keys as strings."""
  name: Callable[[Any], str] = lambda key: str(
      getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))
  )
  return tuple(name(key) for key in path)
