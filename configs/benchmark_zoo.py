"""The shipped pair against its own plain decoding, on held-out files of the standard library.

    python -m experiments.benchmark --config=configs/benchmark_zoo.py --workdir=runs/benchmark_zoo

Batch 1, 200 new tokens for each of 16 prompts. Calibrates first (costs of draft steps, target
passes and the loop on this machine; float32 or bfloat16, one or two tokens per plain pass),
learns acceptance from 64 other prompts, then times all methods in turns. Leave the machine
alone meanwhile: ratios are of runs seconds apart, but two jobs on two cores slow each other
down unevenly. Prints a table with a row for every method: tokens/s, speed-up over plain
decoding at the same temperature, predicted speed-up, mean acceptance length, and whether
the tokens are those of plain decoding; `report.html` in the workdir shows the rest.

    … --config.order="('draft_greedy','ngram_greedy')"                  # these rows only
    … --config.order="('draft_block','tree_traversal')" --config.calibration.enabled=False
    … --config.methods.draft_greedy.drafter.num_speculative_tokens=0    # 0: predicted best K
    … --config.order="('own_greedy','own_sampled')" --config.drafter.kind=my_module:make \
        --config.drafter.options='order=3'        # a drafter of your own, or my_file.py:make

    python -m experiments.benchmark --config=configs/benchmark_zoo.py:smoke --workdir=/tmp/smoke

is the same with two methods and a few tokens.
"""

import ml_collections

from configs import zoo


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f"configs/benchmark_zoo.py takes no argument or ':smoke', not {arg!r}.")
  config = zoo.get_config()
  config.name = 'benchmark_zoo'
  config.title = 'Speculative decoding with {target}'  # the model's name

  # Prompts: the first tokens of windows over the held-out files, or rows of prompt_file.
  config.num_prompts = 16
  config.prompt_tokens = 128
  config.max_new_tokens = 200
  config.stop_at_end = False  # prompts are cut out of files: that a file ends says nothing
  config.repetitions = 2  # of every prompt and method; medians count
  config.fresh = False  # run finished methods again, too

  config.methods = ml_collections.ConfigDict({
      'draft_greedy': method('draft model', 'greedy', 0.0, 'model', 4),
      'draft_rejection': method('draft model', 'rejection', 1.0, 'model', 4),
      'draft_block': method('draft model', 'block', 1.0, 'model', 4),
      'draft_coupled': method('draft model', 'coupled', 1.0, 'model', 4),
      'adaptive_greedy': method('adaptive draft', 'greedy', 0.0, 'model', 8, min_confidence=0.1),
      'adaptive_block': method('adaptive draft', 'block', 1.0, 'model', 6, min_confidence=0.1),
      'ngram_greedy': method('prompt lookup', 'greedy', 0.0, 'ngram', 8),
      'ngram_rejection': method('prompt lookup', 'rejection', 1.0, 'ngram', 4),
      'ngram_coupled': method('prompt lookup', 'coupled', 1.0, 'ngram', 4),
      # Not in the order below: trees are wider than what is free on a CPU.
      'tree_greedy': tree('draft tree', 'greedy', 0.0),
      'dynamic_greedy': tree('dynamic tree', 'greedy', 0.0, tree='dynamic 20,5,4'),
      'tree_recursive': tree('draft tree', 'recursive', 1.0),
      'tree_replaced': tree('draft tree', 'recursive', 1.0, siblings='with_replacement'),
      'tree_k_sequential': tree('draft tree', 'k_sequential', 1.0, siblings='with_replacement'),
      'tree_traversal': tree('draft tree', 'traversal', 1.0),
      'dynamic_recursive': tree('dynamic tree', 'recursive', 1.0, tree='dynamic 20,5,4'),
      'tree_coupled': tree('draft tree', 'coupled', 1.0),
      'suffix_greedy': method('suffix', 'greedy', 0.0, 'suffix', 8),
      'combined_greedy': method('suffix or draft', 'greedy', 0.0, 'combined', 8, min_match=4),
      # The drafter of config.drafter as it is, and above temperature 0 the rule of config.rule.
      'own_greedy': dict(name='', rule='greedy', temperature=0.0, drafter={}),
      'own_sampled': dict(name='', rule='', temperature=1.0, drafter={}),
      'own_coupled': dict(name='', rule='coupled', temperature=1.0, drafter={}),
  })
  # The rows of the table; plain decoding comes first by itself.
  config.order = (
      'draft_greedy',
      'adaptive_greedy',
      'ngram_greedy',
      'draft_rejection',
      'draft_block',
      'adaptive_block',
      'draft_coupled',
      'ngram_rejection',
      'ngram_coupled',
  )
  config.trace_methods = ('draft_greedy', 'draft_block', 'ngram_greedy')
  config.stream_method = ''  # one whose completion of the first prompt is shown

  # What is predicted: acceptance from other prompts (in batches, untimed), and costs.
  # may_share: where there are few prompts, those that are timed serve for it, too.
  config.acceptance = ml_collections.ConfigDict(
      dict(num_prompts=64, batch_size=16, may_share=False)
  )
  config.calibration = ml_collections.ConfigDict(
      dict(
          enabled=True,
          dtypes=('float32', 'bfloat16'),  # the fastest is used; () keeps config.dtype
          max_num_speculative_tokens=8,
          curve=True,  # target passes of 2, 3, 5, 8 … tokens, not those of the methods only
          rounds=32,
          repetitions=7,
      )
  )
  if arg == 'smoke':
    shrink(config)
  return config


def method(
    name: str, rule: str, temperature: float, kind: str, num_speculative_tokens: int, **drafter
) -> dict:
  """A method: what differs from the fields `drafter`, `rule` and `sampling` of the config."""
  return dict(
      name=name,
      rule=rule,
      temperature=temperature,
      drafter=dict(kind=kind, num_speculative_tokens=num_speculative_tokens, **drafter),
  )


def tree(name: str, rule: str, temperature: float, tree: str = '3,2,1,1', **drafter) -> dict:
  """A method whose draft model proposes a tree."""
  return method(name, rule, temperature, 'model_tree', 4, tree=tree, **drafter)


def shrink(config: ml_collections.ConfigDict) -> None:
  """Turns any config of this kind into one that takes little: numbers mean nothing."""
  config.name += '_smoke'
  config.order = ('draft_greedy', 'ngram_greedy')
  config.trace_methods = ('draft_greedy',)
  for key in config.order:
    config.methods[key].drafter.num_speculative_tokens = 2
  shrink_sizes(config)


def shrink_sizes(config: ml_collections.ConfigDict) -> None:
  """Few prompts, few tokens, few timings."""
  config.num_prompts, config.repetitions = 2, 1
  config.max_new_tokens, config.prompt_tokens, config.prefill_chunk = 12, 8, 8
  config.cache_length = 48
  config.acceptance.update(num_prompts=2, batch_size=1)
  config.calibration.update(
      dtypes=(), curve=False, max_num_speculative_tokens=2, rounds=4, repetitions=2
  )
