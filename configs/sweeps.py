r"""Sweeps over the shipped pair, each the answer to a question.

    python -m experiments.ablate --config=configs/sweeps.py:draft_length --workdir=runs/draft_length

The argument names the sweep:

    draft_length     which K is fastest, greedy and sampled, and does the prediction know it?
    rule             what does each rule accept, from temperature 0 to 1, at K = 2, 4 and 8?
    temperature      how do acceptance and speed-up fall as the temperature rises?
    drafter          which drafter accepts most at the same cost of a round?
    tree             which shape of 12 nodes accepts most, and does it pay?
    quantisation     what do eight-bit weights cost a draft in acceptance, and bring in speed?
    draft_loss       which loss makes a draft whose tokens are accepted?
    batch_size       from which batch size on does speculation no longer pay?
    context_length   does acceptance hold as prompts grow?

`configs/sweeps.py:rule,smoke` shrinks any of them to seconds. Every arm is checked for
losslessness before it is timed; the table has 95 % intervals over prompts, paired where arms
are compared. An interrupted sweep goes on with the same command. Fields are set as ever:

    … --config.num_prompts=32 --config.num_seeds=5 --config.prompt_file=question.jsonl
    … --config.drafter.kind=my_module:make     # sweeps that set no drafter (rule, temperature)

and a sweep of your own is a function in this file, of `param`, `prod`, `zipit` and `chain`
(`experiments/sweep.py`). `configs/lossless.py` is one without times.
"""

import ml_collections

from configs import zoo
from experiments.sweep import chain, fixed, param, prod, zipit

_K = 'drafter.num_speculative_tokens'
_T = 'sampling.temperature'
_RULE = 'rule.name'
_KIND = 'drafter.kind'
_OTHER_LOSSES = ('reverse_kl', 'jsd', 'total_variation', 'acceptance')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is the name of a sweep (draft_length if empty), ',smoke' shrinks it."""
  names = arg.split(',')
  smoke = 'smoke' in names
  names = [name for name in names if name not in ('smoke', '')] or ['draft_length']
  if len(names) > 1 or names[0] not in SWEEPS:
    raise ValueError(
        f'configs/sweeps.py takes one of {", ".join(sorted(SWEEPS))}, and smoke after a comma; '
        f'not {arg!r}.'
    )
  config = base(f'sweep_{names[0]}')
  SWEEPS[names[0]](config)
  if smoke:
    shrink(config)
  return config


def base(name: str) -> ml_collections.ConfigDict:
  """What all sweeps share; a sweep sets its title, its question and its arms."""
  config = zoo.get_config()
  config.name = name
  config.title = ''
  config.question = ''  # printed above the table
  config.arms = ()
  config.baseline = ()  # (field, value) pairs: the arm that each one is compared with
  config.x = ''  # the field along which the report plots
  config.timing = True  # False: losslessness alone
  config.retry_failed = False
  config.fresh = False  # run finished arms again, too

  # Prompts: windows over the held-out files, or rows of prompt_file (of one category).
  config.prompt_category = ''
  config.num_prompts = 16
  config.prompt_tokens = 128
  config.max_new_tokens = 128
  config.stop_at_end = False  # prompts are cut out of files: that a file ends says nothing
  config.batch_size = 1
  config.num_seeds = 3  # runs of each prompt above temperature 0, with the same seeds in all arms
  config.repetitions = 1  # timings of each run; medians count

  config.calibration = ml_collections.ConfigDict(dict(enabled=True, rounds=32, repetitions=5))
  return config


def draft_length(config: ml_collections.ConfigDict) -> None:
  """K from 1 to 8, with the draft model and with prompt lookup, greedy and at T = 1."""
  config.title = 'Draft length'
  config.question = 'Which K is fastest, and does the prediction know it?'
  config.x = _K
  laws = zipit(param(_RULE, 'greedy', 'block'), param(_T, 0.0, 1.0))
  config.arms = prod(param(_KIND, 'model', 'ngram'), laws, param(_K, 1, 2, 3, 4, 6, 8))


def rule(config: ml_collections.ConfigDict) -> None:
  """Rejection, block and coupled at T 0 … 1 and K 2, 4, 8: more prompts, for small differences."""
  config.title = 'Verification rules'
  config.question = 'What does each rule accept of the same drafts, against the rejection rule?'
  config.x = _K
  config.baseline = ((_RULE, 'rejection'),)
  config.num_prompts, config.num_seeds = 32, 4
  config.arms = prod(
      param(_T, 0.0, 0.2, 0.6, 1.0),
      param(_K, 2, 4, 8),
      param(_RULE, 'rejection', 'block', 'coupled'),
  )


def temperature(config: ml_collections.ConfigDict) -> None:
  """T from 0 to 1.2 at K = 4, with the rule that accepts most and the one that couples."""
  config.title = 'Temperature'
  config.question = 'How do acceptance and speed-up fall as the temperature rises?'
  config.x = _T
  config.arms = prod(
      fixed(drafter__num_speculative_tokens=4),
      param(_RULE, 'block', 'coupled'),
      param(_T, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2),
  )


def drafter(config: ml_collections.ConfigDict) -> None:
  """Every family at several K: the report plots what each accepts against what its round costs."""
  config.title = 'Drafters'
  config.question = 'Which drafter accepts most at the same cost of a round?'
  config.x = _K
  families = chain(
      param(_KIND, 'model', 'eagle', 'early_exit', 'ngram', 'suffix'),
      fixed(drafter__kind='combined', drafter__min_match=4),
  )
  laws = zipit(param(_RULE, 'greedy', 'block'), param(_T, 0.0, 1.0))
  # There are as many Medusa heads as its longest draft has tokens.
  config.arms = chain(
      prod(families, laws, param(_K, 2, 4, 8)),
      prod(param(_KIND, 'medusa'), laws, param(_K, 2, 4)),
  )


def tree(config: ml_collections.ConfigDict) -> None:
  """Chain and trees of 12 nodes, of the draft model and the EAGLE-3 head, greedy and at T = 1."""
  config.title = 'Tree shapes'
  config.question = 'Which shape of 12 nodes accepts most, and does it pay?'
  config.x = 'drafter.tree'
  # Tree passes equal plain ones but for rounding: held to account in float32.
  config.dtype = 'float32'
  shapes = chain(
      fixed(drafter__kind='model', drafter__num_speculative_tokens=12, drafter__tree='1'),
      prod(
          param(_KIND, 'model_tree', 'eagle_tree'),
          param('drafter.tree', '2,1,1,1,1,1', '3,1,1,1', '4,2', 'dynamic 12,6,4'),
      ),
  )
  rules = zipit(param(_RULE, 'auto', 'auto', 'coupled'), param(_T, 0.0, 1.0, 1.0))
  config.arms = prod(shapes, rules)


def quantisation(config: ml_collections.ConfigDict) -> None:
  """The draft model as it is and with weights in eight bits; the target is left alone."""
  config.title = 'Draft quantisation'
  config.question = 'What do eight-bit weights cost a draft in acceptance, and bring in speed?'
  config.x = _K
  config.baseline = (('drafter.int8', False),)
  laws = zipit(param(_RULE, 'greedy', 'block'), param(_T, 0.0, 1.0))
  config.arms = prod(laws, param('drafter.int8', False, True), param(_K, 2, 4, 8))


def draft_loss(config: ml_collections.ConfigDict) -> None:
  r"""Drafts of one shape by the divergence from the target that they were trained to lower.

  'text' has none: next-token cross-entropy alone. All are trained first, equally long; an arm
  whose draft is missing fails and says which folder it looked for:

      for loss in forward_kl reverse_kl jsd total_variation acceptance; do
        python -m experiments.train --config=configs/train_distill_zoo.py --config.num_steps=300 \
            --config.distillation.loss=$loss --workdir=runs/draft_loss/$loss; done
      python -m experiments.train --config=configs/train_distill_zoo.py --config.num_steps=300 \
          --config.distillation.kl_weight=0.0 --workdir=runs/draft_loss/text
  """
  config.title = 'Loss of the draft'
  config.question = 'Which loss makes a draft whose tokens are accepted?'
  config.x = 'drafter.path'
  paths = [f'runs/draft_loss/{name}/model' for name in ('forward_kl', 'text', *_OTHER_LOSSES)]
  config.baseline = (('drafter.path', paths[0]),)
  laws = zipit(param(_RULE, 'greedy', 'block'), param(_T, 0.0, 1.0))
  config.arms = prod(laws, param('drafter.path', *paths), param(_K, 4))


def batch_size(config: ml_collections.ConfigDict) -> None:
  """B from 1 to 16, draft model at K = 2 and 4, greedy."""
  config.title = 'Batch size'
  config.question = 'From which batch size on does speculation no longer pay?'
  config.x = 'batch_size'
  config.arms = prod(param(_K, 2, 4), param('batch_size', 1, 2, 4, 8, 16))


def context_length(config: ml_collections.ConfigDict) -> None:
  """Prompts from 64 to 1,024 tokens, greedy, draft model and prompt lookup."""
  config.title = 'Context length'
  config.question = 'Does acceptance hold as prompts grow?'
  config.x = 'prompt_tokens'
  config.arms = prod(
      param(_KIND, 'model', 'ngram'), param(_K, 4), param('prompt_tokens', 64, 128, 256, 512, 1024)
  )


SWEEPS = dict(
    batch_size=batch_size,
    context_length=context_length,
    draft_length=draft_length,
    draft_loss=draft_loss,
    drafter=drafter,
    quantisation=quantisation,
    rule=rule,
    temperature=temperature,
    tree=tree,
)


def shrink(config: ml_collections.ConfigDict) -> None:
  """Turns any sweep into one that takes little: numbers mean nothing."""
  config.name += '_smoke'
  config.arms = config.arms[::6]
  config.num_prompts, config.num_seeds, config.repetitions = 16, 1, 1
  config.max_new_tokens, config.prompt_tokens, config.prefill_chunk = 8, 8, 8
  config.calibration.update(rounds=4, repetitions=2)
