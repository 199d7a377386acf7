"""Shardings of whole trees: parameters, caches, the engine's state, an optimiser's state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from specjax import kv_cache
from specjax import layout as layout_lib
from specjax.layout import Layout
from specjax.models import quantization
from specjax.models.language_model import LanguageModel

PyTree = Any


def abstract_params(
    module: Any, *, int8: bool = False, init: Callable[[Any, jax.Array], PyTree] | None = None
) -> PyTree:
  """The parameters of a module as shapes, split as its layout says; nothing is allocated.

  Args:
    module: a `specjax.models.Transformer` or a head, with or without a layout.
    int8: as `load_hf` quantises it.
    init: (module, key) -> fresh parameters, of a head; None is a model's own.

  Returns:
    A tree of `jax.ShapeDtypeStruct`.

  Raises:
    ValueError: for a parameter that the layout cannot split, by name.
  """
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  # The layout is for what runs; the trace of an initialisation has a batch of its own.
  bare = module.clone(layout=None)

  def make(tokens):
    key = jax.random.key(0)
    params = bare.init(key, tokens)['params'] if init is None else init(bare, key)
    return quantization.quantize_params(params) if int8 else params

  shapes = jax.eval_shape(make, tokens)
  if module.layout is None:
    return shapes
  shardings = params_shardings(shapes, module.layout)
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


def params_shardings(params: PyTree, layout: Layout) -> PyTree:
  """A `NamedSharding` for every parameter."""

  def one(path, x):
    spec = layout.parameter_spec(_names(path), x.shape)
    return NamedSharding(layout.mesh, spec)

  return jax.tree_util.tree_map_with_path(one, params)


def place(model: LanguageModel, layout: Layout | None, *, int8: bool = False) -> LanguageModel:
  """A loaded model, split over devices; `load_hf` does it without holding the whole.

  Args:
    model: its module a `specjax.models.Transformer` without repeated heads.
    layout: how; None leaves it where it is.
    int8: quantise it as `load_hf` does.
  """
  params, module = model.params, model.module
  if layout is not None:
    config = layout_lib.fitted(module.config, layout)
    params = _repeat_heads(params, config)
    module = module.clone(config=config, layout=layout)
  if int8:
    params = quantization.quantize_params(params)
  return put(LanguageModel(module, params), layout)


def place_head(head: Any, layout: Layout | None) -> Any:
  """A head of a target, split over devices.

  Args:
    head: a `specjax.heads.Eagle`, `Medusa` or `EarlyExit`.
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


def _repeat_heads(params: PyTree, config) -> PyTree:
  """Key-value heads as often as the configuration keeps them; `params` has them once."""
  repeats = config.kv_repeats
  if repeats == 1:
    return params

  def one(path, x):
    if _names(path)[-1] not in ('qkv', 'qkv_bias'):
      return x
    queries = x[:, :-2].reshape(x.shape[0] * repeats, -1, *x.shape[2:])
    return jnp.concatenate([queries, jnp.repeat(x[:, -2:], repeats, axis=0)], axis=1)

  return jax.tree_util.tree_map_with_path(one, params)


def init_params(module: Any, key: jax.Array) -> PyTree:
  """Initialises a module's parameters where they lie: no device ever holds the whole tree."""
  bare = module.clone(layout=None)
  init = lambda key: bare.init(key, jnp.zeros((1, 1), jnp.int32))['params']
  if module.layout is None:
    return init(key)
  placed = jax.tree.map(lambda x: x.sharding, abstract_params(module))
  return jax.jit(init, out_shardings=placed)(key)


def shardings(tree: PyTree, layout: Layout) -> PyTree:
  """Shardings of setup or state: models and caches by their own layout, the rest whole.

  Args:
    tree: any tree of arrays or shapes; models, heads and caches may lie anywhere in it.
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
    own = getattr(node, 'layout', None)
    if isinstance(node, kv_cache.KVCache) and own is not None:
      split = lambda x: own.sharding(layout_lib.CACHE, shape=x.shape, what='cache')
      return node.replace(
          keys=tuple(map(split, node.keys)),
          values=tuple(map(split, node.values)),
          lengths=whole,
      )
    return jax.tree.map(kept, node)

  is_leaf = lambda node: _has_module(node) or isinstance(node, kv_cache.KVCache)
  return jax.tree.map(one, tree, is_leaf=is_leaf)


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
  known = {(_names(path), x.shape) for path, x in leaves}
  depths = {len(path) for path, _ in known}

  def one(path, x):
    names = _names(path)
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


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
  """A path's keys as strings."""
  name: Callable[[Any], str] = lambda key: str(
      getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))
  )
  return tuple(name(key) for key in path)
