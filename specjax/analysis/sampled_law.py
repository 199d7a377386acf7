"""Whether sampled output follows the target's law: a test on real models and real output.

The exact enumeration of `specjax.testing` shows it for small vocabularies. On a real model
every emitted token is, if decoding is lossless, a draw from the target's law p_t given all
before it. For any function f of the token, which may depend on what came before, the sum of

  f(x_t) - E_(p_t) f

is then a martingale whose variance is the sum of Var_(p_t) f, all of it known exactly from
the target's logits; divided by its root it is standard normal for thousands of tokens. The
functions are those that wrong rules move: log p_t, p_t itself, and whether the token is the
most likely one.
"""

from collections.abc import Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from specjax import sampling as sampling_lib
from specjax.analysis import identity
from specjax.output import GenerateOutput
from specjax.types import Sampling

FUNCTIONS = ('log p', 'p', 'most likely')


@dataclasses.dataclass(frozen=True)
class LawTest:
  """The outcome.

  Attributes:
    num_tokens: emitted tokens that were looked at.
    z_scores: by function, standard normal if the law is the target's.
    impossible: emitted tokens that the law excludes.
    p_value: the probability of the largest |z| among them, at least, if the law is right
      (Bonferroni); 0 if anything impossible was emitted.
  """

  num_tokens: int
  z_scores: dict[str, float]
  impossible: int
  p_value: float


def law_test(
    target,
    outputs: Sequence[GenerateOutput],
    samplings: Sequence[Sampling],
    *,
    width: int = 32,
    cache_length: int | None = None,
) -> LawTest:
  """Tests emitted tokens against the target's law after the sampling controls.

  Args:
    target: a `specjax.models.LanguageModel`.
    outputs: runs, of any batch sizes.
    samplings: the settings of each run. Penalties, biases and constraints are refused: they
      depend on more than the prefix that is read here.
    width: tokens that a pass reads, and `cache_length` of its cache; those of the runs where
      a filter (top-p, temperature 0) makes a near tie decide what is possible.
    cache_length: None takes what the rows need.

  Returns:
    The `LawTest`.

  Raises:
    ValueError: without output, for other numbers of settings than runs, or for settings
      that cannot be tested.
  """
  if not outputs or len(outputs) != len(samplings):
    raise ValueError(
        f'law_test needs runs and the settings of each; got {len(outputs)} runs and '
        f'{len(samplings)} settings.'
    )
  for sampling in samplings:
    _check(sampling)
  differences, variances, counts = np.zeros(3), np.zeros(3), np.zeros(2, int)
  for output, sampling in zip(outputs, samplings):
    tokens = output.tokens[:, : int(output.lengths.max())]
    logits = identity.logits_at_width(target, tokens, width=width, cache_length=cache_length)
    index = np.arange(tokens.shape[1])
    # The token at a slot was drawn from the logits of the slot before it.
    emitted = (index >= output.prompt_lengths[:, None]) & (index < output.lengths[:, None])
    sums = _sums(logits[:, :-1], tokens[:, 1:], emitted[:, 1:], sampling)
    differences += np.asarray(sums[0], np.float64)
    variances += np.asarray(sums[1], np.float64)
    counts += np.asarray([emitted.sum(), int(sums[2])])
  scores = [
      difference / math.sqrt(variance) if variance > 1e-9 else 0.0
      for difference, variance in zip(differences, variances)
  ]
  largest = max(map(abs, scores))
  p_value = min(1.0, len(scores) * math.erfc(largest / math.sqrt(2)))
  return LawTest(
      num_tokens=int(counts[0]),
      z_scores=dict(zip(FUNCTIONS, map(float, scores))),
      impossible=int(counts[1]),
      p_value=0.0 if counts[1] else p_value,
  )


def _check(sampling: Sampling) -> None:
  neutral = dict(repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)
  used = [name for name, value in neutral.items() if (getattr(sampling, name) != value).any()]
  used += [name for name in ('logit_bias', 'constraint') if getattr(sampling, name) is not None]
  if used:
    raise ValueError(f'law_test reads the prefix alone; it cannot test {", ".join(used)}.')


@jax.jit
def _sums(logits, tokens, emitted, sampling):
  """Sums over emitted tokens of f(x) - E f and Var f, [3] each, and of impossible tokens."""
  law = sampling_lib.law(logits, sampling)
  probs = jnp.exp(law)
  ids = jnp.arange(law.shape[-1])
  likely = (ids == sampling_lib.argmax(law)[..., None]).astype(jnp.float32)
  chosen = jnp.take_along_axis(law, tokens[..., None], axis=-1)[..., 0]
  impossible = emitted & (chosen == -jnp.inf)
  counted = emitted & ~impossible
  differences, variances = [], []
  for values in (jnp.where(probs > 0, law, 0.0), probs, likely):
    mean = jnp.sum(probs * values, axis=-1)
    variance = jnp.sum(probs * jnp.square(values - mean[..., None]), axis=-1)
    value = jnp.take_along_axis(values, tokens[..., None], axis=-1)[..., 0]
    differences.append(jnp.sum(jnp.where(counted, value - mean, 0.0)))
    variances.append(jnp.sum(jnp.where(counted, variance, 0.0)))
  return jnp.stack(differences), jnp.stack(variances), impossible.sum()
