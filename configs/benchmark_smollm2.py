r"""SmolLM2-135M-Instruct on Spec-Bench: what drafters bring a chat, by kind of chat.

    python -m experiments.ablate --config=configs/benchmark_smollm2.py --workdir=runs/smollm2
    python -m benchmarks.peers --config=configs/benchmark_smollm2.py:peers \
        --config.peers.model=runs/smollm2_folder --config.peers.python=/tmp/peers-venv/bin/python \
        --workdir=runs/smollm2_peers

The model is fetched when it is first used (93 MB). The first command decodes 52 chats of
Spec-Bench (4 of each of its 13 categories, `configs/data/spec_bench.jsonl`; 84 prompts with the
second turns of MT-bench, answered by plain decoding) in the model's own template, by prompt lookup,
by suffixes and by the shipped EAGLE-3 head, greedy and at temperature 1, and shows mean acceptance
length, by category too, and speed-up with their intervals. The whole set is
`--config.prompt_file=question.jsonl` with `--config.num_prompts=560`.

The second runs the same prompts, weights, dtype, threads and K through transformers, and llama.cpp
where a build is given. Both need the weights as a folder:

    python scripts/convert_hf.py --source=smollm2 --output=runs/smollm2_folder --dtype=bfloat16

`configs/benchmark_smollm2.py:smoke` is two prompts and a few tokens, of the shipped pair.
"""

import ml_collections

from configs import benchmark_peers
from configs import sweeps
from experiments.sweep import param, prod, zipit


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '', 'peers' or 'smoke'."""
  if arg not in ('', 'peers', 'smoke'):
    raise ValueError(
        f"configs/benchmark_smollm2.py takes no argument, ':peers' or ':smoke', not {arg!r}."
    )
  if arg == 'peers':
    config = benchmark_peers.get_config()
    config.name = 'smollm2_peers'
    config.prompt_file = 'configs/data/spec_bench.jsonl'
    config.max_new_tokens, config.num_prompts = 64, 13
    config.num_speculative_tokens = 8
    config.peers.zoo, config.peers.rounds = '', 1
    return config
  config = sweeps.base('smollm2')
  config.title = 'Drafting for chats, {target}'
  config.question = 'What do drafters bring a chat, without training and with it?'
  config.x = 'drafter.num_speculative_tokens'
  config.target.name = 'smollm2'
  config.prompt_file = 'configs/data/spec_bench.jsonl'
  config.stop_at_end = True
  config.num_prompts, config.prompt_tokens, config.max_new_tokens = 84, 0, 64
  config.num_seeds = 1
  laws = zipit(param('rule.name', 'greedy', 'block'), param('sampling.temperature', 0.0, 1.0))
  lengths = param('drafter.num_speculative_tokens', 4)
  config.arms = prod(param('drafter.kind', 'ngram', 'suffix', 'eagle'), laws, lengths)
  if arg == 'smoke':
    config.name += '_smoke'
    config.target.name = 'stdlib'
    config.arms = config.arms[:2]
    config.num_prompts, config.max_new_tokens, config.prefill_chunk = 2, 8, 16
    config.calibration.update(rounds=4, repetitions=2)
  return config
