"""The op over a vocabulary that is sharded over a mesh axis: logits stay where they are.

The same definition (`xla`) runs on every shard under `shard_map`; only its sums, maxima and
look-ups cross chips: of a row one float per tile (`base.tile_size`: about 2,048 entries) for
each sum, and scalars for the rest. Sums of tiles are gathered and added in the order of the
vocabulary, and tiles do not cross shards, so that results are those of the unsharded op, up to
how a compiler adds up the entries of one tile (an ulp of a log-probability).

Gathered of a sequence, with n tiles in all, for rejection and block on logits: (2K + 1) n
floats for the log-sum-exps, n for the draw, and (K - 1) n for the block rule's masses. At K =
4 and V = 128,256 (n = 64) that is 3.3 kB, where the logits are 4.6 MB. A row's thresholds,
if asked for, cost up to 31 rounds of its n floats each.
"""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec

from specjax import types
from specjax.kernels.accept import base
from specjax.kernels.accept import tiles
from specjax.kernels.accept import xla

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Split:
  """How logits lie on a mesh; hashable.

  Attributes:
    mesh: the mesh.
    vocab: the axis, or axes, that the vocabulary is sharded over.
    batch: the axis, or axes, that sequences are sharded over; () for none.
  """

  mesh: Mesh
  vocab: str | tuple[str, ...]
  batch: str | tuple[str, ...] = ()

  def ways(self, axes: str | tuple[str, ...]) -> int:
    """Devices along these axes."""
    names = (axes,) if isinstance(axes, str) else axes
    return math.prod(self.mesh.shape[name] for name in names)

  def refusal(self, *, batch_size: int, vocab_size: int) -> str | None:
    """Why these sizes do not split into whole and equal shards; None if they do."""
    shards, tile = self.ways(self.vocab), base.tile_size(vocab_size)
    if vocab_size % shards or vocab_size // shards % tile:
      return (
          f'A vocabulary of {vocab_size} does not split into {shards} shards of whole tiles of '
          f"{tile}: pad the model's head to a multiple of {128 * shards} tokens, with -inf."
      )
    if batch_size % self.ways(self.batch):
      return (
          f'{batch_size} sequences do not split over {self.ways(self.batch)} devices along '
          f'{self.batch!r}: take a multiple, or another layout.'
      )
    return None


def decide(
    split: Split, rule: Any, inputs: base.Inputs, source: Any, positions: Array | None
) -> types.Verification:
  """What a rule decides on the shards, each from the part of the vocabulary that it holds.

  Args:
    split: how the logits lie.
    rule: the rule.
    inputs: the arrays.
    source: as for `api.decide`, a pytree of arrays [B, ...].
    positions: likewise.

  Raises:
    ValueError: if vocabulary or batch do not split evenly.
  """
  vocab_size = inputs.target.shape[1]
  refusal = split.refusal(batch_size=inputs.tokens.shape[0], vocab_size=vocab_size)
  if refusal:
    raise ValueError(refusal)
  batch = split.batch or None
  rows, logits = PartitionSpec(batch), PartitionSpec(batch, split.vocab)
  # What the op does not apply stays outside: a bias is as wide as the vocabulary.
  sampling = inputs.sampling.replace(logit_bias=None, constraint=None)
  inputs = inputs.replace(sampling=sampling)
  specs = jax.tree.map(lambda _: rows, inputs).replace(target=logits)
  if inputs.draft is not None:
    specs = specs.replace(draft=logits)

  def on_shard(inputs, source, positions):
    local = xla.TileRows(inputs, tiles.Tiles(vocab_size, split.vocab))
    return rule.decide(local, positions=positions, source=source)[0]

  return jax.shard_map(
      on_shard, mesh=split.mesh, in_specs=(specs, rows, rows), out_specs=rows, check_vma=False
  )(inputs, source, positions)
