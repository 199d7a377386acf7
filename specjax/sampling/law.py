"""From logits to the law that is sampled: one way, for target and drafter alike."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from specjax import types
from specjax.sampling import constraints
from specjax.sampling import penalties

Array = jax.Array

# The integer image of `inf`: the bits of a float32 >= 0, read as int32, keep its order.
_INFINITY = 0x7F800000


def control(
    logits: Array,
    *,
    sampling: types.Sampling,
    history: types.History,
    path: Array,
    path_valid: Array,
) -> Array:
  """Logit bias, then penalties, then the allowed-token hook.

  Row r is treated as plain decoding would treat it after the root and the tokens of its
  path: the drafted ones count as emitted, and the hook's state has read them.

  Args:
    logits: [B, R, V], raw, any float dtype.
    sampling: the settings.
    history: `init_history` and `update_history`, up to and with the root.
    path: [B, R, D] int32, tokens drafted on the way to each row (the root excluded).
    path_valid: [B, R, D] bool; False where a path is shorter than D.

  Returns:
    [B, R, V] float32; `-inf` where a token is excluded.

  Raises:
    ValueError: shapes that do not belong together, at trace time.
  """
  batch_size, rows, vocab_size = logits.shape
  seen = history.in_prompt.shape
  if seen != (batch_size, vocab_size):
    raise ValueError(
        f'history is for [batch, vocabulary] {seen} and the logits are '
        f'{(batch_size, vocab_size)}: give init_history the vocabulary size of these logits.'
    )
  if path.shape != path_valid.shape or path.shape[:2] != (batch_size, rows):
    raise ValueError(
        f'path and path_valid must be [{batch_size}, {rows}, depth] as the logits are; got '
        f'{path.shape} and {path_valid.shape}.'
    )
  values = logits.astype(jnp.float32)
  if sampling.logit_bias is not None:
    if sampling.logit_bias.shape != (batch_size, vocab_size):
      raise ValueError(
          f'logit_bias is for [batch, vocabulary] {sampling.logit_bias.shape} and the logits '
          f'are {(batch_size, vocab_size)}: give it one entry for each token of the model.'
      )
    values = values + sampling.logit_bias[:, None]
  values = penalties.penalize(
      values, sampling=sampling, history=history, path=path, path_valid=path_valid
  )
  if sampling.constraint is None:
    return values
  wanted = jax.eval_shape(lambda: sampling.constraint.initial(batch_size))
  if jax.tree.structure(wanted) != jax.tree.structure(history.constraint):
    raise ValueError(
        'The history holds no state of this constraint: give init_history and update_history '
        'the constraint of the sampling settings.'
    )
  return constraints.mask(
      values,
      constraint=sampling.constraint,
      state=history.constraint,
      path=path,
      path_valid=path_valid,
  )


def law(logits: Array, sampling: types.Sampling, *, top: Array | None = None) -> Array:
  """The law that is sampled: `scaled`, normalised.

  Args:
    logits: [B, R, V], controlled; `-inf` excludes a token.
    sampling: the settings.
    top: as for `scaled`.

  Returns:
    [B, R, V] float32 log-probabilities that sum to one; exactly `-inf` outside the
    support. NaN or infinite logits, or a row with no token left, give a row of NaN.
  """
  values = scaled(logits, sampling, top=top)
  return values - jnp.log(jnp.sum(jnp.exp(values), axis=-1, keepdims=True))


def scaled(logits: Array, sampling: types.Sampling, *, top: Array | None = None) -> Array:
  """Log-probabilities but for a constant: temperature, then top-k, then top-p, then min-p.

  It is all that an argmax with Gumbel noise needs. Top-k keeps the k largest logits, top-p the
  smallest set of the remaining most probable tokens whose share of their mass reaches p, min-p
  what is at least min-p times as probable as the most probable token. All tokens that tie with
  the last one kept are kept, so that a set never depends on token numbers (`top_k=1` may
  therefore keep two). Temperature 0 is the one-hot at the largest logit, the lowest token
  number among ties.

  Thresholds are found by bisection over float32 numbers, at most 31 passes over the
  vocabulary and none when no row asks for them; nothing is sorted.

  Args:
    logits: [B, R, V], controlled; `-inf` excludes a token.
    sampling: the settings.
    top: [B, R], the largest logit of each row, where it is known: of a vocabulary that is split
      over devices it takes all of them to find it. None finds it.

  Returns:
    [B, R, V] float32, the largest 0; exactly `-inf` outside the support.
  """
  logits = logits.astype(jnp.float32)
  top = jnp.max(logits, axis=-1, keepdims=True) if top is None else top[..., None]
  greedy = (sampling.temperature == 0)[:, None, None]
  divisor = jnp.where(greedy, 1.0, sampling.temperature[:, None, None])
  # The maximum is subtracted before the division: no temperature is too small for that.
  values = (logits - top) / divisor
  rows = lambda setting: setting[:, None]
  lowest, chosen = thresholds(
      lambda: values,
      Filters(
          greedy=rows(sampling.temperature == 0), top_k=rows(sampling.top_k),
          top_p=rows(sampling.top_p), min_p=rows(sampling.min_p),
      ),
      shape=values.shape[:-1],
      vocab_size=values.shape[-1],
      total=lambda weights: jnp.sum(weights, axis=-1),
      argmax=lambda: argmax(values),
      keep_weights=True,
  )
  ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  kept = jnp.where(greedy, ids == chosen[..., None], values >= lowest[..., None])
  return jnp.where(kept, values, -jnp.inf)


def argmax(values: Array) -> Array:
  """The lowest index of the maximum: [..., V] to [...] int32; V - 1 if there is a NaN."""
  last = values.shape[-1] - 1
  top = jnp.max(values, axis=-1)
  return first_at(values, top, jnp.arange(last + 1), last).astype(jnp.int32)


def first_at(values: Array, top: Array, ids: Array, last: int) -> Array:
  """The lowest of `ids` [V] at which `values` [..., V] are `top` [...], else `last`: float32 [...].

  On CPUs two plain reductions are faster than the paired one of `jnp.argmax`, and float32
  ones, exact for indices below 2**24, faster than integer ones, which XLA splits.
  """
  numbers = jnp.where(values == top[..., None], ids.astype(jnp.float32), float(last))
  return jnp.min(numbers, axis=-1)


class Filters(NamedTuple):
  """The settings of rows that say which tokens are kept, arrays that broadcast to [...].

  Attributes:
    greedy: bool, temperature 0.
    top_k: int32; 0 keeps all.
    top_p: float32; 1 keeps all.
    min_p: float32; 0 keeps all.
  """

  greedy: Array
  top_k: Array
  top_p: Array
  min_p: Array


def thresholds(
    scaled: Callable[[], Array],
    filters: Filters,
    *,
    shape: tuple[int, ...],
    vocab_size: int,
    total: Callable[[Array], Array],
    argmax: Callable[[], Array],
    keep_weights: bool,
    cond: Callable = jax.lax.cond,
) -> tuple[Array, Array]:
  """What is kept of rows; thresholds by bisection, no pass over the rows if nobody asks.

  Args:
    scaled: the rows' logits [..., V], over the temperature, the largest 0; or the part of the
      vocabulary that is here.
    filters: the rows' settings.
    shape: of the rows, [...].
    vocab_size: V, of all parts.
    total: sums [..., V] float32 over the whole vocabulary, [...].
    argmax: the token [...] int32 of the largest logit.
    keep_weights: static; whether the tokens' weights are kept in memory between passes, or made
      again in each.
    cond: as `jax.lax.cond`, called where the first branch is the unlikely one.

  Returns:
    The least of `scaled` that is kept, [...] float32, and in greedy rows the one token that is,
    [...] int32; -1 elsewhere.
  """
  by_k = ~filters.greedy & (filters.top_k > 0) & (filters.top_k < vocab_size)
  by_p = ~filters.greedy & (filters.top_p < 1)
  everything = jnp.full(shape, -jnp.inf, jnp.float32)
  nothing = jnp.full(shape, -1, jnp.int32)

  def find_k() -> Array:
    # Counted in float32, exactly below 2**24: see `first_at`.
    count = lambda least: total((scaled() >= least[..., None]).astype(jnp.float32))
    goal = filters.top_k.astype(jnp.float32)
    return bisect(count, goal, by_k, shape, stop_at_goal=True)

  def find_p(lowest: Array) -> Array:
    def weigh() -> Array:
      values = scaled()
      return jnp.where(values >= lowest[..., None], jnp.exp(values), 0.0)

    kept = weigh() if keep_weights else None
    weights = lambda: weigh() if kept is None else kept
    mass = lambda least: total(jnp.where(scaled() >= least[..., None], weights(), 0.0))
    goal = filters.top_p * total(weights())
    return jnp.maximum(lowest, bisect(mass, goal, by_p, shape))

  def find() -> tuple[Array, Array]:
    lowest = jax.lax.cond(jnp.any(by_k), find_k, lambda: everything)
    lowest = jax.lax.cond(jnp.any(by_p), find_p, lambda lowest: lowest, lowest)
    chosen = jax.lax.cond(jnp.any(filters.greedy), argmax, lambda: nothing)
    return lowest, jnp.where(filters.greedy, chosen, nothing)

  used = jnp.any(by_k | by_p | filters.greedy)
  lowest, chosen = cond(used, find, lambda: (everything, nothing))
  least = jnp.where(filters.greedy, -jnp.inf, jnp.log(filters.min_p))
  return jnp.maximum(lowest, least), chosen


def bisect(
    measure: Callable[[Array], Array],
    goal: Array,
    used: Array,
    shape: tuple[int, ...],
    stop_at_goal: bool = False,
) -> Array:
  """The largest threshold x <= 0 with measure(x) >= goal, exactly.

  The bits of -x, read as an integer, run from 0 to those of infinity in the order of -x,
  and halving integers ends after 31 steps, at neighbouring float32 numbers.

  Args:
    measure: thresholds of `shape` to what is kept by them; falls as they rise.
    goal: broadcasts to `shape`.
    used: broadcasts likewise; False leaves -inf.
    shape: of the thresholds, such as (B, R, 1).
    stop_at_goal: static; whether any threshold that meets the goal exactly will do.

  Returns:
    Thresholds of `shape`, float32.
  """

  def threshold(image: Array) -> Array:
    return -jax.lax.bitcast_convert_type(image, jnp.float32)

  def step(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    below, enough = bounds  # measure(below) < goal <= measure(enough)
    middle = below + ((enough - below) >> 1)
    kept = measure(threshold(middle))
    enough = jnp.where(kept >= goal, middle, enough)
    below = jnp.where(kept >= goal, below, middle)
    if stop_at_goal:
      below = jnp.where(kept == goal, middle - 1, below)
    return below, enough

  enough = jnp.full(shape, _INFINITY, jnp.int32)
  below = jnp.where(used, -1, enough - 1)
  _, enough = jax.lax.while_loop(
      lambda bounds: jnp.any(bounds[1] - bounds[0] > 1), step, (below, enough)
  )
  return jnp.where(used, threshold(enough), -jnp.inf)
