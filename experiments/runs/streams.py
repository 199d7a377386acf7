"""A completion as it is made, accepted draft tokens in colour."""

import dataclasses
from typing import Any

import rich.console

from experiments import display
from experiments.runs import records
from experiments.runs import runner as runner_lib
from experiments.runs import traces
from specjax import detokenize
import specjax


@dataclasses.dataclass(frozen=True)
class Streamed:
  """An arm whose completion of the first prompt is shown.

  Attributes:
    arm: with its K.
    rounds_per_chunk: rounds between two updates.
  """

  arm: records.Arm
  rounds_per_chunk: int


def show(
    streamed: Streamed, session: runner_lib.Session, console: rich.console.Console
) -> dict[str, Any]:
  """Shows the completion; returns its trace for the report, by arm key."""
  arm = streamed.arm
  with console.status('compiling …'):
    loaded = session.load(arm.target)
    prompts = session.prompts(arm)
    runner = runner_lib.runner_of(arm, loaded, prompts)
    batch = runner_lib.batches(arm, prompts.timed)[0]
    options = runner.options(arm.method(arm.recipe.make(loaded)), batch) | dict(
        trace=True, stop_tokens=loaded.stop_tokens, tokenizer=loaded.tokenizer
    )
    # One round compiles everything: how many rounds a call takes is not compiled in.
    next(specjax.stream(loaded.target, batch.prompts, **options, rounds_per_chunk=1))
  console.rule(f'{arm.name}, {arm.rule.name}: accepted draft tokens in colour', align='left')
  display.write_prompt(console, detokenize.text(loaded.tokenizer, list(batch.prompts[0])))
  stream = display.TokenStream(console, loaded.tokenizer)
  for output in specjax.stream(
      loaded.target, batch.prompts, **options, rounds_per_chunk=streamed.rounds_per_chunk
  ):
    stream.update(output)
  console.print('\n')
  return {arm.key: traces.entry(output, loaded.tokenizer, name=arm.label)}
