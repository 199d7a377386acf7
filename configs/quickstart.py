"""What `./scripts/quickstart.sh` runs: the shipped pair at work, in under two minutes.

    python -m experiments.benchmark --config=configs/quickstart.py --workdir=runs/quickstart

Streams the completion of a held-out file, accepted draft tokens in colour, then prints a
table with a row for each method: plain decoding, the draft model and prompt lookup, greedy
and at temperature 1. `runs/quickstart/report.html` shows the same and every round of the
completion. Few prompts and short outputs: `configs/benchmark_zoo.py` measures properly.
"""

import ml_collections

from configs import benchmark_zoo


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f"configs/quickstart.py takes no argument or ':smoke', not {arg!r}.")
  config = benchmark_zoo.get_config()
  config.name = 'quickstart'
  config.title = 'Quickstart: {target}'
  config.num_prompts, config.repetitions = 5, 2
  config.max_new_tokens = 128
  config.order = (
      'draft_greedy',
      'ngram_greedy',
      'draft_rejection',
      'draft_coupled',
      'ngram_coupled',
  )
  # One K for all greedy methods: they then share the plain decoding they are compared with.
  for key in config.order:
    config.methods[key].drafter.num_speculative_tokens = 4
  config.stream_method = 'draft_greedy'
  config.trace_methods = ('draft_greedy',)
  # Every program costs seconds of compilation on a CPU: predictions are left to the benchmark.
  config.calibration.enabled = False
  config.fresh = True  # whoever starts it again wants to see it run
  if arg == 'smoke':
    benchmark_zoo.shrink(config)
  return config
