"""Says whether a run fits on accelerators that are not here, and how fast it should be.

    python -m experiments.plan --config=configs/llama3_70b.py --workdir=runs/plan

Compiles the actual speculative loop for every TPU slice with the TPU's own compiler, reads
memory and collectives from the compiled program, and predicts tokens per second. The workdir gets
`config.json`, `metrics.jsonl` with a row for every slice, and `report.html` with the curves.
"""

import rich.console

from experiments import build_plan
from experiments import cli
from experiments import display
from experiments import report
from experiments import workdir as workdir_lib


def run(config, workdir: str, *, console: rich.console.Console | None = None) -> list[dict]:
  """Plans as `config` says; returns the rows of `metrics.jsonl`, one a slice.

  Raises:
    ValueError: for a slice, model or layout that does not exist or does not go together.
    ModuleNotFoundError: where TPU slices are to be compiled for and libtpu is not installed.
  """
  console = rich.console.Console() if console is None else console
  results = workdir_lib.open_workdir(workdir, config)
  names = (config.topology,) if config.topology else tuple(config.topologies)
  if not names:
    raise ValueError('Name a slice: --config.topology=v5p:2x2x2, or several in config.topologies.')
  cases = [build_plan.case(config, name) for name in names]  # refusals come before compilation
  rows = []
  for case in cases:
    with console.status(f'{case.where.name}: compiling …', refresh_per_second=4):
      rows.append(build_plan.row(config, case))
    results.record(rows[-1])
    _show(rows[-1], console)
  console.print(display.table([_summary(row) for row in rows]))
  console.print(
      '* not compiled: roofline alone. Tokens a second are of all rows, at the best K for the '
      'acceptance rate α.',
      highlight=False, soft_wrap=True,
  )
  report.write(results)
  console.print(f'Written to {results.path}.', highlight=False, soft_wrap=True)
  return rows


def _show(row: dict, console) -> None:
  """What there is to say of one slice, in a few lines."""
  say = lambda text: console.print(text, highlight=False, soft_wrap=True)
  gb = lambda value: '–' if value is None else f'{value / 1e9:.2f} GB'
  how = f'compiled in {row["compile_seconds"]:.0f} s' if row['compiled'] else 'not compiled'
  say(f'[bold]{row["topology"]}[/bold]  {row["mesh"]}, {how}')
  if row['kv_repeats'] > 1:
    say(f'  every key-value head is kept {row["kv_repeats"]} times')
  say(
      f'  a chip: weights {gb(row["weight_bytes"])} (draft {gb(row["draft_weight_bytes"])}), '
      f'caches {gb(row["cache_bytes"])}, temporaries {gb(row["temporary_bytes"])}, free '
      f'{gb(row["free_bytes"])} of {gb(row["hbm_bytes"])}'
  )
  if not row['fits']:
    say(f'  [bold red]does not fit[/bold red]: {row["advice"]}')
  if row['compiled']:
    say(
        f'  a layer: {row["all_reduces_per_layer"]:g} all-reduces, '
        f'{row["collectives_per_layer"]:g} collectives, '
        f'{row["collective_bytes_per_layer"] / 1e3:,.0f} kB; largest gathered array '
        f'{row["largest_gathered_elements"]:,} elements'
    )
  say(
      f'  reading {row["context"]} tokens per row, {row["prefill_chunk"]} at a time, one program: '
      f'{row["prefill_seconds"]:.2f} s by roofline'
      + (
          f', temporaries {gb(row["prefill_temporary_bytes"])}'
          if row['prefill_temporary_bytes'] is not None
          else ''
      )
  )
  say(
      f'  roofline: draft step {row["draft_step_ms"]:.2f} ms, target {row["target_step_ms"]:.2f} '
      f'ms at width 1 and {row["target_pass_ms"]:.2f} at {row["num_nodes"] + 1}'
  )
  if row['published_step_ms']:
    difference = row['target_step_ms'] / row['published_step_ms'] - 1
    say(
        f'  published: {row["published_step_ms"]:.2f} ms a plain step; the estimate is '
        f'{difference:+.0%} of that'
    )
  if row['compiler_draft_ms'] is not None:
    say(
        f'  compiler, products and memory without collectives: {row["compiler_draft_ms"]:.2f} ms '
        f'of drafting, {row["compiler_target_ms"]:.2f} ms for the target, '
        f'{row["compiler_rest_ms"]:.2f} ms for the rest of a round'
    )


def _summary(row: dict) -> dict:
  """A row of the last table."""
  middle = row['predictions'][len(row['predictions']) // 2]
  return {
      'slice': row['topology'] + ('' if row['compiled'] else ' *'),
      'fits': 'yes' if row['fits'] else 'no',
      'plain tok/s': f'{middle["plain"]:.0f}',
      f'α={middle["acceptance"]:g} tok/s': f'{middle["speculative"]:.0f}',
      'K': middle['num_speculative_tokens'],
      'speed-up': f'{middle["speedup"]:.2f}×',
      'pays to batch': report.plan.paying(row),
  }


if __name__ == '__main__':
  cli.main(run, workdir='runs/plan')
