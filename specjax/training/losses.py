"""Losses of language models, and of drafts and heads that imitate a target.

Divergences are sums over the vocabulary of a term of both laws, at temperature 1:

| kind | per position | source |
|---|---|---|
| `forward_kl` | sum p log(p / q) | Hinton et al. 2015 |
| `reverse_kl` | sum q log(q / p) | Gu et al. 2023 (2306.08543) |
| `jsd` | KL(p, m) / 2 + KL(q, m) / 2, m = (p + q) / 2 | Agarwal et al. 2023 (2306.13649) |
| `total_variation` | 1 - sum min(p, q) | Zhou et al. 2023 (2310.08461) |
| `acceptance` | -log sum min(p, q) | likelihood of acceptance (2602.23881) |

p is the target, q the draft. The last two are of what a rejection rule accepts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def unpacked(batch: Any) -> tuple[Array, Array | None]:
  """The tokens [B, T + 1] of a batch, and the mask of those that count, bool, or None.

  Args:
    batch: tokens, or a dict of `tokens` and perhaps `mask`.
  """
  return (batch['tokens'], batch.get('mask')) if isinstance(batch, dict) else (batch, None)


def mean(values: Array, mask: Array | None) -> Array:
  """The mean of values [...] where the mask [...] is set, float32; 0 where it is nowhere.

  A mask of numbers weighs the values by them.
  """
  values = values.astype(jnp.float32)
  if mask is None:
    return values.mean()
  weights = mask.astype(jnp.float32)
  return (values * weights).sum() / jnp.maximum(weights.sum(), 1.0)


def cross_entropy(logits: Array, tokens: Array) -> Array:
  """Mean negative log-likelihood in nats.

  Args:
    logits: [B, T, V] of the next token at each position.
    tokens: [B, T] int32, the tokens that came.

  Returns:
    A float32 scalar.
  """
  logits = logits.astype(jnp.float32)
  return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()


def forward_kl(target_logits: Array, draft_logits: Array) -> Array:
  """Mean KL(target || draft) in nats (Hinton et al. 2015, at temperature 1).

  Args:
    target_logits: [B, T, V].
    draft_logits: [B, T, V].

  Returns:
    A float32 scalar, 0 exactly when both laws agree everywhere.
  """
  return divergence(target_logits, draft_logits, kind='forward_kl').mean()


def acceptance(target_logits: Array, draft_logits: Array) -> Array:
  """Mean probability that one drafted token is accepted: 1 - total variation.

  Leviathan et al. 2022, corollary 3.6, at temperature 1.

  Args:
    target_logits: [B, T, V].
    draft_logits: [B, T, V].

  Returns:
    A float32 scalar in [0, 1].
  """
  return 1.0 - divergence(target_logits, draft_logits, kind='total_variation').mean()


def _jsd_term(target: Array, draft: Array) -> Array:
  middle = jnp.logaddexp(target, draft) - jnp.log(2.0)
  return 0.5 * jnp.exp(target) * (target - middle) + 0.5 * jnp.exp(draft) * (draft - middle)


# A term of both laws' log-probabilities, to be summed over the vocabulary.
TERMS: dict[str, Callable[[Array, Array], Array]] = {
    'forward_kl': lambda target, draft: jnp.exp(target) * (target - draft),
    'reverse_kl': lambda target, draft: jnp.exp(draft) * (draft - target),
    'jsd': _jsd_term,
    'total_variation': lambda target, draft: jnp.exp(jnp.minimum(target, draft)),
    'acceptance': lambda target, draft: jnp.exp(jnp.minimum(target, draft)),
}


def finish(kind: str, total: Array) -> Array:
  """The divergence from the sum of its terms."""
  if kind == 'total_variation':
    return 1.0 - total
  if kind == 'acceptance':
    return -jnp.log(total)
  return total


def divergence(target_logits: Array, draft_logits: Array, *, kind: str) -> Array:
  """Divergence of the draft's law from the target's at each position.

  Args:
    target_logits: [..., V], finite.
    draft_logits: [..., V], finite.
    kind: one of `TERMS`.

  Returns:
    [...] float32; 0 where the laws agree.

  Raises:
    ValueError: for an unknown kind, or shapes that differ.
  """
  check_kind(kind)
  if target_logits.shape != draft_logits.shape:
    raise ValueError(
        f'Target and draft logits must have one shape, got {target_logits.shape} and '
        f'{draft_logits.shape}.'
    )
  target, draft = target_logits.astype(jnp.float32), draft_logits.astype(jnp.float32)
  if kind == 'forward_kl':
    # The same sum with an exponential less for each entry, forwards and backwards.
    weighted = (jax.nn.softmax(target) * (target - draft)).sum(-1)
    return weighted - jax.nn.logsumexp(target, axis=-1) + jax.nn.logsumexp(draft, axis=-1)
  target, draft = jax.nn.log_softmax(target), jax.nn.log_softmax(draft)
  return finish(kind, TERMS[kind](target, draft).sum(-1))


def check_kind(kind: str) -> None:
  """Refuses a divergence that does not exist."""
  if kind not in TERMS:
    raise ValueError(f'The loss must be one of {", ".join(sorted(TERMS))}; got {kind!r}.')
