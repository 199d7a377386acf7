"""From `config.drafter` to a drafter.

A kind is a factory of `specjax.drafters` by its name, with `_tree` where that factory is to draft
the tree of `config.drafter.tree`; or the import path of a factory of one's own. What a factory's
signature names, it gets: `target`, `vocab_size`, a `draft` model, a head (by its class), `free` and
`learned` drafters, `reference` (what plain decoding gives), `seed`, and fields of `config.drafter`.
"""

from collections.abc import Callable
import functools
import inspect
import pathlib
from typing import Any

import ml_collections

from experiments.build import parts
from experiments.build import values
from experiments.runs import records
from specjax import drafters
from specjax import heads
from specjax import models
from specjax import sharding
from specjax import zoo
from specjax.drafters import vocabulary
from specjax.models import hub
from specjax.models import loading

ConfigDict = ml_collections.ConfigDict

_TREE = '_tree'
# Parameters that only drafters with a model have.
_MODELS = ('draft', 'target', 'reference', 'free')


def _factories() -> dict[str, parts.Factory]:
  """The library's functions that make drafters, by name."""
  named = {name: getattr(drafters, name) for name in drafters.__all__}
  return {
      name: each
      for name, each in named.items()
      if inspect.isfunction(each)
      and name != 'plain'
      and hasattr(inspect.signature(each).return_annotation, 'propose')
  }


_FACTORIES = _factories()
KINDS = (
    'none',
    *_FACTORIES,
    *(
        f'{name}{_TREE}'
        for name, factory in _FACTORIES.items()
        if parts.takes(factory, 'tree') and parts.takes(factory, 'num_speculative_tokens')
    ),
)
# What a combination is made of.
FREE = tuple(
    name
    for name, factory in _FACTORIES.items()
    if not any(parts.takes(factory, each) for each in _MODELS)
)
_NOT_LEARNED = ('none', 'combined', 'synthetic', *FREE)
LEARNED = tuple(kind for kind in KINDS if kind.removesuffix(_TREE) not in _NOT_LEARNED)


def check(config: ConfigDict) -> None:
  """Refuses a drafter that does not exist or whose options do not.

  Raises:
    ValueError: naming the field, what it may be, and what it is.
  """
  kind = config.drafter.kind
  if not parts.is_own(kind):
    values.choice('drafter.kind', kind, KINDS)
  if kind != 'none' and config.drafter.num_speculative_tokens < 1:
    raise ValueError(
        'config.drafter.num_speculative_tokens must be at least 1, got '
        f'{config.drafter.num_speculative_tokens}. Plain decoding is --config.drafter.kind=none.'
    )
  if kind == 'combined':
    for field, kinds in (('free', FREE), ('learned', LEARNED)):
      if not parts.is_own(config.drafter[field]):
        values.choice(f'drafter.{field}', config.drafter[field], kinds)
  values.tree(config.drafter.tree)
  values.choice('drafter.siblings', config.drafter.siblings, ('', *drafters.expansion.SIBLINGS))
  options = parts.options('drafter.options', config.drafter.options)
  if kind != 'none':
    parts.check_options('drafter.options', _factory('kind', kind), options)


def _factory(field: str, kind: str) -> parts.Factory:
  """The function of a kind."""
  if parts.is_own(kind):
    return parts.load(f'drafter.{field}', kind)
  return _FACTORIES[kind if kind in _FACTORIES else kind.removesuffix(_TREE)]


def recipe(config: ConfigDict, *, field: str = 'kind') -> records.Recipe | None:
  """The recipe of `config.drafter`; None for plain decoding.

  Args:
    config: the config.
    field: of `config.drafter` that names the kind; 'free' and 'learned' of a combination.
  """
  settings = config.drafter
  kind = settings[field]
  if kind == 'none':
    return None
  factory = _factory(field, kind)
  has_tree = kind.endswith(_TREE) or not parts.takes(factory, 'num_speculative_tokens')
  has_tree = has_tree and parts.takes(factory, 'tree')
  free = learned = None
  if kind == 'combined':
    free, learned = recipe(config, field='free'), recipe(config, field='learned')
  parents = tuple(settings.parents) if parts.takes(factory, 'parents') else ()
  is_chain = parents == tuple(range(len(parents)))
  length = settings.num_speculative_tokens
  if has_tree:
    is_chain, length = values.tree(settings.tree).is_chain, None
  elif learned is not None:
    is_chain, length = learned.is_chain, learned.num_speculative_tokens
  elif parents or not parts.takes(factory, 'num_speculative_tokens'):
    length = None
  shape = [settings.tree, settings.siblings] if has_tree else []
  head = head_of(factory)
  weights = []
  if head is not None:
    confidence = settings.min_confidence
    weights = [settings.path, f'min_confidence {confidence:g}' if confidence else '']
  return records.Recipe(
      kind=kind,
      create=functools.partial(_create, config, kind, factory, has_tree, (free, learned)),
      num_speculative_tokens=length,
      is_chain=is_chain,
      shape=' '.join(filter(None, [*shape, settings.options])),
      free=free,
      learned=learned,
      needs_reference=parts.takes(factory, 'reference'),
      weights=' '.join(filter(None, weights)),
      longest=lambda loaded: head and _depth(load_head(config, loaded, head[1], kind)),
  )


def _depth(head: Any) -> int | None:
  """How many tokens a head drafts at most; None where it goes on from what it drafted."""
  return getattr(head.config, 'depth', None)


def _create(
    config, kind, factory, has_tree, combination, loaded, length, reference, reference_lengths
):
  """The drafter of a recipe (`records.Recipe.create`)."""
  settings = config.drafter
  free, learned = combination
  fields = {k: v for k, v in settings.to_dict().items() if k not in ('kind', 'options')}
  fields |= dict(
      vocab_size=loaded.target.vocab_size,
      target=loaded.target,
      reference=reference,
      reference_lengths=reference_lengths,
      seed=config.seed,
      free=free and free.make(loaded, num_speculative_tokens=length),
      learned=learned and learned.make(loaded, num_speculative_tokens=length),
      tree=values.tree(settings.tree) if has_tree else (),
      num_speculative_tokens=() if has_tree or length is None else length,
      # Where it is empty, the factory's own default stands.
      parents=tuple(settings.parents),
  )
  if parts.takes(factory, 'draft'):
    fields['draft'] = draft(config, loaded)
  if (head := head_of(factory)) is not None:
    parameter, name = head
    fields[parameter] = load_head(config, loaded, name, kind)
  return factory(
      **parts.arguments(
          factory, fields, parts.options('drafter.options', settings.options)
      )
  )


def head_of(factory: parts.Factory) -> tuple[str, str] | None:
  """(parameter, name) of the head that a factory takes, by its class of `specjax.heads`.

  >>> head_of(drafters.eagle), head_of(drafters.ngram)
  (('head', 'eagle'), None)
  """
  for name, parameter in parts.parameters(factory).items():
    module = getattr(parameter.annotation, '__module__', '')
    if module.startswith(heads.__name__ + '.'):
      return name, module.rpartition('.')[2]
  return None


def head_name(kind: str) -> str | None:
  """Of the head that a kind of drafter runs: 'eagle', 'medusa', …; None where it has none."""
  if kind == 'none':
    return None
  head = head_of(_factory('kind', kind))
  return head and head[1]


def shipped_head(pair: Any, name: str) -> Any:
  """A pair's head of this name, with or without a version ('eagle' is its 'eagle3').

  Raises:
    ValueError: if the pair has no such head.
  """
  return pair.head(_folder_of_head(pair.folder, name) if pair.folder else name)


def _folder_of_head(folder: pathlib.Path, name: str) -> str:
  names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
  return next((each for each in names if each.startswith(name)), name)


def source(config: ConfigDict) -> str | pathlib.Path:
  """The folder, hub id or file of the draft model or head; '' where no weights draft."""
  settings, kind = config.drafter, config.drafter.kind
  kind = settings.learned if kind == 'combined' else kind
  factory = None if kind == 'none' else _factory('kind', kind)
  head = factory and head_of(factory)
  if not head and not (factory and parts.takes(factory, 'draft')):
    return ''
  if settings.path or config.target.path:
    return settings.path
  # Beside the pair's target.
  folder = zoo.folder(config.target.name)
  return folder / (_folder_of_head(folder, head[1]) if head else settings.draft or 'draft')


def read_head(source: str, name: str, target: models.LanguageModel, *, dtype: Any) -> Any:
  """The head 'eagle', 'medusa', 'early_exit' or 'dflash' in a folder or under a hub id.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is of another target.
  """
  load: Callable[..., Any] = getattr(heads, f'load_{name}')
  return load(hub.fetch(source), target, dtype=dtype)


def load_head(config: ConfigDict, loaded: records.Loaded, name: str, kind: str) -> Any:
  """The head of `config.drafter`: that of `path`, or one that ships with the pair.

  Raises:
    ValueError: if there is no head, or it is of another target.
  """
  if config.drafter.path:
    head = read_head(config.drafter.path, name, loaded.target, dtype=loaded.target.module.dtype)
  elif loaded.pair is not None:
    head = shipped_head(loaded.pair, name)
  else:
    raise ValueError(
        f'The target {loaded.name} comes without a head for '
        f'config.drafter.kind={kind!r}: give --config.drafter.path=FOLDER.'
    )
  return sharding.place_head(head, loaded.layouts and loaded.layouts.draft)


def draft(config: ConfigDict, loaded: records.Loaded) -> models.LanguageModel:
  """The draft model of `config.drafter`: a folder, or one of the pair's by name.

  Raises:
    ValueError: if there is none, or its vocabulary is not the target's.
  """
  layout = loaded.layouts and loaded.layouts.draft
  int8 = config.int8 or config.drafter.int8
  if config.drafter.path:
    check_draft_vocabulary(config, loaded.target.vocab_size, loaded.tokenizer)
    source, dtype = config.drafter.path, values.dtype(config.dtype)
    model = loading.load_model(source, dtype=dtype, layout=layout, int8=int8)
    if not config.drafter.translate:
      size = loaded.target.vocab_size
      return model if model.vocab_size == size else vocabulary.padded(model, size)
    return drafters.translate(
        model,
        draft_tokenizer=loading.describe(source).tokenizer,
        target_tokenizer=loaded.tokenizer,
        target_vocab_size=loaded.target.vocab_size,
        min_overlap=config.drafter.min_overlap,
    )
  if loaded.pair is None or not loaded.pair.drafts:
    raise ValueError(
        f'The target {loaded.name} comes without a draft: give --config.drafter.path, a folder, a '
        'hub id or a .gguf file, or --config.drafter.kind=ngram.'
    )
  model = loaded.pair.draft
  if config.drafter.draft:
    values.choice('drafter.draft', config.drafter.draft, tuple(sorted(loaded.pair.drafts)))
    model = loaded.pair.drafts[config.drafter.draft]
  return models.place(model, layout, int8=int8)


def check_draft_vocabulary(config: ConfigDict, vocab_size: int, tokenizer: Any) -> None:
  """Refuses a draft folder with another vocabulary, before any weight is read.

  One of another size is the same where it is only padded otherwise: where the sizes are near
  each other, and the ids that both tokenizers have are the same tokens.

  Raises:
    ValueError: if the draft reads other tokens than the target.
  """
  kind = config.drafter.kind
  kind = config.drafter.learned if kind == 'combined' else kind
  uses_draft = kind != 'none' and parts.takes(_factory('kind', kind), 'draft')
  if not uses_draft or not config.drafter.path or config.drafter.translate:
    return
  source = config.drafter.path
  size = loading.read_config(source).vocab_size
  if size == vocab_size:
    return
  why = 'Both must be the same, but for padding'
  if vocabulary.is_padding(size, vocab_size):
    try:
      theirs = loading.describe(source).tokenizer
    except FileNotFoundError as error:
      raise ValueError(
          f'The draft in {source} has a vocabulary of {size} tokens, the target of {vocab_size}, '
          'and no tokenizer that says whether the ids that both have are the same tokens. If they '
          f"are, put the target's tokenizer there: {error}"
      ) from error
    token = vocabulary.differing_token(tokenizer, theirs)
    if token is None:
      return
    names = tokenizer.id_to_token(token), theirs.id_to_token(token)
    why = f'Token {token} is {names[0]!r} to the target and {names[1]!r} to the draft'
  raise ValueError(
      f'The draft in {source} has a vocabulary of {size} tokens, the target of {vocab_size}. '
      f"{why}: use a draft made for the target's tokenizer, or --config.drafter.translate for one "
      'with a tokenizer of its own.'
  )
