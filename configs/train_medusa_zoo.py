r"""The shipped Medusa heads: four on the target's last feature, 5.7 M parameters.

    python -m experiments.train --config=configs/train_medusa_zoo.py --workdir=runs/zoo_medusa

Each head starts as the target's own output head. The loss is the KL divergence of head k's law
from the target's k + 1 tokens later, each head weighted 0.8 times the one before. Target, stored
features, `:smoke` and progress are as in `configs/train_eagle3_zoo.py`;
`--config.features.path=runs/zoo_early_exit/features` takes those that were stored for that head.
The text is the first 59 % of the corpus, without samples: 3.2 GB of features.
"""

import ml_collections

from configs import train_eagle3_zoo


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f"configs/train_medusa_zoo.py takes no argument or ':smoke', not {arg!r}.")
  config = train_eagle3_zoo.heads_config('zoo_medusa', 'medusa')
  config.num_steps = 300
  config.head = ml_collections.ConfigDict(
      dict(
          num_heads=4,
          num_layers=1,
          decay=0.8,
          loss='forward_kl',
          num_chunks=1,
          int8=True,  # save weights in eight bits, half of what export_dtype takes
      )
  )
  if arg == 'smoke':
    train_eagle3_zoo.shrink(config)
  return config
