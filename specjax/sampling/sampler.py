"""What a drafter draws with: the target's settings, and the draw of the rule's mode."""

from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import types
from specjax.sampling.law import argmax
from specjax.sampling.law import control
from specjax.sampling.law import law
from specjax.sampling.law import scaled

Array = jax.Array


class Drawn(NamedTuple):
  """What `Sampler.draw_node` gives.

  Attributes:
    token: [B] int32; whichever where `is_empty`.
    law: [B, V] float32, what it was drawn from, `-inf` throughout where `is_empty`; None in
      greedy mode, and in coupled mode unless `keep_law`.
    is_empty: [B] bool, where there was nothing to draw from: the node is not valid.
    sampler: to use next.
  """

  token: Array
  law: Array | None
  is_empty: Array
  sampler: 'Sampler'


@struct.dataclass
class Sampler:
  """What a drafter draws with: the target's settings, and the draw of the rule's mode.

  Attributes:
    source: where random choices come from.
    sampling: the settings.
    history: up to and with the root.
    mode: static; 'greedy', 'sample' or 'coupled', as the rule has it.
    keep_law: static; whether the coupled mode returns the law, which its rule does not need.
  """

  source: Any
  sampling: types.Sampling
  history: types.History
  mode: str = struct.field(pytree_node=False)
  keep_law: bool = struct.field(pytree_node=False, default=False)

  def control(
      self, logits: Array, *, path: Array, path_valid: Array
  ) -> tuple[Array, Array, Array]:
    """`control` of a draft's logits, and where that leaves nothing to draw from.

    A draft may know none of the tokens that are allowed next, or have no law at all (NaN).
    What is drafted there is not valid. That depends on the row alone and not on what is drawn,
    so that leaving it out does not bias the output.

    Args:
      logits: [B, R, V], raw.
      path: [B, R, D] int32, the tokens drafted before each row.
      path_valid: [B, R, D] bool.

    Returns:
      [B, R, V] float32, with zeros throughout in empty rows, so that something can be drawn in
      every row of the batch; which rows are empty, [B, R] bool; and the largest entry of each
      row, [B, R].
    """
    controlled = control(
        logits, sampling=self.sampling, history=self.history, path=path, path_valid=path_valid
    )
    top = jnp.max(controlled, axis=-1)
    is_empty = ~(top > -jnp.inf) if self.mode == 'greedy' else ~jnp.isfinite(top)
    rows = jnp.where(is_empty[..., None], 0.0, controlled)
    return rows, is_empty, jnp.where(is_empty, 0.0, top)

  def draw(
      self, logits: Array, *, path: Array, path_valid: Array, position: Array, node: Any
  ) -> tuple[Array, Array | None, 'Sampler']:
    """Turns a draft's raw logits into a token and the law that it was drawn from.

    `draw_node` without its `is_empty`: the engine sees by the law that a node is not valid.
    Where there is none (greedy, coupled) the token is compared as any other.

    Args:
      logits: [B, V], raw.
      path: [B, D] int32, the tokens drafted before it, from the root's child on.
      path_valid: [B, D] bool, which entries of `path` there are.
      position: [B] int32, the absolute position that the token takes; coupled only.
      node: the number of the node that is drawn; one draw per node and round.

    Returns:
      The token [B] int32; its law [B, V] (None in greedy mode, and in coupled mode unless
      `keep_law`); and the sampler to use next. The law is `-inf` throughout where none of the
      allowed tokens is known to the draft.
    """
    drawn = self.draw_node(
        logits, path=path, path_valid=path_valid, position=position, node=node
    )
    return drawn.token, drawn.law, drawn.sampler

  def draw_node(
      self, logits: Array, *, path: Array, path_valid: Array, position: Array, node: Any
  ) -> Drawn:
    """`draw`, with its arguments, and where there was nothing to draw from."""
    logits, is_empty, top = self.control(
        logits[:, None], path=path[:, None], path_valid=path_valid[:, None]
    )
    is_empty = is_empty[:, 0]
    if self.mode == 'greedy':
      return Drawn(argmax(logits[:, 0]), None, is_empty, self)
    if self.mode not in ('sample', 'coupled'):
      raise ValueError(f"mode must be 'greedy', 'sample' or 'coupled'; got {self.mode!r}.")
    drawn_from, sampler = None, self
    if self.mode == 'sample' or self.keep_law:
      drawn_from = law(logits, self.sampling, top=top)[:, 0]
    if self.mode == 'sample':
      token, source = self.source.draw(drawn_from, purpose=randomness.DRAFT, node=node)
      sampler = self.replace(source=source)
    else:
      values = scaled(logits, self.sampling, top=top)[:, 0]
      token = argmax(values + self.source.gumbel(position, values.shape[-1]))
    if drawn_from is not None:
      drawn_from = jnp.where(is_empty[:, None], -jnp.inf, drawn_from)
    return Drawn(token, drawn_from, is_empty, sampler)
