"""What the token viewer of a report shows of one traced run."""

from typing import Any

from specjax.analysis import traces as traces_lib
from specjax.output import GenerateOutput

# Acceptance along the text is counted in stretches of so many new tokens.
STRETCH = 16


def entry(output: GenerateOutput, tokenizer: Any, *, name: str, row: int = 0) -> dict[str, Any]:
  """A row of a traced run as JSON values.

  Args:
    output: with a trace.
    tokenizer: of the target.
    name: shown to choose by.
    row: of the batch.

  Returns:
    `name`, `prompt`, and `rounds`: the tokens emitted in each with their sources, and the
    nodes drafted, with their parents (0 is the token before the round), fates and
    probabilities.
  """
  start, end = int(output.prompt_lengths[row]), int(output.lengths[row])
  tokens = output.tokens[row, :end].tolist()
  pieces = traces_lib.pieces(tokenizer, tokens)
  rounds = []
  for each in traces_lib.rounds(output, row):
    texts = pieces[each.start : each.start + len(each.emitted)]
    kept = {0} | {node.number for node in each.nodes if node.accepted}
    before = _befores(each, tokens)
    nodes = [
        {
            'number': node.number,
            'parent': node.parent,
            'text': _text(tokenizer, node.token, before[node.parent]),
            'accepted': node.accepted,
            # Below a rejected node nothing was looked at.
            'reached': node.parent in kept,
            'accept': _short(node.accept_prob),
            'target': _short(node.target_prob),
            'draft': _short(node.draft_prob),
        }
        for node in each.nodes
    ]
    rounds.append({
        'before': _text(tokenizer, tokens[each.start - 1], tokens[: each.start - 1]),
        'emitted': [list(pair) for pair in zip(texts, each.sources)],
        'nodes': nodes,
    })
  return {'name': name, 'prompt': ''.join(pieces[:start]), 'rounds': rounds}


def _befores(each: traces_lib.Round, tokens: list[int]) -> dict[int, list[int]]:
  """What stands before a child of each node of a round: the end of the row, then the path."""
  befores = {0: tokens[max(each.start - 16, 0) : each.start]}
  for node in each.nodes:
    befores[node.number] = [*befores[node.parent], node.token]
  return befores


def _text(tokenizer: Any, token: int, before: list[int]) -> str:
  return traces_lib.pieces(tokenizer, [token], before)[0]


def _short(value: float) -> float:
  """Three digits are enough to look at, and a third of the bytes."""
  return float(f'{value:.3g}')
