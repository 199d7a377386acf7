"""The sections of a report as HTML: tiles, tables, and the places of its plots."""

from collections.abc import Mapping, Sequence
import html
from typing import Any

from experiments import ablate_table
from experiments import charts
from experiments.report import plots

Row = Mapping[str, Any]

_ENDS = (('', 'value'), ('_low', 'low'), ('_high', 'high'))


def machine(row: Row) -> str:
  hardware, versions = row.get('hardware') or {}, row.get('versions') or {}
  parts = [str(hardware.get('device', ''))]
  if hardware.get('platform') == 'cpu' and hardware.get('cpu_cores'):
    parts.append(f'{hardware["cpu_cores"]} cores')
  parts += [f'{name} {versions[name]}' for name in ('jax', 'python') if name in versions]
  return ' · '.join([part for part in parts if part] + [str(row.get('dtype', ''))])


def tiles(rows: Sequence[Row], calibration: Row | None) -> str:
  """The numbers to take away."""
  tiles = []
  chosen = best(rows)
  if chosen is not None:
    tiles.append((f'{chosen["speedup"]:.2f}×', f'fastest: {_name(chosen)}'))
  checked = [row for row in rows if row['identical_to_plain'] is not None]
  if checked:
    same = sum(row['identical_to_plain'] for row in checked)
    rounded = sum(row.get('lossless') == 'rounding' for row in checked)
    text = 'methods give the tokens of plain decoding, where tokens can be compared'
    text += f'; {rounded} of them but for rounding' if rounded else ''
    tiles.append((f'{same + rounded} of {len(checked)}', text))
  errors = [abs(row['predicted_speedup'] / row['speedup'] - 1) for row in rows if _predicted(row)]
  if errors:
    tiles.append((f'{100 * max(errors):.0f} %', 'largest difference, predicted and measured'))
  terms = [row['prediction']['overhead'] for row in rows if row.get('prediction')]
  if terms and calibration:
    tiles.append((f'{100 * terms[0]:.1f} %', 'overhead of a round, in plain steps'))
  body = ''.join(
      f'<div class="tile"><b>{html.escape(big)}</b><span>{html.escape(small)}</span></div>'
      for big, small in tiles
  )
  return f'<div class="tiles">{body}</div>'


def best(rows: Sequence[Row]) -> Row | None:
  """The fastest row that speculates."""
  sped_up = [row for row in rows if row['speedup'] and row['num_speculative_tokens']]
  return max(sped_up, key=lambda row: row['speedup'], default=None)


def _predicted(row: Row) -> bool:
  return bool(row.get('predicted_speedup') and row.get('speedup'))


def table(rows: Sequence[Row]) -> str:
  """The headline table: a row for each method, or each arm of a sweep."""
  swept = any('arm' in row for row in rows)
  expected = any(row.get('expected_tokens_per_round') for row in rows)
  gains = any(row.get('gain') is not None for row in rows)
  columns = [
      ('left', 'arm' if swept else 'method'), ('left', 'rule'), ('', 'temp.'), ('', 'tokens/s'),
      ('left', 'speed-up'), ('', 'predicted'), ('left wrap', 'mean acceptance length'),
  ]
  columns += [('', 'expected')] if expected else []
  columns += [('left', 'gain')] if gains else []
  columns += [
      ('wrap', 'drafts accepted'), ('wrap', 'target passes'), ('left wrap', 'identical to plain')
  ]
  head = ''.join(f'<th class="{style}">{name}</th>' for style, name in columns)
  chosen, body = best(rows), []
  for row in rows:
    plain = not row['num_speculative_tokens']
    cells = [
        f'<td>{html.escape(row["name"])}</td>',
        f'<td class="left">{html.escape(row["rule"])}</td>',
        f'<td>{row["temperature"]:g}</td>',
        f'<td>{row["tokens_per_second"]:.0f}</td>',
        _estimate(row, 'speedup', '×', shown=not plain and row['prompts'] > 1),
        f'<td>{_number(row["predicted_speedup"], "×")}</td>',
        _estimate(row, 'mean_acceptance_length'),
    ]
    if expected:
      cells.append(f'<td>{_number(row.get("expected_tokens_per_round"))}</td>')
    if gains:
      cells.append(_estimate(row, 'gain', ' %', scale=100.0, digits=1))
    cells += [
        f'<td>{_percent(row["draft_acceptance_rate"])}</td>',
        f'<td>{row["target_passes"]}</td>',
        _identity(row),
    ]
    body.append(f'<tr{" class=best" if row is chosen else ""}>{"".join(cells)}</tr>')
  counts = sorted({row['prompts'] for row in rows}), sorted({row['new_tokens'] for row in rows})
  said = [f'{low[0]}' if len(low) == 1 else f'{low[0]} to {low[-1]}' for low in counts]
  return (
      f'<section><h2>{"Arms" if swept else "Methods"}</h2><p class="muted">Prompts: {said[0]}. '
      f'New tokens of each row: {said[1]}, decoding only (no prefill, no compilation). Small '
      'numbers: 95 % interval over prompts. '
      '“Same law” marks rules that draw other tokens from the same distribution.</p>'
      f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div></section>'
  )


def _estimate(
    row: Row, name: str, unit: str = '', *, shown: bool = True, scale: float = 1.0, digits: int = 2
) -> str:
  """A cell with a number and its interval."""
  value, low, high = (row.get(f'{name}{end}') for end in ('', '_low', '_high'))
  if value is None:
    return '<td class="left">–</td>'
  text = f'{scale * value:.{digits}f}{unit}'
  if shown and low is not None:
    text += f'<small>{scale * low:.{digits}f}–{scale * high:.{digits}f}</small>'
  return f'<td class="left">{text}</td>'


def _identity(row: Row) -> str:
  same = row['identical_to_plain']
  if same is not None:
    style, text = ('yes', 'yes') if same else ('no', 'no')
    if row.get('lossless') == 'rounding':
      style, text = 'yes', f'but for rounding ({row["flips"]})'
  else:
    style, text = 'na', 'same law' if row['num_speculative_tokens'] else 'reference'
    if row.get('lossless') == 'lossy':
      style, text = 'no', 'lossy'
  return f'<td class="left {style}">{text}</td>'


def speedups(rows: Sequence[Row]) -> str:
  """Bars for methods; a sweep has its plots instead."""
  groups = []
  for row in rows if not any('arm' in row for row in rows) else ():
    if not row['num_speculative_tokens'] or row['speedup'] is None:
      continue
    label = f'{row["name"]}, {row["rule"]}'
    measured = charts.Bar(
        row['speedup'], 'measured', f'{label}: measured', row['speedup_low'], row['speedup_high']
    )
    bars = [measured]
    if row['predicted_speedup'] is not None:
      bars.append(charts.Bar(row['predicted_speedup'], 'predicted', f'{label}: predicted'))
    groups.append((label, tuple(bars)))
  if not groups:
    return ''
  chart = charts.bars(groups, unit='×', reference=1.0)
  legend = '<span><i class="measured"></i>measured, with its interval</span>'
  title, note = 'Speed-up, measured', ''
  if any(len(bars) > 1 for _, bars in groups):
    legend += '<span><i class="predicted"></i>predicted</span>'
    title = 'Speed-up, measured and predicted'
    note = (
        '<p class="muted">Predicted from the costs of the calibration and the acceptance on other '
        'prompts.</p>'
    )
  return f'<section><h2>{title}</h2>{note}<div class="legend">{legend}</div>{chart}</section>'


def terms(rows: Sequence[Row]) -> str:
  """The formula, term by term."""
  rows = [row for row in rows if row.get('prediction')]
  if not rows:
    return ''
  head = '<th>method</th><th class="left">rule</th>' + ''.join(
      f'<th>{name}</th>'
      for name in ('E', 'steps', 'c', 'r(K+1)', 'o', 'predicted', 'measured', 'difference')
  )
  body = []
  for row in rows:
    terms = row['prediction']
    numbers = [
        _number(terms['tokens_per_round']), _number(terms['num_drafted']),
        _number(terms['draft_cost'], digits=3), _number(terms['pass_cost'], digits=3),
        _number(terms['overhead'], digits=3), _number(row['predicted_speedup'], '×'),
        _number(row['speedup'], '×'),
        f'{100 * (row["predicted_speedup"] / row["speedup"] - 1):+.0f} %',
    ]
    cells = ''.join(f'<td>{cell}</td>' for cell in numbers)
    name, rule = html.escape(row['name']), html.escape(row['rule'])
    body.append(f'<tr><td>{name}</td><td class="left">{rule}</td>{cells}</tr>')
  return (
      '<section><h2>Where the time goes</h2><p class="muted">S = E / (steps · c + r(K+1) + o): '
      'expected tokens per round (other prompts), draft steps per round, cost of a draft step, of '
      'the target pass over K+1 tokens, and of everything else, in plain decoding steps.</p>'
      f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div></section>'
  )


def acceptance(rows: Sequence[Row]) -> str:
  """Acceptance by position as a table."""
  rows = [row for row in rows if row['acceptance_rate_per_position']]
  if not rows:
    return ''
  depth = max(len(row['acceptance_rate_per_position']) for row in rows)
  head = '<th>method</th><th class="left">rule</th>' + ''.join(
      f'<th style="text-align:center">{position}</th>' for position in range(1, depth + 1)
  )
  body = []
  for row in rows:
    cells = []
    for rate in row['acceptance_rate_per_position']:
      share = 0 if rate is None else round(70 * rate)
      colour = f'color-mix(in srgb, var(--accepted) {share}%, transparent)'
      cells.append(f'<td class="heat" style="background:{colour}">{_percent(rate)}</td>')
    name, rule = html.escape(row['name']), html.escape(row['rule'])
    body.append(f'<tr><td>{name}</td><td class="left">{rule}</td>{"".join(cells)}</tr>')
  return (
      '<details><summary>The numbers, in percent</summary><div class="scroll"><table>'
      f'<tr>{head}</tr>{"".join(body)}</table></div></details>'
  )


def costs(calibration: Row) -> str:
  """The curve r(m), and what was compared for the fastest way of plain decoding."""
  plain = calibration['rules'][0]['plain']
  compared = ', '.join(
      f'{entry["dtype"]} at {entry["width"]}: {1000 * entry["seconds"]:.2f} ms'
      for entry in calibration['candidates']
  )
  if compared:
    compared = f' Compared for it (dtype at tokens per pass): {html.escape(compared)}.'
  return plot(
      plots.pass_costs(calibration),
      'Cost of a target pass',
      f'The less a further token of a pass costs, the more drafting pays. A plain step takes '
      f'{1000 * plain:.2f} ms in {html.escape(calibration["dtype"])} at {calibration["width"]} '
      f'tokens per pass, cache of {calibration["cache_length"]}.{compared} Medians of '
      f'{calibration["repetitions"]} interleaved repetitions; spread at most '
      f'{100 * calibration["noise"]:.0f} %.',
  )


def plot(made: plots.Plot, title: str, note: str, below: str = '') -> str:
  """The place of a plot, which the page's script fills, with what stands below it."""
  return (
      f'<section><h2>{title}</h2><p class="muted">{note}</p><div class="plot" '
      f'data-plot="{html.escape(made["id"])}"></div>{below}</section>'
  )


def rounds(rows: Sequence[Row]) -> str:
  """Where the time of a round goes: modelled parts, their sum, and the stopwatch."""
  rows = [row for row in rows if row.get('round_seconds')]
  if not rows:
    return ''
  heads = ('draft', 'verify', 'rest', 'sum', 'measured', 'difference')
  head = '<th>arm</th>' + ''.join(f'<th>{name}</th>' for name in heads)
  body = []
  for row in rows:
    parts = row['round_seconds']
    total = sum(parts[name] for name in heads[:3])
    numbers = [1000 * value for value in (*(parts[n] for n in heads[:3]), total, parts['measured'])]
    cells = ''.join(f'<td>{number:.3f}</td>' for number in numbers)
    cells += f'<td>{100 * (total / parts["measured"] - 1):+.0f} %</td>'
    body.append(f'<tr><td>{html.escape(plots.name_of(row))}</td>{cells}</tr>')
  return (
      '<details><summary>The numbers, in milliseconds a round</summary><div class="scroll"><table>'
      f'<tr>{head}</tr>{"".join(body)}</table></div></details>'
  )


def categories(rows: Sequence[Row]) -> str:
  """Tokens a round by category of prompts, where there are several."""
  rows = [row for row in rows if row.get('by_category')]
  if not rows:
    return ''
  names = sorted({name for row in rows for name in row['by_category']})
  head = '<th>arm</th>' + ''.join(f'<th class="left">{html.escape(name)}</th>' for name in names)
  body = []
  for row in rows:
    cells = ''
    for name in names:
      found = row['by_category'].get(name)
      values = {f'value{end}': found[key] for end, key in _ENDS} if found else {}
      cells += _estimate(values, 'value')
    body.append(f'<tr><td>{html.escape(plots.name_of(row))}</td>{cells}</tr>')
  return (
      '<section><h2>Tokens a round by kind of prompt</h2><div class="scroll"><table>'
      f'<tr>{head}</tr>{"".join(body)}</table></div></section>'
  )


def failures(rows: Sequence[Row]) -> str:
  """Arms that failed, with their errors."""
  if not rows:
    return ''
  body = ''.join(
      f'<tr><td>{html.escape(row["arm"])}</td><td class="left no">{html.escape(row["error"])}</td>'
      '</tr>'
      for row in rows
  )
  return f'<section><h2>Failed arms</h2><div class="scroll"><table>{body}</table></div></section>'


def definitions_of(rows: Sequence[Row]) -> Sequence[str]:
  """The definitions of a sweep's columns; methods have theirs beside their tables."""
  return ablate_table.DEFINITIONS if any('arm' in row for row in rows) else ()


def definitions(lines: Sequence[str]) -> str:
  """What the numbers mean."""
  if not lines:
    return ''
  items = ''.join(f'<li>{html.escape(line)}</li>' for line in lines)
  return f'<section><h2>Definitions</h2><ul>{items}</ul></section>'


def _name(row: Row) -> str:
  return row['name'] if 'arm' in row else f'{row["name"]}, {row["rule"]}'


def _number(value: float | None, unit: str = '', *, digits: int = 2) -> str:
  return '–' if value is None else f'{value:.{digits}f}{unit}'


def _percent(value: float | None) -> str:
  return '–' if value is None else f'{100 * value:.0f} %'


