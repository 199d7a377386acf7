"""What every config that decodes is checked for."""

import ml_collections

from experiments.build import drafters as drafters_lib
from experiments.build import rules
from experiments.build import values

ConfigDict = ml_collections.ConfigDict

LOGPROBS = ('', 'raw', 'controlled')


def check(config: ConfigDict) -> None:
  """Refuses what needs no model to be seen: values that do not exist or go together.

  Raises:
    ValueError: naming the field, what it may be, and what it is.
  """
  values.choice('dtype', config.dtype, values.DTYPES)
  values.choice('logprobs', config.logprobs, LOGPROBS)
  values.at_least(config, 1, 'num_samples', 'batch_size')
  if config.num_samples > 1 and not config.sampling.temperature:
    raise ValueError(
        f'config.num_samples={config.num_samples} at temperature 0 would give equal samples: '
        'set --config.sampling.temperature, or one sample.'
    )
  drafters_lib.check(config)
  rules.rule(config)
  rules.sampling(config, 1)
