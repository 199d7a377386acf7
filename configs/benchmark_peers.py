"""specjax beside transformers and llama.cpp on a CPU: same weights, dtype, threads, K, prompts.

    pip install sentencepiece==0.2.3
    python -m scripts.make_peer_pair --folder=/tmp/peers
    python -m benchmarks.peers --config=configs/benchmark_peers.py \\
        --config.peers.pair=/tmp/peers \\
        --config.peers.python=/tmp/peers-venv/bin/python \\
        --config.peers.llama_cpp=/tmp/llama.cpp/B --workdir=runs/benchmark_peers

(`python -m experiments.benchmark` takes the same flags and does the same.)

Runs, in bfloat16 and in float32, plain decoding and speculation with K = 4 for 200 greedy tokens
after each of four prompts: specjax (draft model, prompt lookup), transformers (assisted,
prompt lookup) in an interpreter of its own, and llama.cpp (draft-simple). The pair has
97 M and 26 M parameters; on the shipped pair transformers runs as well. An engine that is
not given is not run, and the output says so. Nothing else should run on the machine: two
engines at once on two cores slow each other down many times.

The table has tokens/s, ratios to the other engines, and target passes (which must agree between
engines: greedy, equal K); GB/s of weights are printed after it, and `metrics.jsonl` has all of it.
benchmarks/peers/run_transformers.py says how to make the interpreter, scripts/make_peer_pair.py
how to build llama.cpp.

`configs/benchmark_peers.py:smoke` shrinks it to one prompt, eight tokens and one round.
"""

import ml_collections


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f"configs/benchmark_peers.py takes no argument or ':smoke', not {arg!r}.")
  config = ml_collections.ConfigDict()
  config.name = 'benchmark_peers'
  config.num_speculative_tokens = 4
  config.max_new_tokens = 200
  config.num_prompts = 0  # 0: all of the pair's, and four of the zoo's
  config.prompt_file = ''  # of peers.model: rows with turns or texts
  config.prompt_tokens = 64  # per prompt of the zoo's
  config.peers = ml_collections.ConfigDict(
      dict(
          model='',  # a folder of a model without a draft, with prompts from prompt_file
          pair='',  # the folder from scripts/make_peer_pair.py; '' leaves that pair out
          zoo='stdlib',  # a pair of specjax.zoo; '' leaves it out
          python='',  # an interpreter with torch and transformers; '' leaves transformers out
          llama_cpp='',  # a build folder of llama.cpp; '' leaves llama.cpp out
          dtypes=('bfloat16', 'float32'),
          threads=2,
          rounds=3,  # of every engine; the fastest counts
          max_ngram=2,  # transformers' default
          # The dtype of llama.cpp's cache for each dtype of weights.
          llama_cpp_cache=ml_collections.ConfigDict(dict(bfloat16='f32', float32='f32')),
          llama_cpp_flash_attention='off',
      )
  )
  if arg == 'smoke':
    config.num_prompts, config.max_new_tokens, config.peers.rounds = 1, 8, 1
  return config
