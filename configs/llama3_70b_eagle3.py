r"""Llama-3.1-70B with an EAGLE-3 head of 1 B parameters: does it fit, and how fast is it.

    python -m experiments.plan --config=configs/llama3_70b_eagle3.py --workdir=runs/plan_eagle3

is `configs/llama3_70b.py` with the head instead of the draft model: it reads three layers of
the target, drafts a chain over a vocabulary of 32,000, and keeps one layer of cache. The head
has no layout of its own yet: its cache and its logits are gathered in every draft step (the plan
says how large the largest gathered array is), which the roofline does not count. Arguments and
fields are those of that config; `configs/llama3_70b_eagle3.py:smoke` has two layers of target.
"""

import ml_collections

from configs import llama3_70b


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` as in configs/llama3_70b.py."""
  config = llama3_70b.get_config(arg)
  config.name = config.name.replace('llama3_70b', 'llama3_70b_eagle3')
  config.drafter.kind = 'eagle3'
  return config
