"""Losses of heads: `(params, batch) -> (loss, metrics)` for `specjax.training.train.fit`.

A batch is either tokens int32 [B, T + 1], alone or under `tokens` with a `mask`, and the target's
features are computed in the step; or what `FeatureBatches` serves. The target is frozen in both
cases and is an argument of the compiled step. With a mask, bool [B, T + 1], a position counts where
the token that it foretells does: losses and metrics are means over these.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specjax.heads import target as target_lib
from specjax.heads.eagle import EagleHead
from specjax.heads.early_exit import ExitAdapter
from specjax.heads.medusa import MedusaHeads
from specjax.models import LanguageModel
from specjax.training import chunked
from specjax.training import losses
from specjax.training.chunked import Comparison, Side

Array = jax.Array


class Streams(NamedTuple):
  """What a head learns from.

  Attributes:
    tokens: [B, T + 1] int32.
    by_layer: residual streams [B, T, width] after the layers asked for.
    mask: [B, T + 1] bool, the tokens that count, or None.
  """

  tokens: Array
  by_layer: dict[int, Array]
  mask: Array | None

  def mean(self, values: Array, offset: int) -> Array:
    """The mean of `values` [B, n], of which entry i is about token i + offset, where it counts."""
    mask = None if self.mask is None else self.mask[:, offset : offset + values.shape[1]]
    return losses.mean(values, mask)

  def metrics(self, compared: Comparison, step: int, offset: int) -> dict[str, Array]:
    """Acceptance at temperature 1 and agreement of argmaxes, of one draft step."""
    return {
        f'acceptance_{step + 1}': self.mean(compared.acceptance, offset),
        f'agreement_{step + 1}': self.mean(compared.agrees, offset),
    }


def streams(batch: Any, target: LanguageModel, layers: tuple[int, ...]) -> Streams:
  """Tokens, mask, and the residual streams after the layers asked for.

  Raises:
    ValueError: if stored features are not of the target's width times the layers.
  """
  layers = tuple(sorted(set(layers)))
  width = target.module.config.width
  tokens, mask = losses.unpacked(batch)
  if isinstance(batch, dict) and 'features' in batch:
    features = batch['features']
    if features.shape[-1] != width * len(layers):
      raise ValueError(
          f'The stored features are {features.shape[-1]} wide; the head reads layers {layers} '
          f'of a target of width {width}, {width * len(layers)} in all. Store the features of '
          'this target and these layers.'
      )
  else:
    features = target(tokens[:, :-1], feature_layers=layers, with_logits=False).features
  features = jax.lax.stop_gradient(features)
  parts = jnp.split(features, len(layers), axis=-1)
  return Streams(tokens, dict(zip(layers, parts)), mask)


def eagle3(
    module: EagleHead,
    target: LanguageModel,
    *,
    num_steps: int,
    decay: float = 0.8,
    kind: str = 'forward_kl',
    num_chunks: int = 1,
    draft_to_target: Array | None = None,
    output_head: Array | None = None,
):
  """Training-time test (Li et al. 2025, section 3.2): `num_steps` draft steps per position.

  The loss is the sum over steps of `decay ** j` times the mean divergence from the target's
  law; a token's embedding is the target's. Where the draft vocabulary is a part of the
  target's, the target's law is renormalised to it.

  Args:
    module: the head.
    target: frozen.
    num_steps: draft steps unrolled in a training step.
    decay: weight of a step relative to the one before.
    kind: of `specjax.training.losses.TERMS`.
    num_chunks: parts of the vocabulary in which logits are made (`specjax.training.chunked`).
    draft_to_target: [V_draft] int32 or None.
    output_head: [V_draft, width], one that is not trained; parameters then have no 'head'.

  Returns:
    The loss function, its arrays bound. Metrics: `loss`, `acceptance_j` (mean probability
    that the token of step j is accepted at temperature 1, given those before) and
    `agreement_j` (of the most likely tokens); with `draft_to_target` both are of the target's law
    within that vocabulary, above what drafting finds.

  Raises:
    ValueError: if head and target do not fit, or for an unknown kind.
  """
  losses.check_kind(kind)
  target_lib.check_fits(module.config, target)
  fn = functools.partial(
      _eagle3, module=module, num_steps=num_steps, decay=decay, kind=kind, num_chunks=num_chunks
  )
  return jax.tree_util.Partial(
      fn, target=target, draft_to_target=draft_to_target, output_head=output_head
  )


def _eagle3(
    params, batch, *, target, draft_to_target, output_head, module, num_steps, decay, kind,
    num_chunks,
):
  if output_head is not None:
    params = {**params, 'head': output_head}
  last = target.module.config.num_layers
  reads = tuple(sorted(module.config.feature_layers))
  read = streams(batch, target, (*reads, last))
  tokens, by_layer = read.tokens, read.by_layer
  features = jnp.concatenate([by_layer[layer] for layer in reads], axis=-1)
  # Pair i holds feature i and token i + 1; the last feature has no law after it to learn.
  length = features.shape[1] - 1
  embedded = target_lib.embed(target, tokens[:, 1:])
  embedded = jnp.pad(embedded, ((0, 0), (0, num_steps - 1), (0, 0)))
  hidden = module.apply(
      {'params': params}, embedded[:, : length + num_steps - 1], features[:, :-1], num_steps,
      method='unroll',
  )
  wanted = chunked.side_of(target, by_layer[last], draft_to_target)
  total, metrics = 0.0, {}
  for step in range(num_steps):
    # Row i of step j is to match the law at position i + 1 + j.
    rows = length - step
    output = module.apply({'params': params}, hidden[step, :, :rows], method='output')
    goal = wanted._replace(hidden=wanted.hidden[:, 1 + step : 1 + step + rows])
    side = Side(output, params['head'])
    compared = chunked.compare(goal, side, kind=kind, num_chunks=num_chunks)
    # The law at position i is of token i + 1.
    total += decay**step * read.mean(compared.divergence, 2 + step)
    metrics |= read.metrics(compared, step, 2 + step)
  return total, {'loss': total} | metrics


def medusa(
    module: MedusaHeads,
    target: LanguageModel,
    *,
    decay: float = 0.8,
    kind: str = 'forward_kl',
    num_chunks: int = 1,
):
  """Medusa-1 (Cai et al. 2024, section 2.2.1): heads learn, the target is frozen.

  The loss is the sum over heads of `decay ** k` times the mean divergence of head k at
  position i from the target's law at position i + 1 + k, which is what a cross-entropy on
  the target's samples is in expectation.

  Args:
    module: the heads.
    target: frozen.
    decay: weight of a head relative to the one before.
    kind: of `specjax.training.losses.TERMS`.
    num_chunks: as for `eagle3`.

  Returns:
    The loss function, as that of `eagle3`.

  Raises:
    ValueError: if heads and target do not fit, or for an unknown kind.
  """
  losses.check_kind(kind)
  target_lib.check_fits(module.config, target)
  fn = functools.partial(
      _medusa, module=module, decay=decay, kind=kind, num_chunks=num_chunks
  )
  return jax.tree_util.Partial(fn, target=target)


def _medusa(params, batch, *, target, module, decay, kind, num_chunks):
  last = target.module.config.num_layers
  read = streams(batch, target, (last,))
  wanted = chunked.side_of(target, read.by_layer[last])
  total, metrics = 0.0, {}
  for k in range(module.config.num_heads):
    rows = wanted.hidden.shape[1] - 1 - k
    hidden = module.apply({'params': params}, wanted.hidden[:, :rows], k, method='hidden')
    goal = wanted._replace(hidden=wanted.hidden[:, 1 + k :])
    side = Side(hidden, params['head'][k])
    compared = chunked.compare(goal, side, kind=kind, num_chunks=num_chunks)
    total += decay**k * read.mean(compared.divergence, 2 + k)
    metrics |= read.metrics(compared, k, 2 + k)
  return total, {'loss': total} | metrics


def early_exit(
    module: ExitAdapter,
    target: LanguageModel,
    *,
    kind: str = 'forward_kl',
    num_chunks: int = 1,
):
  """The adapter of an early exit learns the target's law at the same position.

  Args:
    module: the adapter.
    target: frozen.
    kind: of `specjax.training.losses.TERMS`.
    num_chunks: as for `eagle3`.

  Returns:
    The loss function, as that of `eagle3`.

  Raises:
    ValueError: if adapter and target do not fit, or for an unknown kind.
  """
  losses.check_kind(kind)
  target_lib.check_fits(module.config, target)
  return jax.tree_util.Partial(
      functools.partial(_early_exit, module=module, kind=kind, num_chunks=num_chunks),
      target=target,
  )


def _early_exit(params, batch, *, target, module, kind, num_chunks):
  last, layer = target.module.config.num_layers, module.config.exit_layer
  read = streams(batch, target, (layer, last))
  wanted = chunked.side_of(target, read.by_layer[last])
  hidden = module.apply({'params': params}, read.by_layer[layer])
  compared = chunked.compare(
      wanted, wanted._replace(hidden=hidden), kind=kind, num_chunks=num_chunks
  )
  value = read.mean(compared.divergence, 1)
  return value, {'loss': value} | read.metrics(compared, 0, 1)
