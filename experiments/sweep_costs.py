"""What rounds cost, for the arms of a sweep: one calibration for arms of one shape."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
from typing import Any

from experiments import arm_run
from experiments import arms as arms_lib
from experiments import build
from experiments import forecasts
from experiments import workdir as workdir_lib
from specjax.analysis import costs as costs_lib

FOLDER = 'calibrations'

# What costs depend on: arms that agree in these fields share a calibration.
_SHAPE = (
    'target', 'dtype', 'int8', 'mesh', 'batch_size', 'prompt_tokens', 'max_new_tokens',
    'cache_length', 'prefill_chunk',
)  # fmt: skip


def of_arms(
    config,
    arms: Sequence[arms_lib.Arm],
    results: Mapping[str, Any],
    models: arm_run.Models,
    results_dir: workdir_lib.Workdir,
    say: Callable[[str], None],
) -> dict[str, costs_lib.Calibration]:
  """The calibration of every arm, measured or read; nothing where config says so.

  Args:
    config: of the sweep; `calibration.enabled`, `rounds` and `repetitions` are read.
    arms: of the sweep; those that failed or draft in ways that are not calibrated are
      left out.
    results: by arm key.
    models: loads targets.
    results_dir: keeps calibrations, whole or not at all.
    say: is told what is being measured.

  Returns:
    Calibrations by arm key.
  """
  if not config.calibration.enabled:
    return {}
  groups: dict[str, list[arms_lib.Arm]] = {}
  for arm in arms:
    done = (results.get(arm.key) or {}).get('status') == 'done'
    if done and forecasts.is_predicted(arm.settings):
      groups.setdefault(_group_key(config, arm), []).append(arm)
  found = {}
  for key, group in groups.items():
    # The cases of arms that are still missing would be another calibration: the key says which.
    cases = sorted({forecasts.case_of(arm.settings) for arm in group})
    name = f'{FOLDER}/{key}-{arms_lib.digest(cases)[:8]}.json'
    path = results_dir.path / name
    if path.exists():
      made = costs_lib.from_json(json.loads(path.read_text(encoding='utf-8-sig')))
    else:
      made = _measure(config, group, models, say)
      results_dir.write_json(name, dataclasses.asdict(made))
    found |= {arm.key: made for arm in group}
  return found


def _group_key(config, arm: arms_lib.Arm) -> str:
  settings = arm.settings
  values = {name: settings.to_dict()[name] for name in _SHAPE}
  names = ('draft', 'path', 'int8', 'min_confidence')
  draft = [settings.drafter[name] for name in names]
  sampled = bool(settings.sampling.temperature)
  controls = {k: v for k, v in settings.sampling.to_dict().items() if k != 'temperature'}
  return arms_lib.digest(
      [values, draft, sampled, controls, config.calibration.to_dict(), arms_lib.environment()]
  )


def _measure(config, group, models, say) -> costs_lib.Calibration:
  settings = group[0].settings
  loaded = models.load(settings)
  prompts = [list(tokens) for _, tokens in arm_run.prompts_of(settings, loaded)]
  prompts = prompts[: settings.batch_size]
  runner = arm_run.runner_of(settings, loaded, prompts)
  return forecasts.calibrate(
      [arm.settings for arm in group],
      loaded,
      prompts=prompts,
      widths=(),
      cache_length=runner.cache_length,
      prefill_chunk=settings.prefill_chunk,
      sampling=build.sampling(settings, len(prompts)),
      rounds=config.calibration.rounds,
      repetitions=config.calibration.repetitions,
      progress=lambda line: say(f'calibration: {line}'),
  )
