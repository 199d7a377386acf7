"""A plan as a terminal shows it."""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


def describe(row: Row) -> list[str]:
  """A slice in a few lines, with the markup of `rich`."""
  lines: list[str] = []
  say = lines.append
  gb = lambda value: '–' if value is None else f'{value / 1e9:.2f} GB'
  how = f'compiled in {row["compile_seconds"]:.0f} s' if row['compiled'] else 'not compiled'
  say(f'[bold]{row["topology"]}[/bold]  {row["mesh"]}, {how}')
  if row['kv_repeats'] > 1:
    say(f'  every key-value head is kept {row["kv_repeats"]} times')
  say(
      f'  per chip: weights {gb(row["weight_bytes"])} (draft {gb(row["draft_weight_bytes"])}), '
      f'caches {gb(row["cache_bytes"])}, temporaries {gb(row["temporary_bytes"])}, free '
      f'{gb(row["free_bytes"])} of {gb(row["hbm_bytes"])}'
  )
  if not row['fits']:
    say(f'  [bold red]does not fit[/bold red]: {row["advice"]}')
  if row['compiled']:
    say(
        f'  per layer: {row["all_reduces_per_layer"]:g} all-reduces, '
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
  if row['round_ms'] is not None:
    low, high = row['round_errors']
    say(
        f'  compiled program: a round {row["round_ms"]:.2f} ms ({row["round_ms"] / (1 + high):.2f} '
        f'to {row["round_ms"] / (1 + low):.2f} by the model\'s errors on published steps): '
        f'drafting {row["round_draft_ms"]:.2f}, target {row["round_score_ms"]:.2f}, verifying '
        f'{row["round_verify_ms"]:.2f}, committing {row["round_commit_ms"]:.2f}; its bytes alone '
        f'{row["round_bytes_ms"]:.2f}'
    )
  if row['published_step_ms']:
    difference = lambda name: f'{row[name] / row["published_step_ms"] - 1:+.0%}'
    say(
        f'  published: {row["published_step_ms"]:.2f} ms a plain step; the roofline is '
        f'{difference("target_step_ms")} of that'
        + (
            f', the compiled target {difference("plain_step_ms")}'
            if row['round_ms'] is not None else ''
        )
    )
  return lines


def summary(row: Row) -> dict[str, Any]:
  """A slice as a row of the table."""
  middle = row['predictions'][len(row['predictions']) // 2]
  limit = row['roofline_predictions'][len(row['predictions']) // 2]
  return {
      'slice': row['topology'] + ('' if row['compiled'] else ' *'),
      'fits': 'yes' if row['fits'] else 'no',
      'plain tok/s': f'{middle["plain"]:.0f}',
      f'α={middle["acceptance"]:g} tok/s': f'{middle["speculative"]:.0f}',
      'range': span(row, middle['speculative']),
      'K': middle['num_speculative_tokens'],
      'speed-up': f'{middle["speedup"]:.2f}×',
      'roofline': f'{limit["speculative"]:.0f}',
      'pays to batch': paying(row),
  }


def span(row: Row, tokens_per_second: float) -> str:
  """Tokens per second if the model is off by as much as on published steps; '' by roofline."""
  if not row['round_errors']:
    return ''
  low, high = (tokens_per_second * (1 + error) for error in row['round_errors'])
  return f'{low:.0f}–{high:.0f}'


def paying(row: Row) -> str:
  """Up to which batch speculation pays, or that it does for all that fit."""
  batch, most = row['largest_paying_batch'], row['largest_fitting_batch']
  if batch is None or batch >= most:
    return f'all that fit ({most})'
  return str(batch)
