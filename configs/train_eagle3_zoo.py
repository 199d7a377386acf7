r"""The shipped EAGLE-3 head: one layer on three of the target's residual streams, 2.9 M parameters.

    python -m experiments.train --config=configs/train_eagle3_zoo.py --workdir=runs/zoo_eagle3

reads the shipped target; `--config.target.path=FOLDER` takes your own. The target's features
of the corpus are stored first (3.2 GB, said before it starts, of the
first 4,928 windows of 256 tokens, 59 %; `--config.features.stored=False`
computes them in every step instead, at windows of random offsets). The loss unrolls four draft
steps from every position (training-time test) and adds their KL divergences from the target,
0.8 times as heavy with each step. Held out it shows `acceptance_j`, the probability that the
token of step j is accepted at temperature 1 given those before, `agreement_j`, the same for
greedy decoding, and `acceptance_length`, measured by greedy decoding of held-out prompts.
Held out at steps 100, 200, 300, 400 and 520: `acceptance_1` 0.364, 0.434, 0.463, 0.493, 0.532;
`acceptance_4` 0.272, 0.359, 0.397, 0.430, 0.470.

    python -m experiments.train --config=configs/train_eagle3_zoo.py:smoke \
        --config.target.path=FOLDER --workdir=/tmp/smoke

is the same in seconds: a few files, 20 steps, but the target as it is.
"""

import ml_collections

from configs import zoo_target


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f"configs/train_eagle3_zoo.py takes no argument or ':smoke', not {arg!r}.")
  config = heads_config('zoo_eagle3', 'eagle3')
  config.num_steps = 520
  # The head's layer; the width and the vocabulary of the target let its output head begin
  # as the target's.
  config.model.update(num_layers=1, tie_embeddings=False)
  config.head = ml_collections.ConfigDict(
      dict(
          feature_layers=(),  # of the target; () takes layers 2, L // 2 and L - 3
          num_steps=4,  # draft steps unrolled in training
          decay=0.8,
          loss='forward_kl',  # reverse_kl, jsd, total_variation, acceptance
          num_chunks=1,  # parts of the vocabulary in which logits are made; many for 128k tokens
      )
  )
  if arg == 'smoke':
    shrink(config)
  return config


def heads_config(name: str, kind: str) -> ml_collections.ConfigDict:
  """What the recipes of all heads on the shipped target share."""
  config = zoo_target.get_config()
  config.name, config.kind = name, kind
  config.checkpoint_every, config.evaluate_every, config.record_every = 50, 100, 10
  config.batch_size = 8
  config.optimizer.weight_decay = 0.1
  config.target.path = 'specjax/zoo/stdlib/target'
  config.features.update(stored=True, layers=(2, 7, 11, 14), max_windows=4928)
  config.measure.update(num_prompts=8)
  return config


def shrink(config: ml_collections.ConfigDict) -> None:
  """Turns the recipe of a head into one that takes seconds; the target stays as it is."""
  shape = config.model.to_dict()
  zoo_target.shrink(config)
  config.model.update(shape)
  config.features.update(stored=False)
  config.measure.update(num_prompts=2, prompt_tokens=8, new_tokens=8)
