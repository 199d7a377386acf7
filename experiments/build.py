"""From a config to the objects of the library: the only place that reads configs.

Training configs have a module of their own, `experiments.build_training`.
"""

from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tokenizers

from experiments import build_head_drafters
from specjax import drafters
from specjax import models
from specjax import sampling as sampling_lib
from specjax import sharding
from specjax import verify
from specjax import zoo
from specjax.drafters import vocabulary
from specjax.stopping import as_strings

ConfigDict = ml_collections.ConfigDict

DRAFTERS = (
    'none',
    'model',
    'model_tree',
    'ngram',
    'suffix',
    'combined',
    'synthetic',
    *build_head_drafters.KINDS,
)
# Those that a combination is made of.
FREE = ('suffix', 'ngram')
LEARNED = ('model', 'model_tree', *build_head_drafters.KINDS)
RULES = ('auto', *verify.NAMES)
DTYPES = ('auto', 'bfloat16', 'float32', 'float16')
LOGPROBS = ('', 'raw', 'controlled')
# Prompts are text: of a model with a vision tower the language model alone is loaded.
TEXT = dict(text_only=True)


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A target and what comes with it.

  Attributes:
    target: the model.
    tokenizer: of the model.
    stop_tokens: ids that end a text.
    held_out: texts for prompts (`name`, `text`) that the target was not trained on.
    pair: the zoo's pair, or None for a target from a folder.
    layouts: of target and draft over several devices, or None.
  """

  target: models.LanguageModel
  tokenizer: tokenizers.Tokenizer
  stop_tokens: tuple[int, ...]
  held_out: tuple[Any, ...]
  pair: Any
  layouts: sharding.Layouts | None = None


def check(config: ConfigDict) -> None:
  """Refuses what needs no model to be seen: values that do not exist or go together.

  Raises:
    ValueError: naming the field, what it may be, and what it is.
  """
  choice('dtype', config.dtype, DTYPES)
  choice('drafter.kind', config.drafter.kind, DRAFTERS)
  choice('logprobs', config.logprobs, LOGPROBS)
  if config.num_samples < 1:
    raise ValueError(f'config.num_samples must be at least 1, got {config.num_samples}.')
  if config.batch_size < 1:
    raise ValueError(f'config.batch_size must be at least 1, got {config.batch_size}.')
  if config.num_samples > 1 and not config.sampling.temperature:
    raise ValueError(
        f'config.num_samples={config.num_samples} at temperature 0 would give equal samples: '
        'set --config.sampling.temperature, or one sample.'
    )
  if config.drafter.kind != 'none' and config.drafter.num_speculative_tokens < 1:
    raise ValueError(
        'config.drafter.num_speculative_tokens must be at least 1, got '
        f'{config.drafter.num_speculative_tokens}. Plain decoding is --config.drafter.kind=none.'
    )
  if config.drafter.kind == 'combined':
    choice('drafter.free', config.drafter.free, FREE)
    choice('drafter.learned', config.drafter.learned, LEARNED)
  tree(config.drafter.tree)
  choice('drafter.siblings', config.drafter.siblings, ('', *drafters.expansion.SIBLINGS))
  rule(config)
  sampling(config, 1)


def tree(text: str):
  """The shape that `config.drafter.tree` describes.

  '3,2,1': children of every node, by depth. '0 1 0.0 0.1': paths, 0.1 being the second child of
  the first. 'dynamic 60,6,10': nodes kept, depth, width.

  Raises:
    ValueError: if it is none of these.
  """
  words = text.split()
  try:
    if words[:1] == ['dynamic']:
      num_nodes, depth, width = (int(number) for number in ''.join(words[1:]).split(','))
      return drafters.dynamic_tree(num_nodes=num_nodes, depth=depth, width=width)
    if ',' in text or len(words) == 1:
      return drafters.static_tree(widths=[int(number) for number in text.split(',')])
    return drafters.static_tree(paths=[tuple(map(int, word.split('.'))) for word in words])
  except ValueError as error:
    raise ValueError(
        f"config.drafter.tree must be children by depth ('3,2,1'), paths ('0 1 0.0 0.1'), or "
        f"'dynamic NODES,DEPTH,WIDTH'; got {text!r}: {error}"
    ) from error


def choice(field: str, value: Any, choices: Sequence[Any]) -> None:
  """Refuses a value that does not exist, and lists those that do."""
  if value not in choices:
    known = ', '.join(repr(each) for each in choices)
    raise ValueError(f'config.{field} must be one of {known}; got {value!r}.')


def dtype(name: str) -> Any:
  """The dtype of a name; 'auto' is the fast one here.

  That is bfloat16 on an accelerator, and on a CPU from JAX 0.12 on; the CPU products of
  older releases are ten times slower in bfloat16 than in float32.
  """
  choice('dtype', name, DTYPES)
  if name != 'auto':
    return jnp.dtype(name)
  version = tuple(int(part) for part in jax.__version__.split('.')[:2])
  slow = jax.default_backend() == 'cpu' and version < (0, 12)
  return jnp.dtype('float32' if slow else 'bfloat16')


def load(config: ConfigDict) -> Loaded:
  """The target of `config.target`: a pair of the zoo by name, or a Hugging Face folder."""
  kind = dtype(config.dtype)
  if not config.target.path:
    pair = zoo.load(config.target.name, dtype=kind)
    draft_heads = _draft_heads(config, pair.target.module.config, pair)
    split = layouts(config.mesh, draft_heads=draft_heads)
    target = models.place(pair.target, split and split.target, int8=config.int8)
    return Loaded(target, pair.tokenizer, (pair.end_of_text,), pair.held_out, pair, split)
  folder = pathlib.Path(config.target.path).expanduser()
  found = models.load_config(folder, **TEXT)  # a folder that is no model is refused as such
  tokenizer = models.load_tokenizer(folder)
  _check_draft_vocabulary(config, found.vocab_size, tokenizer)
  split = layouts(config.mesh, draft_heads=_draft_heads(config, found, None))
  layout = split and split.target
  target = models.load_hf(folder, dtype=kind, layout=layout, int8=config.int8, **TEXT)
  return Loaded(target, tokenizer, models.load_eos_ids(folder), (), None, split)


def _draft_heads(config: ConfigDict, target: models.TransformerConfig, pair: Any) -> int:
  """Key-value heads of what drafts, into which a mesh may split it; 0 where nobody asks."""
  if not config.mesh.preset:
    return 0  # a head's file would be read for nothing
  if config.drafter.kind in build_head_drafters.KINDS:
    return build_head_drafters.num_kv_heads(config, target, pair)
  if pair is not None:
    return pair.draft.module.config.num_kv_heads
  if config.drafter.kind == 'model' and config.drafter.path:
    folder = pathlib.Path(config.drafter.path).expanduser()
    return models.load_config(folder, **TEXT).num_kv_heads
  return 0


def _check_draft_vocabulary(config: ConfigDict, vocab_size: int, tokenizer: Any) -> None:
  """Refuses a draft folder with another vocabulary, before any weight is read.

  One of another size is the same where it is only padded otherwise: where the sizes are near
  each other, and the ids that both tokenizers have are the same tokens.
  """
  uses_draft = {config.drafter.kind, _learned(config)} & {'model', 'model_tree'}
  if not uses_draft or not config.drafter.path or config.drafter.translate:
    return
  folder = pathlib.Path(config.drafter.path).expanduser()
  size = models.load_config(folder, **TEXT).vocab_size
  if size == vocab_size:
    return
  why = 'Both must be the same, but for padding'
  if vocabulary.is_padding(size, vocab_size):
    try:
      theirs = models.load_tokenizer(folder)
    except FileNotFoundError as error:
      raise ValueError(
          f'The draft in {folder} has a vocabulary of {size} tokens, the target of {vocab_size}, '
          'and no tokenizer that says whether the ids that both have are the same tokens. If they '
          f"are, put the target's tokenizer there: {error}"
      ) from error
    token = vocabulary.differing_token(tokenizer, theirs)
    if token is None:
      return
    names = tokenizer.id_to_token(token), theirs.id_to_token(token)
    why = f'Token {token} is {names[0]!r} to the target and {names[1]!r} to the draft'
  raise ValueError(
      f'The draft in {folder} has a vocabulary of {size} tokens, the target of {vocab_size}. '
      f"{why}: use a draft made for the target's tokenizer, or --config.drafter.translate for one "
      'with a tokenizer of its own.'
  )


def layouts(
    mesh: ConfigDict | None, *, devices: Sequence[Any] | None = None, draft_heads: int = 0
) -> sharding.Layouts | None:
  """The layouts of `config.mesh`; None where no preset is named and one device is used.

  Args:
    mesh: `preset`, `data`, `model` (0: what data and sequence leave), `sequence`, and `draft`
      (0: as many parts as the draft has key-value heads and the model axis allows).
    devices: to use; None takes all of `jax.devices()`.
    draft_heads: key-value heads of the draft, 0 where there is none.

  Raises:
    ValueError: see `specjax.sharding.make`.
  """
  if mesh is None or not mesh.preset:
    return None
  devices = jax.devices() if devices is None else devices
  model = mesh.model or max(len(devices) // (mesh.data * mesh.sequence), 1)
  draft = mesh.draft or math.gcd(model, draft_heads or 1)
  return sharding.make(
      mesh.preset, data=mesh.data, model=model, sequence=mesh.sequence, draft=draft, devices=devices
  )


def draft(config: ConfigDict, loaded: Loaded) -> models.LanguageModel:
  """The draft of `config.drafter`: a folder, or one of the pair's by name."""
  layout = loaded.layouts and loaded.layouts.draft
  int8 = config.int8 or config.drafter.int8
  if config.drafter.path:
    _check_draft_vocabulary(config, loaded.target.vocab_size, loaded.tokenizer)
    folder = pathlib.Path(config.drafter.path).expanduser()
    found = models.load_hf(folder, dtype=dtype(config.dtype), layout=layout, int8=int8, **TEXT)
    if not config.drafter.translate:
      size = loaded.target.vocab_size
      return found if found.vocab_size == size else vocabulary.padded(found, size)
    return drafters.translate(
        found,
        draft_tokenizer=models.load_tokenizer(folder),
        target_tokenizer=loaded.tokenizer,
        target_vocab_size=loaded.target.vocab_size,
        min_overlap=config.drafter.min_overlap,
    )
  if loaded.pair is None:
    raise ValueError(
        f'The target in {config.target.path} comes without a draft: give '
        '--config.drafter.path=FOLDER, or --config.drafter.kind=ngram.'
    )
  found = loaded.pair.draft
  if config.drafter.draft:
    choice('drafter.draft', config.drafter.draft, tuple(sorted(loaded.pair.drafts)))
    found = loaded.pair.drafts[config.drafter.draft]
  return models.place(found, layout, int8=int8)


def drafter(config: ConfigDict, loaded: Loaded, *, reference=None, reference_lengths=None):
  """The drafter of `config.drafter`; None for plain decoding.

  Args:
    config: the config.
    loaded: the target.
    reference: [B, S] int32, what plain decoding gave; for the synthetic drafter.
    reference_lengths: [B] int32.
  """
  settings = config.drafter
  choice('drafter.kind', settings.kind, DRAFTERS)
  if settings.kind == 'none':
    return None
  if settings.kind == 'combined':
    parts = []
    for kind in (settings.free, settings.learned):
      part = ConfigDict(config.to_dict())
      part.drafter.kind = kind
      parts.append(drafter(part, loaded))
    return drafters.combined(*parts)
  if settings.kind == 'model':
    return drafters.model(
        draft(config, loaded),
        num_speculative_tokens=settings.num_speculative_tokens,
        min_confidence=settings.min_confidence,
    )
  if settings.kind == 'model_tree':
    return drafters.model_tree(
        draft(config, loaded), tree=tree(settings.tree), siblings=settings.siblings or None
    )
  if settings.kind in build_head_drafters.KINDS:
    return build_head_drafters.drafter(config, loaded, tree(settings.tree))
  if settings.kind == 'ngram':
    return drafters.ngram(
        num_speculative_tokens=settings.num_speculative_tokens,
        max_ngram=settings.max_ngram,
        min_ngram=settings.min_ngram,
    )
  if settings.kind == 'suffix':
    return drafters.suffix(
        vocab_size=loaded.target.vocab_size,
        num_speculative_tokens=settings.num_speculative_tokens,
        min_match=settings.min_match,
        max_match=settings.max_match,
    )
  parents = tuple(settings.parents)
  return drafters.synthetic(
      reference,
      reference_lengths=reference_lengths,
      acceptance=settings.acceptance,
      vocab_size=loaded.target.vocab_size,
      num_speculative_tokens=None if parents else settings.num_speculative_tokens,
      parents=parents or None,
      seed=config.seed,
  )


def rule(config: ConfigDict):
  """The rule of `config.rule`; 'auto' is `specjax.verify.default`.

  Raises:
    ValueError: if there is no such rule, or greedy is asked for above temperature 0.
  """
  name, temperature = config.rule.name, config.sampling.temperature
  choice('rule.name', name, RULES)
  if name == 'auto':
    return verify.default(temperature=temperature, is_chain=_is_chain(config))
  if name == 'greedy' and temperature:
    raise ValueError(
        f'The greedy rule takes the most likely token whatever config.sampling.temperature='
        f'{temperature} says: set it to 0, or take another rule (auto picks one).'
    )
  if name == 'typical':
    return verify.typical(epsilon=config.rule.epsilon, delta=config.rule.delta)
  return verify.named(name)


def _is_chain(config: ConfigDict) -> bool:
  """Whether the drafter of a config proposes chains."""
  if any(kind.endswith('_tree') for kind in (config.drafter.kind, _learned(config) or '')):
    return tree(config.drafter.tree).is_chain
  parents = config.drafter.parents if config.drafter.kind == 'synthetic' else ()
  return tuple(parents) == tuple(range(len(parents)))


def _learned(config: ConfigDict) -> str | None:
  return config.drafter.learned if config.drafter.kind == 'combined' else None


def sampling(config: ConfigDict, batch_size: int):
  """The settings of `config.sampling`, for every row."""
  return sampling_lib.make(batch_size=batch_size, **config.sampling.to_dict())


def options(config: ConfigDict, loaded: Loaded) -> dict[str, Any]:
  """What `specjax.generate` takes from a config beside prompts, drafter and sampling."""
  stops = tuple(config.stop_tokens)
  if config.stop_at_end:
    stops += loaded.stop_tokens
  return dict(
      rule=rule(config),
      max_new_tokens=config.max_new_tokens,
      stop_tokens=stops,
      stop_strings=as_strings(config.stop_strings),
      tokenizer=loaded.tokenizer,
      logprobs=config.logprobs or None,
      width=config.width,
      cache_length=config.cache_length,
      prefill_chunk=config.prefill_chunk,
  )


def seeds(config: ConfigDict, first: int, count: int) -> np.ndarray:
  """Seeds of `count` rows from row `first` of the whole run on, wherever batches begin."""
  return config.seed + first + np.arange(count)
