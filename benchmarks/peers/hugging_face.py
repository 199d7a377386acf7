"""transformers as one of the engines, in an interpreter of its own."""

from collections.abc import Iterable, Sequence
import json
import os
import pathlib
import subprocess
import tempfile
from typing import Any

from benchmarks.peers import runs

_SCRIPT = pathlib.Path(__file__).with_name('run_transformers.py')
_METHODS = {runs.PLAIN: 'plain', runs.DRAFT: 'assisted', runs.LOOKUP: 'prompt_lookup'}


class Engine:
  """Runs transformers' methods of a task.

  Attributes:
    name: of the engine.
    versions: of torch and transformers, after the first round.
  """

  name = 'transformers'

  def __init__(self, task: runs.Task, dtype: str, *, python: str):
    self._task, self._dtype, self._python = task, dtype, python
    self.versions: dict[str, str] = {}

  def run(self) -> list[runs.Run]:
    """One round: every method and prompt.

    Raises:
      ValueError: if the interpreter or the script fails.
    """
    with tempfile.TemporaryDirectory() as folder:
      out = pathlib.Path(folder) / 'runs.jsonl'
      call(self._python, request(self._task, self._dtype), out)
      rows = [json.loads(line) for line in out.read_text(encoding='utf-8-sig').splitlines()]
    self.versions = rows[0]['versions']
    return parse(self._task, rows[1:])


def request(task: runs.Task, dtype: str) -> dict[str, Any]:
  """What run_transformers.py reads."""
  return {
      'target': str(task.target),
      'draft': str(task.draft),
      'dtype': dtype,
      'threads': task.threads,
      'num_speculative_tokens': task.num_speculative_tokens,
      'max_new_tokens': task.max_new_tokens,
      'max_ngram': task.max_ngram,
      'methods': list(_METHODS.values()),
      'rounds': 1,
      'prompts': [list(prompt) for prompt in task.prompts],
  }


def call(python: str, asked: dict[str, Any], out: pathlib.Path) -> None:
  """Runs the script; raises ValueError with its last words if it fails."""
  # Folders alone are read: a hub must not be asked for anything.
  environment = os.environ | {'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false'}
  environment['OMP_NUM_THREADS'] = str(asked['threads'])
  done = subprocess.run(
      [python, str(_SCRIPT), f'--out={out}'],
      input=json.dumps(asked),
      capture_output=True,
      text=True,
      env=environment,
      check=False,
  )
  if done.returncode:
    last = '\n'.join(done.stderr.strip().splitlines()[-5:])
    raise ValueError(
        f'{_SCRIPT.name} failed in config.peers.python={python}; it needs torch and '
        f'transformers there. It said:\n{last}'
    )


def parse(task: runs.Task, rows: Iterable[dict[str, Any]]) -> list[runs.Run]:
  """The runs that the script's lines tell of."""
  names = {theirs: ours for ours, theirs in _METHODS.items()}
  found = []
  for row in rows:
    if len(row['tokens']) != task.max_new_tokens:
      raise ValueError(
          f'transformers gave {len(row["tokens"])} tokens where {task.max_new_tokens} were asked '
          'for: a token of the model ends its text.'
      )
    found.append(
        runs.Run(
            method=names[row['method']],
            prompt=row['prompt'],
            text=task.to_bytes(row['tokens']),
            target_passes=row['target_passes'],
            timed_tokens=row['timed_tokens'],
            seconds=row['seconds'],
            prefill_seconds=row['prefill_seconds'],
        )
    )
  return found


def methods() -> Sequence[str]:
  """What is run, in order."""
  return tuple(_METHODS)
