"""Drafts with another tokenizer: their laws on the tokens that both vocabularies have.

Token-level intersection (Timor et al. 2025, arXiv 2502.05202, algorithm 4): the draft is asked
for tokens that the target knows too, and only for those, so that every rule verifies it as any
other draft. What is emitted is the target's law in every case; how often a draft is accepted
depends on how much of it falls into the intersection.
"""

from collections.abc import Mapping
import dataclasses
import functools
import json
from typing import Any

import jax.numpy as jnp
import numpy as np

from specjax.drafters import base
from specjax.models import LanguageModel

_ABSENT = -1
# What vocabularies are padded to a multiple of, at most.
_LARGEST_MULTIPLE = 1024


def _byte_alphabet() -> dict[str, int]:
  """The characters by which byte-level vocabularies write bytes (GPT-2, Radford et al. 2019).

  Printable characters of Latin-1 stand for themselves; the other bytes, in order, for the
  characters from 256 on.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  alphabet = {chr(byte): byte for byte in printable}
  return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


def token_texts(tokenizer: Any) -> dict[bytes, int]:
  """What each token stands for in a text, in bytes: text to token id.

  Knows byte-level vocabularies (Llama 3, Qwen, GPT-2), SentencePiece's (Llama 2, Mistral,
  Gemma: U+2581 for a space, <0xNN> for a byte) and WordPiece's (## within a word). Special
  tokens are those of the tokenizer's `added_tokens`, and go by their names.

  Args:
    tokenizer: a `tokenizers.Tokenizer`.
  """
  settings = json.loads(tokenizer.to_str())
  decoder = settings.get('decoder') or {}
  kinds = {part['type'] for part in [decoder, *decoder.get('decoders', [])] if 'type' in part}
  special = {token['content'] for token in settings.get('added_tokens', ())}
  alphabet = _byte_alphabet()
  texts = {}
  for token, number in tokenizer.get_vocab().items():
    if token in special:
      text = token.encode()
    elif 'ByteLevel' in kinds:
      if not all(character in alphabet for character in token):
        continue
      text = bytes(alphabet[character] for character in token)
    elif 'WordPiece' in kinds:
      text = (token[2:] if token.startswith('##') else f' {token}').encode()
    elif len(token) == 6 and token.startswith('<0x') and token.endswith('>'):
      text = bytes([int(token[3:5], 16)])
    else:
      text = token.replace('\u2581', ' ').encode()
    texts.setdefault(text, number)
  return texts


@dataclasses.dataclass(frozen=True)
class _Translated:
  """A draft's module between two tables; used as the module of a `LanguageModel`.

  `params` holds `draft`, the draft's own; `input_ids` [V] int32, the draft's token that is read
  for each of the target's; `output_ids` [V] int32, the draft's token for each of the target's, or
  -1.

  Attributes:
    module: the draft's.
    vocab_size: V of the target.
  """

  module: Any
  vocab_size: int

  @property
  def dtype(self) -> Any:
    return getattr(self.module, 'dtype', jnp.float32)

  def init_cache(self, **sizes):
    """As `specjax.models.Transformer.init_cache`."""
    return self.module.init_cache(**sizes)

  def apply(self, variables: Mapping[str, Any], tokens, positions=None, cache=None, **options):
    """As `specjax.models.Transformer.__call__`, in the target's tokens."""
    params = variables['params']
    out = self.module.apply(
        {'params': params['draft']}, params['input_ids'][tokens], positions, cache, **options
    )
    if not out.logits.shape[-1]:
      return out
    output_ids = params['output_ids']
    logits = jnp.take(out.logits, jnp.maximum(output_ids, 0), axis=-1)
    return out._replace(logits=jnp.where(output_ids == _ABSENT, -jnp.inf, logits))


def with_tables(
    draft: LanguageModel, *, output_ids: np.ndarray, input_ids: np.ndarray
) -> LanguageModel:
  """A draft that speaks the target's vocabulary by given tables.

  Args:
    draft: the draft, of V' tokens.
    output_ids: [V] integers, the draft's token that equals each of the target's, -1 for none.
    input_ids: [V] integers, what the draft reads for each of them.

  Returns:
    A model of V tokens: its logits are the draft's, `-inf` where `output_ids` is -1.

  Raises:
    ValueError: if the tables do not belong together, name tokens that are none, or give two
      tokens of the target the same one of the draft.
  """
  output_ids, input_ids = np.asarray(output_ids, np.int64), np.asarray(input_ids, np.int64)
  if output_ids.shape != input_ids.shape or output_ids.ndim != 1:
    raise ValueError(
        f'output_ids and input_ids must be [V] both, got {output_ids.shape} and '
        f'{input_ids.shape}.'
    )
  largest = max(output_ids.max(), input_ids.max())
  if output_ids.min() < _ABSENT or input_ids.min() < 0 or largest >= draft.vocab_size:
    raise ValueError(
        f'The tables name tokens outside of the draft, which knows 0 to {draft.vocab_size - 1}.'
    )
  known = output_ids[output_ids != _ABSENT]
  if not known.size or len(np.unique(known)) < known.size:
    raise ValueError(
        'output_ids must name at least one token of the draft, and none of them twice.'
    )
  params = {
      'draft': draft.params,
      'output_ids': jnp.asarray(output_ids, jnp.int32),
      'input_ids': jnp.asarray(input_ids, jnp.int32),
  }
  return LanguageModel(_Translated(draft.module, len(output_ids)), params)


def padded(draft: LanguageModel, vocab_size: int) -> LanguageModel:
  """A draft that shares its tokenizer with a target whose vocabulary has another size.

  Vocabularies are padded so that they split well: Qwen2.5's models have 151,936 ids or 152,064
  for the same tokens. An id means the same on both sides; one that only the draft has is never
  drafted, and one that only the target has has no probability in the draft's law.

  Args:
    draft: the draft, of V' ids.
    vocab_size: V of the target.

  Returns:
    A `LanguageModel` over V ids.
  """
  ids = np.arange(vocab_size)
  is_shared = ids < draft.vocab_size
  # Padding is hardly ever emitted; where it is, the draft reads its first token instead.
  output_ids, input_ids = np.where(is_shared, ids, _ABSENT), np.where(is_shared, ids, 0)
  return with_tables(draft, output_ids=output_ids, input_ids=input_ids)


def is_padding(first: int, second: int) -> bool:
  """Whether two sizes of vocabularies may differ by padding alone.

  Padding goes to the next multiple of at most 1,024, and is less than what it is added to.
  """
  smaller, larger = sorted((first, second))
  return larger - smaller < min(smaller, _LARGEST_MULTIPLE)


def fit(drafter: Any, vocab_size: int) -> Any:
  """A drafter for a target of `vocab_size` ids, with all members of the contract.

  Args:
    drafter: a `specjax.types.Drafter`, which `specjax.drafters.base.complete` completes. Where
      the sizes differ by padding it is asked `for_vocabulary(vocab_size)`.
    vocab_size: V of the target.

  Returns:
    The drafter itself where its vocabulary is the target's or it has none.

  Raises:
    ValueError: if the vocabularies differ, and not by padding, or the drafter cannot change its
      own.
  """
  drafter = base.complete(drafter)
  size = drafter.vocab_size
  if size is None or size == vocab_size:
    return drafter
  other = drafter.for_vocabulary(vocab_size) if is_padding(size, vocab_size) else None
  if other is not None:
    return other
  raise ValueError(
      f'The drafter has a vocabulary of {size} tokens, the target of {vocab_size}. Both must be '
      "the same, but for the padding of a draft model's: use a draft trained with the target's "
      'tokenizer, specjax.drafters.translate for one with a tokenizer of its own, or a head that '
      'was made for this target.'
  )


def differing_token(target_tokenizer: Any, draft_tokenizer: Any) -> int | None:
  """The first id that two tokenizers both have and mean different tokens by; None if none.

  Args:
    target_tokenizer: a `tokenizers.Tokenizer`.
    draft_tokenizer: likewise.
  """
  ours, theirs = (
      {number: token for token, number in each.get_vocab(with_added_tokens=True).items()}
      for each in (target_tokenizer, draft_tokenizer)
  )
  shared = sorted(ours.keys() & theirs.keys())
  return next((number for number in shared if ours[number] != theirs[number]), None)


def translate(
    draft: LanguageModel,
    *,
    draft_tokenizer: Any,
    target_tokenizer: Any,
    target_vocab_size: int,
    min_overlap: float = 0.25,
    same: Mapping[str, str] | None = None,
) -> LanguageModel:
  """A draft for a target with another tokenizer: any drafter takes the result.

  Tokens are the same if they stand for the same bytes, special ones if they have the same
  name. A token of the target that the draft does not have is never drafted, and is read as
  the last of the pieces that the draft's tokenizer makes of its text: one token for one, so
  that positions agree.

  Args:
    draft: the draft.
    draft_tokenizer: its `tokenizers.Tokenizer`.
    target_tokenizer: the target's.
    target_vocab_size: V of the target, which may exceed its tokenizer's.
    min_overlap: the least share of the smaller vocabulary that both must have.
    same: special tokens of the target and what the draft calls them, such as
      `{'<|end_of_text|>': '</s>'}`.

  Returns:
    A `LanguageModel` over the target's vocabulary.

  Raises:
    ValueError: if the vocabularies share too little, or a name of `same` is no token.
  """
  ours, theirs = token_texts(target_tokenizer), token_texts(draft_tokenizer)
  ours = {text: token for text, token in ours.items() if token < target_vocab_size}
  theirs = {text: token for text, token in theirs.items() if token < draft.vocab_size}
  pairs = {token: theirs[text] for text, token in ours.items() if text in theirs}
  for name, other in (same or {}).items():
    ids = target_tokenizer.token_to_id(name), draft_tokenizer.token_to_id(other)
    if None in ids:
      raise ValueError(
          f'same pairs {name!r} with {other!r}, but {(name, other)[ids.index(None)]!r} is no token.'
      )
    others = {token: drafted for token, drafted in pairs.items() if drafted != ids[1]}
    pairs = others | {ids[0]: ids[1]}
  smaller = min(len(ours), len(theirs))
  if len(pairs) < max(min_overlap * smaller, 1):
    share = 100 * len(pairs) / max(smaller, 1)
    raise ValueError(
        f'Target and draft share {len(pairs)} tokens, {share:.1f} % of the smaller vocabulary '
        f"(the target's has {len(ours)}, the draft's {len(theirs)}); "
        f'min_overlap asks for {100 * min_overlap:g} %. A draft that can say so little of what the '
        'target says is seldom accepted: take one with a closer tokenizer, or lower min_overlap.'
    )
  sizes = (target_vocab_size, draft.vocab_size)
  output_ids, input_ids = _tables(pairs, ours, draft_tokenizer, sizes)
  return with_tables(draft, output_ids=output_ids, input_ids=input_ids)


def _tables(pairs: dict[int, int], ours: dict[bytes, int], draft_tokenizer, sizes: tuple[int, int]):
  """The tables `output_ids` and `input_ids` of `with_tables`; sizes of target and draft."""
  output_ids = np.full(sizes[0], _ABSENT)
  output_ids[list(pairs)] = list(pairs.values())
  input_ids = output_ids.copy()
  pieces = functools.partial(draft_tokenizer.encode, add_special_tokens=False)
  for text, token in ours.items():
    if output_ids[token] == _ABSENT:
      ids = pieces(text.decode(errors='replace')).ids
      input_ids[token] = ids[-1] if ids and ids[-1] < sizes[1] else _ABSENT
  # What has no pieces at all is read as some token that both have.
  return output_ids, np.where(input_ids == _ABSENT, next(iter(pairs.values())), input_ids)
