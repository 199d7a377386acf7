"""From a training config to a `Training`."""

import functools
import pathlib
from typing import Any

import ml_collections

from experiments.build import tasks
from experiments.runs import corpus as corpus_lib
from experiments.runs import training as training_lib
from specjax.models import hub
from specjax.models import loading
from specjax.training import optimizers
from specjax.training import samples

ConfigDict = ml_collections.ConfigDict


def training(config: ConfigDict) -> training_lib.Training:
  """What `experiments.train` runs.

  Raises:
    ValueError: if the config does not fit together.
    FileNotFoundError: if the target or a tokenizer is missing.
  """
  task = tasks.task(config)
  corpus = config.corpus
  fields = (
      'name', 'seed', 'num_steps', 'batch_size', 'seq_len', 'held_out_windows',
      'gradient_accumulation', 'checkpoint_every', 'evaluate_every', 'record_every',
  )
  settings = config.features
  measure = training_lib.Measure(**config.measure.to_dict())
  return training_lib.Training(
      task=task,
      optimizer=optimizer(config),
      corpus=functools.partial(_corpus, corpus, config.model.vocab_size, _tokenizer_file(config)),
      corpus_sha256=corpus.sha256,
      samples=_samples(config, task),
      features=training_lib.Features(settings.path, tuple(settings.layers), settings.max_windows)
      if settings.stored
      else None,
      measure=measure if measure.num_prompts else None,
      recipe=_portable(config),
      **{name: config[name] for name in fields},
  )


def _corpus(settings: ConfigDict, vocab_size: int, tokenizer_file, folder: pathlib.Path, say):
  return corpus_lib.prepare(
      settings.path or folder,
      vocab_size=vocab_size,
      root=settings.root or None,
      tokenizer_file=tokenizer_file,
      max_files=settings.max_files or None,
      say=say,
  )


def _samples(config: ConfigDict, task: training_lib.Task) -> training_lib.Samples | None:
  settings = config.samples.to_dict()
  with_text = settings.pop('with_text')
  if not settings['num_samples']:
    return None
  if task.target is None:
    raise ValueError(
        'config.samples asks for samples of a target, and there is none: give '
        '--config.target.path=FOLDER.'
    )
  write = functools.partial(samples.write, seed=config.seed, **settings)
  return training_lib.Samples(write, with_text)


def optimizer(config: ConfigDict):
  """The optimiser of `config.optimizer` for `config.num_steps` steps."""
  settings = config.optimizer
  schedule = optimizers.warmup_stable_decay(
      peak=settings.learning_rate,
      num_steps=config.num_steps,
      warmup_steps=settings.warmup_steps,
      decay_fraction=settings.decay_fraction,
  )
  return optimizers.muon(schedule, weight_decay=settings.weight_decay)


def _tokenizer_file(config: ConfigDict) -> pathlib.Path | None:
  """The tokenizer to encode with: the one named, else the target's, else None.

  Raises:
    FileNotFoundError: if there is a target but no tokenizer in or beside its folder.
  """
  if config.corpus.tokenizer:
    return pathlib.Path(config.corpus.tokenizer)
  if not config.target.path:
    return None
  folder = hub.fetch(config.target.path, without_weights=True)
  if loading.is_gguf(folder):
    raise ValueError(
        f'{folder} is a GGUF file, which has no tokenizer.json to encode the corpus with: turn it '
        'into a folder with scripts/convert_hf.py, and give that.'
    )
  for candidate in (folder / 'tokenizer.json', folder.parent / 'tokenizer.json'):
    if candidate.exists():
      return candidate
  raise FileNotFoundError(
      f'There is no tokenizer.json in {folder} or beside it; a draft must read the tokens of '
      'its target. Give --config.corpus.tokenizer=FILE.'
  )


def _portable(config: ConfigDict) -> dict[str, Any]:
  """The config without the folders of one machine."""
  fields = config.to_dict()
  fields['corpus'] = {k: v for k, v in fields['corpus'].items() if k in ('max_files', 'sha256')}
  for name in ('target', 'features'):
    fields.pop(name)
  return fields
