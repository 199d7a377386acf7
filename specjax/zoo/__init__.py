"""Model pairs that ship with the project, loaded by name.

`stdlib` is a 16.8 M-parameter Llama-architecture code model with distilled drafts and a
tokenizer of its own, trained by this project's own code on the source of Python's standard
library (`configs/zoo_target.py`, `configs/train_distill_zoo.py`). `specjax/zoo/stdlib/README.md`
says how, with the loss curves and the licence of the corpus.

`smollm2` is SmolLM2-135M-Instruct, a chat model that others trained. It is fetched when it is first
loaded (`specjax.zoo.fetched`). It comes without a draft model; an EAGLE-3 head for it ships
(`specjax/zoo/smollm2/README.md`).
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

from specjax import heads
from specjax import models
from specjax.zoo import fetched

_ROOT = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """A file that no model of the pair was trained on.

  Attributes:
    name: its path below the standard library.
    text: its source.
  """

  name: str
  text: str


@dataclasses.dataclass(frozen=True)
class Pair:
  """A target, its drafts, their tokenizer, and texts that they never saw.

  Attributes:
    name: of the pair.
    target: the target model.
    drafts: draft models by name.
    draft: the one to use where nothing speaks for another.
    tokenizer: `encode(text).ids`, `decode(ids)`.
    end_of_text: id of the token that ends a file.
    held_out: files for prompts and measurement.
    folder: where the pair lies; its heads are read from there (`head`).
    chat_template: Jinja source of the target's chat template, or None.
    special_tokens: texts of special tokens by name, for the template.
    end_tokens: ids that end a text or a turn of a chat.
  """

  name: str
  target: models.LanguageModel
  drafts: dict[str, models.LanguageModel]
  tokenizer: Any
  end_of_text: int
  held_out: tuple[HeldOut, ...]
  folder: pathlib.Path | None = None
  chat_template: str | None = None
  special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
  end_tokens: tuple[int, ...] = ()

  def head(self, name: str) -> Any:
    """A head that ships with the pair, read when it is asked for.

    Args:
      name: 'eagle3', 'medusa', 'early_exit', 'dflash' or 'dspark'.

    Returns:
      A `heads.Eagle`, `heads.Medusa`, `heads.EarlyExit` or `heads.DFlash` in the target's dtype.

    Raises:
      ValueError: if the pair has no such head.
    """
    loaders = {
        'eagle3': heads.load_eagle,
        'medusa': heads.load_medusa,
        'early_exit': heads.load_early_exit,
        'dflash': heads.load_dflash,
        'dspark': heads.load_dflash,
    }
    there = sorted(key for key in loaders if self.folder and (self.folder / key).is_dir())
    if name not in there:
      raise ValueError(f'The pair {self.name!r} has no head {name!r}; it has {there}.')
    return loaders[name](self.folder / name, self.target, dtype=self.target.module.dtype)

  @property
  def draft(self) -> models.LanguageModel:
    """The draft to use where nothing speaks for another.

    Raises:
      ValueError: if the pair has none.
    """
    if 'draft' not in self.drafts:
      raise ValueError(
          f'{self.name} comes without a draft model: give one of your own, or draft by prompt '
          'lookup (`drafters.ngram`), suffixes (`drafters.suffix`) or a head of the pair (`head`).'
      )
    return self.drafts['draft']

  def prompts(self, count: int, *, length: int, offset: int = 0) -> list[list[int]]:
    """Prompts cut from the held-out files, round robin over files.

    Args:
      count: how many.
      length: tokens of each.
      offset: prompts to skip, for a disjoint set.

    Returns:
      `count` token lists: prompt i of a file begins `2 * length` tokens after prompt
      i - 1, so that no two overlap and what follows a prompt is no other's beginning.

    Raises:
      ValueError: if the files are too short for that many.
    """
    files = [self.tokenizer.encode(item.text).ids for item in self.held_out]
    starts = [
        (turn, ids)
        for turn in range(max(len(ids) for ids in files) // (2 * length) + 1)
        for ids in files
        if (2 * turn + 1) * length <= len(ids)
    ]
    if offset + count > len(starts):
      raise ValueError(
          f'The held-out files of {self.name!r} hold {len(starts)} prompts of {length} '
          f'tokens, {offset + count} were asked for. Ask for fewer or shorter ones.'
      )
    chosen = starts[offset : offset + count]
    return [ids[2 * turn * length :][:length] for turn, ids in chosen]


def names() -> tuple[str, ...]:
  """Names of the pairs that ship; `fetched.NAME` is fetched."""
  return tuple(sorted(path.parent.name for path in _ROOT.glob('*/tokenizer.json')))


def load(name: str = 'stdlib', *, dtype: Any = None) -> Pair:
  """Loads a pair that ships with the project, or 'smollm2', which is fetched first.

  Args:
    name: of the pair.
    dtype: of weights and activations; None keeps that of the files (bfloat16).

  Returns:
    The pair.

  Raises:
    ValueError: for an unknown name.
    FileNotFoundError: if it cannot be fetched.
  """
  if name == fetched.NAME:
    return _smollm2(dtype)
  _check_name(name)
  place = folder(name)
  tokenizer = models.load_tokenizer(place)
  drafts = {
      path.parent.name: models.load_hf(path.parent, dtype=dtype)
      for path in sorted(place.glob('draft*/config.json'))
  }
  with open(place / 'held_out.jsonl', encoding='utf-8-sig') as lines:
    held_out = tuple(HeldOut(**json.loads(line)) for line in lines)
  return Pair(
      name=name,
      target=models.load_hf(place / 'target', dtype=dtype),
      drafts=drafts,
      tokenizer=tokenizer,
      end_of_text=tokenizer.token_to_id('<|endoftext|>'),
      held_out=held_out,
      folder=place,
  )


def folder(name: str = 'stdlib') -> pathlib.Path:
  """Where drafts and heads of a pair lie, if there are any."""
  return _ROOT / name


def source(name: str = 'stdlib') -> pathlib.Path:
  """The folder or file of a pair's target, as `specjax.load` takes it.

  Raises:
    ValueError: for an unknown name.
    FileNotFoundError: if it cannot be fetched.
  """
  if name == fetched.NAME:
    return fetched.fetch()
  _check_name(name)
  return folder(name) / 'target'


def _check_name(name: str) -> None:
  if name not in names():
    known = ', '.join([*names(), fetched.NAME])
    raise ValueError(f'There is no pair named {name!r}; there are: {known}.')


def _smollm2(dtype: Any) -> Pair:
  """SmolLM2 as a pair without a draft."""
  loaded = models.load(fetched.fetch(), dtype=dtype)
  return Pair(
      name=fetched.NAME,
      target=loaded.model,
      drafts={},
      tokenizer=loaded.tokenizer,
      end_of_text=loaded.end_tokens[0],
      held_out=(),
      folder=folder(fetched.NAME),
      chat_template=loaded.chat_template,
      special_tokens=loaded.special_tokens,
      end_tokens=loaded.end_tokens,
  )
