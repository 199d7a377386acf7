r"""Qwen3-8B with the EAGLE-3, DFlash and DSpark heads that DeepSpec trained alike.

    python -m experiments.benchmark --config=configs/qwen3_blocks.py \
        --config.prompt_file=gsm8k.jsonl --workdir=runs/qwen3_gsm8k

fetches target and heads from the hub and measures chains of seven drafted tokens, greedy and at
temperature 1 under the rejection rule, beside plain decoding: a row per head. The file of prompts
has rows as in `experiments/prompts.py` (GSM8K's `question`, HumanEval's `prompt`, MT-bench's
`turns`), one run for each. `--config=configs/qwen3_blocks.py:4b` and `:14b` take the other sizes.
Published for Qwen3-8B at temperature 1 (mean acceptance length, the next token counted):

| | GSM8K | MATH | HumanEval | MT-Bench |
|---|---|---|---|---|
| EAGLE-3 | 5.30 | 4.77 | 4.33 | 2.66 |
| DFlash | 5.33 | 4.91 | 4.64 | 3.11 |
| DSpark | 6.17 | 5.78 | 5.52 | 3.72 |

Nobody has run this config on the real weights here: the heads' files are checked against their
authors' code with random weights, and a round of Qwen3-8B with a DFlash and with a DSpark head is
traced.

    python -m experiments.plan --config=configs/qwen3_blocks.py:plan --workdir=runs/qwen3_plan

compiles the whole loop of Qwen3-8B and its DSpark head for TPU slices, without weights and without
a TPU (see `configs/llama3_70b.py`); `--config.drafter.markov_rank=0` is the DFlash head, and
`--config.drafter.kind=eagle` an EAGLE-3 head, whose draft vocabulary is 32,000 there.

`configs/qwen3_blocks.py:smoke` is two methods of the shipped pair.
"""

import ml_collections

from configs import benchmark_zoo
from configs import llama3_70b

_SIZES = {'': '8b', '4b': '4b', '14b': '14b'}
_HEADS = (
    ('eagle', 'EAGLE-3', 'eagle', 'deepseek-ai/eagle3_qwen3_{size}_ttt7'),
    ('dflash', 'DFlash', 'dflash', 'deepseek-ai/dflash_qwen3_{size}_block7'),
    ('dspark', 'DSpark', 'dflash', 'deepseek-ai/dspark_qwen3_{size}_block7'),
)
_LAWS = {'greedy': ('greedy', 0.0), 'sampled': ('rejection', 1.0)}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '', '4b', '14b', 'plan' or 'smoke'."""
  if arg not in (*_SIZES, 'plan', 'smoke'):
    raise ValueError(
        "configs/qwen3_blocks.py takes no argument, ':4b', ':14b', ':plan' or ':smoke', not "
        f'{arg!r}.'
    )
  if arg == 'plan':
    config = llama3_70b.get_config()
    config.name = 'qwen3_blocks_plan'
    config.target.name = 'Qwen3-8B'
    config.drafter.update(kind='dflash', num_speculative_tokens=7, markov_rank=256)
    config.context = 4096
    config.topologies = ('v5e:2x2', 'v6e:2x2', 'v5p:2x2x1', 'H100:1', 'H200:1')
    return config
  if arg == 'smoke':
    config = benchmark_zoo.get_config('smoke')
    config.name = 'qwen3_blocks_smoke'
    return config
  config = benchmark_zoo.get_config()
  size = _SIZES.get(arg, '8b')
  config.name, config.title = 'qwen3_blocks', 'Heads by DeepSpec on {target}'
  config.target.path = f'Qwen/Qwen3-{size.upper()}'
  config.prompt_file, config.chat = 'configs/data/spec_bench.jsonl', 'auto'
  config.stop_at_end = True
  config.num_prompts, config.prompt_tokens = 64, 0
  config.max_new_tokens, config.repetitions = 512, 1
  config.methods = ml_collections.ConfigDict({
      f'{key}_{law}': benchmark_zoo.method(
          name, rule, temperature, kind, 7, path=path.format(size=size)
      )
      for key, name, kind, path in _HEADS
      for law, (rule, temperature) in _LAWS.items()
  })
  config.order = tuple(config.methods)
  config.trace_methods = ('dspark_greedy',)
  config.acceptance.update(num_prompts=16, may_share=True)
  config.calibration.update(dtypes=(), curve=False, max_num_speculative_tokens=7)
  return config
