"""Generates from any target with any drafter and rule, and shows where every token came from.

    python -m experiments.generate --config=configs/zoo.py --config.prompt='def main('

The workdir (`runs/generate` unless given) gets `config.json`, `metrics.jsonl`, and
`outputs.jsonl` with a row for every sample: prompt, text, tokens, why it ended.
"""

from collections.abc import Sequence
import dataclasses
import json
from typing import Any

import jax
import rich.console

import specjax
from experiments import build
from experiments import cli
from experiments import display
from experiments import prompts as prompts_lib
from experiments import workdir as workdir_lib
from specjax import checks
from specjax.analysis import records
from specjax.analysis import traces
from specjax.models import fast_width
from specjax.output import GenerateOutput


@dataclasses.dataclass(frozen=True)
class _Batch:
  """Rows that are generated together.

  Attributes:
    first: number of the first row in the whole run; seeds follow it.
    prompts: one per row; a prompt with several samples comes several times.
  """

  first: int
  prompts: tuple[prompts_lib.Prompt, ...]


def run(
    config, workdir: str, *, console: rich.console.Console | None = None
) -> list[GenerateOutput]:
  """Generates as `config` says; returns one output a batch.

  Raises:
    ValueError: if the config or a prompt cannot be run, before anything is computed.
    FileNotFoundError: if a model or a prompt file is missing.
    FloatingPointError: if the target's logits are not numbers; nothing is written.
  """
  console = rich.console.Console() if console is None else console
  build.check(config)
  results = workdir_lib.open_workdir(workdir, config)
  loaded = build.load(config)
  prompts = _prompts(config, loaded)
  batches = _batches(config, prompts)
  outputs = []
  for batch in batches:
    outputs.append(_generate(config, loaded, batch, console))
    if not config.stream:
      _show(config, loaded, batch, outputs[-1], console)
  rows = [
      row for batch, output in zip(batches, outputs) for row in _rows(config, loaded, batch, output)
  ]
  lines = ''.join(json.dumps(workdir_lib.to_json(row), ensure_ascii=False) + '\n' for row in rows)
  results.write('outputs.jsonl', lines)
  record = _record(config, loaded, outputs)
  results.record(dataclasses.asdict(record))
  if display.wants_trace(console):
    console.print(display.LEGEND)
  console.print(display.table([{'': k, 'value': v} for k, v in _summary(record).items()]))
  console.print(f'Written to {results.path}.', highlight=False, soft_wrap=True)
  return outputs


def _prompts(config, loaded: build.Loaded) -> list[prompts_lib.Prompt]:
  own = config.prompt or config.prompt_file
  found = prompts_lib.texts(
      prompt=config.prompt,
      file=config.prompt_file,
      held_out=loaded.held_out,
      held_out_name=config.held_out,
  )
  prompts = prompts_lib.encode(
      found,
      loaded.tokenizer,
      max_tokens=config.prompt_tokens if own else config.held_out_tokens,
      num_prompts=config.num_prompts,
  )
  # All of them before the first is generated, and by name.
  for prompt in prompts:
    length, name = len(prompt.tokens), f'The prompt {prompt.name}'
    checks.positions(loaded.target, length, config.max_new_tokens, name=name)
  return prompts


def _batches(config, prompts: Sequence[prompts_lib.Prompt]) -> list[_Batch]:
  """All samples of all prompts in batches; a stream shows one row at a time."""
  rows = [prompt for prompt in prompts for _ in range(config.num_samples)]
  size = 1 if config.stream else config.batch_size
  return [_Batch(i, tuple(rows[i : i + size])) for i in range(0, len(rows), size)]


def _generate(config, loaded, batch: _Batch, console) -> GenerateOutput:
  """One batch, streamed if it is asked for; compilation is not in its times."""
  tokens = [prompt.tokens for prompt in batch.prompts]
  options = build.options(config, loaded) | dict(
      sampling=build.sampling(config, len(tokens)),
      seeds=build.seeds(config, batch.first, len(tokens)),
      trace=config.trace or display.wants_trace(console),
  )
  reference = {}
  if config.drafter.kind == 'synthetic':
    plain = specjax.decode(loaded.target, tokens, **options)
    reference = dict(reference=plain.tokens, reference_lengths=plain.lengths)
  options['drafter'] = build.drafter(config, loaded, **reference)
  with console.status('compiling …', refresh_per_second=4):
    # One round compiles everything: how many rounds a call takes is not compiled in.
    next(specjax.stream(loaded.target, tokens, **options, rounds_per_chunk=1))
  if not config.stream:
    return specjax.generate(loaded.target, tokens, **options)
  _head(config, batch, 0, console)
  shown = display.TokenStream(console, loaded.tokenizer, stop_strings=config.stop_strings)
  chunk = config.rounds_per_chunk
  for output in specjax.stream(loaded.target, tokens, **options, rounds_per_chunk=chunk):
    shown.update(output)
  console.print('\n')
  return output


def _show(config, loaded, batch: _Batch, output, console) -> None:
  """Prompt and text of every row."""
  for row in range(len(batch.prompts)):
    _head(config, batch, row, console)
    display.TokenStream(console, loaded.tokenizer, row=row).update(output)
    console.print('\n')


def _head(config, batch: _Batch, row: int, console) -> None:
  """A line that names the row, and the end of its prompt."""
  prompt = batch.prompts[row]
  title = prompt.name
  if config.num_samples > 1:
    title += f', sample {(batch.first + row) % config.num_samples + 1} of {config.num_samples}'
  console.rule(title, align='left', style='bright_black')
  # The last lines are what the text goes on from; a long prompt would push it off the screen.
  shown = ''.join(prompt.text.splitlines(keepends=True)[-8:])
  display.write(console, shown, display.COLOURS['prompt'])


def _rows(config, loaded, batch: _Batch, output) -> list[dict[str, Any]]:
  """What `outputs.jsonl` says of a batch."""
  rows = []
  for row, prompt in enumerate(batch.prompts):
    tokens = output.new_tokens(row)
    start, end = int(output.prompt_lengths[row]), int(output.lengths[row])
    described = {
        'prompt': prompt.name,
        'sample': (batch.first + row) % config.num_samples,
        'seed': config.seed + batch.first + row,
        'text': output.texts[row],
        'finish_reason': output.finish_reasons[row],
        'prompt_tokens': prompt.tokens,
        'tokens': tokens,
    }
    if output.logprobs is not None:
      described['logprobs'] = output.logprobs[row, start:end]
      described['logprobs_of'] = output.logprobs_of
    if config.trace:
      described['pieces'] = traces.pieces(loaded.tokenizer, tokens, prompt.tokens)
      described['rounds'] = traces.rounds(output, row)
    rows.append(described)
  return rows


def _record(config, loaded, outputs) -> records.Record:
  none = config.drafter.kind == 'none'
  module = loaded.target.module
  drafted = 0 if none else outputs[0].stats.proposed_at.shape[1]
  width = max(drafted + 1, config.width or fast_width(loaded.target))
  return records.record(
      outputs,
      name='plain' if none else config.drafter.kind,
      rule=build.rule(config).name,
      drafter=config.drafter.kind,
      temperature=config.sampling.temperature,
      num_speculative_tokens=drafted,
      dtype=str(jax.numpy.dtype(getattr(module, 'dtype', 'float32'))),
      width=width,
  )


def _summary(record: records.Record) -> dict[str, Any]:
  return {
      'method': record.name,
      'rule': record.rule,
      'K': record.num_speculative_tokens,
      'samples': record.prompts,
      'new tokens': record.new_tokens,
      'target passes': record.target_passes,
      'tokens/s': record.tokens_per_second,
      'mean acceptance length': record.mean_acceptance_length,
      'acceptance rate': record.draft_acceptance_rate,
      'prefill, s': record.prefill_seconds,
  }


if __name__ == '__main__':
  cli.main(run, workdir='runs/generate')
