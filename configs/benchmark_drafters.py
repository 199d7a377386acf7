r"""Every drafter on the shipped target, as chains and trees, greedy and at temperature 1.

    python -m experiments.benchmark --config=configs/benchmark_drafters.py --workdir=runs/drafters

Batch 1, 100 new tokens for each of 8 held-out prompts, otherwise as `configs/benchmark_zoo.py`:
one table with mean acceptance length, tokens/s, speed-up over plain decoding at the same
temperature, predicted speed-up (from costs measured first and acceptance on other prompts) and,
for greedy, whether the tokens are those of plain decoding. Chains are K=4; static trees have 15
nodes, 3 deep; the dynamic one is EAGLE-2's with 60 nodes, 6 deep. A tree is as wide as its nodes:
on a CPU, where wide passes are not free, its longer acceptance does not pay.

    … --config.order="('draft_greedy','eagle_greedy')"                     # these rows only
    … --config.calibration.enabled=False                                # no prediction

`configs/benchmark_drafters.py:smoke` is two of them with a few tokens.
"""

import ml_collections

from configs import benchmark_zoo

_TREE, _DYNAMIC = '3,2,1', 'dynamic 60,6,10'
# Key, name, kind, and what else the drafter takes; greedy and at temperature 1.
_DRAFTERS = (
    ('draft', 'draft model', 'model', {}),
    ('draft_tree', 'draft tree', 'model_tree', dict(tree=_TREE)),
    ('eagle', 'EAGLE-3', 'eagle', {}),
    ('eagle_tree', 'EAGLE-3 tree', 'eagle_tree', dict(tree=_TREE)),
    ('eagle_dynamic', 'EAGLE-3 dynamic tree', 'eagle_tree', dict(tree=_DYNAMIC)),
    ('medusa', 'Medusa', 'medusa', {}),
    ('medusa_tree', 'Medusa tree', 'medusa_tree', dict(tree=_TREE)),
    ('exit', 'early exit', 'early_exit', {}),
    ('exit_tree', 'early exit tree', 'early_exit_tree', dict(tree=_TREE)),
    ('ngram', 'prompt lookup', 'ngram', {}),
    ('suffix', 'suffix', 'suffix', {}),
    ('combined', 'suffix or draft', 'combined', dict(min_match=4)),
    ('combined_eagle', 'suffix or EAGLE-3', 'combined', dict(min_match=4, learned='eagle')),
)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f"configs/benchmark_drafters.py takes no argument or ':smoke', not {arg!r}.")
  config = benchmark_zoo.get_config()
  config.name = 'benchmark_drafters'
  config.title = 'Drafters on {target}'
  config.num_prompts, config.max_new_tokens, config.repetitions = 8, 100, 1
  methods = {}
  for key, name, kind, more in _DRAFTERS:
    is_tree = 'tree' in more
    sampled = 'recursive' if is_tree else 'block'
    methods[f'{key}_greedy'] = benchmark_zoo.method(name, 'greedy', 0.0, kind, 4, **more)
    methods[f'{key}_sampled'] = benchmark_zoo.method(name, sampled, 1.0, kind, 4, **more)
  config.methods = ml_collections.ConfigDict(methods)
  keys = [key for key, *_ in _DRAFTERS]
  config.order = tuple(f'{key}_{how}' for how in ('greedy', 'sampled') for key in keys)
  config.trace_methods = ('draft_greedy', 'eagle_greedy')
  config.acceptance.num_prompts = 16
  config.calibration.update(dtypes=(), curve=False, max_num_speculative_tokens=4)
  if arg == 'smoke':
    # Heads are of the shipped target; what runs on any target is shrunk.
    benchmark_zoo.shrink(config)
  return config
