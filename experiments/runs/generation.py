"""Generates samples of prompts in batches, and describes where every token came from."""

from collections.abc import Callable, Sequence
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
    conversations: all of them; of several turns each is answered in order.
    encode: (conversation, turn, answers so far) -> its prompt.
    is_chat: whether prompts are turns of a chat.
    num_samples: of each prompt.
    batch_size: rows that are generated together.
    seed: of the first row.
    streams: whether the text is shown as it comes.
    rounds_per_chunk: of a stream, rounds between two updates.
    keeps_trace: whether every round is described.
    stop_strings: that end a text.
    note: a sentence about prompts that were cut; '' for none.
    options: for `specjax.generate`, beside prompts, drafter, sampling, seeds and trace.
  """

  loaded: records_lib.Loaded
  recipe: records_lib.Recipe | None
  method: records_lib.Method
  conversations: tuple[prompts_lib.Conversation, ...]
  encode: Callable[..., prompts_lib.Prompt]
  is_chat: bool
  num_samples: int
  batch_size: int
  seed: int
  streams: bool
  rounds_per_chunk: int
  keeps_trace: bool
  stop_strings: tuple[str, ...]
  options: dict[str, Any]
  note: str = ''

  def first_rows(self) -> list['Row']:
    """All samples of all conversations, at their first turn."""
    each = [(talk, i) for talk in self.conversations for i in range(self.num_samples)]
    return [
        Row(talk, sample, number, self.encode(talk, 0, ()))
        for number, (talk, sample) in enumerate(each)
    ]

  def next_rows(self, rows: Sequence['Row'], texts: Sequence[str]) -> list['Row']:
    """The rows whose conversation goes on after these answers, at their next turn."""
    following = []
    for row, text in zip(rows, texts):
      answers = (*row.answers, text)
      if len(answers) < len(row.conversation.turns) and self.is_chat:
        prompt = self.encode(row.conversation, len(answers), answers)
        following.append(dataclasses.replace(row, prompt=prompt, answers=answers))
    return following

  def batches(self, rows: Sequence['Row']) -> list[list['Row']]:
    """Rows that are generated together."""
    size = self.batch_size
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]


@dataclasses.dataclass(frozen=True)
class Row:
  """One sample of a conversation, at one of its turns.

  Attributes:
    conversation: whose turn it is.
    sample: which of its samples.
    number: of the sample in the whole run; its seed follows.
    prompt: the turn, after the turns and answers before it.
    answers: to those turns.
  """

  conversation: prompts_lib.Conversation
  sample: int
  number: int
  prompt: prompts_lib.Prompt
  answers: tuple[str, ...] = ()


def generate(
    work: Generation, batch: Sequence[Row], console: rich.console.Console
) -> GenerateOutput:
  """Generates and shows one batch; compilation is not in its times."""
  tokenizer, target = work.loaded.tokenizer, work.loaded.target
  tokens, options = request(work, batch, console)
  compile_first(work, tokens, options, console)
  if not work.streams:
    output = specjax.generate(target, tokens, **options)
    for row, each in enumerate(batch):
      _show_head(work, each, console)
      display.TokenStream(console, tokenizer, row=row).update(output)
      console.print('\n')
    return output
  _show_head(work, batch[0], console)
  stream = display.TokenStream(console, tokenizer, stop_strings=work.stop_strings)
  for output in specjax.stream(
      target, tokens, **options, rounds_per_chunk=work.rounds_per_chunk
  ):
    stream.update(output)
  console.print('\n')
  return output


def request(
    work: Generation, batch: Sequence[Row], console: rich.console.Console
) -> tuple[list[tuple[int, ...]], dict[str, Any]]:
  """The prompts of a batch, and everything else that `specjax.stream` takes beside the target."""
  tokens = [row.prompt.tokens for row in batch]
  options = work.options | dict(
      sampling=work.method.sampling(len(tokens)),
      # Wherever batches begin, a row has the seed of its place in the whole run.
      seeds=[work.seed + row.number for row in batch],
      trace=work.keeps_trace or display.wants_trace(console),
  )
  return tokens, options | dict(drafter=_drafter(work, tokens, options))


def compile_first(
    work: Generation, tokens: Sequence[Sequence[int]], options: dict[str, Any],
    console: rich.console.Console,
) -> None:
  """Compiles what a request runs, so that its times are of running alone."""
  with console.status('compiling …', refresh_per_second=4):
    # One round compiles everything: how many rounds a call takes is not compiled in.
    next(specjax.stream(work.loaded.target, tokens, **options, rounds_per_chunk=1))


def _drafter(work: Generation, tokens: Sequence[Sequence[int]], options: dict[str, Any]) -> Any:
  if work.recipe is None:
    return None
  reference = {}
  if work.recipe.needs_reference:
    plain = specjax.decode(work.loaded.target, tokens, **options)
    reference = dict(reference=plain.tokens, reference_lengths=plain.lengths)
  return work.recipe.make(work.loaded, **reference)


def _show_head(work: Generation, row: Row, console: rich.console.Console) -> None:
  """A line that names the row, and the end of its prompt."""
  prompt = row.prompt
  title = prompt.name
  if work.num_samples > 1:
    title += f', sample {row.sample + 1} of {work.num_samples}'
  console.rule(title, align='left', style='bright_black')
  display.write_prompt(console, prompt.text)


def describe(
    work: Generation, batch: Sequence[Row], output: GenerateOutput
) -> list[dict[str, Any]]:
  """Rows of `outputs.jsonl` for a batch."""
  rows = []
  for row, each in enumerate(batch):
    prompt = each.prompt
    tokens = output.new_tokens(row)
    start, end = int(output.prompt_lengths[row]), int(output.lengths[row])
    described = {
        'prompt': prompt.name,
        'sample': each.sample,
        'seed': work.seed + each.number,
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
  rows = len(outputs[0].lengths)
  num_nodes = 0 if is_plain else outputs[0].stats.proposed_at.shape[1]
  return records.record(
      outputs,
      name='plain' if is_plain else work.recipe.kind,
      rule=work.method.rule.name,
      drafter=work.method.kind,
      temperature=work.method.temperature,
      num_speculative_tokens=num_nodes,
      dtype=str(jax.numpy.dtype(getattr(target.module, 'dtype', 'float32'))),
      width=max(num_nodes + 1, work.options['width'] or fast_width(target, rows)),
  )
