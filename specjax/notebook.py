"""The display of results in a notebook: the text, colored by source, and a small table.

Colors and probabilities come from the run's trace (`trace=True`), the text from its tokenizer;
without a trace or a tokenizer they are left out.
"""

import html

import numpy as np

from specjax import traces

# Backgrounds that carry dark and light text alike.
_COLORS = {
    traces.ACCEPTED: 'rgb(15 150 130 / 0.28)',
    traces.RECOVERED: 'rgb(230 110 30 / 0.30)',
    traces.BONUS: 'rgb(130 95 225 / 0.30)',
    traces.PLAIN: 'transparent',
}
_MEANINGS = {
    traces.ACCEPTED: 'drafted and accepted',
    traces.RECOVERED: 'recovered',
    traces.BONUS: 'bonus',
    traces.PLAIN: 'nothing drafted',
}
# A batch of hundreds of rows would hang the browser.
_ROWS = 8


def output_html(output) -> str:
  """A `specjax.GenerateOutput` as HTML, its first rows at most.

  Args:
    output: the run.

  Returns:
    An HTML element that needs no style sheet.
  """
  parts = [_table(output)]
  rows = len(output.lengths)
  if output.tokenizer is not None:
    parts += [_row(output, row) for row in range(min(rows, _ROWS))]
    if rows > _ROWS:
      parts.append(f'<p>… and {rows - _ROWS} more rows.</p>')
  if output.trace is not None and output.tokenizer is not None:
    parts.append(_legend())
  return f'<div>{"".join(parts)}</div>'


def _table(output) -> str:
  rate = output.draft_acceptance_rate
  cells = {
      'rows': f'{len(output.lengths)}',
      'new tokens': f'{output.num_new_tokens}',
      'target passes': f'{output.target_passes}',
      'mean acceptance length': f'{output.mean_acceptance_length:.2f}',
      'drafts accepted': '–' if rate is None else f'{100 * rate:.0f} %',
      'tokens/s': f'{output.tokens_per_second:,.0f}',
      'ended by': ', '.join(sorted(set(output.finish_reasons))),
  }
  head = ''.join(f'<th>{name}</th>' for name in cells)
  body = ''.join(f'<td>{html.escape(value)}</td>' for value in cells.values())
  return f'<table><tr>{head}</tr><tr>{body}</tr></table>'


def _row(output, row: int) -> str:
  """Prompt and text of one row."""
  start, end = int(output.prompt_lengths[row]), int(output.lengths[row])
  pieces = traces.pieces(output.tokenizer, output.tokens[row, :end])
  prompt = html.escape(''.join(pieces[:start]))
  if output.trace is None:
    text = html.escape(''.join(pieces[start:]))
  else:
    text, at = '', start
    for number, each in enumerate(traces.rounds(output, row), start=1):
      titles = _titles(each)
      for source, title in zip(each.sources, titles):
        text += (
            f'<span style="background:{_COLORS[source]};border-radius:3px" '
            f'title="round {number}: {html.escape(title)}">{html.escape(pieces[at])}</span>'
        )
        at += 1
  return (
      '<pre style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5;text-align:left">'
      f'<span style="opacity:0.55">{prompt}</span>{text}</pre>'
  )


def _titles(each: traces.Round) -> list[str]:
  """The tooltip of each token of a round."""
  kept = [node for node in each.nodes if node.accepted]
  titles = []
  for index, source in enumerate(each.sources):
    title = _MEANINGS[source]
    if source == traces.ACCEPTED:
      node = kept[index]
      title += f', target {node.target_prob:.3g}, draft {node.draft_prob:.3g}'
    titles.append(title)
  return titles


def _legend() -> str:
  keys = ' '.join(
      f'<span style="background:{color};border-radius:3px;padding:0 5px">'
      f'{_MEANINGS[source]}</span>'
      for source, color in _COLORS.items()
  )
  return f'<p style="font-size:90%">{keys}</p>'


def output_text(output) -> str:
  """One line about a run, where HTML is not shown."""
  lengths = np.asarray(output.lengths - output.prompt_lengths)
  return (
      f'GenerateOutput(rows={len(lengths)}, new_tokens={int(lengths.sum())}, '
      f'target_passes={output.target_passes}, '
      f'mean_acceptance_length={output.mean_acceptance_length:.3g}, '
      f'tokens_per_second={output.tokens_per_second:.4g}, '
      f'finish_reasons={sorted(set(output.finish_reasons))})'
  )
