r"""Llama-3.1-70B with an EAGLE-3 head of 1 B parameters: does it fit, and how fast is it.

    python -m experiments.plan --config=configs/llama3_70b_eagle3.py --workdir=runs/plan_eagle3

is `configs/llama3_70b.py` with the head instead of the draft model: it reads three layers of
the target, drafts a chain over a vocabulary of 32,000, and keeps one layer of cache. Weights and
cache are split as a draft model's are. One thing is gathered in a draft step: its logits over
the 32,000 tokens, 1.02 MB for 8 rows, because a drafted token may be anywhere in the target's
vocabulary; no row of that vocabulary is gathered, nor any cache. The roofline does not count the
gather. On v5p:2x2x2 each chip holds 17.90 GB of weights (0.26 the head's), 2.72 GB of caches and
0.07 GB of temporaries, as compiled with libtpu 0.0.52, and a round takes 15.5 ms by the program's
schedule (10.3 on v6e:4x4, 14.8 on v5e:8x8). Arguments and fields are those of that config;
`configs/llama3_70b_eagle3.py:smoke` has two layers of the target.
"""

import ml_collections

from configs import llama3_70b


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` as in configs/llama3_70b.py."""
  config = llama3_70b.get_config(arg)
  config.name = config.name.replace('llama3_70b', 'llama3_70b_eagle3')
  config.drafter.kind = 'eagle'
  return config
