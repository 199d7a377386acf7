"""The options of a run, with their defaults."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from specjax.types import Sampling


@dataclasses.dataclass(frozen=True)
class Request:
  """The options of a run.

  Attributes:
    drafter: a `specjax.types.Drafter`, or a draft (`specjax.models.LanguageModel`), which becomes
      `specjax.drafters.model(draft)`; None decodes plainly.
    rule: a rule of `specjax.verify`, or its name. None takes `specjax.verify.default`: greedy where
      every row's temperature is 0, else the block rule, or the recursive rule for trees.
    sampling: from `specjax.sampling.make`, one entry a row. None means temperature 1 under a
      rule that was given, and temperature 0 where there is none: greedy decoding.
    max_new_tokens: the most tokens that a row emits; one number, or one a row.
    seeds: one integer (row b takes seed + b) or one per row, modulo 2**32. A row's output depends
      on its own seed alone.
    stop_tokens: token ids that end a row, also inside an accepted block; kept in the output. One
      id may stand alone.
    stop_strings: one text or several that end a row; needs `tokenizer`. They are searched for
      in the text with its special tokens, so that `<|im_end|>` is found whether it is shown or
      not. The text is cut before them, the tokens after the first one that completes one.
    tokenizer: for `stop_strings` and `texts`; has `decode(list of ids) -> str`, which may take
      `skip_special_tokens`.
    logprobs: None, 'raw' or 'controlled'.
    trace: keep a record of every round.
    width: tokens that a target pass reads, N + 1 where it is less; None takes the narrowest fast
      one.
    cache_length: the longest row; None takes what prompts and `max_new_tokens` need,
      rounded up to a bucket so that another length does not recompile.
    prefill_chunk: tokens of a prefill pass.
    rounds_per_chunk: rounds between two outputs of a stream; None runs to the end at once.
  """

  drafter: Any = None
  rule: Any = None
  sampling: Sampling | None = None
  max_new_tokens: int | Sequence[int] = 128
  seeds: int | Sequence[int] = 0
  stop_tokens: int | Sequence[int] | None = ()
  stop_strings: str | Sequence[str] | None = ()
  tokenizer: Any = None
  logprobs: str | None = None
  trace: bool = False
  width: int | None = None
  cache_length: int | None = None
  prefill_chunk: int = 128
  rounds_per_chunk: int | None = 8
