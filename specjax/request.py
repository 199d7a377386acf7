"""The options of a run, with their defaults."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from specjax.types import Sampling


@dataclasses.dataclass(frozen=True)
class Request:
  """The options of a run.

  Attributes: the keyword arguments of `specjax.generate`, which describes each of them. The
  defaults are those of `specjax.stream`.
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
