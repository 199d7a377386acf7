"""Step 3: plain decoding of an 8B model against its bytes, where time goes, and the switches."""

import dataclasses

import jax

from experiments.validate import context as context_lib
from experiments.validate import machine
from experiments.validate import model as model_lib
from experiments.validate import profile as profile_lib
from experiments.validate import switches as switches_lib

TARGET = 'Llama-3.1-8B'
_ROOM = 128
# A value must be faster than the default by this much to be kept: times vary.
_PAYS = 0.99


def run(step: context_lib.Context) -> None:
  """Milliseconds at each batch and context, the profile of the first, then each switch."""
  bytes_a_second = machine.bandwidth(step)
  config = model_lib.preset(TARGET, smoke=step.smoke)
  target = model_lib.random_model(config)
  values = switches_lib.decided(step.decisions, step.switches)
  step.results.add('plain decoding', says=f'{TARGET}, bfloat16, random; {_told(values)}')
  contexts = (16, 48) if step.smoke else (1024, 8192)
  first = _Case(target, 1, contexts[0], values, step.smoke)
  step.attempt(first.name, _measure, step, first, bytes_a_second, profiled=True)
  cases = [(1, contexts[1]), (8, contexts[0]), (8, contexts[1])]
  work = [('size', case) for case in cases[:1]]
  work += [('switch', each) for each in _trials('command_buffers', first, step)]
  work += [('size', case) for case in cases[1:]]
  long = dataclasses.replace(first, batch=8, context=contexts[1])
  for switch, case in (
      ('attention', long), ('autotuning', first), ('latency_hiding', first), ('accept', first)
  ):
    work += [('switch', each) for each in _trials(switch, case, step)]
  done, times = 0, {}
  for kind, item in step.clock.allows(work):
    done += 1
    if kind == 'size':
      case = dataclasses.replace(first, batch=item[0], context=item[1])
      step.attempt(case.name, _measure, step, case, bytes_a_second, profiled=item == cases[-1])
    else:
      step.attempt(f'{item[0]}={item[1]}', _try, step, *item, times, essential=False)
  if done < len(work):
    left = [str(item[:2]) for _, item in work[done:]]
    step.results.skip('the rest of the step', f'did not fit the time: {", ".join(left)}')


@dataclasses.dataclass(frozen=True)
class _Case:
  """What is timed; `values` are those of the switches."""

  target: object
  batch: int
  context: int
  values: dict[str, str]
  smoke: bool

  @property
  def name(self) -> str:
    return f'plain step, B={self.batch}, context {self.context}'

  def bench(self) -> model_lib.Bench:
    module = self.target.module.clone(attention=switches_lib.attention(self.values))
    return model_lib.Bench(
        self.target.replace(module=module), self.batch, self.context, _ROOM,
        accept=self.values['accept'],
        options=switches_lib.compiler_options(self.values, jax.default_backend()),
        rounds=4 if self.smoke else 64, repetitions=2 if self.smoke else 5,
    )


def _told(values) -> str:
  return ', '.join(f'{name} {value}' for name, value in values.items())


def _measure(step, case: _Case, bytes_a_second: float, *, profiled: bool) -> None:
  bench = case.bench()
  seconds, _ = bench.seconds()
  num_bytes = model_lib.bytes_of_step(case.target, batch=case.batch, context=case.context)
  floor = num_bytes / bytes_a_second
  goal = dict(goal='plain', share=floor / seconds) if case.batch == 1 else {}
  step.results.add(
      case.name, measured=1e3 * seconds, predicted=1e3 * floor, unit='ms', **goal,
      gigabytes=num_bytes / 1e9,
  )
  if profiled:
    step.attempt(f'profile, {case.name}', profile_lib.keep, step, case.name, bench, seconds)


def _trials(switch: str, case: _Case, step: context_lib.Context):
  """Every value of a switch that was left open, the default first; none where it does nothing."""
  values = switches_lib.VALUES[switch] if step.switches.get(switch) is None else ()
  if not step.smoke and jax.default_backend() != 'gpu':
    values = ()
  if step.smoke:
    values = values[:2]
  return [(switch, value, case) for value in values]


def _try(step, switch: str, value: str, case: _Case, times: dict) -> None:
  """Times one value, and decides after each: a cut run keeps what it knew."""
  default = switches_lib.VALUES[switch][0]
  values = switches_lib.decided(step.decisions, step.switches) | {switch: value}
  seconds, _ = dataclasses.replace(case, values=values).bench().seconds()
  times[switch, value] = seconds
  base = times.get((switch, default))
  step.results.add(
      f'{switch}={value}, B={case.batch}, context {case.context}', measured=1e3 * seconds,
      predicted=None if base is None else 1e3 * base, unit='ms',
  )
  if base is not None:
    # Compared with the default as timed here, not with each other's noise.
    tried = {name: spent for (of, name), spent in times.items() if of == switch}
    best = min(tried, key=tried.get)
    kept = best if tried[best] < _PAYS * base else default
    switches_lib.decide(step.decisions, switch, kept)
    step.results.add(f'{switch} decided', says=kept)
