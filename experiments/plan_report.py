"""The page of a plan: the table of slices, and speed-up by acceptance rate."""

from collections.abc import Mapping, Sequence
import html
from typing import Any

from experiments import charts

Row = Mapping[str, Any]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  color: #1c1c1c; background: #fff; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem; font-size: 14px; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.no { color: #b00020; font-weight: 600; } .muted { color: #666; }
svg { width: 100%; height: auto; } .grid { stroke: #e3e3e3; } .reference { stroke: #888;
  stroke-dasharray: 4 3; } .tick, .label, .value { font-size: 12px; fill: #555; }
.middle { text-anchor: middle; } .end { text-anchor: end; }
path, polyline { fill: none; stroke-width: 2; }
.s0 { stroke: #1f6feb; } .s1 { stroke: #d1570b; } .s2 { stroke: #1a7f37; } .s3 { stroke: #8250df; }
.s4 { stroke: #bf3989; } .s5 { stroke: #57606a; }
"""


def render(rows: Sequence[Row], *, title: str) -> str:
  """One self-contained HTML page of a plan's rows."""
  first = rows[0]
  drafted = f'K = {first["num_speculative_tokens"]}'
  if first['tree']:
    drafted = f'trees {first["tree"]} of {first["num_nodes"]} tokens (predicted: chains)'
  subtitle = (
      f'batch {first["batch_size"]}, context {first["context"]}, {drafted}, rule '
      f'{first["rule"]}. Memory and collectives of '
      'compiled slices are the compiler\'s; times are a roofline. α is the chance that a drafted '
      'token is accepted, the same at every position.'
  )
  return (
      '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
      f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>'
      f'<h1>{html.escape(title)}</h1><p class="muted">{html.escape(subtitle)}</p>'
      f'<h2>A chip</h2>{_memory(rows)}<h2>Speed-up at the best K</h2>{_curves(rows)}'
      f'{_speeds(rows)}</body></html>\n'
  )


def paying(row: Row) -> str:
  """Up to which batch speculation pays, or that it does for all that fit."""
  batch, most = row['largest_paying_batch'], row['largest_fitting_batch']
  if batch is None or batch >= most:
    return f'all that fit ({most})'
  return str(batch)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
  cells = lambda kind, values: ''.join(f'<{kind}>{value}</{kind}>' for value in values)
  lines = ''.join(f'<tr>{cells("td", line)}</tr>' for line in body)
  return f'<table><tr>{cells("th", head)}</tr>{lines}</table>'


def _name(row: Row) -> str:
  return row['topology'] + ('' if row['compiled'] else ' (not compiled)')


def _memory(rows: Sequence[Row]) -> str:
  gb = lambda value: f'{value / 1e9:.2f}'
  body = []
  for row in rows:
    fits = 'yes' if row['fits'] else f'<span class="no">no</span>: {html.escape(row["advice"])}'
    layer = '–' if not row['compiled'] else f'{row["collectives_per_layer"]:g}'
    seconds = '–' if not row['compiled'] else f'{row["compile_seconds"]:.0f}'
    body.append((
        html.escape(_name(row)), gb(row['weight_bytes']), gb(row['cache_bytes']),
        gb(row['temporary_bytes']), gb(row['free_bytes']), fits, layer, seconds,
    ))
  head = (
      'slice', 'weights GB', 'caches GB', 'temporaries GB', 'free GB', 'fits',
      'collectives a layer', 'compile s',
  )
  return _table(head, body)


def _curves(rows: Sequence[Row]) -> str:
  series = [
      (
          row['topology'],
          f's{number % 6}',
          [(each['acceptance'], each['speedup']) for each in row['predictions']],
      )
      for number, row in enumerate(rows)
  ]
  return charts.lines(series, x_label='acceptance rate α', y_label='speed-up', reference=1.0)


def _speeds(rows: Sequence[Row]) -> str:
  rates = [each['acceptance'] for each in rows[0]['predictions']]
  head = ['slice', 'plain tok/s', *(f'α={rate:g}: tok/s (K)' for rate in rates)]
  head.append('pays up to batch')
  body = []
  for row in rows:
    made = row['predictions']
    body.append([
        html.escape(_name(row)),
        f'{made[0]["plain"]:.0f}',
        *(f'{each["speculative"]:.0f} ({each["num_speculative_tokens"]})' for each in made),
        paying(row),
    ])
  return _table(head, body)
