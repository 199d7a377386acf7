"""Tokenizers of bytes ('gpt2' in GGUF files): BPE over the alphabet of GPT-2.

A file names the rule by which a text is split before pairs are merged; the rules themselves are
those of the models' own `tokenizer.json`.
"""

import dataclasses

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from specjax.models.gguf import vocabulary as vocabulary_lib

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r'\s*[\r\n]+|\s+(?!\S)|\s+'
_WORDS = r'[^\r\n\p{L}\p{N}]?\p{L}+'
_SIGNS = r' ?[^\s\p{L}\p{N}]+[\r\n]*'
_UPPER, _LOWER = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]', r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
_LLAMA3 = rf'{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}'
_QWEN2 = rf'{_ENDINGS}|{_WORDS}|\p{{N}}|{_SIGNS}|{_SPACES}'
_TEKKEN = (
    rf'[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}'
    rf'| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}'
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# llama.cpp's rule for a file that names none.
_DEFAULT = (r'[\p{P}\$\+<=>\^~\|]+', _GPT2, r'\p{N}+', r'[0-9][0-9][0-9]')


@dataclasses.dataclass(frozen=True)
class _Rule:
  """How texts are split.

  Attributes:
    patterns: each splits what those before it left, into its matches and what lies between them.
    whole_words: whether a piece that is a token stays one, whatever the merges make of it.
    normalizer: of texts, or None.
    add_bos: whether a text begins with the BOS where the file does not say.
  """

  patterns: tuple[str, ...]
  whole_words: bool = False
  normalizer: normalizers.Normalizer | None = None
  add_bos: bool = False


_LLAMA3_RULE = _Rule((_LLAMA3,), whole_words=True, add_bos=True)
# The models' own tokenizers compose characters. llama.cpp, and `transformers` when it reads a
# GGUF file, leave that out.
_QWEN2_RULE = _Rule((_QWEN2,), normalizer=normalizers.NFC())
_DIGITS_RULE = _Rule((r'\p{N}', _GPT2))
_DEFAULT_RULE = _Rule(_DEFAULT)
RULES = {
    'default': _DEFAULT_RULE,
    'deepseek-r1-qwen': _Rule((_QWEN2,)),
    'gpt-2': _Rule((_GPT2,)),
    'llama-bpe': _LLAMA3_RULE,
    'llama-v3': _LLAMA3_RULE,
    'llama3': _LLAMA3_RULE,
    'qwen2': _QWEN2_RULE,
    'smollm': _DIGITS_RULE,
    'starcoder': _DIGITS_RULE,
    'tekken': _Rule((_TEKKEN,), whole_words=True, add_bos=True),
}


def build(vocabulary: vocabulary_lib.Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
  """The tokenizer of a vocabulary, without added tokens, and whether it adds a BOS by default.

  Raises:
    ValueError: when the splitting rule is not known, or there are no merges.
  """
  where, name = vocabulary.where, vocabulary.pre or 'default'
  if name not in RULES:
    raise ValueError(
        f'{where}: tokenizer.ggml.pre={name!r} is not supported. Supported are '
        f'{", ".join(RULES)}. The tokenizer.json of the original model, read by load_tokenizer, '
        'serves as well.'
    )
  if vocabulary.merges is None:
    raise ValueError(f"{where}: a tokenizer of model 'gpt2' needs tokenizer.ggml.merges.")
  rule = RULES[name]
  tokens = {text: number for number, text in enumerate(vocabulary.tokens)}
  tokenizer = tokenizers.Tokenizer(
      models.BPE(vocab=tokens, merges=list(vocabulary.merges), ignore_merges=rule.whole_words)
  )
  if rule.normalizer is not None:
    tokenizer.normalizer = rule.normalizer
  splits = [
      pre_tokenizers.Split(tokenizers.Regex(pattern), behavior='isolated')
      for pattern in rule.patterns
  ]
  bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_alone])
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer, rule.add_bos
