"""From a config to a study: the arms of a sweep, or the methods of a benchmark."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import ml_collections

from experiments import sweep as sweep_lib
from experiments.build import drafters as drafters_lib
from experiments.build import parts
from experiments.build import prompts as prompts_build
from experiments.build import requests
from experiments.build import rules
from experiments.build import sources
from experiments.build import targets
from experiments.build import values
from experiments.runs import arms as arms_lib
from experiments.runs import records
from experiments.runs import streams

ConfigDict = ml_collections.ConfigDict

# Fields that no number of an arm depends on.
_NO_NUMBERS = (
    'arms', 'baseline', 'calibration', 'fresh', 'interactive', 'methods', 'name', 'order',
    'question', 'retry_failed', 'rounds_per_chunk', 'stream_method', 'title', 'trace_methods', 'x',
)  # fmt: skip
_PROMPTS = (
    'target', 'dtype', 'prompt_file', 'num_prompts', 'prompt_tokens', 'max_new_tokens', 'chat',
    'system', 'stop_at_end',
)  # fmt: skip
# Arms that agree in these fields share a target, and a calibration if they draft alike, too.
_TARGET = ('target', 'dtype', 'int8', 'mesh')
_SHAPE = (
    *_TARGET, 'batch_size', 'prompt_tokens', 'max_new_tokens', 'cache_length', 'prefill_chunk',
)  # fmt: skip


def sweep(config: ConfigDict) -> records.Study:
  """The study of `config.arms`, each of which sets some fields of the config.

  Raises:
    ValueError: without an arm, for a field that does not exist, for two equal arms, or for an arm
      that cannot be run.
  """
  if not config.arms:
    raise ValueError('config.arms is empty: a sweep needs at least one arm.')
  timing = config.timing
  arms = {}
  for pairs in config.arms:
    fields = tuple((field, value) for field, value in pairs)
    label = sweep_lib.label(fields)
    settings = _without_others_options(sweep_lib.apply(config, fields), config)
    try:
      _check(settings)
      if settings.num_prompts % settings.batch_size:
        raise ValueError(
            f'config.num_prompts={settings.num_prompts} must be a multiple of config.batch_size='
            f'{settings.batch_size}: its statistics are by batch.'
        )
    except ValueError as error:
      raise ValueError(f'The arm {label}: {error}') from error
    arm = dataclasses.replace(
        _arm(settings, trace=records.TRACE_ALL if timing else records.TRACE_NONE),
        name=label, label=label, fields=fields,
    )
    if arm.key in arms:
      raise ValueError(f'Two arms are the same: {label}.')
    arms[arm.key] = arm
  return records.Study(
      arms=tuple(arms.values()),
      repetitions=config.repetitions if timing else 0,
      law=True,
      strict=True,
      costs=_costs(config.calibration) if timing else None,
      question=config.question,
      baseline=tuple(config.baseline),
      retry_failed=config.retry_failed,
      fresh=config.fresh,
  )


def benchmark(
    config: ConfigDict, calibration: Any = None, *, batch_sizes: Sequence[int] = ()
) -> records.Study:
  """The study of `config.order`, each of whose keys names one of `config.methods`.

  Args:
    config: the config.
    calibration: that chose the dtype and the width of plain passes; None takes the config's.
    batch_sizes: of the methods that are wanted; empty takes `config.batch_sizes`, or all.

  Raises:
    ValueError: for a method that does not exist or cannot be run.
  """
  counts = config.num_prompts, config.acceptance.num_prompts
  if min(counts) < 1:
    raise ValueError(
        'config.num_prompts and config.acceptance.num_prompts must be at least 1, got '
        f'{counts[0]} and {counts[1]}.'
    )
  if not config.order:
    raise ValueError('config.order is empty: a benchmark needs at least one of config.methods.')
  return records.Study(
      arms=tuple(method(config, key, calibration) for key in _chosen(config, batch_sizes)),
      repetitions=config.repetitions,
      law=False,
      strict=False,
      acceptance_batch=min(config.acceptance.batch_size, counts[1]),
      costs=_costs(config.calibration),
      fresh=config.fresh,
  )


def _chosen(config: ConfigDict, batch_sizes: Sequence[int]) -> list[str]:
  """The keys of `config.order` whose drafter was given, for the batches that are asked for."""
  keys = []
  for key in config.order:
    values.choice('order', key, tuple(config.methods))
    chosen = config.methods[key]
    parent, _, last = chosen.get('needs', '').rpartition('.')
    is_given = not last or bool((config[parent] if parent else config)[last])
    sizes = batch_sizes or config.get('batch_sizes', ())
    if is_given and (not sizes or chosen.get('batch_size', 1) in sizes):
      keys.append(key)
  if not keys:
    raise ValueError(
        f'None of config.order={config.order} can be run: no drafter was given for it, or '
        'config.batch_sizes leaves it out.'
    )
  return keys


def method(config: ConfigDict, key: str, calibration: Any = None) -> records.Arm:
  """The arm of `config.methods[key]`.

  Raises:
    ValueError: if there is no such method, it sets a field that does not exist, or it leaves K
      open without a calibration that chooses it.
  """
  settings = _of_method(config, key)
  is_open = not settings.drafter.num_speculative_tokens
  if is_open and not config.calibration.enabled:
    raise ValueError(
        f'config.methods.{key}.drafter.num_speculative_tokens is 0, which asks for the K that '
        'the calibration predicts to be fastest: set config.calibration.enabled, or a K.'
    )
  if calibration is not None:
    settings.dtype, settings.width = calibration.dtype, calibration.width
  allowed = ConfigDict(settings.to_dict())
  if is_open:
    allowed.drafter.num_speculative_tokens = 1
  _check(allowed)
  # What happens along the text is said of all prompts; the streamed text is one of them.
  shown = records.TRACE_FIRST if key == config.stream_method else records.TRACE_NONE
  arm = _arm(settings, trace=records.TRACE_ALL if key in config.trace_methods else shown)
  name = config.methods[key].name or arm.recipe.kind
  size = f', batch {settings.batch_size}' if settings.batch_size > 1 else ''
  # Those of one batch size are calibrated together.
  cost_key = arms_lib.digest(
      [_values(settings, _SHAPE), config.calibration.to_dict(), arms_lib.environment()]
  )
  return dataclasses.replace(
      arm, name=name, label=f'{name}, {arm.rule.name}, T = {arm.temperature:g}{size}',
      fields=(('method', key),), cost_key=cost_key, num_seeds=1,
  )


def streamed(config: ConfigDict) -> streams.Streamed | None:
  """The method of `config.stream_method`, whose completion of the first prompt is shown."""
  key = config.stream_method
  if not key:
    return None
  arm = method(config, key)
  if arm.recipe.num_speculative_tokens == 0:
    arm = dataclasses.replace(
        arm, recipe=dataclasses.replace(arm.recipe, num_speculative_tokens=4)
    )
  return streams.Streamed(arm, config.rounds_per_chunk)


def _of_method(config: ConfigDict, key: str) -> ConfigDict:
  """The config with a method's own drafter, rule and temperature."""
  values.choice('order', key, tuple(config.methods))
  chosen = config.methods[key]
  settings = ConfigDict(config.to_dict()).lock()
  try:
    settings.drafter.update(chosen.drafter.to_dict())
  except (AttributeError, KeyError) as error:
    raise ValueError(f'config.methods.{key}.drafter: {error}') from error
  settings.rule.name = chosen.rule or config.rule.name
  settings.sampling.temperature = float(chosen.temperature)
  settings.batch_size = chosen.get('batch_size', 1)
  return _without_others_options(settings, config)


def _without_others_options(settings: ConfigDict, given: ConfigDict) -> ConfigDict:
  """Clears options that were given for a drafter or a rule of one's own, where another one runs."""
  for part, name in (('drafter', 'kind'), ('rule', 'name')):
    mine, theirs = settings[part], given[part]
    is_another = mine[name] != theirs[name] and not parts.is_own(mine[name])
    if is_another and mine.options == theirs.options:
      mine.options = ''
  return settings


def _check(settings: ConfigDict) -> None:
  """Refuses what cannot be run, before any model is read."""
  requests.check(settings)
  if settings.drafter.kind == 'none':
    raise ValueError('An arm speculates: plain decoding is measured beside each of them.')
  values.at_least(settings, 1, 'num_prompts', 'repetitions')


def _arm(settings: ConfigDict, *, trace: str) -> records.Arm:
  """What settings describe; `name`, `label` and `fields` are the caller's."""
  fields = {k: v for k, v in settings.to_dict().items() if k not in _NO_NUMBERS}
  environment = arms_lib.environment()
  draft = [settings.drafter[k] for k in ('draft', 'path', 'int8', 'min_confidence', 'options')]
  sampling = settings.sampling.to_dict()
  temperature = sampling.pop('temperature')
  plain = {k: v for k, v in fields.items() if k not in ('drafter', 'rule')}
  return records.Arm(
      key=arms_lib.digest(
          dict(settings=fields, environment=environment, files=_files(settings))
      ),
      name='',
      label='',
      fields=(),
      target=target(settings),
      recipe=drafters_lib.recipe(settings),
      rule=rules.rule(settings),
      temperature=temperature,
      sampling=functools.partial(rules.sampling, settings),
      sizes=records.Sizes(
          batch_size=settings.batch_size,
          max_new_tokens=settings.max_new_tokens,
          cache_length=settings.cache_length,
          prefill_chunk=settings.prefill_chunk,
          width=settings.width,
          seed=settings.seed,
          stops=settings.stop_at_end,
      ),
      prompts=functools.partial(prompts_build.prompts, settings),
      prompts_key=arms_lib.digest(
          [_values(settings, _PROMPTS), fields.get('prompt_category'), fields.get('acceptance')]
      ),
      num_seeds=settings.get('num_seeds', 1) if temperature else 1,
      plain_key=arms_lib.digest(plain),
      cost_key=arms_lib.digest([
          _values(settings, _SHAPE), draft, bool(temperature), sampling,
          settings.calibration.to_dict(), environment,
      ]),
      trace=trace,
      models=functools.partial(sources.digests, settings),
  )


def target(config: ConfigDict) -> records.Target:
  """The target of a config, which is not loaded yet."""
  # Its draft may be split over devices as well.
  of_draft = config.drafter.to_dict() if config.mesh.preset else None
  return records.Target(
      key=arms_lib.digest([_values(config, _TARGET), of_draft]),
      load=lambda: targets.load(config),
  )


def _values(config: ConfigDict, names: tuple[str, ...]) -> dict[str, Any]:
  fields = config.to_dict()
  return {name: fields[name] for name in names}


def _files(settings: ConfigDict) -> list[list[str]]:
  """Digests of the files that the settings name, sources of one's own parts among them."""
  paths = [
      settings.prompt_file, settings.target.path, settings.target.chat_template,
      settings.drafter.path,
  ]
  names = (settings.drafter.kind, settings.drafter.free, settings.drafter.learned)
  paths += [parts.source(name) for name in (*names, settings.rule.name) if parts.is_own(name)]
  return [[path, arms_lib.file_digest(path)] for path in paths if path and path != '-']


def _costs(settings: ConfigDict) -> records.Costs | None:
  if not settings.enabled:
    return None
  fields = {k: v for k, v in settings.to_dict().items() if k != 'enabled'}
  return records.Costs(**fields)
