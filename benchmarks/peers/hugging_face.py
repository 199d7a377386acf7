"""transformers as one of the engines, in an interpreter of its own."""

from collections.abc import Iterable
import json
import os
import pathlib
import tempfile
from typing import Any

from benchmarks.peers import runs

_SCRIPT = pathlib.Path(__file__).with_name('run_transformers.py')
_METHODS = {'plain': runs.PLAIN, 'assisted': runs.DRAFT, 'prompt_lookup': runs.LOOKUP}


class Engine:
  """Runs transformers' methods on a task."""

  name = 'transformers'

  def __init__(self, task: runs.Task, dtype: str, *, python: str):
    self._task, self._python = task, python
    names = ('prompts', 'num_speculative_tokens', 'max_new_tokens', 'max_ngram', 'threads')
    self._request = {name: getattr(task, name) for name in names} | {
        'target': str(task.target), 'draft': task.draft and str(task.draft), 'dtype': dtype,
        'methods': [name for name, each in _METHODS.items() if each in task.methods],
    }
    self.versions: dict[str, str] = {}  # of torch and transformers, after the first round

  def run(self) -> list[runs.Run]:
    """One round: every method and prompt.

    Raises:
      ValueError: if the interpreter or the script fails.
    """
    environment = os.environ | {
        'HF_HUB_OFFLINE': '1',  # models are folders: no hub is asked for anything
        'OMP_NUM_THREADS': str(self._task.threads),
        'PYTHONSAFEPATH': '1',  # none of the modules beside the script is what torch imports
        'TOKENIZERS_PARALLELISM': 'false',
    }
    name = f'{_SCRIPT.name}, with torch and transformers in config.peers.python={self._python},'
    with tempfile.TemporaryDirectory() as folder:
      out = pathlib.Path(folder) / 'runs.jsonl'
      runs.call(
          [self._python, str(_SCRIPT), f'--out={out}'],
          name=name, stdin=json.dumps(self._request), environment=environment,
      )
      first, *rows = map(json.loads, out.read_text(encoding='utf-8-sig').splitlines())
    self.versions = first['versions']
    return parse(self._task, rows)


def parse(task: runs.Task, rows: Iterable[dict[str, Any]]) -> list[runs.Run]:
  """The runs that the script wrote.

  Raises:
    ValueError: if a row has fewer tokens than were asked for.
  """
  result = []
  names = ('prompt', 'target_passes', 'timed_tokens', 'seconds', 'prefill_seconds')
  for row in rows:
    if len(row['tokens']) != task.max_new_tokens:
      raise ValueError(
          f'transformers gave {len(row["tokens"])} tokens where {task.max_new_tokens} were asked '
          'for: a token of the model ends its text.'
      )
    result.append(runs.Run(
        method=_METHODS[row['method']], text=task.to_bytes(row['tokens']),
        **{name: row[name] for name in names},
    ))
  return result
