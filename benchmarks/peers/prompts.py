"""Prompts for comparing engines: those whose continuations do not depend on rounding.

Engines order sums differently. Where the largest two logits nearly tie, they may choose
differently, and from there on compare different texts. So many prompts are tried, and those
are kept at which bfloat16 chooses as float32 does, target and draft, by the widest margin.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from experiments import workdir
from specjax import generation
from specjax import models
from specjax.analysis import calibration
from specjax.training import data


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt, and how greedy decoding in float32 continues it.

  Attributes:
    text: as llama.cpp reads it.
    tokens: the same, as the other engines read it.
    passes: target passes for the new tokens at the K it was chosen for.
    flips: choices of target or draft along the output that bfloat16 changes.
    margin: smallest gap of the largest two logits over the typical error of bfloat16.
  """

  text: str
  tokens: tuple[int, ...]
  passes: int | None = None
  flips: int | None = None
  margin: float | None = None


def candidates(tokenizer: tokenizers.Tokenizer, *, count: int, length: int) -> list[Prompt]:
  """`count` prompts of about `length` tokens from files of Python's library that are held out.

  Only texts that the tokenizer reproduces are taken.

  Raises:
    ValueError: if there are not that many.
  """
  encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
  prompts = []
  for start in range(0, 20_000, 2_000):
    for text in data.read_texts(data.stdlib_files(held_out=True)):
      cut = tokenizer.decode(encode(text[start : start + 8 * length])[:length]).strip()
      ids = encode(cut)
      if len(ids) >= length // 2 and tokenizer.decode(ids) == cut and cut.isascii():
        prompts.append(Prompt(cut, tuple(ids)))
      if len(prompts) == count:
        return prompts
  raise ValueError(
      f'The held-out files give {len(prompts)} prompts of {length} tokens, not {count}.'
  )


def choose(
    target: models.LanguageModel, draft: models.LanguageModel, prompts: Sequence[Prompt], *,
    count: int, num_speculative_tokens: int, new_tokens: int,
) -> list[Prompt]:
  """The `count` steadiest prompts, steadiest first, with `passes`, `flips` and `margin`.

  Args:
    target: float32, with weights that bfloat16 holds exactly.
    draft: likewise.
    prompts: to choose from.
    count: how many.
    num_speculative_tokens: K, for `Prompt.passes`.
    new_tokens: greedy tokens after each prompt.
  """
  output = generation.decode(target, [p.tokens for p in prompts], max_new_tokens=new_tokens)
  forward = jax.jit(lambda model, tokens: model(tokens).logits[0])
  pairs = [(model, calibration.cast(model, jnp.bfloat16)) for model in (target, draft)]
  rated = []
  for row, prompt in enumerate(prompts):
    tokens = jnp.asarray(output.tokens[row, : output.lengths[row]])[None]
    # The logits [n, V] from which each new token was chosen.
    chosen_from = lambda model: np.asarray(forward(model, tokens))[len(prompt.tokens) - 1 : -1]
    logits = [(chosen_from(high), chosen_from(low)) for high, low in pairs]
    matches = logits[1][0].argmax(-1) == output.new_tokens(row)
    rated.append(
        dataclasses.replace(
            prompt,
            passes=num_passes(matches, num_speculative_tokens),
            flips=sum(int((high.argmax(-1) != low.argmax(-1)).sum()) for high, low in logits),
            margin=float(min(_margin_over_error(high, low) for high, low in logits)),
        )
    )
  return sorted(rated, key=lambda prompt: (prompt.flips, -prompt.margin))[:count]


def num_passes(matches: Sequence[bool], num_speculative_tokens: int) -> int:
  """Target passes of greedy decoding with chains of K drafted tokens.

  `matches` says of each new token whether the draft would have chosen it: a round emits those
  that do, K at most, and one more. With K = 2, True, True, False, True takes 2 passes.
  """
  position = rounds = 0
  while position < len(matches):
    chain = list(matches[position : position + num_speculative_tokens])
    position += (chain + [False]).index(False) + 1
    rounds += 1
  return rounds


def _margin_over_error(high: np.ndarray, low: np.ndarray) -> float:
  """Smallest gap between the best two logits [n, V] over the gaps' typical error."""
  best = np.argpartition(high, -2, axis=-1)[:, -2:]
  gap, other = (np.diff(np.take_along_axis(x, best, -1), axis=-1)[:, 0] for x in (high, low))
  return np.abs(gap).min() / max(float(np.std(gap - other)), 1e-30)


def write(prompts: Sequence[Prompt], file: pathlib.Path) -> None:
  """Writes prompts as JSON lines."""
  lines = [json.dumps(dataclasses.asdict(prompt)) + '\n' for prompt in prompts]
  file.write_text(''.join(lines), encoding='utf-8')


def read(file: pathlib.Path) -> list[Prompt]:
  """Reads what `write` wrote."""
  return [Prompt(**row | {'tokens': tuple(row['tokens'])}) for row in workdir.read_rows(file)]
