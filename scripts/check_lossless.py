r"""Checks on real prompts that speculation changes nothing, and counts argmax flips.

    python scripts/check_lossless.py --prompts=200 --new_tokens=64 --out=runs/lossless
    … --parts=heads                         # the shipped heads and the suffix drafters alone

For every drafter, greedy and coupled at temperature 1, over held-out prompts of the shipped
pair: a chain must equal plain decoding of the same width bit for bit; a branching tree must obey
the gap rule (the first difference of a prompt is explained by rounding: its gap of logit, or
logit plus noise, is at most twice the largest logit difference measured between the two modes).
`--parts` names what is checked:

- `chains`: draft model, adaptive draft model and prompt lookup at each K;
- `trees`: synthetic, of the draft model, static and dynamic, of suffix votes, and combined;
- `heads`: EAGLE-3, Medusa, early exit, suffix, and suffix or EAGLE-3, as chains and as trees,
  EAGLE-3's dynamic tree of 60 nodes among them.

Says how far it is, prints each row and appends it to `metrics.jsonl`; started again with the same
settings and `--out` it goes on with the first row that is not there. Exits with 1 if anything
fails.

It should show `true` in every row, with zero differing prompts for chains. With `--batch=8` in
bfloat16 a row of a product may depend on where it stands among 40 rows: on an AMD EPYC one of
200 prompts then differed (two logits 0.0065 apart), and none at batch 1.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import sys
import time
from typing import Any

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

import specjax
from specjax import drafters
from specjax import randomness
from specjax import tree as tree_lib
from specjax import verify
from specjax.analysis import identity

PARTS = ('chains', 'trees', 'heads')
FLAGS = flags.FLAGS
flags.DEFINE_string('pair', 'stdlib', 'A pair of the zoo.')
flags.DEFINE_integer('prompts', 200, 'How many held-out prompts.')
flags.DEFINE_integer('prompt_length', 64, 'Tokens of a prompt.')
flags.DEFINE_integer('new_tokens', 64, 'Tokens to generate.')
flags.DEFINE_integer('batch', 1, 'Rows of a batch.')
flags.DEFINE_multi_integer('k', [1, 4, 8], 'Draft lengths of the chains.')
flags.DEFINE_list('dtypes', ['bfloat16', 'float32'], 'Dtypes of chains; trees run in float32.')
flags.DEFINE_list('parts', list(PARTS), f'What is checked, of {", ".join(PARTS)}.')
flags.DEFINE_string('out', 'runs/lossless', 'Where metrics.jsonl goes.')
flags.register_validator('parts', lambda parts: set(parts) <= set(PARTS), f'one of {PARTS}')

RULES = {'greedy': verify.greedy(), 'coupled': verify.coupled()}
# Width 3 at the first level, then fewer: 9 nodes, 4 deep.
TREE = (0, 0, 0, 1, 1, 2, 4, 5, 7)
# Of the heads: what `configs/benchmark_drafters.py` measures.
WIDTHS = (3, 2, 1)


@dataclasses.dataclass(frozen=True)
class Case:
  """A row of the table.

  Attributes:
    name: of the drafter.
    rule: key of `RULES`.
    dtype: of weights and activations.
    make: the drafter for batch i.
  """

  name: str
  rule: str
  dtype: str
  make: Callable[[int], Any]

  @property
  def what(self) -> str:
    return f'{self.name} in {self.dtype}, {self.rule}'

  def description(self) -> dict:
    """What tells the row from others."""
    drafter = self.make(0)
    return dict(
        name=f'{self.name}, {self.rule}',
        drafter=self.name,
        rule=self.rule,
        dtype=self.dtype,
        num_speculative_tokens=drafter.depth,
        num_nodes=drafter.num_nodes,
    )


@functools.cache
def load(dtype: str):
  return specjax.zoo.load(FLAGS.pair, dtype=jnp.dtype(dtype))


@functools.cache
def prompts() -> list[list[int]]:
  return load('float32').prompts(FLAGS.prompts, length=FLAGS.prompt_length)


def batches():
  """Batches of equal size, each with the seeds of its rows; the last one is filled up."""
  size = FLAGS.batch
  for start in range(0, FLAGS.prompts, size):
    part = prompts()[start : start + size]
    real = len(part)
    yield part + part[:1] * (size - real), list(range(start, start + size)), real


def run(what: str, target, make_drafter, rule: str, width=None):
  """New tokens of every prompt, and the rows' whole outputs by batch."""
  tokens, outputs, started, said = [], [], time.time(), time.time()
  for index, (part, seeds, real) in enumerate(batches()):
    output = specjax.generate(
        target,
        part,
        drafter=make_drafter(index) if make_drafter else None,
        rule=RULES[rule],
        seeds=seeds,
        width=width,
        max_new_tokens=FLAGS.new_tokens,
        cache_length=FLAGS.prompt_length + FLAGS.new_tokens,
    )
    # A drafter's state is as large as its cache.
    outputs.append(dataclasses.replace(output, drafter_state=None))
    tokens += [output.new_tokens(row) for row in range(real)]
    if time.time() - said > 10:
      said = time.time()
      left = (said - started) * (FLAGS.prompts / len(tokens) - 1)
      told = f'{what}: {len(tokens)} of {FLAGS.prompts} prompts, {left:.0f} s left'
      print(told, file=sys.stderr, flush=True)
  return tokens, outputs


@functools.cache
def plain(dtype: str, rule: str, width: int | None = None):
  """Plain decoding."""
  what = f'plain decoding in {dtype}, {rule}'
  return run(what, load(dtype).target, None, rule, width=width)


def shape_like(drafter) -> tuple[int, ...]:
  """Parents of a static tree as large and as deep as the drafter's."""
  shape = getattr(drafter, 'learned', drafter).shape
  if isinstance(shape, tree_lib.StaticTree) and shape.num_nodes == drafter.num_nodes:
    return shape.parents
  # One branch, and the other nodes beside its first one.
  return (*range(drafter.depth), *[0] * (drafter.num_nodes - drafter.depth))


def tree_logits(target, tokens: np.ndarray, start: int, parents: tuple[int, ...]) -> np.ndarray:
  """Logits [B, D + 1, V] after `tokens[:, start : start + D + 1]` read as one branch of a tree.

  The other nodes hold wrong tokens; the branch is the deepest one.
  """
  batch, size = tokens.shape[0], len(parents)
  nodes, depths = tree_lib.paths(
      jnp.broadcast_to(jnp.asarray(parents, jnp.int32), (batch, size)), size
  )
  deepest = int(np.argmax(depths[0]))
  branch = np.asarray(nodes[0, deepest, : int(depths[0, deepest])])
  block = (np.arange(size + 1) * 31 + tokens[:, start : start + 1]) % target.vocab_size
  block[:, 0] = tokens[:, start]
  block[:, branch] = tokens[:, start + 1 : start + 1 + len(branch)]
  logits = _read_tree(
      target, tokens, jnp.int32(start), block, depths, tree_lib.ancestor_mask(nodes)
  )
  return np.asarray(logits[:, np.r_[0, branch]])


@jax.jit
def _read_tree(target, tokens, start, block, depths, tree_mask):
  batch, size = tokens.shape
  append = max(size, block.shape[1])
  cache = target.init_cache(batch_size=batch, cache_length=size, max_append=append)
  num_new = jnp.full((batch,), start)
  cache = target(tokens, cache=cache, num_new=num_new, with_logits=False).cache
  return target(block, start + depths, cache, tree_mask=tree_mask).logits


def largest_difference(target, outputs, width: int, parents: tuple[int, ...]) -> float:
  """The largest logit difference between a tree's passes and plain ones of `width`."""
  largest = 0.0
  for output in outputs[:2]:
    plain_logits = identity.logits_at_width(target, output.tokens, width=width)
    for start in range(FLAGS.prompt_length, FLAGS.prompt_length + FLAGS.new_tokens - 10, 9):
      other = tree_logits(target, output.tokens, start, parents)
      here = plain_logits[:, start : start + other.shape[1]]
      largest = max(largest, float(np.abs(other - here).max()))
  return largest


def scores(target, output, row: int, rule: str, seed: int) -> np.ndarray:
  """What plain decoding took the argmax of at each new token of a row, [n, V]."""
  logits = identity.logits_at_width(target, output.tokens, width=1)
  if rule == 'coupled':
    keys = randomness.row_keys(seed + np.arange(FLAGS.batch))
    positions = jnp.broadcast_to(1 + jnp.arange(logits.shape[1]), logits.shape[:2])
    noise = randomness.gumbel_noise(keys, positions, logits.shape[-1])
    logits = jax.nn.log_softmax(logits) + noise
  start, end = output.prompt_lengths[row], output.lengths[row]
  return np.asarray(logits[row, start - 1 : end - 1])


def check_chain(case: Case) -> dict:
  """Bit for bit."""
  # Plain decoding in bfloat16 is never one token wide where that is slow.
  expected, _ = plain(case.dtype, case.rule, max(case.make(0).num_nodes + 1, 2))
  got, outputs = run(case.what, load(case.dtype).target, case.make, case.rule)
  differing = sum(identity.first_difference(a, b) >= 0 for a, b in zip(expected, got))
  return dict(differing_prompts=differing, lossless=differing == 0) | _counts(got, outputs)


def check_tree(case: Case) -> dict:
  """By the gap rule."""
  target, drafter = load(case.dtype).target, case.make(0)
  expected, references = plain(case.dtype, case.rule)
  got, outputs = run(case.what, target, case.make, case.rule)
  said = []
  for index, (tokens, other) in enumerate(zip(expected, got)):
    # Asked for where prompts part, and dear.
    differs = identity.first_difference(tokens, other) >= 0
    batch, row = divmod(index, FLAGS.batch)
    said.append(
        scores(target, references[batch], row, case.rule, index - row) if differs else None
    )
  difference = largest_difference(target, references, 1, shape_like(drafter))
  report = identity.gap_rule(expected, got, said, largest_difference=difference)
  return dict(
      differing_prompts=report.num_flips,
      lossless=report.holds,
      largest_logit_difference=report.largest_difference,
      largest_gap=max([g for g in report.gaps if not np.isnan(g)], default=0.0),
  ) | _counts(got, outputs)


def _counts(got, outputs) -> dict:
  rounds = sum(int(output.stats.rounds.sum()) for output in outputs)
  emitted = sum(output.num_new_tokens for output in outputs)
  return dict(
      prompts=len(got),
      new_tokens=sum(map(len, got)),
      mean_acceptance_length=emitted / rounds,
  )


def chains(pair) -> dict[str, Any]:
  """Chains of the draft model and of prompt lookup, by name."""
  kinds = {}
  for k in FLAGS.k:
    kinds[f'draft model, K={k}'] = drafters.model(pair.draft, num_speculative_tokens=k)
    kinds[f'adaptive draft model, K={k}'] = drafters.model(
        pair.draft, num_speculative_tokens=k, min_confidence=0.3
    )
    kinds[f'prompt lookup, K={k}'] = drafters.ngram(num_speculative_tokens=k)
  return kinds


def trees(pair, rule: str) -> dict[str, Any]:
  """Trees of no head, by name; a function makes one for each batch."""
  vocab_size = pair.target.vocab_size
  static = drafters.model_tree(pair.draft, tree=(3, 2, 1, 1))
  look_up = drafters.suffix(vocab_size=vocab_size, num_speculative_tokens=8, min_match=4)

  def synthetic(index: int):
    reference = plain('float32', rule)[1][index]
    return drafters.synthetic(
        reference.tokens,
        reference_lengths=reference.lengths,
        acceptance=0.8,
        vocab_size=vocab_size,
        parents=TREE,
    )

  return {
      'synthetic tree': synthetic,
      'draft tree': static,
      'dynamic draft tree': drafters.model_tree(
          pair.draft, tree=drafters.dynamic_tree(num_nodes=20, depth=5, width=4)
      ),
      'suffix tree': drafters.suffix(vocab_size=vocab_size, tree=(2, 2, 1, 1, 1, 1)),
      'suffix or draft tree': drafters.combined(look_up, static),
  }


@functools.cache
def head_drafters(dtype: str) -> dict[str, Any]:
  """The shipped heads and the suffix drafters, chains and trees, by name."""
  pair = load(dtype)
  target, vocab_size = pair.target, pair.target.vocab_size
  kinds = {
      'EAGLE-3': functools.partial(drafters.eagle, pair.head('eagle3'), target),
      'Medusa': functools.partial(drafters.medusa, pair.head('medusa'), target),
      'early exit': functools.partial(drafters.early_exit, pair.head('early_exit'), target),
      'suffix': functools.partial(drafters.suffix, vocab_size=vocab_size),
  }
  look_up = drafters.suffix(vocab_size=vocab_size, num_speculative_tokens=8, min_match=4)
  made = {}
  for name, options in (('chain', dict(num_speculative_tokens=4)), ('tree', dict(tree=WIDTHS))):
    made |= {f'{kind} {name}': make(**options) for kind, make in kinds.items()}
    made[f'suffix or EAGLE-3 {name}'] = drafters.combined(look_up, made[f'EAGLE-3 {name}'])
  dynamic = drafters.dynamic_tree(num_nodes=60, depth=6, width=10)
  made['EAGLE-3 dynamic tree'] = kinds['EAGLE-3'](tree=dynamic)
  return made


def cases() -> Iterator[Case]:
  """All rows of the parts asked for."""
  for part in FLAGS.parts:
    dtypes = ['float32'] if part == 'trees' else dict.fromkeys([*FLAGS.dtypes, 'float32'])
    for dtype, rule in itertools.product(dtypes, RULES):
      if part == 'heads':
        kinds = head_drafters(dtype)
      else:
        kinds = chains(load(dtype)) if part == 'chains' else trees(load(dtype), rule)
      for name, drafter in kinds.items():
        make = drafter if callable(drafter) else lambda _, drafter=drafter: drafter
        if dtype in FLAGS.dtypes if make(0).is_chain else dtype == 'float32':
          yield Case(name, rule, dtype, make)


def width_flips(dtype: str) -> dict:
  """Argmax flips between plain passes of width 1 and of width K + 1: the numeric part."""
  flips, positions, largest = 0, 0, 0.0
  target = load(dtype).target
  tokens = np.asarray(prompts()[: 4 * FLAGS.batch])
  for width in (2, 5, 9):
    one = identity.logits_at_width(target, tokens, width=1)
    count, difference = identity.count_flips(
        one, identity.logits_at_width(target, tokens, width=width)
    )
    flips, positions = flips + count, positions + tokens.size
    largest = max(largest, difference)
  return dict(argmax_flips=flips, positions=positions, largest_logit_difference=largest)


def check(case: Case) -> dict:
  """A whole row."""
  started = time.time()
  found = check_chain(case) if case.make(0).is_chain else check_tree(case)
  return case.description() | found | dict(seconds=round(time.time() - started, 1))


def flips_row(dtype: str) -> dict:
  return dict(name='argmax flips, width 1 against 2, 5 and 9', dtype=dtype)


def work() -> Iterator[tuple[dict, Callable[[], dict]]]:
  """What tells each row from the others, and what makes it."""
  for case in cases():
    yield case.description(), functools.partial(check, case)
  for dtype in FLAGS.dtypes if 'chains' in FLAGS.parts else ():
    yield flips_row(dtype), lambda dtype=dtype: flips_row(dtype) | width_flips(dtype)


def open_results(out: pathlib.Path) -> list[dict]:
  """The rows that are there already, of a run with these settings."""
  out.mkdir(parents=True, exist_ok=True)
  digest = hashlib.sha256()
  for path in sorted(p for p in load('float32').folder.rglob('*') if p.is_file()):
    digest.update(path.read_bytes())
  names = ('pair', 'prompts', 'prompt_length', 'new_tokens', 'batch')
  settings = {name: FLAGS[name].value for name in names} | dict(files=digest.hexdigest())
  config, metrics = out / 'config.json', out / 'metrics.jsonl'
  before = json.loads(config.read_text(encoding='utf-8-sig')) if config.exists() else None
  if metrics.exists() and before != settings:
    raise app.UsageError(f'{out} holds rows of other settings or of another pair. Give --out=…')
  config.write_text(json.dumps(settings, indent=2), encoding='utf-8')
  text = metrics.read_text(encoding='utf-8-sig') if metrics.exists() else ''
  lines = text.splitlines(keepends=True)
  # A row that was being written when the run ended has no line end.
  whole = [line for line in lines if line.endswith('\n')]
  metrics.write_text(''.join(whole), encoding='utf-8')
  return [json.loads(line) for line in whole]


def main(_):
  out, started = pathlib.Path(FLAGS.out), time.time()
  rows = open_results(out)
  todo = [
      (who, make)
      for who, make in work()
      if not any(who.items() <= row.items() for row in rows)
  ]
  print(f'{len(rows)} rows are there, {len(todo)} to come', file=sys.stderr, flush=True)
  with open(out / 'metrics.jsonl', 'a', encoding='utf-8') as metrics:
    for _, make in todo:
      rows.append(make())
      line = json.dumps(rows[-1])
      metrics.write(line + '\n')
      metrics.flush()
      print(line, flush=True)
  failed = [row['name'] for row in rows if not row.get('lossless', True)]
  print(f'{len(rows)} rows in {time.time() - started:.0f} s, {len(failed)} failed: {failed}')
  sys.exit(1 if failed else 0)


if __name__ == '__main__':
  app.run(main)
