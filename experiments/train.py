"""Trains a target, distils a draft from one, or trains heads on one, and saves the result.

    python -m experiments.train --config=configs/zoo_target.py --workdir=runs/zoo_target
    python -m experiments.train --config=configs/train_eagle3_zoo.py --workdir=runs/zoo_eagle3

Stop it at any time and start it again with the same command: it goes on from its newest
checkpoint to the same losses. The workdir holds `corpus/`, `checkpoints/`, `config.json`,
`metrics.jsonl` (the loss curve) and, at the end, `model/` with `training.json`. Heads may
read stored features of the target (`features/`, whose size is said first).
"""

import dataclasses
import functools
import json
import math
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import rich.console

from experiments import build_heads
from experiments import build_training
from experiments import cli
from experiments import corpus as corpus_lib
from experiments import display
from experiments import workdir as workdir_lib
import specjax
from specjax import atomic
from specjax.sharding import processes
from specjax.training import checkpoints
from specjax.training import data
from specjax.training import features
from specjax.training import samples
from specjax.training import train

# These may differ between the parts of a resumed run; everything else makes it another run.
_MAY_CHANGE = (
    'num_steps', 'checkpoint_every', 'evaluate_every', 'record_every', 'corpus', 'target', 'mesh',
    'features', 'measure',
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
  task = build_heads.task(config)
  tokenizer_file = build_training.target_tokenizer_file(config)
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
  corpus = _with_samples(config, task, corpus, results.path, say)
  batches, held_out = _batches(config, task, corpus, results.path, say)
  params = task.init(jax.random.key(config.seed))
  say(
      f'{task.num_parameters:,} parameters, {len(corpus.train):,} tokens, '
      f'{config.num_steps - first} of {config.num_steps} steps of '
      f'{config.batch_size} x {config.seq_len} tokens to go, on {jax.devices()[0].device_kind}.'
  )
  with display.training(console, config.num_steps) as show:

    def record(progress: train.Progress) -> None:
      results.record(_row(config.name, progress))
      show(progress)

    state = train.fit(
        params=params,
        loss_fn=task.loss_fn,
        optimizer=optimizer,
        batches=batches,
        num_steps=config.num_steps,
        workdir=results.path,
        held_out=lambda: iter(held_out),
        measure=_measure(config, task, corpus),
        checkpoint_every=config.checkpoint_every,
        evaluate_every=config.evaluate_every,
        record_every=config.record_every,
        gradient_accumulation=config.gradient_accumulation,
        train_metrics=task.train_metrics,
        record=record,
        layout=task.layout,
    )
  return _export(config, results, task, state.params, corpus, say)


def _with_samples(config, task, corpus, path: pathlib.Path, say):
  """The corpus, or with `config.samples` what the target writes after prompts from it, or both."""
  settings = config.samples.to_dict()
  with_text = settings.pop('with_text')
  if not settings['num_samples']:
    return corpus
  if task.target is None:
    raise ValueError(
        'config.samples asks for samples of a target, and there is none: give '
        '--config.target.path=FOLDER.'
    )
  made = samples.write(
      path / 'samples', target=task.target, tokens=corpus.train, seed=config.seed, say=say,
      **settings,
  )
  if with_text:
    made = np.concatenate([np.asarray(corpus.train), np.asarray(made)])
  return dataclasses.replace(corpus, train=made)


def _batches(config, task, corpus, path: pathlib.Path, say):
  """Step -> batch, and the held-out batches: tokens, or stored features of the target."""
  size = min(config.batch_size, config.held_out_windows)
  chunks = range(0, config.held_out_windows - size + 1, size)
  if not (task.feature_layers and config.features.stored):
    batches = data.TokenBatches(
        corpus.train, batch_size=config.batch_size, seq_len=config.seq_len, seed=config.seed
    )
    windows = data.held_out_windows(
        corpus.held_out, seq_len=config.seq_len, n=config.held_out_windows
    )
    return batches.batch, [windows[i : i + size] for i in chunks]
  layers = tuple(sorted({*task.feature_layers, *config.features.layers}))
  write = functools.partial(
      features.write, target=task.target, seq_len=config.seq_len, layers=layers, say=say
  )
  if jax.process_count() > 1:
    raise ValueError(
        'Several processes cannot store features together: store them with one process and give '
        '--config.features.path, or compute them in the step with --config.features.stored=False.'
    )
  folder = pathlib.Path(config.features.path or path / 'features')
  num_tokens = config.held_out_windows * config.seq_len + 1
  held_out = write(folder / 'held_out', tokens=corpus.held_out[:num_tokens])
  held_out = features.FeatureBatches(held_out, batch_size=size, layers=task.feature_layers)
  most = config.features.max_windows * config.seq_len + 1
  tokens = corpus.train[:most] if most > 1 else corpus.train
  batches = features.FeatureBatches(
      write(folder / 'train', tokens=tokens),
      batch_size=config.batch_size,
      layers=task.feature_layers,
      seed=config.seed,
  )
  return batches.batch, [held_out.take(np.arange(i, i + size)) for i in chunks]


def _measure(config, task, corpus):
  """Params -> acceptance length of greedy decoding with them, or None."""
  settings = config.measure
  if task.drafter is None or not settings.num_prompts:
    return None
  length = settings.prompt_tokens
  # On a mesh, all of them as often as rows must be for the devices that share them.
  ways = 1 if task.layout is None else task.layout.ways('batch')
  repeats = ways // math.gcd(ways, settings.num_prompts)
  prompts = [
      np.asarray(corpus.held_out[i * 2 * length :][:length]).tolist()
      for i in range(settings.num_prompts)
  ] * repeats

  def measure(params) -> dict[str, float]:
    output = specjax.generate(
        task.target,
        prompts,
        drafter=task.drafter(params, settings.num_speculative_tokens),
        max_new_tokens=settings.new_tokens,
    )
    return {'acceptance_length': output.mean_acceptance_length}

  return measure


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
    atomic.write(path / workdir_lib.METRICS, lines)
  return first


def _check_same_run(path: pathlib.Path, config) -> None:
  before = json.loads((path / workdir_lib.CONFIG).read_text(encoding='utf-8-sig'))
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
  for name in ('target', 'features'):
    fields.pop(name)
  return fields


def _export(config, results, task, params, corpus, say) -> pathlib.Path:
  """Saves what was trained with the tokenizer and how it was made."""
  params = jax.tree.map(processes.whole, params)
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
  task.save(
      params,
      folder,
      eos_ids=(corpus.tokenizer.token_to_id(data.END_OF_TEXT),),
      extra_files=(corpus.tokenizer_file, file),
  )
  say(f'Saved the model to {folder}; its loss curve is {results.path / workdir_lib.METRICS}.')
  return folder


if __name__ == '__main__':
  cli.main(run)
