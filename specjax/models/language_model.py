"""A model with its weights: what the engine and the drafters call."""

from typing import Any

from flax import struct

from specjax.models.transformer import Output


@struct.dataclass
class LanguageModel:
  """A model and its weights: what the engine and the drafters call.

  A user's own model serves as well: anything whose module has `apply`, `init_cache` and
  `vocab_size` as `Transformer` does.

  Attributes:
    module: static, the Flax module.
    params: its parameter tree.
  """

  module: Any = struct.field(pytree_node=False)
  params: Any

  @property
  def vocab_size(self) -> int:
    return self.module.vocab_size

  @property
  def layout(self) -> Any:
    """How the weights are split over devices (`specjax.sharding.Layout`), or None."""
    return getattr(self.module, 'layout', None)

  def __call__(self, tokens, positions=None, cache=None, **kwargs) -> Output:
    """`module.apply` with the weights; arguments as in `Transformer.__call__`.

    They are passed on as they come, for a user's own module may not take all of them.
    """
    return self.module.apply({'params': self.params}, tokens, positions, cache, **kwargs)

  def init_cache(self, *, batch_size: int, cache_length: int, max_append: int) -> Any:
    """An empty cache; arguments as in `specjax.cache.kv_cache.init`."""
    return self.module.init_cache(
        batch_size=batch_size, cache_length=cache_length, max_append=max_append
    )
