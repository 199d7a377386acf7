"""Generates from any target with any drafter and rule, and shows where every token came from.

    python -m experiments.generate --config=configs/zoo.py --config.prompt='def main('

The workdir (`runs/generate` unless given) gets `config.json`, `metrics.jsonl`, and
`outputs.jsonl` with a row for every sample: prompt, text, tokens, why it ended. With
`--config.interactive` it is a chat in the terminal, which is kept in `chats.jsonl` and goes on the
next time.
"""

import dataclasses
import functools
import json
from typing import Any

import rich.console

from experiments import build
from experiments import cli
from experiments import display
from experiments import workdir as workdir_lib
from experiments.runs import chat
from experiments.runs import generation
from specjax.analysis import records
from specjax.output import GenerateOutput


def run(
    config, workdir: str, *, console: rich.console.Console | None = None
) -> list[GenerateOutput]:
  """Generates as `config` describes; returns one output per batch, or per turn of a chat.

  Raises:
    ValueError: if the config or a prompt cannot be run, before anything is computed.
    FileNotFoundError: if a model or a prompt file is missing.
    FloatingPointError: if the target's logits are not numbers; nothing is written.
  """
  console = rich.console.Console() if console is None else console
  results = workdir_lib.open_workdir(
      workdir, config, resume=config.interactive, models=functools.partial(build.digests, config)
  )
  if config.interactive:
    return chat.run(build.chat(config), results, console)
  work = build.generation(config)
  outputs, described = [], []
  rows = work.first_rows()
  if work.note:
    console.print(work.note, highlight=False, soft_wrap=True)
  while rows:  # turn by turn
    texts = []
    for batch in work.batches(rows):
      outputs.append(generation.generate(work, batch, console))
      described += generation.describe(work, batch, outputs[-1])
      texts += outputs[-1].texts
    rows = work.next_rows(rows, texts)
  lines = [json.dumps(workdir_lib.to_json(row), ensure_ascii=False) + '\n' for row in described]
  results.write('outputs.jsonl', ''.join(lines))
  record = generation.record(work, outputs)
  results.record(dataclasses.asdict(record))
  if display.wants_trace(console):
    console.print(display.LEGEND)
  console.print(display.table([{'': k, 'value': v} for k, v in _summary(record).items()]))
  console.print(f'Written to {results.path}.', highlight=False, soft_wrap=True)
  return outputs


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
