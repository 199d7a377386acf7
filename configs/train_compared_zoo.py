r"""EAGLE-3, DFlash, DSpark and Medusa heads of equal size, trained on the same features.

    python -m experiments.train --config=configs/train_compared_zoo.py:eagle3 \
        --workdir=runs/compared/eagle3
    python -m experiments.train --config=configs/train_compared_zoo.py:dflash \
        --workdir=runs/compared/dflash
    python -m experiments.train --config=configs/train_compared_zoo.py:dspark \
        --workdir=runs/compared/dspark
    python -m experiments.train --config=configs/train_compared_zoo.py:medusa \
        --workdir=runs/compared/medusa
    python -m experiments.benchmark --config=configs/benchmark_compared.py \
        --workdir=runs/compared/benchmark

Every head drafts four tokens for the shipped target, and sees the same 300 batches of 8 x 256
tokens: the first 2,464 windows of the corpus, whose features the first command stores in
`runs/compared/features` (1.6 GB with the streams after layers 2, 7, 11 and 14). What a kind has
in excess of the others it gets less of elsewhere:

| | parameters | of which |
|---|---|---|
| `eagle3` | 5.65 M | one layer with an MLP of 3,792, and an output head of 1.31 M |
| `dflash` | 5.65 M | five layers with MLPs of 856; the output head is the target's |
| `dspark` | 5.64 M | five layers with MLPs of 744, and a plain Markov head of rank 64 of 0.52 M |
| `medusa` | 5.65 M | four blocks, each with an output head of 1.31 M |

The loss is KL(target || head), of DSpark its own with the confidence's; a step has 128 roots of
blocks per text. Optimiser and schedule are those of `configs/train_eagle3_zoo.py`.

    python -m experiments.train --config=configs/train_compared_zoo.py:smoke --workdir=/tmp/smoke

is 20 small steps of the EAGLE-3 head.
"""

import ml_collections

from configs import train_eagle3
from configs import train_eagle3_zoo

# What of config, config.head and config.model each kind sets.
_KINDS = {
    'eagle3': ('eagle', dict(num_steps=4), dict(mlp_width=3792)),
    'dflash': ('dflash', dict(num_layers=5), dict(mlp_width=856)),
    'dspark': (
        'dflash',
        dict(num_layers=5, markov='plain', markov_rank=64, confidence=True, loss='dspark'),
        dict(mlp_width=744),
    ),
    'medusa': ('medusa', dict(num_heads=4, num_layers=1), {}),
}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is 'eagle3' (or ''), 'dflash', 'dspark', 'medusa' or 'smoke'."""
  if arg not in ('', 'smoke', *_KINDS):
    raise ValueError(
        f'configs/train_compared_zoo.py takes one of {", ".join([*_KINDS, "smoke"])}, not {arg!r}.'
    )
  name = arg if arg in _KINDS else 'eagle3'
  kind, head, model = _KINDS[name]
  config = train_eagle3_zoo.heads_config(f'compared_{name}', kind)
  config.num_steps = 300
  config.features.update(path='runs/compared/features', max_windows=2464)
  config.model.update(num_layers=1, tie_embeddings=False, **model)
  config.head = train_eagle3.get_config().head
  config.head.update(
      vocab_size=0, num_chunks=1, int8=True, feature_layers=(2, 7, 11), block_size=4, num_roots=128,
  )
  config.head.update(head)
  if arg == 'smoke':
    train_eagle3_zoo.shrink(config)
    config.features.path = ''
  return config
