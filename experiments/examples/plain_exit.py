r"""The target's own first layers as a drafter, untrained: an example of a drafter by its path.

    python -m experiments.ablate --config=configs/lossless.py:own,float32 \
        --config.drafter.kind=experiments/examples/plain_exit.py:make \
        --config.drafter.options='exit_layer=7' --workdir=runs/plain_exit

Everything that a factory's signature names comes from the config: `target`, the fields of
`config.drafter`, and `config.drafter.options`.
"""

from specjax import drafters
from specjax import heads
from specjax import models


def make(
    target: models.LanguageModel, *, num_speculative_tokens: int = 4, exit_layer: int = 0
) -> drafters.EarlyExitDrafter:
  """Drafts with the first `exit_layer` layers of `target`; 0 takes half of them."""
  exit_layer = exit_layer or target.module.config.num_layers // 2
  return drafters.early_exit(
      heads.plain_exit(target, exit_layer=exit_layer), target,
      num_speculative_tokens=num_speculative_tokens,
  )
