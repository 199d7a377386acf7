r"""Records the tokens of every drafter under every rule, to compare before and after a change.

    python scripts/record_tokens.py --out=runs/tokens/before.json
    python scripts/record_tokens.py --out=runs/tokens/after.json --against=runs/tokens/before.json

Every drafter runs under every rule, greedily and at temperature 1, on held-out prompts of the
shipped pair in float32; combinations that a rule refuses are recorded as refused. Rules run as they
do on a vocabulary of this size, or with `--implementation` through that implementation of
`specjax.kernels.accept`. A refactoring leaves each row as it was; where it orders sums in another
way, a difference must be one of rounding, which `scripts/check_lossless.py` tells from a fault.
Rounding differs between processors, so a file is only compared on the machine that made it. Exits
with 1 if a row differs.

`--only` takes names of drafters, separated by commas. All take about ten minutes on two cores.
"""

from collections.abc import Iterator
import functools
import json
import pathlib
import sys
from typing import Any

from absl import app
from absl import flags
import jax

import specjax
from specjax import drafters
from specjax import verify
from specjax.kernels import accept

FLAGS = flags.FLAGS
flags.DEFINE_string('pair', 'stdlib', 'A pair of the zoo.')
flags.DEFINE_integer('prompts', 2, 'How many held-out prompts.')
flags.DEFINE_integer('prompt_length', 48, 'Tokens per prompt.')
flags.DEFINE_integer('new_tokens', 40, 'Tokens to generate after each.')
flags.DEFINE_list('only', [], 'Names of drafters; all if empty.')
flags.DEFINE_string('implementation', None, 'Of the op, for rules that it knows.')
flags.DEFINE_string('out', 'runs/tokens/tokens.json', 'File for the tokens.')
flags.DEFINE_string('against', None, 'An earlier file to compare with.')

WIDTHS = (3, 2, 1)
TREE = (0, 0, 0, 1, 1, 2, 4, 5, 7)


@functools.cache
def load() -> specjax.zoo.Pair:
  return specjax.zoo.load(FLAGS.pair, dtype='float32')


def prompts() -> list[list[int]]:
  """Prompts of different lengths, so that rows of a batch differ in their rounds."""
  full = load().prompts(FLAGS.prompts, length=FLAGS.prompt_length)
  return [ids[: len(ids) - 5 * row] for row, ids in enumerate(full)]


def run(drafter: Any, rule: Any, temperature: float) -> specjax.GenerateOutput:
  return specjax.generate(
      load().target,
      prompts(),
      drafter=drafter,
      rule=rule,
      sampling=specjax.sampling.make(batch_size=FLAGS.prompts, temperature=temperature),
      seeds=7,
      max_new_tokens=FLAGS.new_tokens,
      logprobs='raw',
      cache_length=FLAGS.prompt_length + FLAGS.new_tokens,
  )


def all_drafters() -> dict[str, Any]:
  """Every drafter by name."""
  pair = load()
  target, draft, vocab_size = pair.target, pair.draft, pair.target.vocab_size
  eagle = functools.partial(drafters.eagle, pair.head('eagle3'), target)
  medusa = functools.partial(drafters.medusa, pair.head('medusa'), target)
  early_exit = functools.partial(drafters.early_exit, pair.head('early_exit'), target)
  look_up = drafters.suffix(vocab_size=vocab_size, num_speculative_tokens=6, min_match=3)
  reference = run(None, verify.greedy(), 0.0)
  chain, tree = dict(num_speculative_tokens=4), dict(tree=WIDTHS)
  dynamic = drafters.dynamic_tree(num_nodes=12, depth=4, width=3)
  result = {
      'plain': None,
      'model': drafters.model(draft, **chain),
      'model, adaptive': drafters.model(draft, min_confidence=0.3, **chain),
      'ngram': drafters.ngram(**chain),
      'suffix': drafters.suffix(vocab_size=vocab_size, **chain),
      'suffix tree': drafters.suffix(vocab_size=vocab_size, tree=(2, 2, 1, 1)),
      'EAGLE-3': eagle(**chain),
      'Medusa': medusa(**chain),
      'early exit': early_exit(**chain),
      'suffix or model': drafters.combined(look_up, drafters.model(draft, **chain)),
      'model tree, dynamic': drafters.model_tree(draft, tree=dynamic),
      'EAGLE-3 tree, dynamic': eagle(tree=dynamic),
      'synthetic tree': drafters.synthetic(
          reference.tokens, reference_lengths=reference.lengths, acceptance=0.8,
          vocab_size=vocab_size, parents=TREE,
      ),
  }
  for siblings in ('without_replacement', 'with_replacement'):
    name = f'tree, {siblings.replace("_", " ")}'
    result[f'model {name}'] = drafters.model_tree(draft, siblings=siblings, **tree)
    result[f'EAGLE-3 {name}'] = eagle(siblings=siblings, **tree)
    result[f'Medusa {name}'] = medusa(siblings=siblings, **tree)
    result[f'early exit {name}'] = early_exit(siblings=siblings, **tree)
  result['suffix or model tree'] = drafters.combined(look_up, drafters.model_tree(draft, **tree))
  return result


def rows() -> Iterator[tuple[str, dict]]:
  """(name, row) of every drafter, rule and temperature."""
  for drafter_name, drafter in all_drafters().items():
    if FLAGS.only and drafter_name not in FLAGS.only:
      continue
    for name in verify.NAMES:
      rule = verify.named(name)
      if FLAGS.implementation:
        if rule.name not in accept.RULES:
          continue
        rule = accept.through(rule, FLAGS.implementation)
      for temperature in (0.0, 1.0):
        try:
          output = run(drafter, rule, temperature)
        except ValueError as error:  # a refusal is recorded too
          yield f'{drafter_name}, {name}, T = {temperature:g}', dict(refused=str(error))
          continue
        yield f'{drafter_name}, {name}, T = {temperature:g}', dict(
            tokens=[output.new_tokens(row).tolist() for row in range(FLAGS.prompts)],
            rounds=output.stats.rounds.tolist(),
            accepted=output.stats.accepted.tolist(),
        )
    # Each rule is a program of its own, and a process can only hold so many.
    jax.clear_caches()


def main(_):
  out, results = pathlib.Path(FLAGS.out), {}
  for name, row in rows():
    results[name] = row
    print(name, row.get('rounds', row.get('refused')), file=sys.stderr, flush=True)
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(json.dumps(results, indent=0), encoding='utf-8')
  if not FLAGS.against:
    return
  before = json.loads(pathlib.Path(FLAGS.against).read_text(encoding='utf-8-sig'))
  differing = [name for name, row in results.items() if before.get(name) != row]
  missing = [] if FLAGS.only else [name for name in before if name not in results]
  print(f'{len(results)} rows, {len(differing)} differ: {differing}; missing: {missing}')
  sys.exit(1 if differing or missing else 0)


if __name__ == '__main__':
  app.run(main)
