r"""Whether speculation changes nothing: every drafter on 200 held-out prompts of the shipped pair.

    python -m experiments.ablate --config=configs/lossless.py --workdir=runs/lossless
    python scripts/check_lossless.py     # the same, and exits with 1 if an arm fails

A sweep without times. For every drafter, greedy and coupled at temperature 1, a chain must equal
plain decoding of the same width bit for bit; a branching tree, in float32, must obey the gap rule
(the first difference of a prompt is explained by rounding: its gap of logit, or logit plus noise,
is at most twice the largest logit difference measured between the two modes). The argument names
what is checked, with commas, all but `own` if it is empty:

    chains      draft model, adaptive draft model and prompt lookup at K = 1, 4 and 8
    trees       synthetic, of the draft model, static and dynamic, of suffix votes, and combined
    heads       EAGLE-3, Medusa, early exit, suffix, and suffix or EAGLE-3, as chains and as trees
    free        prompt lookup, suffixes, and half of the target's own layers, of any target
    own         the drafter of config.drafter, and with it the rule of config.rule at temperature 1
    bfloat16    chains in this dtype alone
    float32     in this dtype alone

    … --config=configs/lossless.py:heads,trees,float32 --config.num_prompts=200
    … --config=configs/lossless.py:free,float32 --config.target.name=smollm2 \
        --config.prompt_file=question.jsonl --config.prompt_tokens=0 --config.num_prompts=100
    … --config=configs/lossless.py:own --config.drafter.kind=my_module:make

It should show `identical` in every row of a chain, and `identical` or `rounding` for trees. With
`--config.batch_size=8` in bfloat16 a row of a product may depend on where it stands among 40 rows:
on an AMD EPYC one of 200 prompts then differed (two logits 0.0065 apart), and none at batch 1.
`configs/lossless.py:smoke` is four arms of it on two prompts.
"""

import ml_collections

from configs import sweeps
from experiments.sweep import Sweep, chain, fixed, param, prod, zipit

DTYPES = ('bfloat16', 'float32')
RULES = zipit(param('rule.name', 'greedy', 'coupled'), param('sampling.temperature', 0.0, 1.0))
# Width 3 at the first level, then fewer: 9 nodes, 4 deep.
PARENTS = (0, 0, 0, 1, 1, 2, 4, 5, 7)
# Of the heads: what configs/benchmark_drafters.py measures.
TREE = '3,2,1'


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is any of the names above, and 'smoke', with commas."""
  names = [name for name in arg.split(',') if name]
  unknown = sorted(set(names) - {'smoke', *DTYPES, *PARTS})
  if unknown:
    raise ValueError(
        f'configs/lossless.py takes {", ".join([*PARTS, *DTYPES, "smoke"])}, with commas; not '
        f'{unknown[0]!r}.'
    )
  config = sweeps.base('lossless')
  config.title = 'Losslessness'
  config.question = 'Is the output of every drafter that of plain decoding?'
  config.x = 'drafter.num_speculative_tokens'
  config.timing = False
  config.calibration.enabled = False
  config.num_prompts, config.prompt_tokens, config.max_new_tokens = 200, 64, 64
  config.num_seeds = 1
  dtypes = param('dtype', *([name for name in DTYPES if name in names] or DTYPES))
  parts = [name for name in PARTS if name in names] or ['chains', 'trees', 'heads']
  config.arms = chain(*(PARTS[part](dtypes) for part in parts))
  if 'smoke' in names:
    config.name += '_smoke'
    config.arms = config.arms[:: max(len(config.arms) // 4, 1)]
    config.num_prompts, config.max_new_tokens, config.prompt_tokens = 2, 8, 8
    config.prefill_chunk = 8
  return config


def chains(dtypes: Sweep) -> Sweep:
  """Chains of the draft model and of prompt lookup."""
  kinds = chain(
      param('drafter.kind', 'model', 'ngram'),
      fixed(drafter__kind='model', drafter__min_confidence=0.3),
  )
  return prod(dtypes, RULES, kinds, param('drafter.num_speculative_tokens', 1, 4, 8))


def trees(dtypes: Sweep) -> Sweep:
  """Trees of no head."""
  kinds = chain(
      fixed(drafter__kind='synthetic', drafter__parents=PARENTS),
      prod(param('drafter.kind', 'model_tree'), param('drafter.tree', '3,2,1,1', 'dynamic 20,5,4')),
      fixed(drafter__kind='suffix_tree', drafter__tree='2,2,1,1,1,1'),
      fixed(
          drafter__kind='combined', drafter__learned='model_tree', drafter__tree='3,2,1,1',
          drafter__min_match=4, drafter__num_speculative_tokens=8,
      ),
  )
  return prod(_exact(dtypes), RULES, kinds)


def heads(dtypes: Sweep) -> Sweep:
  """The shipped heads and the suffix drafters."""
  families = ('eagle', 'medusa', 'early_exit', 'suffix')
  look_up = dict(drafter__kind='combined', drafter__min_match=4)
  as_chains = prod(
      param('drafter.num_speculative_tokens', 4),
      chain(
          param('drafter.kind', *families), fixed(drafter__learned='eagle', **look_up)
      ),
  )
  as_trees = chain(
      prod(
          param('drafter.tree', TREE),
          chain(
              param('drafter.kind', *(f'{kind}_tree' for kind in families)),
              fixed(drafter__learned='eagle_tree', **look_up),
          ),
      ),
      fixed(drafter__kind='eagle_tree', drafter__tree='dynamic 60,6,10'),
  )
  return chain(prod(dtypes, RULES, as_chains), prod(_exact(dtypes), RULES, as_trees))


def free(dtypes: Sweep) -> Sweep:
  """Drafters that need no training."""
  kinds = ('ngram', 'suffix', 'experiments/examples/plain_exit.py:make')
  return prod(
      dtypes, RULES, param('drafter.kind', *kinds),
      param('drafter.num_speculative_tokens', 4),
  )


def own(dtypes: Sweep) -> Sweep:
  """What config.drafter and config.rule say; the rule's tokens are tested against the law."""
  return prod(dtypes, chain(RULES, param('sampling.temperature', 1.0)))


def _exact(dtypes: Sweep) -> Sweep:
  """float32 where it was asked for: the gap rule is about rounding errors of float32."""
  return tuple(arm for arm in dtypes if arm == (('dtype', 'float32'),))


PARTS = dict(chains=chains, trees=trees, heads=heads, free=free, own=own)
