"""Trains what a config describes: its corpus, its batches, its checkpoints, and what is saved."""

from collections.abc import Callable
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

from experiments import display
from experiments import tracking
from experiments import workdir as workdir_lib
from experiments.runs import corpus as corpus_lib
import specjax
from specjax import atomic
from specjax import models
from specjax import sharding
from specjax.sharding import processes
from specjax.training import checkpoints
from specjax.training import data
from specjax.training import features
from specjax.training import token_files
from specjax.training import train

Say = Callable[[str], None]

# These may differ between the parts of a resumed run; everything else makes it another run.
_MAY_CHANGE = (
    'num_steps', 'checkpoint_every', 'evaluate_every', 'record_every', 'corpus', 'target', 'mesh',
    'features', 'measure', 'tracking',
)


@dataclasses.dataclass(frozen=True)
class Task:
  """What is trained and how it is saved.

  Attributes:
    config: the shape of the model or head.
    init: key -> fresh parameters.
    loss_fn: (params, batch) -> (loss, metrics).
    num_parameters: of what is trained.
    target: the frozen target, or None.
    feature_layers: residual streams that the loss reads; () where it reads tokens alone.
    drafter: (params, K) -> a drafter with these weights, for measuring; None without target.
    save: (params, folder, extra_files, eos_ids) -> None.
    train_metrics: metrics that a training step computes; None for all.
    layout: how parameters and batches are split over devices, or None.
  """

  config: Any
  init: Callable[[jax.Array], Any]
  loss_fn: Any
  num_parameters: int
  target: models.LanguageModel | None
  feature_layers: tuple[int, ...]
  drafter: Callable[[Any, int], Any] | None
  save: Callable[..., None]
  train_metrics: tuple[str, ...] | None = ('loss',)
  layout: sharding.Layout | None = None


@dataclasses.dataclass(frozen=True)
class Samples:
  """What the target writes to be trained on.

  Attributes:
    write: (folder, target, tokens, say) -> tokens.
    with_text: whether they come after the corpus instead of in its place.
  """

  write: Callable[..., np.ndarray]
  with_text: bool


@dataclasses.dataclass(frozen=True)
class Features:
  """The target's features, stored before training.

  Attributes:
    path: a folder for them; '' is in the workdir.
    layers: stored besides those that the loss reads.
    max_windows: of seq_len tokens, from the beginning of the corpus; 0 takes all.
  """

  path: str
  layers: tuple[int, ...]
  max_windows: int


@dataclasses.dataclass(frozen=True)
class Measure:
  """Greedy decoding of held-out prompts at every evaluation.

  Attributes:
    num_prompts: how many.
    prompt_tokens: of each.
    new_tokens: after each.
    num_speculative_tokens: K.
  """

  num_prompts: int
  prompt_tokens: int
  new_tokens: int
  num_speculative_tokens: int


@dataclasses.dataclass(frozen=True)
class Training:
  """A training run.

  Attributes:
    name: of the run.
    make_task: corpus -> what is trained.
    optimizer: an optax transformation.
    corpus: (folder, say) -> `Corpus`.
    corpus_sha256: of the training text of the shipped weights; '' for none.
    samples: of the target, or None.
    features: stored ones, or None.
    measure: or None.
    seed: of the initial weights and of the order of batches.
    num_steps: in all.
    batch_size: windows per step.
    seq_len: tokens of a window.
    held_out_windows: for evaluation.
    gradient_accumulation: parts of a batch.
    checkpoint_every: steps.
    evaluate_every: steps.
    record_every: steps.
    recipe: what `training.json` says of the config.
    tracking: services that follow the run, of `experiments.tracking`.
  """

  name: str
  make_task: Callable[[corpus_lib.Corpus], Task]
  optimizer: Any
  corpus: Callable[[pathlib.Path, Say], corpus_lib.Corpus]
  corpus_sha256: str
  samples: Samples | None
  features: Features | None
  measure: Measure | None
  seed: int
  num_steps: int
  batch_size: int
  seq_len: int
  held_out_windows: int
  gradient_accumulation: int
  checkpoint_every: int
  evaluate_every: int
  record_every: int
  recipe: dict[str, Any]
  tracking: tuple[str, ...] = ()


def run(
    training: Training, results: workdir_lib.Workdir, console: rich.console.Console
) -> pathlib.Path:
  """Trains, from the newest checkpoint in the workdir on; returns the folder of the model.

  Raises:
    ValueError: if the workdir holds another run, or the corpus is too small.
    FloatingPointError: if the loss is not finite any more.
  """
  say = lambda text: console.print(text, highlight=False, soft_wrap=True)
  results.claim()
  first = _resume(results, say)
  corpus = processes.first_alone(lambda: training.corpus(results.path / 'corpus', say))
  _compare_corpus(training, corpus, say)
  task = training.make_task(corpus)
  corpus = _with_samples(training, task, corpus, results.path, say)
  batches, held_out = _batches(training, task, corpus, results.path, say)
  params = task.init(jax.random.key(training.seed))
  say(
      f'{task.num_parameters:,} parameters, {len(corpus.train):,} tokens, '
      f'{training.num_steps - first} of {training.num_steps} steps of '
      f'{training.batch_size} x {training.seq_len} tokens to go, on '
      f'{jax.devices()[0].device_kind}.'
  )
  with (
      display.training(console, training.num_steps) as show,
      tracking.tracker(results, name=training.name, services=training.tracking) as track,
  ):

    def record(progress: train.Progress) -> None:
      row = _row(training.name, progress)
      results.record(row)
      track(row)
      show(progress)

    state = train.fit(
        params=params,
        loss_fn=task.loss_fn,
        optimizer=training.optimizer,
        batches=batches,
        num_steps=training.num_steps,
        workdir=results.path,
        held_out=lambda: iter(held_out),
        measure=_measure(training, task, corpus),
        checkpoint_every=training.checkpoint_every,
        evaluate_every=training.evaluate_every,
        record_every=training.record_every,
        gradient_accumulation=training.gradient_accumulation,
        train_metrics=task.train_metrics,
        record=record,
        layout=task.layout,
    )
  return _export(training, task, results, state.params, corpus, say)


def _with_samples(training: Training, task: Task, corpus, path: pathlib.Path, say: Say):
  """The corpus, or what the target writes after prompts from it, or both."""
  if training.samples is None:
    return corpus
  tokens = training.samples.write(
      path / 'samples', target=task.target, tokens=corpus.train.ids, say=say
  )
  mask = None
  if training.samples.with_text:
    if corpus.train.mask is not None:
      # What the target wrote counts as a whole.
      mask = np.concatenate([np.asarray(corpus.train.mask), np.ones(len(tokens), bool)])
    tokens = np.concatenate([np.asarray(corpus.train.ids), np.asarray(tokens)])
  made = token_files.Tokens(tokens, mask, corpus.train.info)
  return dataclasses.replace(corpus, train=made)


def _batches(training: Training, task: Task, corpus, path: pathlib.Path, say: Say):
  """Step -> batch, and the held-out batches: tokens, or stored features of the target."""
  size = min(training.batch_size, training.held_out_windows)
  chunks = range(0, training.held_out_windows - size + 1, size)
  settings, train_tokens, held_out = training.features, corpus.train, corpus.held_out
  # Refused here where there are too few, before any feature is stored.
  windows = data.held_out_windows(
      held_out.ids, seq_len=training.seq_len, n=training.held_out_windows, mask=held_out.mask
  )
  if not task.feature_layers or settings is None:
    batches = data.TokenBatches(
        train_tokens.ids, batch_size=training.batch_size, seq_len=training.seq_len,
        seed=training.seed, mask=train_tokens.mask,
    )
    return batches.batch, [jax.tree.map(lambda x: x[i : i + size], windows) for i in chunks]
  layers = tuple(sorted({*task.feature_layers, *settings.layers}))
  write = functools.partial(
      features.write, target=task.target, seq_len=training.seq_len, layers=layers, say=say
  )
  if jax.process_count() > 1:
    raise ValueError(
        'Several processes cannot store features together: store them with one process and give '
        '--config.features.path, or compute them in the step with --config.features.stored=False.'
    )
  folder = pathlib.Path(settings.path or path / 'features')
  num_tokens = training.held_out_windows * training.seq_len + 1
  first = lambda tokens, count: dict(
      tokens=tokens.ids[:count], mask=None if tokens.mask is None else tokens.mask[:count]
  )
  held_out = features.FeatureBatches(
      write(folder / 'held_out', **first(held_out, num_tokens)),
      batch_size=size,
      layers=task.feature_layers,
  )
  most = settings.max_windows * training.seq_len + 1
  batches = features.FeatureBatches(
      write(folder / 'train', **first(train_tokens, most if most > 1 else None)),
      batch_size=training.batch_size,
      layers=task.feature_layers,
      seed=training.seed,
  )
  return batches.batch, [held_out.take(np.arange(i, i + size)) for i in chunks]


def _measure(training: Training, task: Task, corpus):
  """Params -> acceptance length of greedy decoding with them, or None.

  Prompts are held-out chats up to their first answer, or pieces of held-out texts.
  """
  settings = training.measure
  if task.drafter is None or settings is None:
    return None
  length = settings.prompt_tokens
  # On a mesh, all of them as often as rows must be for the devices that share them.
  ways = 1 if task.layout is None else task.layout.ways('batch')
  repeats = ways // math.gcd(ways, settings.num_prompts)
  prompts = list(corpus.prompts[: settings.num_prompts]) or [
      np.asarray(corpus.held_out.ids[i * 2 * length :][:length]).tolist()
      for i in range(settings.num_prompts)
  ]
  prompts *= repeats

  def measure(params) -> dict[str, float]:
    output = specjax.generate(
        task.target,
        prompts,
        drafter=task.drafter(params, settings.num_speculative_tokens),
        max_new_tokens=settings.new_tokens,
        stop_tokens=corpus.end_tokens if corpus.prompts else (),
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


def _resume(results: workdir_lib.Workdir, say: Say) -> int:
  """The step to go on from; drops the rows that will be written again.

  Raises:
    ValueError: if the workdir holds another run.
  """
  path = results.path
  first = _newest_step(path / 'checkpoints')
  if first != processes.of_first(lambda: first):
    raise ValueError(
        f'The processes of this run see different checkpoints in {path}: the workdir must be on a '
        'file system that all hosts mount.'
    )
  if first and (path / workdir_lib.CONFIG).exists():
    _check_same_run(results)
    say(f'Going on from step {first} in {path}.')
  if results.writes and (path / workdir_lib.METRICS).exists():
    rows = [row for row in workdir_lib.read_rows(path) if row['step'] <= first]
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    atomic.write(path / workdir_lib.METRICS, lines)
  return first


def _newest_step(folder: pathlib.Path) -> int:
  """Of the checkpoints in a folder; 0 where there are none."""
  if not folder.is_dir():
    return 0
  store = checkpoints.Checkpoints(folder)
  try:
    return store.latest_step() or 0
  finally:
    store.close()


def _check_same_run(results: workdir_lib.Workdir) -> None:
  text = (results.path / workdir_lib.CONFIG).read_text(encoding='utf-8-sig')
  before, now = json.loads(text), results.config
  changed = [
      f'{name} was {before.get(name)!r} and is {now.get(name)!r}'
      for name in sorted(set(before) | set(now))
      if name not in _MAY_CHANGE and before.get(name) != now.get(name)
  ]
  if changed:
    raise ValueError(
        f'{results.path} holds a run with another config: {"; ".join(changed)}. Give another '
        '--workdir, or the same config to go on with it.'
    )


def _compare_corpus(training: Training, corpus: corpus_lib.Corpus, say: Say) -> None:
  """Warns where the corpus is not the one that the config's results were made on."""
  digest = corpus.info['train'].get('sha256')
  if training.corpus_sha256 and digest != training.corpus_sha256:
    say(
        f'Note: this corpus (Python {corpus.info["train"].get("python")}, sha256 {digest}) is not '
        f'the one of the shipped weights ({training.corpus_sha256}): expect other losses. '
        'config.corpus.root takes the standard library of another interpreter.'
    )


def _export(training: Training, task: Task, results, params, corpus, say: Say) -> pathlib.Path:
  """Saves what was trained with the tokenizer and how it was made."""
  params = jax.tree.map(processes.whole, params)
  folder = results.path / 'model'
  if not results.writes:
    return folder
  held_out = [row for row in workdir_lib.read_rows(results.path) if row['kind'] == 'held_out']
  not_losses = ('name', 'step', 'kind', 'tokens_per_second', 'seconds_left')
  described = {
      'name': training.name,
      'steps': training.num_steps,
      'tokens': training.num_steps * training.batch_size * training.seq_len,
      'held_out': {k: v for row in held_out[-1:] for k, v in row.items() if k not in not_losses},
      'corpus': corpus.info,
      'corpus_licence': corpus.licence,
      'config': training.recipe,
      'jax': jax.__version__,
  }
  file = results.write_json('training.json', described)
  # The model before it stays until this one is there as a whole.
  fresh = folder.with_name('model.partial')
  if fresh.exists():
    shutil.rmtree(fresh)
  task.save(
      params,
      fresh,
      eos_ids=corpus.end_tokens,
      extra_files=(corpus.tokenizer_file, file),
  )
  if folder.exists():
    shutil.rmtree(folder)
  fresh.rename(folder)
  say(f'Saved the model to {folder}; its loss curve is {results.path / workdir_lib.METRICS}.')
  return folder
