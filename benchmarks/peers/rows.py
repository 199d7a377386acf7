"""Rows of `metrics.jsonl` for all engines, side by side, and what is printed of them."""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
import statistics
from typing import Any

from benchmarks.peers import runs
from specjax import models
from specjax.analysis import records

_DRAFTERS = {runs.PLAIN: 'none', runs.DRAFT: 'model', runs.LOOKUP: 'ngram'}
_ITEM_SIZES = {'float32': 4, 'bfloat16': 2}
Rows = list[dict[str, Any]]
_NOT_MEASURED = (
    'speedup_low', 'speedup_high', 'predicted_speedup', 'prediction', 'lossless', 'flips'
)


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
    of_method = (run for run in self.runs if run.method == method)
    return sorted(of_method, key=lambda run: run.prompt)

  def rate(self, method: str) -> float | None:
    """Tokens per second over all prompts; None where the method was not run."""
    timed = self.of(method)
    seconds = sum(run.seconds for run in timed)
    return sum(run.timed_tokens for run in timed) / seconds if timed else None


def rows(task: runs.Task, dtype: str, engines: Sequence[Measured]) -> Rows:
  """One row per method and engine that ran it; the first engine is specjax.

  The fields are those of `records.Record`, with prediction and intervals left out, and:
  `pair`; `engine`; `over_llama_cpp` and `over_transformers`, tokens per second over those of the
  same method there (None where it was not run); `target_passes_by_prompt`;
  `equal_passes`, whether they are specjax's (None where engines draft differently);
  `same_text_as_specjax`, in prompts; `weight_bytes_per_token`, of weights that are read; and
  `gigabytes_per_second`, the same by time.
  """
  result = []
  for method in _DRAFTERS:
    rates = {each.engine: each.rate(method) for each in engines}
    of_own = engines[0].of(method)
    for engine in [each for each in engines if each.of(method)]:
      of_method, rate = engine.of(method), rates[engine.engine]
      over = lambda name: rate / rates[name] if rates.get(name) else None
      passes = [run.target_passes for run in of_method]
      # Prompt lookup is another algorithm in every engine: its passes may differ.
      comparable = method != runs.LOOKUP or engine is engines[0]
      record = _record(task, dtype, engine, method)
      num_bytes = weight_bytes(task, dtype, method) * record.target_passes / record.new_tokens
      result.append(dataclasses.asdict(record) | {
          'pair': task.name,
          'engine': engine.engine,
          'over_llama_cpp': over('llama.cpp'),
          'over_transformers': over('transformers'),
          'target_passes_by_prompt': passes,
          'weight_bytes_per_token': num_bytes,
          'gigabytes_per_second': num_bytes * rate / 1e9,
          'equal_passes': passes == [run.target_passes for run in of_own] if comparable else None,
          'same_text_as_specjax': _num_equal(of_method, of_own),
      })
  return result


def _record(task: runs.Task, dtype: str, engine: Measured, method: str) -> records.Record:
  """The part of a row that does not look at other engines."""
  of_method, of_plain = engine.of(method), engine.of(runs.PLAIN)
  rate, plain_rate = engine.rate(method), engine.rate(runs.PLAIN)
  k = 0 if method == runs.PLAIN else task.num_speculative_tokens
  new_tokens = task.max_new_tokens * len(of_method)
  target_passes = sum(run.target_passes for run in of_method)
  proposed = [run.proposed for run in of_method]
  accepted = sum(run.accepted or 0 for run in of_method)
  counted = None not in proposed and sum(proposed) > 0
  return records.Record(
      batch_size=1,
      differing=None,
      name=f'{engine.engine}: {method}', rule='greedy', drafter=_DRAFTERS[method],
      temperature=0.0, num_speculative_tokens=k, dtype=dtype, width=k + 1,
      prompts=len(of_method), new_tokens=new_tokens, target_passes=target_passes,
      # As if all tokens came at the measured rate: engines differ in what they time.
      seconds=new_tokens / rate,
      prefill_seconds=sum(run.prefill_seconds for run in of_method),
      tokens_per_second=rate,
      speedup=rate / plain_rate if plain_rate else None,
      mean_acceptance_length=new_tokens / target_passes,
      draft_acceptance_rate=accepted / sum(proposed) if counted else None,
      acceptance_rate_per_position=(), accepted_lengths=(),
      identical_to_plain=_num_equal(of_method, of_plain) == len(of_method) if of_plain else None,
      versions=records.versions() | engine.versions, hardware=records.hardware(),
      **dict.fromkeys(_NOT_MEASURED),
  )


def _num_equal(some: Sequence[runs.Run], others: Sequence[runs.Run]) -> int:
  """In how many prompts both have the same text; one may be a token longer."""
  texts = [(run.text, other.text) for run, other in zip(some, others)]
  return sum(text.startswith(other) or other.startswith(text) for text, other in texts)


def weight_bytes(task: runs.Task, dtype: str, method: str) -> int:
  """Bytes of weights that a round reads: the target once, a draft model K times."""

  def num_read(folder) -> int:
    config = models.load_config(folder)
    # Of an embedding that is not the head too, only a few rows.
    embedding = 0 if config.tie_embeddings else config.vocab_size * config.width
    return config.num_parameters - embedding

  drafted = task.num_speculative_tokens * num_read(task.draft) if method == runs.DRAFT else 0
  return (num_read(task.target) + drafted) * _ITEM_SIZES[dtype]


def groups(rows: Rows) -> Iterator[tuple[str, Rows]]:
  """'pair, dtype' and its rows, for each that there is."""
  by_title = itertools.groupby(rows, key=lambda row: f'{row["pair"]}, {row["dtype"]}')
  return ((title, list(group)) for title, group in by_title)


def summary(row: dict[str, Any]) -> dict[str, Any]:
  """A row as it is shown, in 80 characters; GB/s are in `account`."""
  answer = {True: 'yes', False: 'NO', None: '–'}
  times = lambda value: '–' if value is None else f'{value:.2f}×'
  return {
      'engine': row['engine'],
      'method': {'none': 'plain', 'model': 'draft', 'ngram': 'lookup'}[row['drafter']],
      'tokens/s': row['tokens_per_second'],
      'over plain': times(row['speedup']),
      'over trans- formers': times(row['over_transformers']),
      'over llama- .cpp': times(row['over_llama_cpp']),
      'passes': row['target_passes'],
      'equal passes': answer[row['equal_passes']],
      'as plain': answer[row['identical_to_plain']],
  }


def account(rows: Rows) -> list[str]:
  """Sentences on where the bytes go, one line per pair and dtype."""
  lines = []
  for title, group in groups(rows):
    rates = [row['gigabytes_per_second'] for row in group]
    plain = [row for row in group if row['drafter'] == 'none']  # specjax first
    parts = [f'{row["engine"]} {row["gigabytes_per_second"]:.1f}' for row in plain]
    lines.append(
        f'{title}: a plain pass reads {plain[0]["weight_bytes_per_token"] / 1e6:.0f} MB of '
        f'weights; GB/s: {", ".join(parts)}; the highest of any method {max(rates):.1f}, median '
        f'{statistics.median(rates):.1f}.'
    )
  return lines


def differences(rows: Rows) -> list[str]:
  """Sentences on engines that did not do the same work as specjax."""
  case = lambda row: (row['pair'], row['dtype'], row['drafter'])
  own = {case(row): row for row in rows if row['engine'] == 'specjax'}
  lines = []
  for row in rows:
    where = f'{row["pair"]}, {row["dtype"]}, {row["name"]}'
    if row['equal_passes'] is False:
      passes, others = (r['target_passes_by_prompt'] for r in (row, own[case(row)]))
      lines.append(f'{where}: target passes {passes} where specjax takes {others}.')
    same, count = row['same_text_as_specjax'], row['prompts']
    if same < count:
      lines.append(f'{where}: the text of specjax in {same} of {count} prompts.')
  return lines
