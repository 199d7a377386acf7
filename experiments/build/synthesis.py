"""From a config to a `Synthesis`."""

import ml_collections

from experiments import prompts as prompts_lib
from experiments.build import targets
from experiments.build import values
from experiments.runs import arms
from experiments.runs import synthesis as synthesis_lib
from specjax import models
from specjax import sampling as sampling_lib
from specjax.models import chat
from specjax.models import hub
from specjax.models import loading
from specjax.training import synthesis as filters_lib

ConfigDict = ml_collections.ConfigDict

_MAY_CHANGE = ('name', 'num_chats')


def synthesis(config: ConfigDict) -> synthesis_lib.Synthesis:
  """What `experiments.synthesize` runs; weights are fetched, and read when it runs.

  Raises:
    ValueError: for numbers that make no sense, or a target without a chat template.
    FileNotFoundError: if the target or a file is missing.
  """
  for name in ('num_chats', 'batch_size', 'shard_size', 'rounds_per_chunk', 'prefill_chunk'):
    if config[name] < 1:
      raise ValueError(f'config.{name} must be at least 1, got {config[name]}.')
  source = targets.source(config)
  if not source:
    raise ValueError(
        'There is no model to write chats: give --config.target.path=… (a Hugging Face folder, hub '
        'id or .gguf file) or --config.target.name=smollm2.'
    )
  about = loading.describe(source, chat_template=targets.template(config))
  if about.chat_template is None:
    raise ValueError(
        f'{targets.name(config)} has no chat template, by which a model is asked to write chats: '
        'give one with --config.target.chat_template=FILE, or another target.'
    )
  instructions = None
  if config.instructions:
    instructions = _questions(config.instructions)
  else:
    turn = chat.user_turn(
        about.chat_template, about.tokenizer, system=config.system,
        special_tokens=about.special_tokens,
    )
  filters = filters_lib.Filters(
      min_characters=config.filters.min_characters,
      max_repetition=config.filters.max_repetition,
      excluded=tuple(
          text
          for file in config.filters.exclude
          for each in prompts_lib.conversations(file=file)
          for text in each.turns
      ),
  )
  layouts = values.layouts(config.mesh)

  def load() -> models.LanguageModel:
    return loading.load_model(
        source, dtype=values.dtype(config.dtype), layout=layouts and layouts.target,
        int8=config.int8,
    )

  # More chats of the same kind go on in the same folder. What config names, by its contents.
  key = {name: value for name, value in config.to_dict().items() if name not in _MAY_CHANGE}
  key |= dict(
      target=arms.file_digest(str(hub.fetch(source))),  # with its weights, as `load` finds it
      template=about.chat_template,
      dtype=str(values.dtype(config.dtype)),
      instructions=instructions,
      excluded=filters.excluded,
  )
  return synthesis_lib.Synthesis(
      name=targets.name(config),
      key=key,
      load=load,
      about=about,
      system=config.system,
      header=None if instructions is not None else turn,
      instructions=instructions,
      question=_sampler(config.question),
      answer=_sampler(config.answer),
      filters=filters,
      num_chats=config.num_chats,
      batch_size=config.batch_size,
      shard_size=config.shard_size,
      rounds_per_chunk=config.rounds_per_chunk,
      prefill_chunk=config.prefill_chunk,
      seed=config.seed,
  )


def _questions(file: str) -> tuple[str, ...]:
  """The first question of every row of a file.

  Raises:
    ValueError: if the question of a row continues a chat.
  """
  talks = prompts_lib.conversations(file=file)
  for number, each in enumerate(talks):
    if len(each.messages or ()) > 1:
      raise ValueError(
          f'config.instructions={file}: row {number + 1} has {len(each.messages)} messages, of '
          'which the last one would be asked alone. Give rows of one question; a system text for '
          'all of them is --config.system.'
      )
  return tuple(each.turns[0] for each in talks)


def _sampler(settings: ConfigDict) -> synthesis_lib.Sampler:
  options = settings.to_dict()
  limit = options.pop('max_tokens')
  return synthesis_lib.Sampler(sampling_lib.make(batch_size=1, **options), limit)
