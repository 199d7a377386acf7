"""How many tokens a round yields, and how much faster that makes decoding.

Costs are in units of one step of plain decoding (one token, the loop around it included):

  S = E / (K c + r(K + 1) + o)

with E the expected tokens per round, c a draft step, r(m) a target pass over m tokens and o
the rest of a round: sampling, verification and commit. With r = 1 and o = 0 this is
theorem 3.8 of Leviathan et al. 2022 (2211.17192).

Acceptance is given in either of two ways wherever it is asked for: one number α, the
same at every position and independent of the others; or one *conditional* rate per position,
the share of the rounds that accepted all positions before it. Only the latter describes
what was measured: acceptances are not independent.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

Acceptance = float | Sequence[float]


def conditional_rates(accepted_at: Sequence[int], num_rounds: int) -> list[float]:
  """Conditional acceptance rates [D] from counts.

  Args:
    accepted_at: [D], rounds whose rule accepted at least d + 1 tokens (`Stats.decided_at`, which
      the end of an output does not cut).
    num_rounds: all rounds, those with nothing proposed included.

  Returns:
    Rates whose running product is the share of rounds that came so far; 0 after a position
    that was never reached. Doctest:

    >>> conditional_rates([80, 40, 10], 100)
    [0.8, 0.5, 0.25]
  """
  rates, before = [], num_rounds
  for count in accepted_at:
    rates.append(float(count) / float(before) if before else 0.0)
    before = count
  return rates


def survival(acceptance: Acceptance, num_speculative_tokens: int) -> np.ndarray:
  """Probabilities [K] that at least 1, 2, … K drafted tokens of a round are accepted.

  Args:
    acceptance: α, or conditional rates of at least K positions.
    num_speculative_tokens: K >= 0.

  Raises:
    ValueError: for a rate outside [0, 1], K < 0, or fewer than K rates.
  """
  if num_speculative_tokens < 0:
    raise ValueError(f'num_speculative_tokens must be at least 0, got {num_speculative_tokens}.')
  rates = np.asarray(acceptance, np.float64)
  if not rates.ndim:
    rates = np.full(num_speculative_tokens, rates)
  if rates.size < num_speculative_tokens:
    raise ValueError(
        f'Acceptance is known for {rates.size} positions, K is {num_speculative_tokens}: '
        'measure it with a K as large as the largest that is asked about.'
    )
  if (rates < 0).any() or (rates > 1).any() or np.isnan(rates).any():
    raise ValueError(f'Acceptance rates must be in [0, 1], got {acceptance}.')
  return np.cumprod(rates[:num_speculative_tokens])


def expected_tokens(acceptance: Acceptance, num_speculative_tokens: int) -> float:
  """Expected tokens per round, the bonus or recovered token included: 1 … K + 1.

  The sum of the probabilities to come at least so far (E[n] = Σ P(n >= i)). For one α it is
  (1 - α^(K+1)) / (1 - α), equation 1 of Leviathan et al. 2022.

  Args:
    acceptance: α, or conditional rates per position.
    num_speculative_tokens: K.

  Returns:
    E. Doctest:

    >>> expected_tokens(0.5, 2)
    1.75
    >>> expected_tokens([0.8, 0.5], 2)
    2.2
  """
  return float(1.0 + survival(acceptance, num_speculative_tokens).sum())


def speedup(
    tokens_per_round: float,
    *,
    num_drafted: float,
    draft_cost: float,
    pass_cost: float = 1.0,
    overhead: float = 0.0,
) -> float:
  """S = E / (K c + r(K + 1) + o).

  Args:
    tokens_per_round: E, of `expected_tokens`, or a measured mean acceptance length.
    num_drafted: K, or the mean number of draft steps per round where it adapts.
    draft_cost: c, a draft step over a plain step.
    pass_cost: r(K + 1), a target pass over K + 1 tokens over a plain step.
    overhead: o, the rest of a round over a plain step.

  Returns:
    Speed-up over plain decoding. With α = 0.8, K = 4, c = 0.05 and nothing else (Leviathan
    et al. 2022, theorem 3.8):

    >>> round(speedup(expected_tokens(0.8, 4), num_drafted=4, draft_cost=0.05), 3)
    2.801
  """
  return tokens_per_round / (num_drafted * draft_cost + pass_cost + overhead)


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The terms of the formula, costs in units of a plain step.

  Attributes:
    tokens_per_round: E.
    num_drafted: draft steps per round: K, or their mean where K adapts.
    draft_cost: c.
    pass_cost: r(K + 1).
    overhead: o.
  """

  tokens_per_round: float
  num_drafted: float
  draft_cost: float
  pass_cost: float
  overhead: float

  @property
  def speedup(self) -> float:
    """S."""
    return speedup(
        self.tokens_per_round,
        num_drafted=self.num_drafted,
        draft_cost=self.draft_cost,
        pass_cost=self.pass_cost,
        overhead=self.overhead,
    )


def leviathan_speedup(acceptance: float, num_speculative_tokens: int, draft_cost: float) -> float:
  """(1 - α^(K+1)) / ((1 - α) (K c + 1)): theorem 3.8 of Leviathan et al. 2022 (2211.17192)."""
  tokens = expected_tokens(float(acceptance), num_speculative_tokens)
  return speedup(tokens, num_drafted=num_speculative_tokens, draft_cost=draft_cost)


@dataclasses.dataclass(frozen=True)
class BestLength:
  """The K that should be fastest.

  Attributes:
    num_speculative_tokens: K; 0 where plain decoding is.
    speedup: predicted there; 1 for plain decoding.
    speedups: predicted at K = 0 … the largest asked about, 1 at K = 0.
  """

  num_speculative_tokens: int
  speedup: float
  speedups: tuple[float, ...]


def best_length(
    acceptance: Acceptance,
    *,
    max_num_speculative_tokens: int,
    draft_cost: float,
    pass_cost: Callable[[int], float] = lambda width: 1.0,
    overhead: float | Callable[[int], float] = 0.0,
) -> BestLength:
  """The number of drafted tokens with the largest predicted speed-up.

  Args:
    acceptance: α, or conditional rates of at least `max_num_speculative_tokens` positions.
    max_num_speculative_tokens: the largest K to consider, >= 0.
    draft_cost: c.
    pass_cost: width m to r(m).
    overhead: o, a number or a function of K.

  Returns:
    The `BestLength`; of equally fast K the smallest.
  """
  constant = overhead if callable(overhead) else lambda k: overhead
  speedups = [1.0]
  for k in range(1, max_num_speculative_tokens + 1):
    speedups.append(
        speedup(
            expected_tokens(acceptance, k),
            num_drafted=k,
            draft_cost=draft_cost,
            pass_cost=pass_cost(k + 1),
            overhead=constant(k),
        )
    )
  best = int(np.argmax(speedups))
  return BestLength(best, speedups[best], tuple(speedups))
