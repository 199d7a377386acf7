r"""A head or a draft for any instruct model, from chats that the model wrote itself.

    python -m experiments.synthesize --config=configs/synthesize.py --config.target.path=FOLDER \
        --workdir=runs/chats
    python -m experiments.train --config=configs/train_eagle3.py --config.target.path=FOLDER \
        --config.corpus.chats=runs/chats/chats.jsonl --workdir=runs/head
    python -m experiments.benchmark --config=configs/own.py --config.target.path=FOLDER \
        --config.drafter.kind=eagle --config.drafter.path=runs/head/model --workdir=runs/own

`target.path` is a Hugging Face folder, a hub id or a `.gguf` file; `--config.target.name=smollm2`
takes the small chat model that is fetched. Chats of your own serve as well: `.jsonl` rows with
`messages` or, as ShareGPT has them, `conversations`; several files with commas between them. They
are encoded by the target's template, and losses and metrics are of the answers alone; one chat in
32 is held out. The head is a layer of the target's sizes; it drafts the 8,192 tokens that are most
frequent in the answers (`--config.head.vocab_size`, 0 for all). Features are computed in every
step: `--config.features.stored=True` stores them first, whose size is said.

`--config.kind=medusa` trains Medusa heads instead, `early_exit` an adapter after
`--config.head.exit_layer` layers, `model` a draft of the target's width with two layers, distilled,
and `dflash` a DFlash head (`--config.head.loss=cross_entropy`) or, with `--config.head.markov=plain
--config.head.confidence --config.head.loss=dspark`, a DSpark head.

`acceptance_length` is that of greedy decoding after held-out chats. The learning rate and four
unrolled steps are those of the shipped head (`configs/train_eagle3_zoo.py`).

`--config=configs/train_eagle3.py:smollm2` is the recipe for SmolLM2-135M on two cores: a draft
vocabulary of 6,144 tokens whose output head is the target's (`config.head.own_output`), 4.2 M
trained parameters, stored in eight bits, with norms on the features, whose streams differ in size
by a factor of six and of which two entries make up half. `configs/train_eagle3.py:smoke` is 20
small steps.
"""

import ml_collections

from configs import train_eagle3_zoo
from configs import zoo_target


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '', 'smollm2' or 'smoke'."""
  if arg not in ('', 'smollm2', 'smoke'):
    raise ValueError(
        f"configs/train_eagle3.py takes no argument, ':smollm2' or ':smoke', not {arg!r}."
    )
  config = train_eagle3_zoo.get_config()
  config.name = 'eagle3'
  config.target.path = ''
  config.corpus.sha256 = ''
  config.samples.update(num_samples=0, with_text=False)
  config.features.update(stored=False, layers=(), max_windows=0)
  config.num_steps, config.batch_size, config.seq_len = 4000, 16, 1024
  config.checkpoint_every, config.evaluate_every = 100, 200
  config.held_out_windows = 32
  config.model = ml_collections.ConfigDict()  # of the target's sizes
  config.head.vocab_size = 8192  # of an EAGLE-3 head; 0: all of the target's
  # Whether the head has an output head of its own, or the target's rows, which are not stored.
  config.head.own_output = True
  config.head.num_chunks = 4
  config.head.int8 = False  # save weights in eight bits, half of what export_dtype takes
  # dflash: blocks of so many slots, layers of the head (num_layers), how many of the target's
  # layers it reads, blocks per text in a step; shift 'masks' (z-lab) or 'next' (DeepSpec); markov
  # 'plain', 'gated' or 'rnn' and confidence make it a DSpark head. loss: cross_entropy, dspark, or
  # as above.
  config.head.update(
      block_size=8, num_features=3, num_roots=64, shift='next', mask_token=-1, gamma=0.0,
      markov='', markov_rank=64, confidence=False,
  )
  # medusa: heads and their layers. early_exit: after how many of the target's layers, and the
  # adapter's width.
  config.head.update(num_heads=4, num_layers=1, exit_layer=2, mlp_width=1024)
  # model: the loss is 0.9 KL(target || draft) + 0.1 cross-entropy.
  config.distillation.update(kl_weight=0.9, num_layers=2, num_chunks=4)
  config.measure.update(num_prompts=16, new_tokens=64)
  if arg == 'smollm2':
    config.target.name = 'smollm2'
    config.head.update(
        vocab_size=6144, own_output=False, num_chunks=1, num_steps=3, int8=True, fuse_norm='each'
    )
    config.model.update(
        width=576, num_layers=1, num_heads=9, num_kv_heads=3, head_dim=64, mlp_width=1024,
        tie_embeddings=False, max_positions=8192,
    )
    config.num_steps, config.batch_size, config.seq_len = 2400, 4, 512
    config.features.stored = True
    config.measure.num_prompts = 8
  if arg == 'smoke':
    shape = config.model.to_dict()
    zoo_target.shrink(config)
    config.model = ml_collections.ConfigDict(shape)
    config.head.update(vocab_size=64, num_chunks=1, num_steps=2, mlp_width=16, num_roots=8)
    config.head.update(block_size=4, markov_rank=4)
    config.distillation.num_chunks = 1
    config.corpus.held_out_one_in = 2
    config.measure.update(num_prompts=2, new_tokens=8)
  return config
