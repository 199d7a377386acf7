"""From a training config to a `Training`."""

from collections.abc import Callable
import functools
import pathlib
from typing import Any

import ml_collections

from experiments import tracking
from experiments.build import targets
from experiments.build import tasks
from experiments.runs import corpus as corpus_lib
from experiments.runs import training as training_lib
from specjax import models
from specjax.models import loading
from specjax.training import chats as chats_lib
from specjax.training import optimizers
from specjax.training import samples

ConfigDict = ml_collections.ConfigDict


def training(config: ConfigDict) -> training_lib.Training:
  """What `experiments.train` runs.

  Raises:
    ValueError: if the config does not fit together.
    FileNotFoundError: if the target or a tokenizer is missing.
  """
  shape = tasks.check(config)
  vocab_size = config.model.vocab_size if shape is None else shape.vocab_size
  fields = (
      'name', 'seed', 'num_steps', 'batch_size', 'seq_len', 'held_out_windows',
      'gradient_accumulation', 'checkpoint_every', 'evaluate_every', 'record_every',
  )
  settings = config.features
  measure = training_lib.Measure(**config.measure.to_dict())
  return training_lib.Training(
      make_task=functools.partial(tasks.task, config),
      optimizer=optimizer(config),
      corpus=_corpus(config, vocab_size),
      corpus_sha256=config.corpus.sha256,
      samples=_samples(config, has_target=shape is not None),
      features=training_lib.Features(settings.path, tuple(settings.layers), settings.max_windows)
      if settings.stored
      else None,
      measure=measure if measure.num_prompts else None,
      recipe=_portable(config),
      tracking=tracking.check(config.tracking),
      **{name: config[name] for name in fields},
  )


def _corpus(config: ConfigDict, vocab_size: int) -> Callable[..., corpus_lib.Corpus]:
  """(folder, say) -> the corpus: chats where files of them are named, else the standard library."""
  settings = config.corpus
  if settings.chats:
    return _chats(config, _about(config), vocab_size)
  tokenizer, end = None, None
  if settings.tokenizer:
    tokenizer = models.load_tokenizer(settings.tokenizer)
  elif about := _about(config):
    tokenizer, end = about.tokenizer, about.end_tokens[0] if about.end_tokens else None

  def prepare(folder: pathlib.Path, say) -> corpus_lib.Corpus:
    return corpus_lib.prepare(
        settings.path or folder,
        vocab_size=vocab_size,
        root=settings.root or None,
        tokenizer=tokenizer,
        end=end,
        is_padded=bool(targets.source(config)),
        max_files=settings.max_files or None,
        say=say,
    )

  return prepare


def _chats(config: ConfigDict, about, vocab_size: int) -> Callable[..., corpus_lib.Corpus]:
  settings = config.corpus
  files = [file.strip() for file in settings.chats.split(',')]
  if about is None or about.chat_template is None:
    raise ValueError(
        f'config.corpus.chats={", ".join(files)} needs a target with a chat template: give '
        '--config.target.path=… of one that has it, or --config.target.chat_template=FILE.'
    )
  encoder = chats_lib.Encoder(about.tokenizer, about.chat_template, about.special_tokens)

  def prepare(folder: pathlib.Path, say) -> corpus_lib.Corpus:
    return corpus_lib.prepare_chats(
        settings.path or folder,
        files,
        encoder,
        vocab_size=vocab_size,
        end_tokens=about.end_tokens,
        held_out_one_in=settings.held_out_one_in,
        max_tokens=settings.max_tokens,
        say=say,
    )

  return prepare


def _about(config: ConfigDict) -> loading.Checkpoint | None:
  """The target's tokenizer, template and ends, or None where there is no target."""
  source = targets.source(config)
  if not source:
    return None
  try:
    return loading.describe(source, chat_template=targets.template(config))
  except FileNotFoundError as error:
    raise FileNotFoundError(
        f'{error} A draft must read the tokens of its target: give --config.corpus.tokenizer=FILE.'
    ) from error


def _samples(config: ConfigDict, *, has_target: bool) -> training_lib.Samples | None:
  settings = config.samples.to_dict()
  with_text = settings.pop('with_text')
  if not settings['num_samples']:
    return None
  if not has_target:
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


def _portable(config: ConfigDict) -> dict[str, Any]:
  """The config without the folders of one machine."""
  fields = config.to_dict()
  fields['corpus'] = {k: v for k, v in fields['corpus'].items() if k in ('max_files', 'sha256')}
  for name in ('target', 'features', 'tracking', 'start'):
    fields.pop(name)
  return fields
