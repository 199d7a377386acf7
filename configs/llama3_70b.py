r"""Llama-3.1-70B with a Llama-3.2-1B draft on several accelerators: does it fit, and how fast?

    python -m experiments.plan --config=configs/llama3_70b.py --workdir=runs/plan

compiles the whole speculative loop for each TPU slice in `config.topologies` (with the TPU's own
compiler, which needs no TPU: `pip install 'specjax[tpu-aot]'`), and prints its memory, its
collectives, and how long a round takes by the program's schedule (`specjax.planning.times`), with a
range and with the roofline beside it as the limit; GPU nodes have the roofline alone, and are
marked as not compiled. Nothing is downloaded and no weights are made. By the model, on v5p:2x2x2,
v6e:4x4 and v5e:8x8 a round of the first case takes 17.5, 12.9 and 17.1 ms, and at an acceptance of
0.7 brings 1282, 1723 and 1304 tokens/s of all rows (2436, 2067 and 1567 by roofline); none of it
has been measured on a TPU. For one slice, or another layout:

    … --config.topology=v5p:2x2x2
    … --config.topology=v6e:4x4 --config.mesh.preset=sequence --config.mesh.sequence=2
    … --config.rule.name=greedy --config.int8
    … --config.drafter.tree=3,2,1 --config.rule.name=traversal

`configs/llama3_70b.py:published` is the case in jax-llm-examples' table (llama3/README.md): 8-bit
weights (159 steps/s at 85.18 % of 819 GB/s on 16 chips are 70 GB per step), batch 8, context 2048,
v5e:4x4. It compares the roofline's plain step with the published one: 7.41 ms against 6.29, 18 %
more. Of these, 0.8 ms are the cache, which the roofline reads whole and the other run only as far
as it is filled, and 1.1 ms are collectives, which the roofline does not overlap. The compiled
target, of this project's program and not of theirs, was 35 % above it before attention had a
kernel of its own. `:long` plans
prompts of 128k tokens, batch 1, read in chunks of 512; `--config.context=32768` plans those of 32k.
`configs/llama3_70b.py:smoke` is the first case with two layers of each model, in seconds.
"""

import ml_collections


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '', 'smoke', 'published' or 'long'."""
  if arg not in ('', 'smoke', 'published', 'long'):
    raise ValueError(
        "configs/llama3_70b.py takes no argument, ':smoke', ':published' or ':long', not "
        f'{arg!r}.'
    )
  config = ml_collections.ConfigDict()
  config.name = 'llama3_70b'
  config.dtype = 'bfloat16'
  # Names of specjax.models.presets; num_layers 0 takes all.
  config.target = ml_collections.ConfigDict(dict(name='Llama-3.1-70B', num_layers=0))
  config.drafter = ml_collections.ConfigDict(
      # model: a draft by name; eagle, dflash: an EAGLE-3 or DFlash head for the target
      # (specjax.heads.presets). A DFlash head's blocks have K tokens.
      dict(
          kind='model',
          name='Llama-3.2-1B',
          num_layers=0,
          num_speculative_tokens=4,
          markov_rank=0,  # of a DFlash head's Markov head, which makes it a DSpark head; 0: none
          tree='',  # compiled instead of the chain, written as for experiments.generate: '3,2,1'
      )
  )
  config.rule = ml_collections.ConfigDict(dict(name='block'))
  config.batch_size = 8
  config.context = 8192  # most tokens of a row, prompt and output
  config.prefill_chunk = 128

  # One slice, or else those in `topologies`: TPU slices, and GPU nodes such as H100:8.
  config.topology = ''
  config.topologies = ('v5p:2x2x2', 'v6e:4x4', 'v5e:8x8', 'H100:8', 'H200:8', 'B200:8')
  # How a slice is used. model=0 takes the chips that data and sequence leave; draft=0 splits the
  # draft over as many of those as it has key-value heads.
  config.mesh = ml_collections.ConfigDict(
      dict(preset='tensor', data=1, model=0, sequence=1, draft=0)
  )
  config.compile = True  # False: roofline only, for TPUs too
  config.compile_prefill = True  # also compile the program that reads prompts
  config.int8 = False  # target and draft have weights in eight bits
  config.published_step_ms = 0.0  # a plain step to compare with; 0: none

  # Speed-ups are predicted for these acceptance rates, and for K up to this number.
  config.acceptances = (0.5, 0.6, 0.7, 0.8, 0.9)
  config.max_num_speculative_tokens = 8
  if arg == 'published':
    config.name += '_published'
    config.topology, config.context, config.int8 = 'v5e:4x4', 2048, True
    config.published_step_ms = 1e3 / 159
  if arg == 'long':
    config.name += '_long'
    config.batch_size, config.context, config.prefill_chunk = 1, 131_072, 512
    config.topologies = ('v5p:2x2x2', 'v6e:4x4', 'v5e:8x8')
  if arg == 'smoke':
    config.name += '_smoke'
    config.target.num_layers = config.drafter.num_layers = 2
    config.topologies = ('v5e:2x2', 'H100:8')
    config.context = 512
  return config
