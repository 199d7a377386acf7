"""Rows of `metrics.jsonl` for all engines, side by side: ratios, bytes, equal passes."""

from collections.abc import Sequence
import dataclasses
import statistics
from typing import Any

from benchmarks.peers import runs
from specjax import models
from specjax.analysis import records

_DRAFTERS = {runs.PLAIN: 'none', runs.DRAFT: 'model', runs.LOOKUP: 'ngram'}
_ITEM_SIZES = {'float32': 4, 'bfloat16': 2}


@dataclasses.dataclass(frozen=True)
class Measured:
  """The fastest runs of one engine on one task.

  Attributes:
    engine: its name.
    versions: of its packages.
    runs: one per method and prompt.
  """

  engine: str
  versions: dict[str, str]
  runs: tuple[runs.Run, ...]

  def of(self, method: str) -> list[runs.Run]:
    """The runs of a method, by prompt."""
    found = [run for run in self.runs if run.method == method]
    return sorted(found, key=lambda run: run.prompt)


def rows(task: runs.Task, dtype: str, engines: Sequence[Measured]) -> list[dict[str, Any]]:
  """A row for every engine and method.

  The fields are those of `records.Record`, with prediction and intervals left out, and:
  `pair`; `engine`; `over_llama_cpp` and `over_transformers`, tokens per second over those of the
  same method there (None where it was not run); `target_passes_by_prompt`;
  `equal_passes`, whether they are specjax's (None where engines draft differently);
  `same_text_as_specjax`, in prompts; `weight_bytes_per_token`, weights read for a token; and
  `gigabytes_per_second`, the same by time.
  """
  rates = {
      (each.engine, method): rate(each.of(method))
      for each in engines
      for method in _DRAFTERS
      if each.of(method)
  }
  own = next((each for each in engines if each.engine == 'specjax'), None)
  found = []
  for method in _DRAFTERS:
    for each in engines:
      if each.of(method):
        row = _row(task, dtype, each, method, rates)
        found.append(row | _against(own, each, method))
  return found


def rate(of_method: Sequence[runs.Run]) -> float:
  """Tokens a second over all prompts."""
  return sum(run.timed_tokens for run in of_method) / sum(run.seconds for run in of_method)


def _row(task: runs.Task, dtype: str, engine: Measured, method: str, rates) -> dict[str, Any]:
  """What an engine's row says of itself, and of the others' rates."""
  done = engine.of(method)
  speed = rates[engine.engine, method]
  new_tokens = task.max_new_tokens * len(done)
  passes = sum(run.target_passes for run in done)
  over = lambda name: speed / rates[name, method] if (name, method) in rates else None
  plain = rates.get((engine.engine, runs.PLAIN))
  proposed = None if any(run.proposed is None for run in done) else sum(r.proposed for r in done)
  accepted = sum(run.accepted or 0 for run in done)
  cost = weight_bytes(task, dtype, method) * passes / new_tokens
  record = records.Record(
      name=f'{engine.engine}: {method}',
      rule='greedy',
      drafter=_DRAFTERS[method],
      temperature=0.0,
      num_speculative_tokens=0 if method == runs.PLAIN else task.num_speculative_tokens,
      dtype=dtype,
      width=1 if method == runs.PLAIN else task.num_speculative_tokens + 1,
      prompts=len(done),
      new_tokens=new_tokens,
      target_passes=passes,
      # As if all tokens came at the measured rate: engines differ in what they time.
      seconds=new_tokens / speed,
      prefill_seconds=sum(run.prefill_seconds for run in done),
      tokens_per_second=speed,
      speedup=speed / plain if plain else None,
      speedup_low=None,
      speedup_high=None,
      predicted_speedup=None,
      prediction=None,
      mean_acceptance_length=new_tokens / passes,
      draft_acceptance_rate=accepted / proposed if proposed else None,
      acceptance_rate_per_position=(),
      accepted_lengths=(),
      identical_to_plain=_same_text(done, engine.of(runs.PLAIN)) == len(done) if plain else None,
      lossless=None,
      flips=None,
      versions=records.versions() | engine.versions,
      hardware=records.hardware(),
  )
  return dataclasses.asdict(record) | {
      'pair': task.name,
      'engine': engine.engine,
      'over_llama_cpp': over('llama.cpp'),
      'over_transformers': over('transformers'),
      'target_passes_by_prompt': [run.target_passes for run in done],
      'weight_bytes_per_token': cost,
      'gigabytes_per_second': cost * speed / 1e9,
  }


def _against(own: Measured | None, engine: Measured, method: str) -> dict[str, Any]:
  """How an engine's work compares with specjax's."""
  if own is None or not own.of(method):
    return {'equal_passes': None, 'same_text_as_specjax': None}
  ours, theirs = own.of(method), engine.of(method)
  # Prompt lookup is another algorithm in every engine: its passes may differ.
  comparable = method != runs.LOOKUP or engine is own
  passes = [run.target_passes for run in ours] == [run.target_passes for run in theirs]
  return {
      'equal_passes': passes if comparable else None,
      'same_text_as_specjax': _same_text(theirs, ours),
  }


def _same_text(ones: Sequence[runs.Run], others: Sequence[runs.Run]) -> int:
  """In how many prompts two lists of runs say the same; one may be a token longer."""
  pairs = [(one.text, other.text) for one, other in zip(ones, others)]
  return sum(one.startswith(other) or other.startswith(one) for one, other in pairs)


def weight_bytes(task: runs.Task, dtype: str, method: str) -> int:
  """Bytes of weights that a round reads: the target once, a draft model K times."""
  size = _matrix_parameters(models.load_config(task.target))
  if method == runs.DRAFT:
    draft = models.load_config(task.draft)
    size += task.num_speculative_tokens * _matrix_parameters(draft)
  return size * _ITEM_SIZES[dtype]


def _matrix_parameters(config: models.TransformerConfig) -> int:
  """Parameters that a pass reads: of an embedding that is not the head too, only a few rows."""
  embedding = 0 if config.tie_embeddings else config.vocab_size * config.width
  return config.num_parameters - embedding


def summary(row: dict[str, Any]) -> dict[str, Any]:
  """A row as it is shown, in 80 characters; GB/s are in `account`."""
  same = {True: 'yes', False: 'NO', None: '–'}
  times = lambda value: '–' if value is None else f'{value:.2f}×'
  return {
      'engine': row['engine'],
      'method': {'none': 'plain', 'model': 'draft', 'ngram': 'lookup'}[row['drafter']],
      'tokens/s': row['tokens_per_second'],
      'over plain': times(row['speedup']),
      'over trans- formers': times(row['over_transformers']),
      'over llama- .cpp': times(row['over_llama_cpp']),
      'passes': row['target_passes'],
      'equal passes': same[row['equal_passes']],
      'as plain': same[row['identical_to_plain']],
  }


def account(found: Sequence[dict[str, Any]]) -> list[str]:
  """Sentences on where the bytes go, a line for each pair and dtype that specjax ran."""
  lines = []
  for row in found:
    if row['engine'] != 'specjax' or row['drafter'] != 'none':
      continue
    of_kind = [r for r in found if (r['pair'], r['dtype']) == (row['pair'], row['dtype'])]
    best = max(r['gigabytes_per_second'] for r in of_kind)
    middle = statistics.median(r['gigabytes_per_second'] for r in of_kind)
    plain = [r for r in of_kind if r['drafter'] == 'none']
    parts = [f'{r["engine"]} {r["gigabytes_per_second"]:.1f}' for r in plain]
    lines.append(
        f'{row["pair"]}, {row["dtype"]}: a plain pass reads '
        f'{row["weight_bytes_per_token"] / 1e6:.0f} MB of weights; GB/s: {", ".join(parts)}; the '
        f'highest of any method {best:.1f}, median {middle:.1f}.'
    )
  return lines
