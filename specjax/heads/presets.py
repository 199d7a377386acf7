"""Shapes of heads for published targets, by the target's name; no weights are needed.

`eagle3('Llama-3.1-70B')` is a head of 1.05 B parameters on the target's own width, embedding
shared: the layers that the authors' code reads, a gated MLP of half the target's hidden size and a
draft vocabulary of 32,000, as their published heads have. It is a shape to plan with, not the
shape of a head that somebody published.
"""

import dataclasses

from specjax.heads import dflash as dflash_lib
from specjax.heads.dflash import DFlashConfig
from specjax.heads.eagle import default_layers, EagleConfig
from specjax.models import presets


def eagle3(target: str, *, draft_vocab_size: int = 32_000) -> EagleConfig:
  """An EAGLE-3 head for a target of `specjax.models.presets`.

  >>> round(eagle3('Llama-3.1-70B').num_parameters / 1e9, 2)
  1.05

  Raises:
    ValueError: for an unknown target.
  """
  cfg = presets.get(target)
  decoder = dataclasses.replace(
      cfg,
      num_layers=1,
      vocab_size=min(draft_vocab_size, cfg.vocab_size),
      mlp_width=cfg.mlp_width // 2,
      tie_embeddings=False,
      sliding_window=None,
      local_layers=(),
  )
  return EagleConfig(
      decoder=decoder,
      target_width=cfg.width,
      target_vocab_size=cfg.vocab_size,
      feature_layers=default_layers(cfg.num_layers),
  )


def dflash(target: str, *, block_size: int = 7, markov_rank: int = 0) -> DFlashConfig:
  """A DFlash head, or with a rank a DSpark head, as DeepSpec trains them for Qwen3.

  Five layers of the target's sizes, which read five of its layers; the root's slot drafts too; the
  first embedding beyond the tokenizer's tokens is the mask. A Markov head comes with a confidence
  head that sees its token.

  >>> round(dflash('Qwen3-8B', markov_rank=256).num_parameters / 1e9, 2)
  1.13

  Args:
    target: of `specjax.models.presets`, with layers enough.
    block_size: slots of a block.
    markov_rank: 256 in theirs.

  Raises:
    ValueError: for an unknown target.
  """
  cfg = presets.get(target)
  decoder = dataclasses.replace(
      cfg, num_layers=5, qk_norm=True, tie_embeddings=False, sliding_window=None, local_layers=()
  )
  return DFlashConfig(
      decoder=decoder,
      target_width=cfg.width,
      target_vocab_size=cfg.vocab_size,
      feature_layers=dflash_lib.default_layers(cfg.num_layers, 5),
      block_size=block_size,
      mask_token=min(151_669, cfg.vocab_size - 1),
      shift=dflash_lib.NEXT,
      markov=dflash_lib.PLAIN if markov_rank else None,
      markov_rank=markov_rank,
      has_confidence=bool(markov_rank),
      confidence_sees_token=bool(markov_rank),
  )
