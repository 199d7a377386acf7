"""The pictures of README and of the documentation, made from a run and from measured rows.

    python scripts/make_images.py --out=docs/images

`terminal.svg` is an answer of SmolLM2 with prompt lookup, run anew, as `experiments.generate`
colours it; `spec_bench.svg` is drawn from `results/smollm2/spec_bench.jsonl` and names its machine.
"""

import io
import json
import pathlib
import re
import sys

from absl import app
from absl import flags
import matplotlib

matplotlib.use('svg')
from matplotlib import pyplot
import rich.console
import rich.text

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script's own folder comes first, not the repository

from experiments import display  # noqa: E402
import specjax  # noqa: E402
from specjax import atomic  # noqa: E402
from specjax.analysis import traces  # noqa: E402

ROWS = ROOT / 'results' / 'smollm2' / 'spec_bench.jsonl'
_OUT = flags.DEFINE_string('out', 'docs/images', 'The folder of the pictures.')

_QUESTION = """Repeat this text, word for word:
The river rises in the hills, runs past three old mills, and meets the sea at a small harbour. \
Fishermen mend their nets there in the morning, and in the evening the lamps of the harbour light \
the water."""
_TITLE = 'specjax: SmolLM2-135M with prompt lookup'
_NAMES = {
    'eagle_tree': 'EAGLE-3 tree', 'eagle': 'EAGLE-3 head', 'ngram': 'prompt lookup',
    'suffix': 'suffixes',
}
_COLOURS = {0.0: '#0f9682', 1.0: '#8f6ae0'}


def terminal() -> str:
  """An answer, coloured by where each token came from, as SVG."""
  loaded = specjax.load(specjax.zoo.source('smollm2'))
  prompt = loaded.encode_chat([dict(role='user', content=_QUESTION)])
  output = specjax.generate(
      loaded.model, [prompt], drafter=specjax.drafters.ngram(num_speculative_tokens=6),
      max_new_tokens=96, tokenizer=loaded.tokenizer, stop_tokens=loaded.end_tokens, trace=True,
  )
  console = rich.console.Console(record=True, width=92, file=io.StringIO())
  text = rich.text.Text()
  text.append(f'> {_QUESTION}\n\n', style=display.COLOURS['prompt'])
  pieces = traces.pieces(loaded.tokenizer, output.tokens[0, : output.lengths[0]])[len(prompt) :]
  for piece, source in zip(pieces, traces.sources(output, 0)):
    text.append(piece.replace('<|im_end|>', ''), style=display.COLOURS.get(source, ''))
  console.print(text)
  console.print(
      f'\n{output.num_new_tokens} tokens in {output.target_passes} passes of the target: '
      f'{output.mean_acceptance_length:.2f} per pass', highlight=False,
  )
  console.print(display.LEGEND)
  svg = console.export_svg(title=_TITLE, unique_id='specjax')
  # The style sheet would fetch a font from elsewhere; the reader's own monospace does as well.
  svg = re.sub(r'@font-face \{.*?\}\s*', '', svg, flags=re.DOTALL)
  return svg.replace('Fira Code', 'ui-monospace')


def spec_bench() -> str:
  """Speed-ups over plain decoding with their intervals, as SVG."""
  rows = [json.loads(line) for line in ROWS.read_text(encoding='utf-8-sig').splitlines()]
  rows = [row for row in rows if row['name'] and row['drafter'] in _NAMES]
  kinds = [kind for kind in _NAMES if any(row['drafter'] == kind for row in rows)]
  pyplot.rcParams.update({'font.size': 11, 'svg.hashsalt': 'specjax', 'svg.fonttype': 'none'})
  figure, axes = pyplot.subplots(figsize=(8.4, 0.9 + 0.75 * len(kinds)), layout='constrained')
  for row in rows:
    temperature = row['temperature']
    place = -kinds.index(row['drafter']) + (0.18 if temperature == 0 else -0.18)
    value = row['speedup']
    axes.barh(place, value, height=0.32, color=_COLOURS[temperature], alpha=0.85)
    axes.plot([row['speedup_low'], row['speedup_high']], [place] * 2, color='#444', linewidth=1.2)
    axes.text(row['speedup_high'] + 0.02, place, f'{value:.2f}×', va='center')
  axes.axvline(1.0, color='#888', linewidth=1)
  axes.set_yticks([-i for i in range(len(kinds))], [_NAMES[kind] for kind in kinds])
  axes.set_xlabel('speed-up over plain decoding (1.0)')
  axes.set_xlim(0, max(row['speedup_high'] for row in rows) + 0.35)
  axes.spines[['top', 'right']].set_visible(False)
  handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in _COLOURS.values()]
  figure.legend(handles, ['greedy', 'temperature 1'], frameon=False, loc='outside right upper')
  hardware, first = rows[0]['hardware'], rows[0]
  axes.set_title(
      f'SmolLM2-135M, {first["prompts"]} prompts of Spec-Bench, {hardware["cpu_cores"]} cores of '
      f'{hardware["device"]}, {first["dtype"]}', fontsize=10, loc='left',
  )
  path = pathlib.Path(_OUT.value) / 'spec_bench.svg'
  with atomic.replacing(path) as (temporary,):
    figure.savefig(temporary, metadata={'Date': None}, facecolor='white')
  return str(path)


def main(argv) -> None:
  del argv
  folder = pathlib.Path(_OUT.value)
  folder.mkdir(parents=True, exist_ok=True)
  print(atomic.write(folder / 'terminal.svg', terminal()))
  print(spec_bench())


if __name__ == '__main__':
  app.run(main)
