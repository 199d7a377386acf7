"""Times of steps by what must be read, computed and sent, and what speculation brings then.

A pass takes the longer of reading (weights and the whole cache, once) and computing, and then
its collectives one after the other: latency of the slice's hops plus bytes over the links.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

from specjax.analysis import theory
from specjax.models.config import TransformerConfig
from specjax.planning.chips import Slice


@dataclasses.dataclass(frozen=True)
class Model:
  """One model on one slice, a chip.

  Attributes:
    config: its configuration, heads repeated as the layout wants.
    weight_bytes: read in a pass, a chip. An embedding that is only looked up is not.
    cache_bytes: of one row's slots, a chip.
    ways: devices that share a product.
    rows_ways: devices that share the rows of a batch.
    collectives_a_layer: all-reduces in a layer, the embedding's and the head's come on top.
    num_parameters: that take part in products; None for those of `config`.
    block_size: of a draft, the tokens that it reads in its one pass of a round, whatever is
      drafted; None takes a pass of one token for each drafted one.
  """

  config: TransformerConfig
  weight_bytes: float
  cache_bytes: float
  ways: int
  rows_ways: int = 1
  collectives_a_layer: float = 2.0
  num_parameters: int | None = None
  block_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Step:
  """Seconds of one pass.

  Attributes:
    read: of weights and cache.
    compute: of products and attention.
    collectives: of all of them.
  """

  read: float
  compute: float
  collectives: float

  @property
  def seconds(self) -> float:
    return max(self.read, self.compute) + self.collectives


def step(model: Model, where: Slice, *, batch_size: int, width: int, context: int) -> Step:
  """The pass of `width` tokens per row.

  Args:
    model: the model.
    where: the slice.
    batch_size: rows, of the whole slice.
    width: tokens per row.
    context: slots that attention reads per row.

  Returns:
    The `Step`.
  """
  cfg, chip = model.config, where.chip
  rows = batch_size / model.rows_ways
  tokens = rows * width
  read = (model.weight_bytes + rows * model.cache_bytes) / chip.hbm_bandwidth
  parameters = model.num_parameters or cfg.num_parameters
  products = 2.0 * parameters / model.ways * tokens
  attention = 4.0 * cfg.num_layers * cfg.num_heads * cfg.head_dim * context / model.ways * tokens
  collectives = 0.0
  if model.ways > 1:
    count = model.collectives_a_layer * cfg.num_layers + 1
    # Sum and result each cross the links once, all but the chip's own part.
    sent = 2.0 * tokens * cfg.width * 2 * (model.ways - 1) / model.ways
    collectives = count * (where.hops * chip.hop_seconds + sent / chip.link_bandwidth)
  return Step(read, (products + attention) / chip.peak_flops, collectives)


@dataclasses.dataclass(frozen=True)
class Costs:
  """What the parts of a round take, by roofline or by a compiled program.

  Attributes:
    draft: seconds of a drafted token.
    target: width -> seconds of the target's pass over so many tokens per row.
    overhead: seconds per round beside these: of verifying, and of a draft that reads a whole block.
      Plain decoding is taken to have none.
  """

  draft: float
  target: Callable[[int], float]
  overhead: float = 0.0


def costs(
    target: Model, draft: Model, where: Slice, *, batch_size: int, context: int
) -> Costs:
  """The costs by roofline of `batch_size` rows whose attention reads `context` slots."""
  seconds = lambda model, width: step(
      model, where, batch_size=batch_size, width=width, context=context
  ).seconds
  passes = functools.partial(seconds, target)
  if draft.block_size is None:
    return Costs(draft=seconds(draft, 1), target=passes)
  return Costs(draft=0.0, target=passes, overhead=seconds(draft, draft.block_size))


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What speculation brings at one acceptance rate.

  Attributes:
    acceptance: the rate.
    num_speculative_tokens: the K that is fastest; 0 where plain decoding is.
    plain: tokens per second of all rows, plain decoding.
    speculative: likewise, at that K.
    speedup: their quotient.
  """

  acceptance: float
  num_speculative_tokens: int
  plain: float
  speculative: float
  speedup: float


def predict(
    costs: Costs,
    *,
    batch_size: int,
    acceptances: Sequence[float],
    max_num_speculative_tokens: int = 8,
) -> list[Prediction]:
  """The best K and its tokens per second, for a range of acceptance rates.

  Args:
    costs: of the parts of a round.
    batch_size: rows.
    acceptances: rates α, the same at every position and independent.
    max_num_speculative_tokens: the largest K to consider.

  Returns:
    One `Prediction` per rate.
  """
  plain = costs.target(1)
  predictions = []
  for acceptance in acceptances:
    best = theory.best_length(
        acceptance,
        max_num_speculative_tokens=max_num_speculative_tokens,
        draft_cost=costs.draft / plain,
        pass_cost=lambda width: costs.target(width) / plain,
        overhead=costs.overhead / plain,
    )
    predictions.append(
        Prediction(
            acceptance=acceptance,
            num_speculative_tokens=best.num_speculative_tokens,
            plain=batch_size / plain,
            speculative=best.speedup * batch_size / plain,
            speedup=best.speedup,
        )
    )
  return predictions


def largest_paying_batch(
    costs: Callable[[int], Costs],
    *,
    acceptance: float,
    least_speedup: float = 1.05,
    limit: int = 4096,
    max_num_speculative_tokens: int = 8,
) -> int | None:
  """The largest power of two of rows at which speculation still pays.

  Args:
    costs: batch size -> the costs.
    acceptance: the rate.
    least_speedup: what counts as paying.
    limit: where the search ends.
    max_num_speculative_tokens: as for `predict`.

  Returns:
    Rows; 0 where it never pays, None where it pays up to the limit. Memory is not looked at.
  """
  batch_size, paying = 1, 0
  while batch_size <= limit:
    made = predict(
        costs(batch_size), batch_size=batch_size, acceptances=(acceptance,),
        max_num_speculative_tokens=max_num_speculative_tokens,
    )
    if made[0].speedup < least_speedup:
      return paying
    paying, batch_size = batch_size, batch_size * 2
  return None
