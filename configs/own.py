r"""A model of your own: what speculation brings it on this machine, in one table and one report.

    python -m experiments.benchmark --config=configs/own.py --config.target.path=FOLDER \
        --workdir=runs/own

`target.path` is a Hugging Face folder, a hub id ('organisation/model', with '@revision') or a
`.gguf` file; `--config.target.name=smollm2` takes the small chat model that is fetched. Measures
plain decoding, prompt lookup and suffixes, greedy and at temperature 1, and with
`--config.drafter.path=…` a draft model (or a head: `--config.drafter.kind=eagle`), at the K that
the calibration predicts to be fastest, in batches of 1, 8 and 32 rows: memory is estimated and
printed before any weight is read, and batches that do not fit are left out. The forecast stands
beside the measurement.

Prompts are 4 of each kind of Spec-Bench (`configs/data/spec_bench.jsonl`), as chats in the model's
own template; `--config.prompt_file=FILE` takes your own: rows with `messages` or `turns`, or plain
texts (`--config.chat=off`). Four are enough for intervals, more make them narrower.

    … --config.num_prompts=16 --config.max_new_tokens=256 --config.batch_sizes="(1,)"

`configs/own.py:smoke` is two methods, four prompts and a few tokens.
"""

import ml_collections

from configs import benchmark_zoo


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f"configs/own.py takes no argument or ':smoke', not {arg!r}.")
  config = benchmark_zoo.get_config()
  config.name = 'own'
  config.title = 'Speculative decoding with {target}'
  config.prompt_file = 'configs/data/spec_bench.jsonl'
  config.chat = 'auto'
  config.stop_at_end = True
  config.num_prompts, config.prompt_tokens = 8, 0
  config.max_new_tokens, config.repetitions = 128, 1
  config.batch_sizes = (1, 8, 32)  # those that memory has room for
  config.methods = ml_collections.ConfigDict({
      f'{key}_{size}': dict(entry, batch_size=size)
      for size in config.batch_sizes
      for key, entry in _methods().items()
  })
  config.order = tuple(config.methods)
  config.trace_methods = ('lookup_greedy_1', 'draft_greedy_1')
  config.acceptance.update(num_prompts=8, batch_size=8, may_share=True)
  config.calibration.update(curve=False, rounds=16, repetitions=3)
  if arg == 'smoke':
    config.order = ('lookup_greedy_1', 'suffix_sampled_8')
    benchmark_zoo.shrink_sizes(config)
    config.num_prompts, config.prompt_tokens, config.cache_length = 4, 0, None
  return config


def _methods() -> dict[str, dict]:
  """Every drafter greedy and at temperature 1; K = 0 is chosen by the calibration."""
  kinds = {
      'draft': dict(name='', drafter={'num_speculative_tokens': 0}, needs='drafter.path'),
      'lookup': dict(name='prompt lookup', drafter=dict(kind='ngram', num_speculative_tokens=0)),
      'suffix': dict(name='suffix', drafter=dict(kind='suffix', num_speculative_tokens=0)),
  }
  laws = {'greedy': ('greedy', 0.0), 'sampled': ('block', 1.0)}
  return {
      f'{kind}_{law}': dict(dict(needs=''), **entry, rule=rule, temperature=temperature)
      for law, (rule, temperature) in laws.items()
      for kind, entry in kinds.items()
  }
