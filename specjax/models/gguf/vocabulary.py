"""The vocabulary of a GGUF file: its tokens and their kinds, merges or scores, and end tokens."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from specjax.models.gguf import files
from specjax.models.hf import keys as hf_keys

def _score(name: str, value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
    raise ValueError(f'{name} must be a finite number, got {hf_keys.shown(value)}.')
  return value


# Kinds of tokens, by their numbers in `tokenizer.ggml.token_type`.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# A missing id is written as -1, of 32 bits and without a sign.
_NO_ID = 2**32 - 1
_NULL = dict(default=None, null=True)
_ID = hf_keys.integer(0, _NO_ID, **_NULL)
_IDS = {
    'bos_token': 'bos_token_id',
    'eos_token': 'eos_token_id',
    'unk_token': 'unknown_token_id',
    'pad_token': 'padding_token_id',
    'eot_token': 'eot_token_id',
    'eom_token': 'eom_token_id',
}
_KEYS: hf_keys.Table = {
    'model': hf_keys.one_of('gpt2', 'llama'),
    'pre': hf_keys.text(**_NULL),
    'tokens': hf_keys.list_of(hf_keys.text(), 'texts'),
    'token_type': hf_keys.list_of(hf_keys.integer(0), 'integers', **_NULL),
    'scores': hf_keys.list_of(hf_keys.Key(_score), 'finite numbers', **_NULL),
    'merges': hf_keys.list_of(hf_keys.text(), 'texts', **_NULL),
    'add_bos_token': hf_keys.flag(**_NULL),
    'add_eos_token': hf_keys.flag(**_NULL),
    'add_space_prefix': hf_keys.flag(**_NULL),
    # What is supported in one way alone.
    'add_sep_token': hf_keys.only(False),
    'remove_extra_whitespaces': hf_keys.only(False),
    'normalizer.lowercase': hf_keys.only(False),
    'normalizer.strip_accents': hf_keys.only(False),
    'precompiled_charsmap': hf_keys.only(None),
    **{key: _ID for key in _IDS.values()},
}
# Of the generation, or of other kinds of models.
_IDLE = ('token_type_count', 'suppress_tokens')
# Ids that a SentencePiece vocabulary has where the file names none.
_SENTENCEPIECE_IDS = {'bos_token_id': 1, 'eos_token_id': 2, 'unknown_token_id': 0}
_PREFIX = 'tokenizer.ggml.'
# Texts of tokens that end a turn or a document in the models that are supported. Files name one
# end token, where chats need two: llama.cpp finds the others by their texts as well.
_END_TEXTS = (
    '<|eot_id|>', '<|eom_id|>', '<|end_of_text|>', '<|im_end|>', '<|endoftext|>', '<end_of_turn>',
    '<eos>', '</s>', '<｜end▁of▁sentence｜>',
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """A file's tokens.

  Attributes:
    where: the file, for messages.
    model: 'gpt2' (bytes, merged) or 'llama' (SentencePiece).
    pre: name of the rule that splits texts before tokens are merged, or None.
    tokens: texts by id; each occurs once.
    kinds: kinds of tokens, `NORMAL` …, by id.
    scores: by id, for 'llama'.
    merges: pairs of texts, in the order in which they are merged; None where there is no list.
    ids: of special tokens, by 'bos_token', 'eos_token', 'unk_token', 'pad_token', 'eot_token' and
      'eom_token'; those that the file has.
    add_bos: whether a text begins with the BOS; None where the file does not say.
    add_eos: whether it ends with the EOS, likewise.
    add_space_prefix: whether it begins with a space, likewise.
  """

  where: str
  model: str
  pre: str | None
  tokens: tuple[str, ...]
  kinds: tuple[int, ...]
  scores: tuple[float, ...]
  merges: tuple[tuple[str, str], ...] | None
  ids: Mapping[str, int]
  add_bos: bool | None
  add_eos: bool | None
  add_space_prefix: bool | None

  def end_ids(self) -> tuple[int, ...]:
    """Tokens that end a text or a turn of a chat, that which the file names first."""
    names = ('eos_token', 'eot_token', 'eom_token')
    by_name = [self.ids[name] for name in names if name in self.ids]
    by_text = [
        token
        for token, (text, kind) in enumerate(zip(self.tokens, self.kinds))
        if kind in (CONTROL, USER_DEFINED) and text in _END_TEXTS
    ]
    return tuple(dict.fromkeys([*by_name, *by_text]))


def read(header: files.Header) -> Vocabulary:
  """The vocabulary of a file.

  Raises:
    ValueError: when it is of another kind, is damaged, or has a key that is not known.
  """
  where = str(header.path)
  keys = {_PREFIX + key for key in (*_KEYS, *_IDLE)}
  for key, value in header.metadata.items():
    if key.startswith(_PREFIX) and key not in keys and not key.endswith('_token_id'):
      raise ValueError(
          f'{where}: {key}={hf_keys.shown(value)} is not known, and may change how texts become '
          'tokens.'
      )
  table = {_PREFIX + key: entry for key, entry in _KEYS.items()}
  values = {
      key.removeprefix(_PREFIX): value
      for key, value in hf_keys.read(header.metadata, table, where=where).items()
  }
  tokens = _tokens(values['tokens'], where)
  kinds = values['token_type'] or (NORMAL,) * len(tokens)
  is_gpt2 = values['model'] == 'gpt2'
  scores = values['scores'] or ()
  for name, entries in (('token_type', kinds), *((('scores', scores),) if not is_gpt2 else ())):
    if len(entries) != len(tokens):
      raise ValueError(
          f'{where}: {_PREFIX}{name} must have an entry for each of {len(tokens):,} tokens, got '
          f'{len(entries):,}.'
      )
  return Vocabulary(
      where=where,
      model=values['model'],
      pre=values['pre'],
      tokens=tokens,
      kinds=kinds,
      scores=scores,
      merges=_merges(values['merges'], set(tokens), where),
      ids=_ids(values, len(tokens), {} if is_gpt2 else _SENTENCEPIECE_IDS, where),
      add_bos=values['add_bos_token'],
      add_eos=values['add_eos_token'],
      add_space_prefix=values['add_space_prefix'],
  )


def _tokens(texts: tuple[str, ...], where: str) -> tuple[str, ...]:
  """The tokens; empty ones get a text of their own, which occurs in none."""
  texts = tuple(text or f'[EMPTY_{number}]' for number, text in enumerate(texts))
  if len(set(texts)) != len(texts):
    first: dict[str, int] = {}
    for number, text in enumerate(texts):
      if first.setdefault(text, number) != number:
        raise ValueError(
            f'{where}: {_PREFIX}tokens has {hf_keys.shown(text)} twice, as tokens {first[text]:,} '
            f'and {number:,}: the file is damaged, fetch it again.'
        )
  return texts


def _merges(
    lines: tuple[str, ...] | None, tokens: set[str], where: str
) -> tuple[tuple[str, str], ...] | None:
  if lines is None:
    return None
  pairs = tuple(tuple(line.split(' ')) for line in lines)
  for line, pair in zip(lines, pairs):
    if len(pair) != 2 or not tokens.issuperset((*pair, ''.join(pair))):
      raise ValueError(
          f'{where}: {_PREFIX}merges must hold pairs of tokens that are a token together, got '
          f'{hf_keys.shown(line)}: the file is damaged, fetch it again.'
      )
  return pairs


def _ids(
    values: Mapping[str, Any], count: int, defaults: Mapping[str, int], where: str
) -> dict[str, int]:
  ids = {}
  for name, key in _IDS.items():
    token = values[key]
    if token is None and defaults.get(key, count) < count:
      token = defaults[key]
    if token in (None, _NO_ID):
      continue
    if token >= count:
      raise ValueError(f'{where}: {_PREFIX}{key}={token} is none of {count:,} tokens.')
    ids[name] = token
  return ids
