"""From a config to a generation: prompts, samples, and how they are decoded."""

import dataclasses
import functools

import jax
import ml_collections

from experiments import prompts as prompts_lib
from experiments.build import drafters as drafters_lib
from experiments.build import prompts as prompts_build
from experiments.build import requests
from experiments.build import rules
from experiments.build import targets
from experiments.runs import chat as chat_lib
from experiments.runs import generation as generation_lib
from experiments.runs import records
from specjax import checks
from specjax.stopping import as_strings

ConfigDict = ml_collections.ConfigDict


def generation(config: ConfigDict) -> generation_lib.Generation:
  """What `experiments.generate` runs.

  Raises:
    ValueError: if the config or a prompt cannot be run.
    FileNotFoundError: if a model or a prompt file is missing.
  """
  requests.check(config)
  loaded = targets.load(config)
  recipe = drafters_lib.recipe(config)
  stops = tuple(config.stop_tokens) + (loaded.stop_tokens if config.stop_at_end else ())
  rule = rules.rule(config)
  conversations = () if config.interactive else prompts_lib.conversations(
      prompt=config.prompt,
      file=config.prompt_file,
      held_out=loaded.held_out,
      held_out_name=config.held_out,
  )[: config.num_prompts or None]
  encode = _encoder(config, loaded)
  work = generation_lib.Generation(
      loaded=loaded,
      recipe=recipe,
      method=records.Method(
          rule=rule,
          temperature=config.sampling.temperature,
          sampling=functools.partial(rules.sampling, config),
          kind='none' if recipe is None else recipe.kind,
      ),
      conversations=tuple(conversations),
      encode=encode,
      is_chat=_is_chat(config, loaded),
      num_samples=config.num_samples,
      batch_size=1 if config.stream else config.batch_size,  # a stream shows one row at a time
      seed=config.seed,
      streams=config.stream,
      rounds_per_chunk=config.rounds_per_chunk,
      keeps_trace=config.trace,
      stop_strings=as_strings(config.stop_strings),
      options=dict(
          rule=rule,
          max_new_tokens=config.max_new_tokens,
          stop_tokens=stops,
          stop_strings=as_strings(config.stop_strings),
          tokenizer=loaded.tokenizer,
          logprobs=config.logprobs or None,
          width=config.width,
          cache_length=config.cache_length,
          prefill_chunk=config.prefill_chunk,
      ),
  )
  # All of them before the first is generated, and by name.
  prompts = [encode(each, 0, ()) for each in conversations]
  for prompt in prompts:
    length, name = len(prompt.tokens), f'The prompt {prompt.name}'
    checks.positions(loaded.target, length, config.max_new_tokens, name=name)
  if _is_own(config):
    work = dataclasses.replace(work, note=prompts_lib.describe_cuts(prompts))
  return work


def chat(config: ConfigDict) -> chat_lib.Chat:
  """What `experiments.generate` runs as a chat in the terminal.

  Raises:
    ValueError: if the config cannot be run, or asks for what a chat has not.
    FileNotFoundError: if a model is missing.
  """
  for field, plain in (('prompt_file', ''), ('num_samples', 1)):
    if config[field] != plain:
      raise ValueError(
          f'config.{field}={config[field]!r} does not go with config.interactive, in which turns '
          'are typed and answered one by one: leave it out.'
      )
  if jax.process_count() > 1:
    raise ValueError(
        f'config.interactive reads the terminal of one process, and there are '
        f'{jax.process_count()}: run it with one.'
    )
  return chat_lib.Chat(generation(config), first=config.prompt, system=config.system)


def _is_own(config: ConfigDict) -> bool:
  """Whether prompts are the user's own, not texts that the pair's target was not trained on."""
  return bool(config.prompt or config.prompt_file or config.interactive)


def _is_chat(config: ConfigDict, loaded: records.Loaded) -> bool:
  """Whether prompts are turns of chats; texts that were held out never are."""
  return prompts_build.is_chat(config, loaded) and (_is_own(config) or config.chat == 'on')


def _encoder(config: ConfigDict, loaded: records.Loaded):
  """(conversation, turn, answers so far) -> its prompt."""
  if not _is_chat(config, loaded):
    length = config.prompt_tokens if _is_own(config) else config.held_out_tokens
    if config.interactive:
      length = 0  # a chat that is too long ends, for its newest words matter most

    def encode_text(conversation, turn, answers) -> prompts_lib.Prompt:
      del turn, answers
      text = prompts_lib.as_text(conversation)
      return prompts_lib.encode([text], loaded.tokenizer, max_tokens=length)[0]

    return encode_text

  def encode_chat(conversation, turn, answers) -> prompts_lib.Prompt:
    tokens = prompts_build.chat_tokens(config, loaded, conversation, turn, answers)
    name = conversation.name_of_turn(turn)
    return prompts_lib.Prompt(name, conversation.turns[turn], tuple(tokens))

  return encode_chat
