"""Step 5: losslessness on the shipped pair, `benchmark_zoo`, and the tests of losslessness."""

import contextlib
import json
import pathlib
import shutil
import tempfile
import threading

from absl import flags
import jax

from experiments.validate import context as context_lib
from experiments.validate import results as results_lib

# Seconds from which a part is done at its full size.
_AMPLE = 600.0
_TESTS = ('test_lossless.py', 'test_engine.py', 'test_sampling.py')


def run(step: context_lib.Context) -> None:
  """What each part finds is kept as it goes; the benchmark gets what time is left."""
  # Products of float32 are those of float32, which accelerators do not do by default.
  with jax.default_matmul_precision('highest'):
    step.attempt('losslessness', _lossless, step)
  if missing := context_lib.has('ml_collections', 'rich'):
    step.results.skip('benchmark_zoo', f'{", ".join(missing)} not installed')
  elif step.clock.left() < 20:
    step.results.skip('benchmark_zoo', 'no time was left')
  else:
    step.attempt('benchmark_zoo', _benchmark, step)
  if missing := context_lib.has('pytest'):
    step.results.skip('tests of losslessness', f'{", ".join(missing)} not installed')
  elif step.clock.left() < 20:
    step.results.skip('tests of losslessness', 'no time was left')
  else:
    step.attempt('tests of losslessness', _tests, step)


def _lossless(step: context_lib.Context) -> None:
  """`scripts/check_lossless.py`: chains in both dtypes, then trees, greedy and coupled."""
  from scripts import check_lossless

  # Half of the time: the benchmark wants some too.
  clock = results_lib.Clock(step.clock.left() / 2)
  sizes = dict(prompts=16, prompt_length=64, new_tokens=32, k=[4], parts=['chains', 'trees'])
  sizes |= dict(dtypes=['float32', 'bfloat16'])
  if clock.left() > _AMPLE:
    sizes |= dict(prompts=200, k=[4, 1, 8], parts=['chains', 'trees', 'heads'])
  if step.smoke:
    sizes |= dict(prompts=1, prompt_length=8, new_tokens=4, k=[1], parts=['chains'])
    sizes |= dict(dtypes=['float32'])
  for name, value in sizes.items():
    flags.FLAGS[name].value = value
  work = list(check_lossless.work())
  if step.smoke:
    work = work[:1]
  done = 0
  for who, make in clock.allows(work):
    done += 1
    name = f'{who["name"]}, {who["dtype"]}'
    row = step.attempt(name, make)
    if row is None:
      continue
    told = {key: value for key, value in row.items() if key not in ('name', 'dtype')}
    step.results.add(
        name, measured=row.get('differing_prompts', row.get('argmax_flips')), predicted=0,
        unit='differing', **told,
    )
    if not row.get('lossless', True):
      step.results.add(f'{name}, lossless', failed=f'{row["differing_prompts"]} prompts differ')
  if done < len(work):
    step.results.skip('other drafters', f'{len(work) - done} of {len(work)} did not fit the time')


def _benchmark(step: context_lib.Context) -> None:
  """`configs/benchmark_zoo.py`, its rows and its calibration copied as soon as they are there."""
  from configs import benchmark_zoo
  from experiments import benchmark

  config = benchmark_zoo.get_config('smoke' if step.smoke else '')
  if not step.smoke and step.clock.left() < _AMPLE:
    # What compiles least and tells most.
    config.order = ('draft_greedy', 'ngram_greedy', 'draft_block')
    config.trace_methods, config.repetitions, config.num_prompts = (), 1, 8
    config.acceptance.num_prompts, config.calibration.dtypes = 16, ()
  folder = pathlib.Path(tempfile.mkdtemp(prefix='specjax_benchmark_'))
  try:
    with _followed(step.results, folder):
      benchmark.run(config, str(folder))
    packed = {path.name: path for path in folder.iterdir() if path.is_file()}
    step.results.pack(results_lib.ZOO, packed)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _followed(results: results_lib.Results, folder: pathlib.Path):
  """Keeps what a run writes into its folder, from a thread of its own."""
  over, seen = threading.Event(), set()

  def look():
    calibration, metrics = folder / 'calibration.json', folder / 'metrics.jsonl'
    if calibration.exists() and 'calibration' not in seen:
      seen.add('calibration')
      found = json.loads(calibration.read_text(encoding='utf-8-sig'))
      results.add('calibration', calibration=found)
    text = metrics.read_text(encoding='utf-8-sig') if metrics.exists() else ''
    lines = text.splitlines(keepends=True)
    for line in lines[len(seen - {'calibration'}) :]:
      if line.endswith('\n'):
        seen.add(len(seen))
        _keep(results, json.loads(line))

  def follow():
    while not over.wait(0.5):
      look()

  thread = threading.Thread(target=follow, daemon=True)
  thread.start()
  try:
    yield
  finally:
    over.set()
    thread.join()
    look()


def _keep(results: results_lib.Results, row: dict) -> None:
  results.add(
      f'{row["name"]}, {row["rule"]}, T={row["temperature"]}', measured=row['speedup'],
      predicted=row['predicted_speedup'], unit='times plain',
      tokens_a_second=row['tokens_per_second'], lossless=row['lossless'], dtype=row['dtype'],
  )


def _tests(step: context_lib.Context) -> None:
  """Those that hold the laws exactly, wherever they lie among the tests."""
  import pytest

  root = pathlib.Path(__file__).parents[2]
  files = [str(path) for name in _TESTS for path in sorted(root.glob(f'tests/**/{name}'))]
  counts: dict[str, int] = {}

  class Recorder:
    def pytest_runtest_logreport(self, report):
      if report.when == 'call' or report.failed:
        counts[report.outcome] = counts.get(report.outcome, 0) + 1
        if report.failed:
          step.results.add(report.nodeid, failed=str(report.longrepr)[-300:].replace('\n', ' '))

    def pytest_runtest_setup(self, item):
      if step.clock.left() < 0:
        pytest.exit('the time is over')

  wanted = ['-k', 'protocol'] if step.smoke else []
  with jax.default_matmul_precision('highest'):
    pytest.main(['-q', '-p', 'no:cacheprovider', *wanted, *files], plugins=[Recorder()])
  step.results.add('tests of losslessness', measured=counts.get('passed', 0), unit='passed')
