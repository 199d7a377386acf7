r"""The shipped early exit: after layer 2 of 14, through an adapter of 0.86 M parameters.

    python -m experiments.train --config=configs/train_early_exit_zoo.py \
        --workdir=runs/zoo_early_exit

The adapter, a gated MLP and a norm, turns the residual stream at the exit into the input of the
target's own head; the loss is the KL divergence from the target's law at the same position. On
held-out text `acceptance_1` is 0.407, 0.452 and 0.477 at steps 100, 200 and 300. Target, stored
features, `:smoke` and progress are as in `configs/train_eagle3_zoo.py`, except for the text: the
first 59 % of the corpus, without samples, 3.2 GB of features.
"""

import ml_collections

from configs import train_eagle3_zoo


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(
        f"configs/train_early_exit_zoo.py takes no argument or ':smoke', not {arg!r}."
    )
  config = train_eagle3_zoo.heads_config('zoo_early_exit', 'early_exit')
  config.num_steps = 300
  config.head = ml_collections.ConfigDict(
      dict(
          exit_layer=2,
          mlp_width=896,
          loss='forward_kl',
          num_chunks=1,
          int8=True,  # save weights in eight bits, half of what export_dtype takes
      )
  )
  if arg == 'smoke':
    train_eagle3_zoo.shrink(config)
  return config
