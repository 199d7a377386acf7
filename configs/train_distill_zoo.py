r"""The shipped draft: one layer of width 256, 1.75 M parameters, distilled from the target.

    python -m experiments.train --config=configs/train_distill_zoo.py --workdir=runs/zoo_draft

reads the shipped target; `--config.target.path=runs/zoo_target/model` takes your own. The
corpus is made as for the target, with the target's tokenizer (`--config.corpus.path=
runs/zoo_target/corpus` takes that one as it is). The loss is 0.9 KL(target || draft) + 0.1
cross-entropy on the text; the target's logits are computed in each step. Besides the loss it
shows `acceptance`, the probability that one drafted token is accepted at temperature 1, and
`agreement`, the same for greedy decoding. On held-out text at steps 100, 300, 500, 700 and
900: acceptance 0.325, 0.449, 0.491, 0.523, 0.561; agreement 0.259, 0.386, 0.427, 0.461, 0.512.

    python -m experiments.train --config=configs/train_distill_zoo.py:smoke \
        --config.target.path=FOLDER --workdir=/tmp/smoke

is the same in seconds: a tiny draft, a few files and 20 steps; the target is the same.
"""

import ml_collections

from configs import zoo_target


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f"configs/train_distill_zoo.py takes no argument or ':smoke', not {arg!r}.")
  config = zoo_target.get_config()
  config.name = 'zoo_draft'
  config.num_steps = 900
  config.checkpoint_every = 100
  config.record_every = 10
  config.model.update(
      width=256, num_layers=1, num_heads=8, num_kv_heads=2, head_dim=32, mlp_width=704
  )
  config.target.path = 'specjax/zoo/stdlib/target'
  config.distillation.kl_weight = 0.9
  config.optimizer.weight_decay = 0.1
  if arg == 'smoke':
    vocab_size = config.model.vocab_size
    zoo_target.shrink(config)
    # The draft must keep the target's vocabulary.
    config.model.vocab_size = vocab_size
  return config
