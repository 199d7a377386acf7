"""Models of random weights, made where they run, and the loops over them that are timed."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax import drafters
from specjax import engine
from specjax import generation
from specjax import models
from specjax import sampling as sampling_lib
from specjax import verify
from specjax.analysis import timed_programs
from specjax.cache import kv_cache
from specjax.kernels import accept
from specjax.models import fast_width


def preset(name: str, *, smoke: bool) -> models.TransformerConfig:
  """A published shape; where numbers mean nothing, one of its family that takes no time."""
  config = models.presets.PRESETS[name]
  if smoke:
    sizes = dict(width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=32)
    config = dataclasses.replace(config, vocab_size=256, **sizes)
  return config


def random_model(
    config: models.TransformerConfig,
    *,
    seed: int = 0,
    attention: str = 'auto',
    says_zero: bool = False,
) -> models.LanguageModel:
  """A bfloat16 model of random weights, made on the device a tensor at a time.

  Args:
    config: its shape.
    seed: of the weights.
    attention: as in `models.Transformer`.
    says_zero: for a model whose greedy token is always 0, with the same work. Random logits lie
      so close together that passes of different widths round to different tokens, after which no
      drafter could know what comes next.
  """
  module = models.Transformer(config, jnp.bfloat16, jnp.bfloat16, attention=attention)
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), tokens)['params']
  leaves, tree = jax.tree.flatten(shapes)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  params = jax.tree.unflatten(tree, [_leaf(key, leaf.shape) for key, leaf in zip(keys, leaves)])
  if says_zero:
    scale = params['final_norm']['scale']
    params['final_norm'] = {'scale': jnp.zeros_like(scale)}  # all logits 0, the first one wins
  return models.LanguageModel(module, params)


@functools.partial(jax.jit, static_argnames='shape')
def _leaf(key, shape):
  """Scales of norms are vectors; all else is contracted on its last axis."""
  if len(shape) == 1:
    return jnp.ones(shape, jnp.bfloat16)
  return jax.random.normal(key, shape, jnp.bfloat16) * shape[-1] ** -0.5


def bytes_of_step(model: models.LanguageModel, *, batch: int, context: int) -> int:
  """What a plain step must read: weights, but for embeddings that are looked up, and the cache."""
  cfg = model.module.config
  looked_up = 0 if cfg.tie_embeddings else cfg.vocab_size * cfg.width
  cache = 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim * context * batch
  return 2 * (cfg.num_parameters - looked_up + cache)


@dataclasses.dataclass
class Bench:
  """Loops over one target at one batch and context, without a prefill.

  Attributes:
    target: the model.
    batch: B.
    context: tokens of every row before the first round; what they are changes no cost.
    room: new tokens at most.
    accept: 'mosaic' for what the engine takes by itself, or 'xla'.
    options: the compiler's.
    rounds: timed in one go at most.
    repetitions: of each time; medians count.
  """

  target: models.LanguageModel
  batch: int
  context: int
  room: int
  accept: str = 'mosaic'
  options: Mapping[str, Any] | None = None
  rounds: int = 32
  repetitions: int = 5

  def __post_init__(self):
    size = self.context + self.room
    self.request = generation.Request(
        max_new_tokens=self.room, cache_length=size, prefill_chunk=16
    )
    drafter, width = drafters.plain(), fast_width(self.target, self.batch)
    self._setup = engine.Setup(
        target=self.target,
        drafter=drafter,
        sampling=sampling_lib.make(batch_size=self.batch),
        stop_tokens=jnp.full((8,), -1, jnp.int32),
        rule=self._rule(drafter),
        width=width,
    )
    sizes = generation.cache_sizes(self.batch, size, width=width, prefill_chunk=1)
    lengths = np.full((self.batch,), self.context, np.int32)
    # The cache is the smallest there is here: `with_drafter` makes the one that is used.
    cache = self.target.init_cache(batch_size=self.batch, cache_length=1, max_append=1)
    self._state = generation.first_state(
        self._setup,
        cache=kv_cache.roll_back(cache, jnp.asarray(lengths) - 1),
        drafter_state=drafter.init(**sizes),
        features=jnp.zeros((self.batch, 0), jnp.bfloat16),
        tokens=np.zeros((self.batch, size), np.int32),
        lengths=lengths,
        limits=np.full_like(lengths, self.room),
        seeds=0,
    )

  @property
  def width(self) -> int:
    """Tokens that a pass of plain decoding reads."""
    return self._setup.width

  def _rule(self, drafter: Any):
    """Greedy, as the engine would run it for a drafter, or through the definition."""
    if self.accept == 'xla':
      named = accept.through(verify.greedy(), 'xla')
      return dataclasses.replace(named, is_chain=drafter.is_chain)
    return generation.rule_that_runs(
        verify.greedy(), target=self.target, drafter=drafter, batch_size=self.batch
    )

  def started(self, drafter: Any = None):
    """Setup and state of a run with a drafter."""
    drafter = self._setup.drafter if drafter is None else drafter
    setup = self._setup.replace(rule=self._rule(drafter))
    return timed_programs.with_drafter(setup, self._state, drafter, self.request)

  def compiled(self, setup, state):
    """The engine's loop for them."""
    lowered = engine.run.lower(setup, state, np.int32(1))
    return lowered.compile(compiler_options=dict(self.options or {}))

  def seconds(self, drafter: Any = None, run=None) -> tuple[float, Any]:
    """Seconds of a round, and the compiled loop, to give as `run` for a drafter of that shape."""
    setup, state = self.started(drafter)
    run = self.compiled(setup, state) if run is None else run
    rounds = min(self.rounds, self.room // (setup.drafter.depth + 1) - 1)
    return self._time(timed_programs.loop(setup, state, run), rounds), run

  def pass_seconds(self, width: int) -> float:
    """Seconds of a pass of the target alone over so many tokens per row."""
    program = timed_programs.bare(self._setup, self._state, width, self.request, self.options)
    return self._time(program, min(self.rounds, self.room // width))

  def _time(self, program, rounds: int) -> float:
    seconds, _ = timed_programs.time_rounds(
        {(): program}, rounds=rounds, repetitions=self.repetitions
    )
    return seconds[()]
