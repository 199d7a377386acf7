r"""The shipped EAGLE-3 head: one layer on three of the target's residual streams, 2.9 M parameters.

    python -m experiments.train --config=configs/train_eagle3_zoo.py --workdir=runs/zoo_eagle3

reads the shipped target; `--config.target.path=FOLDER` takes your own. The target writes 4,096
samples of 192 tokens after prompts from the corpus, half as much again as the text itself, and
its features of both are stored (8.1 GB, said before it starts; `--config.features.stored=False`
computes them in every step instead, at windows of random offsets). The loss unrolls four draft
steps from every position (training-time test) and adds their KL divergences from the target,
0.8 times as heavy with each step. Held out it shows `acceptance_j`, the probability that the
token of step j is accepted at temperature 1 given those before, `agreement_j`, the same for
greedy decoding, and `acceptance_length`, measured by greedy decoding of held-out prompts.
Held out at steps 300, 600, 900, 1200, 1500 and 1800: `acceptance_1` 0.477, 0.538, 0.583, 0.608,
0.640, 0.676; `acceptance_4` 0.414, 0.479, 0.528, 0.553, 0.599, 0.638; `acceptance_length` 2.10,
2.11, 2.57, 2.84, 2.98, 3.35.

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
  config = heads_config('zoo_eagle3', 'eagle')
  config.num_steps = 1800
  # Half as much again as the text, written by the target: what the head will be asked to predict.
  config.samples.update(num_samples=4096, with_text=True)
  config.features.max_windows = 0
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
