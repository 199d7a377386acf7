r"""Training chats written by the model that a drafter is for, with no data needed.

    python -m experiments.synthesize --config=configs/synthesize.py --config.target.path=FOLDER \
        --workdir=runs/chats

`target.path` is a Hugging Face folder, a hub id or a `.gguf` file; `--config.target.name=smollm2`
takes the small chat model that is fetched. The model is given its chat template up to the user's
first word, and goes on: what it writes there is a question (Magpie, Xu et al. 2024,
arXiv 2406.08464). The question is then put to it, and its answer is kept. What is too short,
repeats itself, was asked before, or is like a prompt of `exclude` is left out, and counted.

`--config.instructions=FILE` takes questions from a file instead (rows with `prompt`, `turns` or
`messages`), so that only the answers are the model's.

    … --config.num_chats=200000 --config.batch_size=256     # on an accelerator

`configs/synthesize.py:smoke` is four chats of a few tokens.
"""

import ml_collections


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f"configs/synthesize.py takes no argument or ':smoke', not {arg!r}.")
  config = ml_collections.ConfigDict()
  config.name = 'chats'
  config.seed = 0
  config.dtype = 'auto'  # bfloat16 where it is fast
  config.target = ml_collections.ConfigDict(dict(name='', path='', chat_template=''))
  config.int8 = False  # weights in eight bits
  config.mesh = ml_collections.ConfigDict(dict(preset='', data=1, model=0, sequence=1, draft=1))

  config.num_chats = 10_000
  config.system = ''  # a system's text at the head of every chat; '' leaves it to the template
  config.instructions = ''  # a file of questions; '': the model asks itself
  # How questions and answers are sampled. Answers at temperature 1 have the law that a draft must
  # learn; one that is not over after max_tokens is kept, and marked as cut.
  config.question = ml_collections.ConfigDict(
      dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, max_tokens=128)
  )
  config.answer = ml_collections.ConfigDict(
      dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, max_tokens=512)
  )
  # Left out: questions of fewer characters, texts of which a larger share of the four-word pieces
  # came before in the same text, and questions that share eight words in a row with a prompt of
  # these files, which measure.
  config.filters = ml_collections.ConfigDict(
      dict(
          min_characters=12,
          max_repetition=0.5,
          exclude=('configs/data/spec_bench.jsonl',),
      )
  )

  config.batch_size = 64  # rows decoded together; those that end make room for the next
  config.shard_size = 512  # chats between two files, which a stopped run goes on from
  config.rounds_per_chunk = 16  # tokens between two looks at what has ended
  config.prefill_chunk = 128
  if arg == 'smoke':
    config.num_chats, config.batch_size, config.shard_size = 4, 4, 6
    config.question.max_tokens, config.answer.max_tokens = 8, 12
    config.filters.min_characters = 1
    config.prefill_chunk = 32
  return config
