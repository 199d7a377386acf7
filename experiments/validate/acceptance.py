"""Step 2: the acceptance op, its kernel against its definition, and what it costs."""

import itertools

from experiments.validate import context as context_lib
from experiments.validate import machine
from scripts import check_accept_gpu
from specjax.kernels.accept import api

# Batch 1 first: it is what a round is measured at.
_SIZES = ((1, 4), (1, 8), (1, 16), (8, 4), (8, 8), (8, 16), (64, 4), (64, 8), (64, 16))


def run(step: context_lib.Context) -> None:
  """Equality and milliseconds at every size, the rule of chains first, while there is time."""
  best, bytes_a_second = api.best(), machine.bandwidth(step)
  implementations = tuple(dict.fromkeys(('xla', best)))
  step.results.add('implementations', says=' against '.join(implementations))
  if 'torch' in context_lib.has('torch'):
    step.results.skip('the usual verifier in torch', 'torch is not installed')
  sizes = ((1, 2),) if step.smoke else _SIZES
  rules = ('rejection', 'greedy') if step.smoke else ('rejection', 'greedy', 'coupled', 'block')
  items = [(rule, *size) for size, rule in itertools.product(sizes, rules)]
  done = 0
  for rule, batch, size in step.clock.allows(items):
    done += 1
    name = f'{rule}, B={batch}, K={size}'
    row = step.attempt(name, _measure, step, batch, size, rule, bytes_a_second, implementations)
    if row is not None:
      _keep(step, name, row)
  if done < len(items):
    step.results.skip('other sizes', f'{len(items) - done} of {len(items)} did not fit the time')


def _measure(step, batch, size, rule, bytes_a_second, implementations):
  rows = check_accept_gpu.measure(
      batch, size, 1024 if step.smoke else 128_256, bytes_a_second,
      repetitions=3 if step.smoke else 20, implementations=implementations, rules=(rule,),
  )
  return next(rows)


def _keep(step, name, row) -> None:
  more = {'torch ms': row['milliseconds_torch'], 'xla ms': row['milliseconds_xla']}
  step.results.add(
      name, measured=row['milliseconds'], predicted=row['milliseconds_floor'], unit='ms', **more,
      different=f'{row["different"]} of {row["decisions"]}',
      log_probs_off=row['largest_log_prob_difference'],
  )
  if not row['equal']:
    step.results.add(f'{name}, equality', failed=f'{row["different"]} decisions differ')
