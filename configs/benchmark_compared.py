r"""EAGLE-3, DFlash, DSpark and Medusa at equal data and equal trained parameters, on one target.

    python -m experiments.benchmark --config=configs/benchmark_compared.py \
        --workdir=runs/compared/benchmark

measures the heads that `configs/train_compared_zoo.py` trains, in `runs/compared`, as chains of
four tokens and as trees, greedy and at temperature 1: mean acceptance length, acceptance by
depth, tokens/s, speed-up over plain decoding, its forecast, and flips. Batch 1, 100 new tokens
for each of 16 held-out prompts. Chains at temperature 1 are under the block rule. Trees are
best-first of 15 nodes, 4 deep, where the laws of a block are independent (DFlash and Medusa), and
static of 3, 2 and 1 children elsewhere, as wide as chains would be with 15 tokens; at temperature 1
under the recursive rule.

`configs/benchmark_compared.py:smoke` is two methods of the shipped pair.
"""

import ml_collections

from configs import benchmark_zoo

_BEST_FIRST, _STATIC = 'best_first 15,4,4', '3,2,1'
# Key, name, kind, shape of the tree.
_HEADS = (
    ('eagle3', 'EAGLE-3', 'eagle', _STATIC),
    ('dflash', 'DFlash', 'dflash', _BEST_FIRST),
    ('dspark', 'DSpark', 'dflash', _STATIC),
    ('medusa', 'Medusa', 'medusa', _BEST_FIRST),
)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f"configs/benchmark_compared.py takes no argument or ':smoke', not {arg!r}.")
  config = benchmark_zoo.get_config(arg)
  config.name = 'benchmark_compared' + (arg and '_smoke')
  config.title = 'Heads trained alike for {target}'
  if arg == 'smoke':
    return config
  config.max_new_tokens, config.repetitions = 100, 1
  method, methods = benchmark_zoo.method, {}
  for key, name, kind, tree in _HEADS:
    path = f'runs/compared/{key}/model'
    shape = dict(path=path, tree=tree)
    methods[f'{key}_greedy'] = method(name, 'greedy', 0.0, kind, 4, path=path)
    methods[f'{key}_sampled'] = method(name, 'block', 1.0, kind, 4, path=path)
    named = f'{name} tree', f'{kind}_tree'
    methods[f'{key}_tree_greedy'] = method(named[0], 'greedy', 0.0, named[1], 4, **shape)
    methods[f'{key}_tree_sampled'] = method(named[0], 'recursive', 1.0, named[1], 4, **shape)
  config.methods = ml_collections.ConfigDict(methods)
  config.order = tuple(
      f'{key}{shape}_{law}'
      for law in ('greedy', 'sampled')
      for shape in ('', '_tree')
      for key, *_ in _HEADS
  )
  config.trace_methods = ('eagle3_greedy', 'dflash_greedy')
  config.acceptance.num_prompts = 32
  config.calibration.update(dtypes=(), curve=False, max_num_speculative_tokens=4)
  return config
