r"""The brief rule at several lengths beside the rejection rule, on the shipped pair.

    python -m experiments.ablate --config=docs/examples/my_sweep.py --workdir=runs/my_sweep

`docs/examples/my_sweep.py:smoke` is the same in seconds.
"""

from configs import sweeps
from experiments.sweep import chain, fixed, param, prod

RULE = 'docs/examples/my_rule.py:Brief'


def get_config(arg=''):
  """The config; `arg` is '' or 'smoke'."""
  config = sweeps.base('my_sweep')
  config.title = 'A rule that keeps rounds short'
  config.question = 'What does it cost to accept at most one, two or three tokens a round?'
  config.x = 'rule.options'
  config.sampling.temperature = 1.0
  config.arms = chain(
      fixed(rule__name='rejection', rule__options=''),
      prod(param('rule.name', RULE), param('rule.options', 'most=1', 'most=2', 'most=3')),
  )
  config.baseline = (('rule.name', 'rejection'), ('rule.options', ''))
  if arg == 'smoke':
    sweeps.shrink(config)
    config.arms = config.baseline, (('rule.name', RULE), ('rule.options', 'most=1'))
  return config
