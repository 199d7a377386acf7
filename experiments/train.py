"""Trains a target, or distils a draft from one, and saves it as a Hugging Face folder.

    python -m experiments.train --config=configs/zoo_target.py --workdir=runs/zoo_target

Stop it at any time and start it again with the same command: it goes on from its newest
checkpoint to the same losses. The workdir holds `corpus/`, `checkpoints/`, `config.json`,
`metrics.jsonl` (the loss curve) and, at the end, `model/` with `training.json`.
"""

import json
import pathlib
import shutil
from typing import Any

import jax
import rich.console

from experiments import build
from experiments import build_training
from experiments import cli
from experiments import corpus as corpus_lib
from experiments import display
from experiments import workdir as workdir_lib
from specjax import models
from specjax import sharding
from specjax.sharding import processes
from specjax.training import checkpoints
from specjax.training import data
from specjax.training import train

# These may differ between the parts of a resumed run; everything else makes it another run.
_MAY_CHANGE = (
    'num_steps', 'checkpoint_every', 'evaluate_every', 'record_every', 'corpus', 'target', 'mesh'
)


def run(config, workdir: str, *, console: rich.console.Console | None = None) -> pathlib.Path:
  """Trains as `config` says; returns the folder of the finished model.

  Raises:
    ValueError: if the config does not fit together, or not the run that `workdir` holds.
    FileNotFoundError: if the target or a tokenizer is missing.
    FloatingPointError: if the loss is not finite any more.
  """
  console = rich.console.Console() if console is None else console
  say = lambda text: console.print(text, highlight=False, soft_wrap=True)
  results = workdir_lib.open_workdir(workdir, config, resume=True)
  module = build_training.module(config)
  tokenizer_file = build_training.target_tokenizer_file(config)
  target = build_training.distillation_target(config)
  loss_fn = build_training.loss(config, module, target)
  optimizer = build_training.optimizer(config)
  first = _resume(results, config, say)

  corpus = processes.first_alone(
      lambda: corpus_lib.prepare(
          config.corpus.path or results.path / 'corpus',
          vocab_size=config.model.vocab_size,
          root=config.corpus.root or None,
          tokenizer_file=tokenizer_file,
          max_files=config.corpus.max_files or None,
          say=say,
      )
  )
  _compare_corpus(config, corpus, say)
  batches = data.TokenBatches(
      corpus.train, batch_size=config.batch_size, seq_len=config.seq_len, seed=config.seed
  )
  windows = data.held_out_windows(
      corpus.held_out, seq_len=config.seq_len, n=config.held_out_windows
  )
  size = min(config.batch_size, len(windows))
  held_out = [windows[i : i + size] for i in range(0, len(windows) - size + 1, size)]

  params = sharding.init_params(module, jax.random.key(config.seed))
  say(
      f'{module.config.num_parameters:,} parameters, {len(corpus.train):,} tokens, '
      f'{config.num_steps - first} of {config.num_steps} steps of '
      f'{config.batch_size} x {config.seq_len} tokens to go, on {jax.devices()[0].device_kind}.'
  )
  with display.training(console, config.num_steps) as show:

    def record(progress: train.Progress) -> None:
      results.record(_row(config.name, progress))
      show(progress)

    state = train.fit(
        params=params,
        loss_fn=loss_fn,
        optimizer=optimizer,
        batches=batches.batch,
        num_steps=config.num_steps,
        workdir=results.path,
        held_out=lambda: iter(held_out),
        checkpoint_every=config.checkpoint_every,
        evaluate_every=config.evaluate_every,
        record_every=config.record_every,
        gradient_accumulation=config.gradient_accumulation,
        record=record,
        layout=module.layout,
    )
  return _export(config, results, models.LanguageModel(module, state.params), corpus, say)


def _row(name: str, progress: train.Progress) -> dict[str, Any]:
  return {
      'name': name,
      'step': progress.step,
      'kind': progress.kind,
      **progress.metrics,
      'tokens_per_second': progress.tokens_per_second,
      'seconds_left': progress.seconds_left,
  }


def _resume(results: workdir_lib.Workdir, config, say) -> int:
  """The step to go on from; drops the rows that will be written again.

  Raises:
    ValueError: if the workdir holds another run.
  """
  path = results.path
  first = 0
  if (path / 'checkpoints').is_dir():
    store = checkpoints.Checkpoints(path / 'checkpoints')
    first = store.latest_step() or 0
    store.close()
  if first and (path / workdir_lib.CONFIG).exists():
    _check_same_run(path, config)
    say(f'Going on from step {first} in {path}.')
  if results.writes and (path / workdir_lib.METRICS).exists():
    rows = [row for row in workdir_lib.read_rows(path) if row['step'] <= first]
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    workdir_lib.write_atomically(path / workdir_lib.METRICS, lines)
  return first


def _check_same_run(path: pathlib.Path, config) -> None:
  before = json.loads((path / workdir_lib.CONFIG).read_text(encoding='utf-8'))
  now = workdir_lib.to_json(config)
  changed = [
      f'{name} was {before.get(name)!r} and is {now.get(name)!r}'
      for name in sorted(set(before) | set(now))
      if name not in _MAY_CHANGE and before.get(name) != now.get(name)
  ]
  if changed:
    raise ValueError(
        f'{path} holds a run with another config: {"; ".join(changed)}. Give another '
        '--workdir, or the same config to go on with it.'
    )


def _compare_corpus(config, corpus: corpus_lib.Corpus, say) -> None:
  """Says so where the corpus is not the one that the config's results were made on."""
  found = corpus.info['train'].get('sha256')
  if config.corpus.sha256 and found != config.corpus.sha256:
    say(
        f'Note: this corpus (Python {corpus.info["train"].get("python")}, sha256 {found}) is not '
        f'the one of the shipped weights ({config.corpus.sha256}): expect other losses. '
        'config.corpus.root takes the standard library of another interpreter.'
    )


def _portable(config) -> dict[str, Any]:
  """The config without the folders of one machine."""
  fields = config.to_dict()
  fields['corpus'] = {k: v for k, v in fields['corpus'].items() if k in ('max_files', 'sha256')}
  fields.pop('target')
  return fields


def _export(config, results, model: models.LanguageModel, corpus, say) -> pathlib.Path:
  """Saves the model as a Hugging Face folder with its tokenizer and how it was made."""
  params = jax.tree.map(processes.whole, model.params)
  folder = results.path / 'model'
  if not results.writes:
    return folder
  rows = workdir_lib.read_rows(results.path)
  held_out = [row for row in rows if row['kind'] == 'held_out']
  not_losses = ('name', 'step', 'kind', 'tokens_per_second', 'seconds_left')
  final = {k: v for k, v in held_out[-1].items() if k not in not_losses} if held_out else {}
  described = {
      'name': config.name,
      'steps': config.num_steps,
      'tokens': config.num_steps * config.batch_size * config.seq_len,
      'held_out': final,
      'corpus': corpus.info,
      'corpus_licence': corpus_lib.LICENCE,
      'config': _portable(config),
      'jax': jax.__version__,
  }
  file = results.write_json('training.json', described)
  if folder.exists():
    shutil.rmtree(folder)
  models.save_hf(
      model.replace(params=params),
      folder,
      dtype=build.dtype(config.export_dtype),
      eos_ids=(corpus.tokenizer.token_to_id(data.END_OF_TEXT),),
      extra_files=(corpus.tokenizer_file, file),
  )
  say(f'Saved the model to {folder}; its loss curve is {results.path / workdir_lib.METRICS}.')
  return folder


if __name__ == '__main__':
  cli.main(run)
