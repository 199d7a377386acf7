"""Heads of a tiny target that agree with it at times, made without training.

Heads of random weights agree with a target once in a vocabulary, and a run in which nothing is
accepted says little of what happens after an accepted draft.
"""

import jax
import jax.numpy as jnp
import numpy as np
from specjax import heads
from specjax import models
from specjax.heads import dflash as dflash_lib
from specjax.heads import eagle as eagle_lib
from specjax.heads import early_exit as exit_lib
from specjax.heads import medusa as medusa_lib
from specjax.heads import target as target_lib


def eagle(target, ids=None) -> heads.Eagle:
  """An EAGLE-3 head that computes the target's first layer, and a little of its features.

  The residual stream is the feature's, scaled down to almost nothing. Three more key-value
  heads bring the embedding: each looks for a third of its own token's, which it finds at its own
  position (or where the same token stands).

  Args:
    target: of width 48, with two key-value heads of 16.
    ids: [V_draft] int32, a smaller draft vocabulary; None is the target's.
  """
  cfg, params = target.module.config, target.params
  first, extra, hd = params['layer_0'], 4, cfg.head_dim
  repeats = cfg.num_heads // cfg.num_kv_heads
  groups = cfg.num_kv_heads + extra  # the last one idle, so that their number is even
  shape = models.TransformerConfig(
      vocab_size=cfg.vocab_size if ids is None else len(ids), width=cfg.width, num_layers=1,
      num_heads=groups * repeats, num_kv_heads=groups, head_dim=hd, mlp_width=cfg.mlp_width,
      rope_theta=cfg.rope_theta, norm_epsilon=cfg.norm_epsilon,
  )
  module = heads.EagleHead(
      heads.EagleConfig(
          decoder=shape, target_width=cfg.width, target_vocab_size=cfg.vocab_size,
          feature_layers=eagle_lib.default_layers(cfg.num_layers), norm_before_residual=True,
      )
  )
  made = jax.tree.map(np.array, eagle_lib.init_params(module, jax.random.key(1)))
  scale = np.asarray(first['attention_norm']['scale'])
  qkv = np.zeros_like(made['layer_0']['attention']['qkv'])
  qkv[: cfg.num_kv_heads, ..., : cfg.width] = first['attention']['qkv'] * scale
  out = np.zeros_like(made['layer_0']['attention']['out'])
  out[:, : cfg.num_heads] = np.reshape(first['attention']['out'], (cfg.width, -1, hd))
  embedding = np.asarray(params['embedding'])
  size = np.sqrt(np.square(embedding).mean())
  for part in range(cfg.width // hd):
    group, dims = cfg.num_kv_heads + part, slice(part * hd, (part + 1) * hd)
    # Query, key and value of the group's first head: the third itself, the score made sharp.
    qkv[group, [0, -2], :, dims] = 4.0 * np.eye(hd)
    qkv[group, -1, :, dims] = np.eye(hd)
    out[dims, group * repeats] = size * np.eye(hd)
  made['layer_0']['attention'] = {'qkv': qkv, 'out': out}
  made['layer_0']['embedding_norm']['scale'] = np.ones_like(scale)
  made['layer_0']['feature_norm']['scale'] = np.full_like(scale, 0.1 * size)
  made['layer_0'] |= {'mlp': first['mlp'], 'mlp_norm': first['mlp_norm']}
  kernel = np.asarray(target_lib.head_kernel(target))
  made |= {
      'final_norm': params['final_norm'],
      'head': kernel if ids is None else kernel[np.asarray(ids)],
  }
  return heads.Eagle(module, jax.tree.map(jnp.asarray, made), None, ids)


def medusa(target, texts, *, num_heads: int = 3) -> heads.Medusa:
  """Medusa heads fitted to texts by least squares: they know in part what will be said.

  Args:
    target: the target.
    texts: [n, T] int32.
    num_heads: K.
  """
  cfg = target.module.config
  config = heads.MedusaConfig(
      num_heads=num_heads, target_width=cfg.width, target_vocab_size=cfg.vocab_size,
      target_layers=cfg.num_layers,
  )
  module = heads.MedusaHeads(config, jnp.float32, jnp.float32)
  made = dict(medusa_lib.init_params(module, jax.random.key(2)))
  made['blocks'] = 0.2 * jax.random.normal(jax.random.key(4), made['blocks'].shape)
  stream = target(texts, feature_layers=(cfg.num_layers,), with_logits=False).features
  feature = target_lib.final_norm(target, stream)
  kernels = []
  for k in range(num_heads):
    seen = module.apply({'params': made}, feature[:, : -2 - k], k, method='hidden')
    seen = np.asarray(seen, np.float64).reshape(-1, cfg.width)
    said = np.eye(cfg.vocab_size)[np.asarray(texts)[:, 2 + k :].ravel()]
    both = seen.T @ seen + 0.1 * len(seen) * np.eye(cfg.width)
    kernels.append(30.0 * np.linalg.solve(both, seen.T @ said).T)
  made['head'] = jnp.asarray(np.stack(kernels), jnp.float32)
  return heads.Medusa(module, made)


def dspark(target, texts, ids=None) -> heads.DFlash:
  """A DSpark head whose Markov head knows what came after each token in texts.

  Args:
    target: of width 48, whose features are read after its first and its last layer.
    texts: [n, T] int32.
    ids: [V_draft] int32, a smaller draft vocabulary, for an output head of its own.
  """
  cfg = target.module.config
  kept = np.arange(cfg.vocab_size) if ids is None else np.asarray(ids)
  config = heads.DFlashConfig(
      decoder=models.TransformerConfig(
          vocab_size=len(kept), width=cfg.width, num_layers=2, num_heads=4, num_kv_heads=2,
          head_dim=cfg.head_dim, mlp_width=64, qk_norm=True,
      ),
      target_width=cfg.width, target_vocab_size=cfg.vocab_size,
      feature_layers=(1, cfg.num_layers), block_size=3, mask_token=0, shift=dflash_lib.NEXT,
      has_head=ids is not None, markov=dflash_lib.PLAIN, markov_rank=cfg.vocab_size,
      has_confidence=True, confidence_sees_token=True,
  )
  module = heads.DFlashHead(config)
  made = dict(dflash_lib.init_params(module, jax.random.key(5)))
  pairs = np.full((cfg.vocab_size, cfg.vocab_size), 0.05)
  np.add.at(pairs, (np.asarray(texts)[:, :-1].ravel(), np.asarray(texts)[:, 1:].ravel()), 1.0)
  made['markov_in'] = jnp.eye(cfg.vocab_size)
  made['markov_out'] = jnp.asarray(np.log(pairs).T[kept], jnp.float32)
  # The block has a say, but a small one.
  made['final_norm'] = {'scale': jnp.full(cfg.width, 0.2)}
  return heads.DFlash(module, made, None, ids)


def early_exit(target) -> heads.EarlyExit:
  """The first layer, and an adapter that does little."""
  config = heads.ExitConfig(exit_layer=1, target=target.module.config, mlp_width=64)
  module = heads.ExitAdapter(config, jnp.float32, jnp.float32)
  params = exit_lib.init_params(module, jax.random.key(3), target)
  params['mlp'] = jax.tree.map(lambda x: 0.1 * x, params['mlp'])
  return heads.EarlyExit(module, params)


def most_said(texts, count: int) -> jnp.ndarray:
  """The `count` most frequent tokens [count] int32, for a smaller draft vocabulary."""
  counts = np.bincount(np.ravel(texts))
  return jnp.asarray(np.sort(np.argsort(-counts, kind='stable')[:count]), jnp.int32)
