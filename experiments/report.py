"""Makes `report.html` of a finished run from what lies in its workdir.

    python -m experiments.report --workdir=runs/benchmark_zoo

Reads `metrics.jsonl`, and `calibration.json`, `traces.json` and `config.json` where they are
there. The page is one file: no script, style, font or picture is loaded from anywhere.
"""

from collections.abc import Mapping, Sequence
import html
import json
import pathlib
import string
from typing import Any

from absl import app
from absl import flags
import numpy as np

from experiments import charts
from experiments import workdir as workdir_lib
from specjax.analysis import traces as traces_lib
from specjax.generation import GenerateOutput

CALIBRATION, TRACES = 'calibration.json', 'traces.json'

Row = Mapping[str, Any]

_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$css</style>
</head>
<body><main>
<h1>$title</h1>
<p class="muted">$subtitle</p>
$body
<footer>$footer</footer>
</main><div id="tip" role="tooltip"></div>
$script
</body>
</html>
""")

_TRACE_SECTION = """<section><h2>Round by round</h2>
<p class="muted">Point at the text (or move through it with Tab) to see what was drafted in that
round, with the probabilities of draft and target.</p>
<div class="legend"><span><i class="accepted"></i>drafted and accepted</span>
<span><i class="recovered"></i>recovered: the target's, in place of a rejected draft</span>
<span><i class="bonus"></i>bonus: the target's, after a fully accepted draft</span>
<span class="prompt">prompt</span>
<label><input type="checkbox" id="rejected-toggle"> show rejected drafts</label></div>
<div class="tabs" id="trace-tabs"></div><div id="trace-view"></div></section>"""


def write(workdir: workdir_lib.Workdir) -> pathlib.Path:
  """Writes the report of what `workdir` holds; returns its path.

  Raises:
    FileNotFoundError: if there is no `metrics.jsonl`.
    ValueError: if a file is not JSON.
  """
  page = render(
      rows=workdir_lib.read_rows(workdir.path),
      calibration=_read(workdir.path / CALIBRATION),
      traces=_read(workdir.path / TRACES) or [],
      config=workdir.config,
  )
  return workdir_lib.write_atomically(workdir.path / workdir_lib.REPORT, page)


def render(
    *,
    rows: Sequence[Row],
    calibration: Row | None = None,
    traces: Sequence[Row] = (),
    config: Row | None = None,
) -> str:
  """The page as text.

  Args:
    rows: of `metrics.jsonl`: of methods (`specjax.analysis.Record`) or of training steps.
    calibration: a `specjax.analysis.Calibration` as JSON, or None.
    traces: of `trace_entry`.
    config: of the run, shown as it is.
  """
  config = config or {}
  methods = [row for row in rows if 'tokens_per_second' in row and 'rule' in row]
  steps = [row for row in rows if 'step' in row and 'loss' in row]
  parts = []
  if methods:
    parts += [_tiles(methods, calibration), _table(methods), _speedups(methods)]
    parts += [_terms(methods), _acceptance(methods)]
  if calibration:
    parts.append(_costs(calibration))
  if steps:
    parts.append(_losses(steps))
  if traces:
    parts.append(_TRACE_SECTION)
  if config:
    shown = html.escape(json.dumps(config, indent=2))
    parts.append(f'<details><summary>config.json</summary><pre>{shown}</pre></details>')
  here = pathlib.Path(__file__).parent
  script = ''
  if traces:
    # '<' is escaped, so that no text can end the element or begin a comment.
    data = json.dumps(traces, ensure_ascii=False).replace('<', '\\u003c')
    code = (here / 'report.js').read_text(encoding='utf-8')
    script = f'<script type="application/json" id="traces">{data}</script><script>{code}</script>'
  return _PAGE.substitute(
      title=html.escape(str(config.get('title') or config.get('name') or 'specjax')),
      subtitle=html.escape(_machine(methods[0])) if methods else '',
      css=(here / 'report.css').read_text(encoding='utf-8'),
      body='\n'.join(part for part in parts if part),
      footer=(
          'Made by specjax from metrics.jsonl. Rates are ratios of sums over prompts. Mean '
          'acceptance length counts the bonus or recovered token: 1 … K + 1.'
      ),
      script=script,
  )


def trace_entry(output: GenerateOutput, tokenizer: Any, *, name: str, row: int = 0) -> dict:
  """What the report shows of one traced run, as JSON values."""
  start, end = int(output.prompt_lengths[row]), int(output.lengths[row])
  pieces = traces_lib.pieces(tokenizer, output.tokens[row, :end])
  rounds = []
  for each in traces_lib.rounds(output, row):
    texts = pieces[each.start : each.start + len(each.emitted)]
    kept = {0} | {node.number for node in each.nodes if node.accepted}
    nodes = [
        {
            'text': tokenizer.decode([node.token]),
            'accepted': node.accepted,
            # Below a rejected node nothing was looked at.
            'reached': node.parent in kept,
            'accept': node.accept_prob,
            'target': node.target_prob,
            'draft': node.draft_prob,
        }
        for node in each.nodes
    ]
    rounds.append({'emitted': list(zip(texts, each.sources)), 'nodes': nodes})
  count = sum(len(each['emitted']) for each in rounds)
  return {
      'name': name,
      'summary': f'{count} tokens in {len(rounds)} target passes',
      'prompt': ''.join(pieces[:start]),
      'rounds': rounds,
  }


def _machine(row: Row) -> str:
  hardware, versions = row.get('hardware') or {}, row.get('versions') or {}
  parts = [str(hardware.get('device', ''))]
  if hardware.get('platform') == 'cpu' and hardware.get('cpu_cores'):
    parts.append(f'{hardware["cpu_cores"]} cores')
  parts += [f'{name} {versions[name]}' for name in ('jax', 'python') if name in versions]
  return ' · '.join([part for part in parts if part] + [str(row.get('dtype', ''))])


def _tiles(rows: Sequence[Row], calibration: Row | None) -> str:
  """The numbers to take away."""
  tiles = []
  best = _best(rows)
  if best is not None:
    tiles.append((f'{best["speedup"]:.2f}×', f'fastest: {best["name"]}, {best["rule"]}'))
  checked = [row['identical_to_plain'] for row in rows if row['identical_to_plain'] is not None]
  if checked:
    text = 'methods give the tokens of plain decoding, where tokens can be compared'
    tiles.append((f'{sum(checked)} of {len(checked)}', text))
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


def _best(rows: Sequence[Row]) -> Row | None:
  sped_up = [row for row in rows if row['speedup'] and row['num_speculative_tokens']]
  return max(sped_up, key=lambda row: row['speedup'], default=None)


def _predicted(row: Row) -> bool:
  return bool(row.get('predicted_speedup') and row.get('speedup'))


def _table(rows: Sequence[Row]) -> str:
  columns = (
      ('left', 'method'), ('left', 'rule'), ('', 'temp.'), ('', 'tokens/s'), ('left', 'speed-up'),
      ('', 'predicted'), ('wrap', 'mean acceptance length'), ('wrap', 'drafts accepted'),
      ('wrap', 'target passes'), ('left wrap', 'identical to plain'),
  )
  head = ''.join(f'<th class="{style}">{name}</th>' for style, name in columns)
  best, body = _best(rows), []
  for row in rows:
    same = row['identical_to_plain']
    plain = not row['num_speculative_tokens']
    style, text = ('yes', 'yes') if same else ('no', 'no') if same is not None else ('na', '–')
    if same is None:
      text = 'reference' if plain else 'same law'
    interval = ''
    if row['speedup_low'] is not None and not plain and row['prompts'] > 1:
      interval = f'<small>{row["speedup_low"]:.2f}–{row["speedup_high"]:.2f}</small>'
    cells = [
        html.escape(row['name']),
        f'<td class="left">{html.escape(row["rule"])}</td>',
        f'{row["temperature"]:g}',
        f'{row["tokens_per_second"]:.0f}',
        f'<td class="left">{_number(row["speedup"], "×")}{interval}</td>',
        _number(row['predicted_speedup'], '×'),
        _number(row['mean_acceptance_length']),
        _percent(row['draft_acceptance_rate']),
        f'{row["target_passes"]}',
        f'<td class="left {style}">{text}</td>',
    ]
    cells = [cell if cell.startswith('<td') else f'<td>{cell}</td>' for cell in cells]
    body.append(f'<tr{" class=best" if row is best else ""}>{"".join(cells)}</tr>')
  prompts, tokens = rows[0]['prompts'], rows[0]['new_tokens']
  return (
      f'<section><h2>Methods</h2><p class="muted">Prompts: {prompts}. New tokens of each row: '
      f'{tokens}, '
      'decoding only (no prefill, no compilation). Small numbers: 95 % interval over prompts. '
      '“Same law” marks rules that draw other tokens from the same distribution.</p>'
      f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div></section>'
  )


def _speedups(rows: Sequence[Row]) -> str:
  groups = []
  for row in rows:
    if not row['num_speculative_tokens'] or row['speedup'] is None:
      continue
    label = f'{row["name"]}, {row["rule"]}'
    measured = charts.Bar(
        row['speedup'], 'measured', f'{label}: measured', row['speedup_low'], row['speedup_high']
    )
    predicted = charts.Bar(row['predicted_speedup'], 'predicted', f'{label}: predicted')
    groups.append((label, (measured, predicted)))
  if not groups:
    return ''
  chart = charts.bars(groups, unit='×', reference=1.0)
  return (
      '<section><h2>Speed-up, measured and predicted</h2><p class="muted">Predicted from the '
      'costs of the calibration and the acceptance on other prompts.</p><div class="legend">'
      '<span><i class="measured"></i>measured, with its interval</span>'
      f'<span><i class="predicted"></i>predicted</span></div>{chart}</section>'
  )


def _terms(rows: Sequence[Row]) -> str:
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
      'expected tokens a round (other prompts), draft steps a round, cost of a draft step, of '
      'the target pass over K+1 tokens, and of everything else, in plain decoding steps.</p>'
      f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div></section>'
  )


def _acceptance(rows: Sequence[Row]) -> str:
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
      '<section><h2>Acceptance by position</h2><p class="muted">Share of the rounds with a draft '
      'at that position that accepted up to and with it.</p><div class="scroll"><table>'
      f'<tr>{head}</tr>{"".join(body)}</table></div></section>'
  )


def _costs(calibration: Row) -> str:
  """The curve r(m), and what was compared for the fastest way of plain decoding."""
  plain = calibration['rules'][0]['plain']
  points = [
      (width, seconds / plain)
      for width, seconds in zip(calibration['widths'], calibration['pass_seconds'])
  ]
  chart = charts.lines(
      [('r(m)', 'measured', points)], x_label='tokens in the pass, m',
      y_label='target pass, in plain steps', reference=1.0,
  )
  compared = ', '.join(
      f'{entry["dtype"]} at {entry["width"]}: {1000 * entry["seconds"]:.2f} ms'
      for entry in calibration['candidates']
  )
  if compared:
    compared = f' Compared for it (dtype at tokens a pass): {html.escape(compared)}.'
  return (
      '<section><h2>Cost of a target pass</h2><p class="muted">The less a further '
      f'token of a pass costs, the more drafting pays. A plain step takes {1000 * plain:.2f} ms in '
      f'{html.escape(calibration["dtype"])} at {calibration["width"]} tokens a pass, cache of '
      f'{calibration["cache_length"]}.{compared} Medians of {calibration["repetitions"]} '
      f'interleaved repetitions; spread at most {100 * calibration["noise"]:.0f} %.</p>'
      f'{chart}</section>'
  )


def _losses(rows: Sequence[Row]) -> str:
  series = []
  for name, style, kind in (('train', 'predicted', 'train'), ('held out', 'measured', 'held_out')):
    found = [row for row in rows if row.get('kind', 'train') == kind and row['loss'] is not None]
    # Some 120 means say as much as thousands of points.
    groups = np.array_split(np.arange(len(found)), min(len(found), 120)) if found else []
    points = [
        tuple(float(np.mean([found[i][key] for i in group])) for key in ('step', 'loss'))
        for group in groups
    ]
    series += [(name, style, points)] if points else []
  chart = charts.lines(series, x_label='step', y_label='loss') if series else ''
  return f'<section><h2>Loss</h2>{chart}</section>' if chart else ''


def _number(value: float | None, unit: str = '', *, digits: int = 2) -> str:
  return '–' if value is None else f'{value:.{digits}f}{unit}'


def _percent(value: float | None) -> str:
  return '–' if value is None else f'{100 * value:.0f} %'


def _read(path: pathlib.Path) -> Any:
  """A JSON file, or None where there is none."""
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path} is not JSON: {error}') from error


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'What is {argv[1:]}? The folder is given as --workdir=DIR.')
  path = pathlib.Path(_WORKDIR.value)
  try:
    config = _read(path / workdir_lib.CONFIG)
    print(f'Wrote {write(workdir_lib.Workdir(path=path, config=config))}.')
  except (ValueError, OSError) as error:
    raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
  _WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of a finished run.')
  _CONFIG = flags.DEFINE_string('config', None, 'Not needed: the workdir has its config.json.')
  flags.mark_flags_as_required(['workdir'])
  app.run(main)
