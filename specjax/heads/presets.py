"""Shapes of heads for published targets, by the target's name; no weights are needed.

`eagle3('Llama-3.1-70B')` is a head of 1.05 B parameters on the target's own width, embedding
shared: the layers that the authors' code reads, a gated MLP of half the target's hidden size and a
draft vocabulary of 32,000, as their published heads have. It is a shape to plan with, not the
shape of a head that somebody published.
"""

import dataclasses

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
