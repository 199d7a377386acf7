"""Small random heads for the tiny target, and what they draft by their definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from specjax import drafters
from specjax import heads
from specjax.heads import dflash as dflash_lib
from specjax.heads import eagle as eagle_lib
from specjax.heads import early_exit as exit_lib
from specjax.heads import medusa as medusa_lib
from specjax.heads import target as target_lib
from specjax.models import TransformerConfig
from tests.support import tiny

K = 3


@functools.cache
def head(version: int = 3, vocab_size: int = tiny.VOCAB, seed: int = 3) -> heads.Eagle:
  """A random head; what it drafts is mostly rejected, which exercises rolling back."""
  cfg = tiny.target().module.config
  decoder = TransformerConfig(
      vocab_size=vocab_size, width=cfg.width, num_layers=1, num_heads=4, num_kv_heads=2,
      head_dim=16, mlp_width=64,
  )
  config = heads.EagleConfig(
      decoder=decoder,
      target_width=cfg.width,
      target_vocab_size=cfg.vocab_size,
      feature_layers=(1, 2, 3) if version == 3 else (cfg.num_layers,),
      version=version,
      fuse_bias=version == 1,
  )
  module = heads.EagleHead(config)
  params = eagle_lib.init_params(module, jax.random.key(seed))
  ids = None
  if vocab_size < tiny.VOCAB:
    ids = jnp.asarray(np.random.default_rng(0).permutation(tiny.VOCAB)[:vocab_size], jnp.int32)
  return heads.Eagle(module, jax.tree.map(lambda x: x * 2, params), None, ids)


@functools.cache
def medusa() -> heads.Medusa:
  cfg = tiny.target().module.config
  config = heads.MedusaConfig(
      num_heads=K, target_width=cfg.width, target_vocab_size=cfg.vocab_size,
      target_layers=cfg.num_layers,
  )
  module = heads.MedusaHeads(config, jnp.float32, jnp.float32)
  params = medusa_lib.init_params(module, jax.random.key(0))
  noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)
  return heads.Medusa(module, jax.tree.map(noise, params))


@functools.cache
def block(kind: str = 'dflash', vocab_size: int = tiny.VOCAB) -> heads.DFlash:
  """Heads of blocks that draft K tokens: 'dflash' by its masks, 'dspark' from its root on."""
  cfg, is_next = tiny.target().module.config, kind == 'dspark'
  config = heads.DFlashConfig(
      decoder=TransformerConfig(
          vocab_size=vocab_size, width=cfg.width, num_layers=2, num_heads=4, num_kv_heads=2,
          head_dim=16, mlp_width=64, qk_norm=True, sliding_window=4, local_layers=(True, False),
      ),
      target_width=cfg.width,
      target_vocab_size=cfg.vocab_size,
      feature_layers=(0, 2),
      block_size=K if is_next else K + 1,
      mask_token=5,
      shift=dflash_lib.NEXT if is_next else dflash_lib.MASKS,
      has_head=vocab_size < tiny.VOCAB,
      markov=dflash_lib.RNN if is_next else None,
      markov_rank=8 if is_next else 0,
      has_confidence=is_next,
      confidence_sees_token=is_next,
  )
  module = heads.DFlashHead(config)
  params = jax.tree.map(lambda x: x * 2, dflash_lib.init_params(module, jax.random.key(2)))
  ids = None
  if vocab_size < tiny.VOCAB:
    ids = jnp.asarray(np.random.default_rng(0).permutation(tiny.VOCAB)[:vocab_size], jnp.int32)
  return heads.DFlash(module, params, None, ids)


@functools.cache
def adapter() -> heads.EarlyExit:
  config = heads.ExitConfig(exit_layer=2, target=tiny.target().module.config, mlp_width=32)
  module = heads.ExitAdapter(config, jnp.float32, jnp.float32)
  return heads.EarlyExit(module, exit_lib.init_params(module, jax.random.key(1), tiny.target()))


def make(kind: str, **shape):
  shape = shape or dict(num_speculative_tokens=K)
  if kind == 'medusa':
    return drafters.medusa(medusa(), tiny.target(), **shape)
  if kind in ('dflash', 'dspark'):
    return drafters.dflash(block(kind), tiny.target(), **shape)
  if kind == 'exit':
    return drafters.early_exit(adapter(), tiny.target(), **shape)
  if kind == 'plain exit':
    return drafters.early_exit(heads.plain_exit(tiny.target(), 2), tiny.target(), **shape)
  chosen = {'eagle3': head(), 'eagle1': head(1), 'reduced': head(3, 24)}[kind]
  return drafters.eagle(chosen, tiny.target(), **shape)


@functools.partial(jax.jit, static_argnames='layers')
def _streams(tokens, layers):
  return tiny.target()(tokens, feature_layers=layers, with_logits=False).features


def streams(tokens, layers):
  """Features [1, T, F]; padded, so that one program serves all lengths."""
  padded = np.zeros((1, 40), np.int32)
  padded[0, : len(tokens)] = tokens
  return _streams(padded, layers)[:, : len(tokens)]


@jax.jit
def _unroll(chosen, embedded, features):
  variables = {'params': chosen.params}
  return chosen.module.apply(variables, embedded, features, K, method='unroll')


def _fresh_block(kind: str, tokens) -> list[int]:
  """A block after all of its context at once, and the path of its most probable tokens."""
  chosen, target = block(kind), tiny.target()
  apply = lambda *args, **kw: chosen.module.apply({'params': chosen.params}, *args, **kw)
  count, config = len(tokens) - 1, chosen.config
  cache = chosen.module.init_cache(batch_size=1, cache_length=40, max_append=40)
  if count:
    features = streams(tokens[:-1], config.feature_layers)
    cache = apply(features, cache, jnp.asarray([count]), method='context')
  masked = jnp.asarray([[tokens[-1]] + [config.mask_token] * (config.block_size - 1)])
  hidden, _ = apply(target_lib.embed(target, masked), cache)
  hidden = hidden[0, 1:] if kind == 'dflash' else hidden[0]
  found, before, state = [], tokens[-1], jnp.zeros(config.markov_rank)
  for slot in hidden:
    logits = target_lib.output_logits(target, slot)
    if config.markov:
      bias, state = apply(jnp.asarray(before), slot, state, method='markov_bias')
      logits = logits + bias
    before = int(logits.argmax())
    found.append(before)
  return found


def fresh_chain(kind: str, tokens) -> list[int]:
  """What a head drafts after `tokens` (the root included), from nothing but its definition."""
  layers = {'eagle1': (3,), 'medusa': (3,)}.get(kind, (1, 2, 3))
  if kind == 'exit':
    chosen = list(tokens)
    for _ in range(K):
      stream = streams(chosen, (2,))
      chosen.append(int(adapter().logits(tiny.target(), stream)[0, -1].argmax()))
    return chosen[len(tokens) :]
  if kind in ('dflash', 'dspark'):
    return _fresh_block(kind, tokens)
  features = streams(tokens[:-1], layers)
  if kind == 'medusa':
    feature = target_lib.final_norm(tiny.target(), features[:, -1])
    logits = medusa().module.apply({'params': medusa().params}, feature)
    return [int(t) for t in logits[0].argmax(-1)]
  chosen = head({'eagle1': 1}.get(kind, 3), 24 if kind == 'reduced' else tiny.VOCAB)
  apply = lambda *args, **kw: chosen.module.apply({'params': chosen.params}, *args, **kw)
  if kind == 'eagle1':
    features = target_lib.final_norm(tiny.target(), features)
  # Each step with all that came before and no cache: unrolled from the last pair.
  steps, found, count = list(tokens[1:]), [], features.shape[1]
  features = jnp.pad(features, ((0, 0), (0, 40 - count), (0, 0)))
  for step in range(K):
    padded = np.zeros((1, 40 + K), np.int32)
    padded[0, : len(steps)] = steps
    embedded = target_lib.embed(tiny.target(), padded)
    last = _unroll(chosen, embedded, features)[step, :, count - 1]
    if kind == 'eagle1':
      logits = apply(last, method='output') @ target_lib.head_kernel(tiny.target()).T
    else:
      logits = apply(last, method='logits')
    token = int(logits[0].argmax())
    token = token if chosen.draft_to_target is None else int(chosen.draft_to_target[token])
    found.append(token)
    steps.append(token)
  return found
