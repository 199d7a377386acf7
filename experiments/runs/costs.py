"""What rounds cost, for the arms of a study: one calibration for arms of one shape."""

from collections.abc import Callable, Sequence
import dataclasses

from experiments import workdir as workdir_lib
from experiments.runs import arms as arms_lib
from experiments.runs import forecasts
from experiments.runs import records
from experiments.runs import runner as runner_lib
from specjax.analysis import costs as costs_lib
from specjax.sharding import processes

FOLDER = 'calibrations'

Say = Callable[[str], None]


def of_arms(
    arms: Sequence[records.Arm],
    study: records.Study,
    session: runner_lib.Session,
    workdir: workdir_lib.Workdir,
    say: Say,
) -> dict[str, costs_lib.Calibration]:
  """The calibration of every arm that can be predicted, measured or read.

  Args:
    arms: those that are wanted.
    study: says how to measure, if at all, and whether what was measured before counts.
    session: loads targets.
    workdir: keeps calibrations, whole or not at all.
    say: is called with what is being measured.

  Returns:
    Calibrations by arm key.
  """
  settings = study.costs
  groups: dict[str, list[records.Arm]] = {}
  for arm in arms if settings is not None else ():
    if forecasts.is_predicted(arm.recipe):
      groups.setdefault(arm.cost_key, []).append(arm)
  calibrations = {}
  for key, group in groups.items():
    # The cases of arms that are still missing would be another calibration: the key says which.
    cases = sorted({forecasts.case_of(arm) for arm in group})
    name = f'{FOLDER}/{key}-{arms_lib.digest(cases)[:8]}.json'
    known = None if study.fresh else processes.of_first(
        lambda: workdir_lib.read_json(workdir.path / name)
    )
    if known is None:
      calibration = _measure(group, settings, session, say)
      # The clocks of all hosts differ: one of them chooses.
      known = processes.of_first(lambda: workdir_lib.to_json(calibration))
      workdir.write_json(name, known)
    calibration = costs_lib.from_json(known)
    calibrations |= {arm.key: calibration for arm in group}
  return calibrations


def choose(
    study: records.Study,
    rebuild: Callable[[costs_lib.Calibration], records.Study],
    session: runner_lib.Session,
    workdir: workdir_lib.Workdir,
    say: Say,
) -> tuple[records.Study, dict[str, costs_lib.Calibration]]:
  """Calibrates a study before it runs, in the dtype that is fastest at its smallest batch.

  Args:
    study: as the config has it.
    rebuild: calibration -> the study with its dtype and its width of plain passes.
    session: loads targets.
    workdir: keeps calibrations.
    say: is called with what is being measured.

  Returns:
    The study to run, and calibrations by its arms' keys.
  """
  size = lambda arm: arm.sizes.batch_size
  smallest = min(map(size, study.arms))
  here = [arm for arm in study.arms if size(arm) == smallest]
  first = of_arms(here, study, session, workdir, say)
  if not first:
    return study, {}
  calibration = next(iter(first.values()))
  study = rebuild(calibration)
  calibrations = {
      arm.key: calibration
      for arm in study.arms
      if size(arm) == smallest and forecasts.is_predicted(arm.recipe)
  }
  others = [arm for arm in study.arms if size(arm) != smallest]
  # The dtype is chosen; that of the file says nothing any more.
  settled = dataclasses.replace(study, costs=dataclasses.replace(study.costs, dtypes=()))
  return study, calibrations | of_arms(others, settled, session, workdir, say)


def _measure(group, settings, session, say) -> costs_lib.Calibration:
  """Measures on the arms' first batch, or on the first of the other prompts."""
  arm = group[0]
  loaded = session.load(arm.target)
  prompts = session.prompts(arm)
  runner = runner_lib.runner_of(arm, loaded, prompts)
  rows = [list(tokens) for _, tokens in (prompts.other or prompts.timed)]
  rows = rows[: arm.sizes.batch_size]
  # Greedy rules look at no law: the settings of an arm that samples serve all.
  sampled = next((each for each in group if each.temperature), arm)
  return forecasts.calibrate(
      group,
      loaded,
      prompts=rows,
      max_num_speculative_tokens=settings.max_num_speculative_tokens,
      widths=None if settings.curve else (),
      cache_length=runner.cache_length,
      prefill_chunk=arm.sizes.prefill_chunk,
      dtypes=settings.dtypes,
      sampling=sampled.sampling(len(rows)),
      rounds=settings.rounds,
      repetitions=settings.repetitions,
      progress=lambda line: say(f'calibration: {line}'),
  )
