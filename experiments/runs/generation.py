"""Generates samples of prompts in batches, and describes where every token came from."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import rich.console

import specjax
from experiments import display
from experiments import prompts as prompts_lib
from experiments.runs import records as records_lib
from specjax.analysis import records
from specjax.analysis import traces
from specjax.models import fast_width
from specjax.output import GenerateOutput


@dataclasses.dataclass(frozen=True)
class Generation:
  """Prompts, and how samples of them are made.

  Attributes:
    loaded: the target.
    recipe: of the drafter; None for plain decoding.
    method: without its drafter.
    prompts: all of them.
    num_samples: of each prompt.
    batch_size: rows that are generated together.
    seed: of the first row.
    streams: whether the text is shown as it comes.
    rounds_per_chunk: of a stream, rounds between two updates.
    keeps_trace: whether every round is described.
    stop_strings: that end a text.
    options: for `specjax.generate`, beside prompts, drafter, sampling, seeds and trace.
  """

  loaded: records_lib.Loaded
  recipe: records_lib.Recipe | None
  method: records_lib.Method
  prompts: tuple[prompts_lib.Prompt, ...]
  num_samples: int
  batch_size: int
  seed: int
  streams: bool
  rounds_per_chunk: int
  keeps_trace: bool
  stop_strings: tuple[str, ...]
  options: dict[str, Any]

  def batches(self) -> list['Batch']:
    """All samples of all prompts."""
    rows = [prompt for prompt in self.prompts for _ in range(self.num_samples)]
    size = self.batch_size
    return [Batch(i, tuple(rows[i : i + size])) for i in range(0, len(rows), size)]

  def sample(self, batch: 'Batch', row: int) -> int:
    """Which of its prompt's samples a row of a batch is."""
    return (batch.first + row) % self.num_samples


@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows that are generated together.

  Attributes:
    first: number of the first row in the whole run; seeds follow it.
    prompts: one per row; a prompt with several samples comes several times.
  """

  first: int
  prompts: tuple[prompts_lib.Prompt, ...]


def generate(
    work: Generation, batch: Batch, console: rich.console.Console
) -> GenerateOutput:
  """Generates and shows one batch; compilation is not in its times."""
  tokenizer, target = work.loaded.tokenizer, work.loaded.target
  tokens = [prompt.tokens for prompt in batch.prompts]
  first = work.seed + batch.first
  options = work.options | dict(
      sampling=work.method.sampling(len(tokens)),
      # Wherever batches begin, a row has the seed of its place in the whole run.
      seeds=[first + row for row in range(len(tokens))],
      trace=work.keeps_trace or display.wants_trace(console),
  )
  options['drafter'] = _drafter(work, tokens, options)
  with console.status('compiling …', refresh_per_second=4):
    # One round compiles everything: how many rounds a call takes is not compiled in.
    next(specjax.stream(target, tokens, **options, rounds_per_chunk=1))
  if not work.streams:
    output = specjax.generate(target, tokens, **options)
    for row in range(len(tokens)):
      _show_head(work, batch, row, console)
      display.TokenStream(console, tokenizer, row=row).update(output)
      console.print('\n')
    return output
  _show_head(work, batch, 0, console)
  stream = display.TokenStream(console, tokenizer, stop_strings=work.stop_strings)
  for output in specjax.stream(
      target, tokens, **options, rounds_per_chunk=work.rounds_per_chunk
  ):
    stream.update(output)
  console.print('\n')
  return output


def _drafter(work: Generation, tokens: Sequence[Sequence[int]], options: dict[str, Any]) -> Any:
  if work.recipe is None:
    return None
  reference = {}
  if work.recipe.needs_reference:
    plain = specjax.decode(work.loaded.target, tokens, **options)
    reference = dict(reference=plain.tokens, reference_lengths=plain.lengths)
  return work.recipe.make(work.loaded, **reference)


def _show_head(work: Generation, batch: Batch, row: int, console: rich.console.Console) -> None:
  """A line that names the row, and the end of its prompt."""
  prompt = batch.prompts[row]
  title = prompt.name
  if work.num_samples > 1:
    title += f', sample {work.sample(batch, row) + 1} of {work.num_samples}'
  console.rule(title, align='left', style='bright_black')
  # The last lines are what the text goes on from; a long prompt would push it off the screen.
  lines = prompt.text.splitlines(keepends=True)[-8:]
  display.write(console, ''.join(lines), display.COLOURS['prompt'])


def describe(work: Generation, batch: Batch, output: GenerateOutput) -> list[dict[str, Any]]:
  """Rows of `outputs.jsonl` for a batch."""
  rows = []
  for row, prompt in enumerate(batch.prompts):
    tokens = output.new_tokens(row)
    start, end = int(output.prompt_lengths[row]), int(output.lengths[row])
    described = {
        'prompt': prompt.name,
        'sample': work.sample(batch, row),
        'seed': work.seed + batch.first + row,
        'text': output.texts[row],
        'finish_reason': output.finish_reasons[row],
        'prompt_tokens': prompt.tokens,
        'tokens': tokens,
    }
    if output.logprobs is not None:
      described['logprobs'] = output.logprobs[row, start:end]
      described['logprobs_of'] = output.logprobs_of
    if work.keeps_trace:
      described['pieces'] = traces.pieces(work.loaded.tokenizer, tokens, prompt.tokens)
      described['rounds'] = traces.rounds(output, row)
    rows.append(described)
  return rows


def record(work: Generation, outputs: Sequence[GenerateOutput]) -> records.Record:
  """The row of `metrics.jsonl`."""
  is_plain = work.recipe is None
  target = work.loaded.target
  num_nodes = 0 if is_plain else outputs[0].stats.proposed_at.shape[1]
  return records.record(
      outputs,
      name='plain' if is_plain else work.recipe.kind,
      rule=work.method.rule.name,
      drafter=work.method.kind,
      temperature=work.method.temperature,
      num_speculative_tokens=num_nodes,
      dtype=str(jax.numpy.dtype(getattr(target.module, 'dtype', 'float32'))),
      width=max(num_nodes + 1, work.options['width'] or fast_width(target)),
  )
