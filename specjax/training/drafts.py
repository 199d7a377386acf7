"""Losses of language models, alone or distilled: `(params, batch) -> (loss, metrics)` for `fit`.

A batch is tokens int32 [B, T + 1]: a text, or what the target wrote
(`specjax.training.samples`); or a dict of `tokens` and `mask`, bool of the same shape: losses and
metrics are then means over the tokens that count. The target of a distillation is frozen and an
argument of the compiled step.
"""

import functools

import jax

from specjax.models import LanguageModel
from specjax.models import Transformer
from specjax.training import chunked
from specjax.training import losses


def language_model(module: Transformer, *, num_chunks: int = 1):
  """Next-token cross-entropy.

  Args:
    module: the model.
    num_chunks: parts of the vocabulary in which logits are made (`specjax.training.chunked`).

  Returns:
    The loss function. Metrics: `loss`, in nats per token.
  """

  def loss(params, batch):
    tokens, mask = losses.unpacked(batch)
    side = _side(LanguageModel(module, params), tokens[:, :-1])
    values = chunked.cross_entropy(side, tokens[:, 1:], num_chunks=num_chunks)
    value = losses.mean(values, None if mask is None else mask[:, 1:])
    return value, {'loss': value}

  return loss


def distilled(
    module: Transformer,
    target: LanguageModel,
    *,
    weight: float = 0.9,
    kind: str = 'forward_kl',
    num_chunks: int = 1,
):
  """`weight * divergence(target, draft) + (1 - weight) * cross_entropy`, on the same tokens.

  Args:
    module: the draft, over the target's vocabulary.
    target: frozen.
    weight: of the divergence, 0 … 1.
    kind: of `specjax.training.losses.TERMS`.
    num_chunks: as for `language_model`; many where [B, T, V] is too large.

  Returns:
    The loss function, the target bound. Metrics: `loss`, the divergence (`kl` where it is
    forward KL, else its kind), `cross_entropy`, `acceptance` (mean probability that one
    drafted token is accepted at temperature 1) and `agreement` (of the most likely tokens).

  Raises:
    ValueError: for an unknown kind, a weight outside [0, 1], or another vocabulary.
  """
  losses.check_kind(kind)
  if not 0.0 <= weight <= 1.0:
    raise ValueError(f'The weight of the divergence must be in [0, 1], got {weight}.')
  if module.config.vocab_size != target.vocab_size:
    raise ValueError(
        f'The draft has a vocabulary of {module.config.vocab_size} tokens, the target of '
        f'{target.vocab_size}; both must be the same.'
    )
  fn = functools.partial(
      _distilled, module=module, weight=weight, kind=kind, num_chunks=num_chunks
  )
  # Bound, not closed over: the target's weights are arguments of the compiled step.
  return jax.tree_util.Partial(fn, target=target)


def _distilled(params, batch, *, target, module, weight, kind, num_chunks):
  tokens, mask = losses.unpacked(batch)
  mean = lambda values: losses.mean(values, None if mask is None else mask[:, 1:])
  draft, goal = (_side(model, tokens[:, :-1]) for model in (LanguageModel(module, params), target))
  compared = chunked.compare(goal, draft, kind=kind, num_chunks=num_chunks)
  divergence = mean(compared.divergence)
  cross_entropy = mean(chunked.cross_entropy(draft, tokens[:, 1:], num_chunks=num_chunks))
  value = weight * divergence + (1.0 - weight) * cross_entropy
  return value, {
      'loss': value,
      'kl' if kind == 'forward_kl' else kind: divergence,
      'cross_entropy': cross_entropy,
      'acceptance': mean(compared.acceptance),
      'agreement': mean(compared.agrees),
  }


def _side(model: LanguageModel, tokens) -> chunked.Side:
  last = model.module.config.num_layers
  stream = model(tokens, feature_layers=(last,), with_logits=False).features
  return chunked.side_of(model, stream)
