"""From `config.rule` and `config.sampling` to the objects of the library."""

from typing import Any

import ml_collections

from experiments.build import drafters as drafters_lib
from experiments.build import parts
from experiments.build import values
from specjax import sampling as sampling_lib
from specjax import verify

ConfigDict = ml_collections.ConfigDict

NAMES = ('auto', *verify.NAMES)


def rule(config: ConfigDict) -> Any:
  """The rule of `config.rule`: one of the library's by name, or a factory by import path.

  One of the library's gets those fields of `config.rule` that its signature names, and
  `config.rule.options`; one's own gets the options alone, for a field of the same name would have
  the value of the library's rule. 'auto' is `specjax.verify.default`, which takes a drafter of
  one's own for a chain unless its factory takes a `tree`.

  Raises:
    ValueError: if there is no such rule, or greedy is asked for above temperature 0.
  """
  settings, temperature = config.rule, config.sampling.temperature
  options = parts.options('rule.options', settings.options)
  if parts.is_own(settings.name):
    factory = parts.load('rule.name', settings.name)
  else:
    values.choice('rule.name', settings.name, NAMES)
    if settings.name == 'auto':
      recipe = drafters_lib.recipe(config)
      return verify.default(
          temperature=temperature, is_chain=recipe is None or recipe.is_chain
      )
    factory = getattr(verify, settings.name)
  parts.check_options('rule.options', factory, options)
  fields = {} if parts.is_own(settings.name) else {
      name: value for name, value in settings.to_dict().items() if name not in ('name', 'options')
  }
  rule_object = factory(**parts.arguments(factory, fields, options))
  missing = [name for name in ('name', 'lossless', 'mode') if not hasattr(rule_object, name)]
  if missing:
    raise ValueError(
        f'config.rule.name={settings.name!r} gives {rule_object!r}, which is no rule; missing: '
        f'{", ".join(missing)}. See specjax.verify.Rule.'
    )
  if rule_object.mode == 'greedy' and temperature:
    raise ValueError(
        f'The greedy rule takes the most likely token whatever config.sampling.temperature='
        f'{temperature} says: set it to 0, or take another rule (auto picks one).'
    )
  return rule_object


def sampling(config: ConfigDict, batch_size: int) -> Any:
  """The settings of `config.sampling`, for every row."""
  return sampling_lib.make(batch_size=batch_size, **config.sampling.to_dict())
