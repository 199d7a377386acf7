"""Generation with the shipped pair, or with any other target and drafter.

    python -m experiments.generate --config=configs/zoo.py

completes the first held-out file of the standard library greedily, with the shipped draft:
the text in colour (accepted draft tokens green, those of the target itself plain), then a
table of tokens/s, mean acceptance length and acceptance rate. Every field can be set:

    … --config.prompt='def quicksort(' --config.stream
    … --config.drafter.kind=ngram --config.drafter.num_speculative_tokens=8
    … --config.drafter.kind=model_tree --config.drafter.tree='dynamic 20,5,4'
    … --config.drafter.kind=combined --config.drafter.min_match=4     # look up, else draft
    … --config.sampling.temperature=0.8 --config.rule.name=coupled --config.num_samples=4
    … --config.drafter.kind=my_file.py:make --config.drafter.options='order=3'  # your own
    … --config.prompt_file=question.jsonl --config.num_prompts=8       # Spec-Bench's format
    … --config.target.name=smollm2 --config.drafter.kind=suffix --config.interactive  # a chat
    cat module.py | python -m experiments.generate --config=configs/zoo.py --config.prompt_file=-
    … --config.target.path=FOLDER --config.drafter.path=FOLDER         # Hugging Face folders

`configs/zoo.py:smoke` shrinks it to seconds: 16 tokens from a prompt of 16.
"""

import ml_collections
from ml_collections import config_dict


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f"configs/zoo.py takes no argument or ':smoke', not {arg!r}.")
  config = ml_collections.ConfigDict()
  config.name = 'zoo'
  config.seed = 0
  config.dtype = 'auto'  # the fast one here: bfloat16, but float32 on CPUs before JAX 0.12

  # A pair of specjax.zoo by name (smollm2 is fetched); or a Hugging Face folder, a hub id
  # ('organisation/model@revision') or a .gguf file, with a chat template in place of its own.
  config.target = ml_collections.ConfigDict(dict(name='stdlib', path='', chat_template=''))
  config.drafter = ml_collections.ConfigDict(
      dict(
          # none, or a function of specjax.drafters: model, model_tree, ngram, suffix, combined,
          # synthetic, eagle, medusa, early_exit, dflash; with _tree it drafts the tree below. One
          # of your own is 'my_module:make' or 'folder/my_file.py:make'.
          kind='model',
          options='',  # more of its arguments: 'order=3, smooth=0.1'
          num_speculative_tokens=4,
          # model: one of the pair's drafts by name ('' is its default), or a folder, hub id or
          # .gguf file; heads (eagle, medusa, early_exit, dflash): the pair's, or a folder or
          # hub id.
          draft='',
          path='',
          int8=False,  # its weights in eight bits; the output stays the target's
          # Drafting stops before the token at which the draft's joint confidence falls
          # below this number; unset drafts num_speculative_tokens always.
          min_confidence=config_dict.placeholder(float),
          # A draft with a tokenizer of its own, of which the target must know this share.
          translate=False,
          min_overlap=0.25,
          # model_tree: children by depth, or paths ('0 1 0.0'), or 'dynamic NODES,DEPTH,WIDTH', or
          # for independent laws (medusa_tree, dflash_tree) 'best_first NODES,DEPTH,WIDTH';
          # siblings where the rule samples: rank, with_replacement, without_replacement.
          tree='3,2,1,1',
          siblings='',
          # ngram: lengths of the suffix that is looked up.
          max_ngram=3,
          min_ngram=1,
          # suffix: the shortest match that is used, and from where on they count as equal.
          min_match=1,
          max_match=16,
          # combined: the drafter that looks up (give it a min_match) and the other one.
          free='suffix',
          learned='model',
          # synthetic: acceptance at each level, and the parents of a tree's nodes.
          acceptance=0.8,
          parents=(),
      )
  )
  config.rule = ml_collections.ConfigDict(
      dict(
          # auto: greedy at temperature 0, else block, for trees recursive. Also rejection,
          # traversal, k_sequential (siblings with_replacement), coupled, typical; or one of your
          # own, 'my_module:make', which gets `options`, 'most=2, name="x"'.
          name='auto',
          options='',
          epsilon=0.09,  # typical (lossy)
          delta=0.3,
      )
  )
  config.sampling = ml_collections.ConfigDict(
      dict(
          temperature=0.0,
          top_k=0,
          top_p=1.0,
          min_p=0.0,
          repetition_penalty=1.0,
          presence_penalty=0.0,
          frequency_penalty=0.0,
      )
  )

  # Over several devices: preset tensor (heads) or sequence (the cache's slots too); model=0
  # takes the devices that data and sequence leave, draft=0 as many of them as a draft model has
  # key-value heads.
  config.mesh = ml_collections.ConfigDict(dict(preset='', data=1, model=0, sequence=1, draft=0))
  config.int8 = False  # weights in eight bits: lossless like that target, not the stored one

  # The prompt: a text, or a file (.jsonl holds many; - is standard input), or a held-out
  # text of the pair by name ('' is the first), of which 192 tokens are kept.
  config.prompt = ''
  config.prompt_file = ''
  config.held_out = ''
  config.held_out_tokens = 192
  config.prompt_tokens = 0  # longer prompts keep their first tokens, which is said; 0 keeps all
  # on: prompts are turns of a chat, in the target's template; auto: where there is one, and the
  # prompts are not held-out files.
  config.chat = 'auto'
  config.system = ''  # the system's text at the head of a chat
  config.num_prompts = 0  # of a .jsonl; 0 takes all
  config.num_samples = 1  # of each prompt, with seeds of their own
  config.batch_size = 8  # rows generated together

  config.max_new_tokens = 128
  config.stop_at_end = True  # at the model's own end-of-text tokens
  config.stop_tokens = ()
  config.stop_strings = ()
  config.logprobs = ''  # raw, controlled
  config.trace = False  # write every round to trace.jsonl

  config.interactive = False  # a chat in the terminal, kept in the workdir, where it goes on
  config.stream = False  # show the text as it comes, row by row
  config.rounds_per_chunk = 4
  config.width = config_dict.placeholder(int)
  config.cache_length = config_dict.placeholder(int)
  config.prefill_chunk = 128
  if arg == 'smoke':
    config.max_new_tokens = 16
    config.held_out_tokens = config.prompt_tokens = 16
    config.num_prompts = 1
    config.prefill_chunk = 16
  return config
