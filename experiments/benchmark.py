"""Measures methods against plain decoding on held-out prompts, one prompt at a time.

    python -m experiments.benchmark --config=configs/benchmark_zoo.py --workdir=runs/benchmark_zoo

Four steps, all in this process: the calibration (costs of this machine; fast dtype and
width), the acceptance of every method on other prompts than those timed, the runs themselves
in turns, and the comparison with plain decoding token by token. The workdir gets
`metrics.jsonl` with a row for each method, `calibration.json`, `traces.json` and
`report.html`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import re
from typing import Any

import jax.numpy as jnp
import ml_collections
import rich.console

import specjax
from benchmarks import peers
from experiments import build
from experiments import cli
from experiments import display
from experiments import forecasts
from experiments import lossless
from experiments import methods as methods_lib
from experiments import prompts as prompts_lib
from experiments import report
from experiments import workdir as workdir_lib
from specjax import detokenize
from specjax import generation
from specjax.analysis import calibration as calibration_lib
from specjax.analysis import records
from specjax.analysis import theory
from specjax.models import fast_width

Method, Runner = methods_lib.Method, methods_lib.Runner


def run(
    config, workdir: str, *, console: rich.console.Console | None = None
) -> list[records.Record]:
  """Benchmarks as `config` says; returns the rows.

  Raises:
    ValueError: if the config cannot be run, before anything is computed.
    FileNotFoundError: if a model or a prompt file is missing.
    FloatingPointError: if the target's logits are not numbers.
  """
  console = rich.console.Console() if console is None else console
  if 'peers' in config:
    return peers.run(config, workdir, console=console)
  for key in config.order:
    _check(config, key)
  results = workdir_lib.open_workdir(workdir, config)
  loaded = build.load(config)
  timed, other = _prompts(config, loaded)
  size = max(len(prompt) for prompt in timed) + config.max_new_tokens
  cache_length = config.cache_length or generation.bucket(size)

  traces = []
  with console.status('loading …') as status:
    say = _teller(console, status)
    if config.stream_method:
      runner = _runner(config, loaded, fast_width(loaded.target), cache_length)
      traces.append(_stream(config, loaded, runner, timed[0], console, status))
    calibration = _calibrate(config, loaded, other, cache_length, say)
    if calibration is not None:
      results.write_json(report.CALIBRATION, calibration)
      _print_costs(calibration, console)
      config = ml_collections.ConfigDict(config.to_dict() | {'dtype': calibration.dtype})
      loaded = build.load(config)
    width = calibration.width if calibration else fast_width(loaded.target)
    runner = _runner(config, loaded, width, cache_length)
    methods, predictions = _methods(config, loaded, runner, calibration, other, say)
    rows = _rows(config, runner, methods, predictions, timed, say)
    for row in rows:
      results.record(dataclasses.asdict(row))
    for method in methods:
      if method.key in config.trace_methods and method.key != config.stream_method:
        say(f'tracing {method.name}, {method.rule_name}')
        output = runner(method, timed[:1], trace=True)
        traces.append(_trace(output, method, loaded))
  results.write_json(report.TRACES, traces)
  path = report.write(results)
  console.print()
  console.print(display.table([_summary(row, config.calibration.enabled) for row in rows]))
  console.print(f'\n{_NOTE}', highlight=False)
  console.print(f'Written to {results.path}; open {path}.', highlight=False, soft_wrap=True)
  return rows


def _teller(console: rich.console.Console, status) -> Callable[[str], None]:
  """Shows what is being done: in place on a terminal, else a line for every kind of work."""
  said = set()

  def say(line: str) -> None:
    status.update(line)
    # Counts and names that follow are the status line's; what is going on is said once.
    kind = re.split(r'[:,]| \d', line)[0].strip()
    if not console.is_terminal and kind not in said:
      said.add(kind)
      console.print(f'{kind} …', highlight=False)

  return say


_NOTE = (
    'Argmax flips: prompts that part from plain decoding where rounding explains it; all others '
    "are token for token the same. 'same law': other tokens from the same distribution. Speed-ups "
    'are over plain decoding at the same temperature.'
)


def _check(config, key: str) -> None:
  """Refuses a method that cannot be run; K = 0 is open here, to be chosen."""
  settings = methods_lib.method_settings(config, key)
  open_length = not settings.drafter.num_speculative_tokens
  if open_length and not config.calibration.enabled:
    raise ValueError(
        f'config.methods.{key}.drafter.num_speculative_tokens is 0, which asks for the K that '
        'the calibration predicts to be fastest: set config.calibration.enabled, or a K.'
    )
  if open_length:
    settings.drafter.num_speculative_tokens = 1
  build.check(settings)


def _prompts(config, loaded: build.Loaded) -> tuple[list, list]:
  """Token lists to time, and others to learn acceptance from."""
  counts = config.num_prompts, config.acceptance.num_prompts
  if min(counts) < 1:
    raise ValueError(
        'config.num_prompts and config.acceptance.num_prompts must be at least 1, got '
        f'{counts[0]} and {counts[1]}.'
    )
  length = config.prompt_tokens
  if loaded.pair is not None and not config.prompt_file:
    found = loaded.pair.prompts(sum(counts), length=length)
  else:
    texts = prompts_lib.texts(file=config.prompt_file, held_out=loaded.held_out)
    encoded = prompts_lib.encode(texts, loaded.tokenizer, max_tokens=length)
    found = [list(prompt.tokens) for prompt in encoded]
  if len(found) < sum(counts):
    raise ValueError(
        f'{counts[0]} prompts to time and {counts[1]} others were asked for, {len(found)} are '
        'there: lower config.num_prompts or config.acceptance.num_prompts.'
    )
  return found[: counts[0]], found[counts[0] : sum(counts)]


def _runner(config, loaded: build.Loaded, width: int, cache_length: int) -> Runner:
  return Runner(
      target=loaded.target,
      width=width,
      max_new_tokens=config.max_new_tokens,
      cache_length=cache_length,
      prefill_chunk=config.prefill_chunk,
      seed=config.seed,
  )


def _calibrate(
    config, loaded: build.Loaded, prompts, cache_length: int, say: Callable[[str], None]
) -> calibration_lib.Calibration | None:
  """Costs on this machine, for the rules and drafters of the methods."""
  settings = config.calibration
  if not settings.enabled:
    return None
  methods = [methods_lib.method_settings(config, key) for key in config.order]
  methods = [each for each in methods if forecasts.is_predicted(each)]
  if not methods:
    return None
  # Greedy rules look at no law: the settings of the methods that sample serve all.
  sampling = build.sampling(next((s for s in methods if s.sampling.temperature), config), 1)
  return forecasts.calibrate(
      methods,
      loaded,
      prompts=[prompts[0]],
      max_num_speculative_tokens=settings.max_num_speculative_tokens,
      widths=None if settings.curve else (),
      cache_length=cache_length,
      prefill_chunk=config.prefill_chunk,
      dtypes=settings.dtypes,
      sampling=sampling,
      rounds=settings.rounds,
      repetitions=settings.repetitions,
      progress=lambda line: say(f'calibration: {line}'),
  )


def _print_costs(found: calibration_lib.Calibration, console: rich.console.Console) -> None:
  rows = []
  for costs in found.rules:
    points = [(name, k) for name, points in costs.drafting.items() for k, _ in points]
    terms = [(name, k, found.cost(costs.rule, k, drafter=name)) for name, k in points]
    terms += [
        (name, tree.num_nodes, found.tree_cost(costs.rule, name))
        for name, tree in costs.trees.items()
    ]
    for drafter, k, cost in terms:
      rows.append({
          'rule': costs.rule,
          'drafter': drafter,
          'K or N': k,
          'plain step, ms': 1000 * costs.plain,
          'c': cost.draft_cost,
          'r': cost.pass_cost,
          'o': cost.overhead,
      })
  title = f'Calibration: {found.dtype}, {found.width} tokens a plain pass (c, r, o in plain steps)'
  console.print(display.table(rows, title=title))
  others = [each for each in found.candidates if each.dtype != found.dtype]
  if others:
    fastest = min(others, key=lambda each: each.seconds)
    wide = 1000 * fastest.pass_seconds
    console.print(
        f'In {fastest.dtype} a plain step takes {1000 * fastest.seconds:.2f} ms, a pass of '
        f'{found.max_num_speculative_tokens + 1} tokens {wide:.2f} ms.',
        highlight=False,
    )
  console.print()


def _methods(config, loaded, runner, calibration, other, say):
  """All methods, plain decoding first, and the predictions of those that speculate."""
  found, predictions = [], {}
  for key in config.order:
    method = methods_lib.method(config, key, loaded, num_speculative_tokens=1)
    if calibration is None or not forecasts.is_predicted(method.settings):
      found.append(method)
      continue
    learn = lambda method: methods_lib.acceptance(
        runner,
        method,
        other,
        batch_size=min(config.acceptance.batch_size, len(other)),
        first=config.num_prompts,
    )
    say(f'acceptance on other prompts: {method.name}, {method.rule_name}')
    if not config.methods[key].drafter.num_speculative_tokens:
      largest = calibration.max_num_speculative_tokens
      longest = methods_lib.method(config, key, loaded, num_speculative_tokens=largest)
      rates = learn(longest).rates
      k = forecasts.best_length(calibration, method.settings, rates)
      method = methods_lib.method(config, key, loaded, num_speculative_tokens=k)
    seen = learn(method)
    found.append(method)
    predictions[key] = forecasts.predict(
        calibration,
        method.settings,
        seen.rates,
        num_drafted=seen.num_drafted,
        free_share=seen.free_share,
    )
  return methods_lib.plain_methods(config, found) + found, predictions


def _rows(
    config,
    runner: Runner,
    methods: Sequence[Method],
    predictions: dict[str, theory.Prediction],
    prompts,
    say: Callable[[str], None],
) -> list[records.Record]:
  """Times everything and makes the rows."""
  timed = methods_lib.time(runner, methods, prompts, repetitions=config.repetitions, say=say)
  say('comparing with plain decoding')
  checks = lossless.check_timed(runner, methods, prompts, timed.outputs)
  rows = []
  for method in methods:
    plain = methods_lib.plain_of(method, methods)
    outputs = timed.outputs[plain.key]
    rows.append(
        records.record(
            timed.outputs[method.key],
            name=method.name,
            rule=method.rule_name,
            drafter=method.kind,
            temperature=method.temperature,
            num_speculative_tokens=method.num_speculative_tokens,
            dtype=str(jnp.dtype(runner.target.module.dtype)),
            width=runner.width_of(method),
            seconds=timed.seconds[method.key],
            plain=(timed.seconds[plain.key], [output.num_new_tokens for output in outputs]),
            prediction=predictions.get(method.key),
            **(checks[method.key].fields if method.key in checks else {}),
        )
    )
  return rows


def _stream(config, loaded, runner: Runner, prompt, console, status) -> dict[str, Any]:
  """Shows a completion as it is made; returns its trace for the report."""
  method = methods_lib.method(config, config.stream_method, loaded, num_speculative_tokens=4)
  status.update('compiling …')
  options = runner.options(method, 1) | dict(
      trace=True, stop_tokens=loaded.stop_tokens, tokenizer=loaded.tokenizer
  )
  # One round compiles everything: how many rounds a call takes is not compiled in.
  next(specjax.stream(loaded.target, [prompt], **options, rounds_per_chunk=1))
  status.stop()
  console.rule(f'{method.name}, {method.rule_name}: accepted draft tokens in colour', align='left')
  text = detokenize.text(loaded.tokenizer, prompt)
  display.write(
      console, ''.join(text.splitlines(keepends=True)[-8:]), display.COLOURS['prompt']
  )
  shown = display.TokenStream(console, loaded.tokenizer)
  chunk = config.rounds_per_chunk
  for output in specjax.stream(loaded.target, [prompt], **options, rounds_per_chunk=chunk):
    shown.update(output)
  console.print('\n')
  status.start()
  return _trace(output, method, loaded)


def _trace(output, method: Method, loaded: build.Loaded) -> dict[str, Any]:
  name = f'{method.name}, {method.rule_name}, T = {method.temperature:g}'
  return report.trace_entry(output, loaded.tokenizer, name=name)


def _summary(row: records.Record, predicted: bool) -> dict[str, Any]:
  cells = {
      'method': row.name,
      'rule': row.rule,
      'T': f'{row.temperature:g}',
      'tokens/s': row.tokens_per_second,
      'speed-up': f'{row.speedup:.2f}×',
  }
  if predicted:
    known = row.predicted_speedup is not None
    cells['forecast'] = f'{row.predicted_speedup:.2f}×' if known else ''
  return cells | {
      'accept. length': f'{row.mean_acceptance_length:.2f}',
      'argmax flips': {'same law': 'same law', 'lossy': 'LOSSY', 'differs': 'DIFFERS'}.get(
          row.lossless, row.flips
      ),
  }


if __name__ == '__main__':
  cli.main(run)
