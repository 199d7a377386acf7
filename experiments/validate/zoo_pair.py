"""Step 5: losslessness on the shipped pair, `benchmark_zoo`, and the tests of losslessness."""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
import tempfile
import threading

import jax
import jax.numpy as jnp

from experiments import workdir
from experiments.runs import lossless
from experiments.runs import records
from experiments.runs import runner as runner_lib
from experiments.validate import context as context_lib
from experiments.validate import results as results_lib
from specjax import drafters
from specjax import generation
from specjax import sampling as sampling_lib
from specjax import verify
from specjax import zoo
from specjax.models import fast_width

# Seconds from which a part is done at its full size.
_AMPLE = 600.0
_TESTS = ('test_lossless.py', 'test_engine.py', 'test_sampling.py')


def run(step: context_lib.Context) -> None:
  """What each part finds is kept as it goes; the benchmark gets what time is left."""
  # Products of float32 are those of float32, which accelerators do not do by default.
  with jax.default_matmul_precision('highest'):
    step.attempt('losslessness', _lossless, step)
  if missing := context_lib.has('ml_collections', 'rich', 'tensorboardX', 'jinja2'):
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
  """Drafters of the shipped pair beside plain decoding, as `configs/lossless.py` has them."""
  # Half of the time: the benchmark wants some too.
  clock = results_lib.Clock(step.clock.left() / 2)
  is_ample = clock.left() > _AMPLE
  count, length, new_tokens = (1, 8, 4) if step.smoke else (200 if is_ample else 16, 64, 32)
  sizes = records.Sizes(
      batch_size=1, max_new_tokens=new_tokens, cache_length=None, prefill_chunk=64, width=None,
      seed=0,
  )
  session, pairs = runner_lib.Session(), {}
  cases = [case for case in _cases(is_ample) if not step.smoke or case == _FIRST]
  done = 0
  for dtype, name, rule, temperature in clock.allows(cases):
    if dtype not in pairs:
      pairs = {dtype: zoo.load(dtype=jnp.dtype(dtype))}
    pair = pairs[dtype]
    sampling = functools.partial(sampling_lib.make, temperature=temperature)
    method = records.Method(rule, temperature, lambda size: sampling(batch_size=size))
    batches = [
        runner_lib.Batch((tuple(tokens),), row)
        for row, tokens in enumerate(pair.prompts(count, length=length))
    ]
    runner = runner_lib.Runner(
        pair.target, fast_width(pair.target), generation.bucket(length + new_tokens), sizes
    )

    def check() -> lossless.Check:
      drafter = _DRAFTERS[name](pair)
      methods = [dataclasses.replace(method, drafter=drafter, kind=name)] * len(batches)
      case = lossless.Case(runner, batches, methods, dtype, session)
      return lossless.check(case, case.run(), law=False)

    label, done = f'{name}, {rule.name}, {dtype}', done + 1
    found = step.attempt(label, check)
    if found is not None:
      step.results.add(
          label, measured=found.flips, predicted=0, unit='differing', prompts=count,
          kind=found.kind, lossless=True, largest_gap=found.largest_gap, gap_bound=found.gap_bound,
      )
  if done < len(cases):
    step.results.skip('other drafters', f'{len(cases) - done} of {len(cases)} did not fit the time')


# Drafters by name, each made from the pair; trees are checked in float32.
_DRAFTERS = {
    **{
        f'draft model, K={k}': lambda pair, k=k: drafters.model(
            pair.draft, num_speculative_tokens=k
        )
        for k in (4, 1, 8)
    },
    'adaptive draft model, K=4': lambda pair: drafters.model(
        pair.draft, num_speculative_tokens=4, min_confidence=0.3
    ),
    'prompt lookup, K=4': lambda pair: drafters.ngram(num_speculative_tokens=4),
    'EAGLE-3, K=4': lambda pair: drafters.eagle(
        pair.head('eagle3'), pair.target, num_speculative_tokens=4
    ),
    'draft tree': lambda pair: drafters.model_tree(pair.draft, tree=(3, 2, 1, 1)),
    'dynamic draft tree': lambda pair: drafters.model_tree(
        pair.draft, tree=drafters.dynamic_tree(num_nodes=20, depth=5, width=4)
    ),
    'suffix tree': lambda pair: drafters.suffix(
        vocab_size=pair.target.vocab_size, tree=(2, 2, 1, 1, 1, 1)
    ),
    'EAGLE-3 tree': lambda pair: drafters.eagle(pair.head('eagle3'), pair.target, tree=(3, 2, 1)),
}
_RULES = ((verify.greedy(), 0.0), (verify.coupled(), 1.0))
_FIRST = ('float32', 'draft model, K=4', *_RULES[0])


def _cases(is_ample: bool) -> list[tuple]:
  """(dtype, drafter, rule, temperature) of all rows, the most telling ones first."""
  cases = []
  for dtype, name, rule in itertools.product(('float32', 'bfloat16'), _DRAFTERS, _RULES):
    is_short = is_ample or 'K=4' in name or name == 'draft tree'
    if is_short and ('tree' not in name or dtype == 'float32'):
      cases.append((dtype, name, *rule))
  return cases


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
    # The file is written anew after every method; plain decoding's times change with it.
    for row in workdir.read_rows(metrics) if metrics.exists() else ():
      key = row['name'], row.get('rule'), row.get('temperature')
      if key not in seen:
        seen.add(key)
        _keep(results, row)

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
  if 'error' in row:
    results.add(row['name'], failed=row['error'])
    return
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
