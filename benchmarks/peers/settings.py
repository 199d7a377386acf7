"""What a comparison is asked for: the config as a dataclass, checked, and its tasks."""

from collections.abc import Mapping
import dataclasses
import os
import pathlib

import ml_collections

from benchmarks.peers import llama_cpp
from benchmarks.peers import prompts as prompts_lib
from benchmarks.peers import runs
from experiments import prompts as prompt_files
from specjax import models
from specjax import zoo
from specjax.models import loading


@dataclasses.dataclass(frozen=True)
class Settings:
  """The fields of configs/benchmark_peers.py, which says what they are; None for '' as a path."""

  num_speculative_tokens: int
  max_new_tokens: int
  num_prompts: int
  prompt_tokens: int
  pair: pathlib.Path | None
  model: pathlib.Path | None
  prompt_file: str
  zoo: str
  python: str
  llama_cpp: pathlib.Path | None
  dtypes: tuple[str, ...]
  threads: int
  rounds: int
  max_ngram: int
  llama_cpp_cache: Mapping[str, str]
  llama_cpp_flash_attention: str

  def __post_init__(self):
    """Refuses what cannot be run, before anything is computed."""
    for name in ('peers.threads', 'peers.rounds', 'peers.max_ngram', 'num_speculative_tokens'):
      value = getattr(self, name.removeprefix('peers.'))
      if value < 1:
        raise ValueError(f'config.{name} must be at least 1, got {value}.')
    if not self.dtypes or set(self.dtypes) - {'float32', 'bfloat16'}:
      raise ValueError(f"config.peers.dtypes holds 'bfloat16' and 'float32', not {self.dtypes}.")
    if not self.pair and not self.zoo and not self.model:
      raise ValueError(
          'There is nothing to run: give --config.peers.pair=FOLDER (scripts/make_peer_pair.py '
          'makes it), --config.peers.model=FOLDER, or set config.peers.zoo.'
      )
    if self.model and not self.prompt_file:
      raise ValueError('config.peers.model needs prompts: give --config.prompt_file=FILE.')
    if self.pair and not (self.pair / 'prompts.jsonl').is_file():
      raise FileNotFoundError(
          f'{self.pair} holds no prompts.jsonl: make the pair with '
          f'`python -m scripts.make_peer_pair --folder={self.pair}`.'
      )
    if self.python and not os.access(self.python, os.X_OK):
      raise FileNotFoundError(f'config.peers.python={self.python} is not a program.')
    if self.llama_cpp:
      llama_cpp.check(self.llama_cpp)


def from_config(config: ml_collections.ConfigDict) -> Settings:
  """The settings of a config; the only place that reads it.

  Raises:
    ValueError: if it cannot be run.
    FileNotFoundError: if a pair or an interpreter is missing.
  """
  path = lambda text: pathlib.Path(text).expanduser() if text else None
  names = (
      'num_speculative_tokens', 'max_new_tokens', 'num_prompts', 'prompt_tokens', 'prompt_file',
  )
  fields = {name: config[name] for name in names} | config.peers.to_dict()
  return Settings(**fields | {name: path(fields[name]) for name in ('pair', 'model', 'llama_cpp')})


def tasks(settings: Settings) -> list[runs.Task]:
  """The pairs, with their prompts."""
  names = ('num_speculative_tokens', 'max_new_tokens', 'max_ngram', 'threads')
  common = {name: getattr(settings, name) for name in names}
  result = []
  if settings.pair:
    folder = settings.pair
    prompts = prompts_lib.read(folder / 'prompts.jsonl')[: settings.num_prompts or None]
    result.append(runs.Task(
        name=folder.name, target=folder / 'target', draft=folder / 'draft',
        tokenizer=models.load_tokenizer(folder / 'target'),
        prompts=tuple(prompt.tokens for prompt in prompts), **common,
    ))
  if settings.model:
    about = loading.describe(settings.model)
    result.append(runs.Task(
        name=settings.model.name, target=settings.model, draft=None, tokenizer=about.tokenizer,
        prompts=tuple(_prompts(settings, about)), **common,
    ))
  if settings.zoo:
    pair = zoo.load(settings.zoo)
    prompts = pair.prompts(settings.num_prompts or 4, length=settings.prompt_tokens)
    result.append(runs.Task(
        name=f'zoo: {pair.name}', target=pair.folder / 'target', draft=pair.folder / 'draft',
        tokenizer=pair.tokenizer, prompts=tuple(map(tuple, prompts)), **common,
    ))
  return result


def _prompts(settings: Settings, about: loading.Checkpoint) -> list[tuple[int, ...]]:
  """The first turns of the file, categories in turns, as chats where there is a template."""
  conversations = prompt_files.conversations(file=settings.prompt_file)
  by_turns = prompt_files.by_turns(conversations)[: settings.num_prompts or None]
  if about.chat_template is None:
    return [tuple(about.tokenizer.encode(each.turns[0]).ids) for each in by_turns]
  return [
      tuple(prompt_files.chat_tokens(
          each, 0, (), template=about.chat_template, tokenizer=about.tokenizer,
          special_tokens=about.special_tokens,
      ))
      for each in by_turns
  ]


def absent(settings: Settings) -> list[str]:
  """Sentences on the engines that are not run, and what each of them needs."""
  lines = []
  if not settings.python:
    lines.append(
        'transformers was not run: give an interpreter that has it, --config.peers.python=FILE '
        '(benchmarks/peers/run_transformers.py says how to make one).'
    )
  if not settings.llama_cpp:
    lines.append(
        'llama.cpp was not run: give a build of it, --config.peers.llama_cpp=FOLDER '
        '(scripts/make_peer_pair.py says how to make one).'
    )
  elif not settings.pair and not settings.model:
    lines.append(
        'llama.cpp was not run: it needs a pair made by scripts/make_peer_pair.py, or a model.'
    )
  return lines
