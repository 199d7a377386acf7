"""A model's parameters on devices: as shapes, as fresh weights, and as loaded ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from specjax.models import quantization
from specjax.models.language_model import LanguageModel
from specjax.sharding import layout as layout_lib
from specjax.sharding import trees
from specjax.sharding.layout import Layout

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
  shardings = trees.params_shardings(shapes, module.layout)
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


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
    params = repeat_heads(params, config)
    module = module.clone(config=config, layout=layout)
  if int8:
    params = quantization.quantize_params(params)
  return trees.put(LanguageModel(module, params), layout)


def repeat_heads(params: PyTree, config) -> PyTree:
  """Key-value heads as often as the configuration keeps them; `params` has them once."""
  repeats = config.kv_repeats
  if repeats == 1:
    return params

  def one(path, x):
    if trees.names_of(path)[-1] not in ('qkv', 'qkv_bias'):
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
