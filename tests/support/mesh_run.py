"""What the tests of meshes run in processes of their own, with several CPU devices each.

    python -m tests.support.mesh_run OUT.json --devices=8
    python -m tests.support.mesh_run OUT.json --devices=8 --full

Writes, for every layout x drafter x rule, the tokens of a run, and those on one device where
there is one process alone: several are told by what a cluster sets. The tests take a cut,
`--short` the least of it in which every layout and every rule of the cut occurs; `--full` takes
every drafter with every rule that verifies it, `--pairs` a quarter of these under each layout, so
that every two of (layout, drafter, rule) meet; `--layouts` and `--rules` take some of them,
`--few` one layout, and

    python -m tests.support.mesh_run ONE.json --against TWO.json

compares two such files by DESIGN's rule: tokens, and how far log-probabilities differ.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

CHAIN_RULES = ('greedy', 'rejection', 'block', 'coupled', 'typical')
TREE_RULES = ('greedy', 'coupled', 'recursive', 'k_sequential', 'traversal')
# Nodes chosen by rank, where nothing was drawn with replacement.
RANKED_RULES = ('greedy', 'coupled', 'recursive', 'traversal')
# Preset and sizes for eight devices; two key-value heads, which tensor=8 keeps four times.
LAYOUTS = {
    'tensor': dict(preset='tensor', model=8, draft=2),
    'data x tensor': dict(preset='tensor', data=2, model=4, draft=1),
    'sequence': dict(preset='sequence', sequence=2, model=2, data=2, draft=2),
    'fsdp': dict(preset='fsdp', data=4, model=2, draft=2),
}
ONE_DEVICE = 'one device'
# Every drafter and the rules that verify it.
FAMILIES = {
    'plain': CHAIN_RULES,
    'model': CHAIN_RULES,
    'eagle': CHAIN_RULES,
    'medusa': CHAIN_RULES,
    'early exit': CHAIN_RULES,
    'dspark': CHAIN_RULES,
    'ngram': CHAIN_RULES,
    'suffix': CHAIN_RULES,
    'combined': CHAIN_RULES,
    'model tree': TREE_RULES,
    'model tree, grown': RANKED_RULES,
    'eagle tree': TREE_RULES,
    'medusa tree': TREE_RULES,
    'early exit tree': TREE_RULES,
    'dspark tree': TREE_RULES,
    'tree': RANKED_RULES,
}
ALL = [(drafter, rule) for drafter, rules in FAMILIES.items() for rule in rules]
# The cut: the first layout runs these, the others two each.
MANY = [
    ('model', 'greedy'), ('model', 'block'), ('model', 'coupled'), ('ngram', 'rejection'),
    ('tree', 'coupled'), ('eagle', 'block'), ('medusa tree', 'traversal'), ('dspark', 'block'),
    ('dspark tree', 'traversal'),
]
FEW = {
    'data x tensor': [('model', 'block'), ('tree', 'coupled')],
    'sequence': [('eagle tree', 'greedy'), ('dspark tree', 'coupled')],
    'fsdp': [('model', 'block'), ('early exit', 'coupled')],
}
SHORT = {
    'tensor': [('ngram', 'rejection'), ('dspark tree', 'traversal')],
    'data x tensor': [('tree', 'coupled')],
    'sequence': [('eagle tree', 'greedy')],
    'fsdp': [('model', 'block')],
}
# Sizes of the target.
TARGET = dict(num_layers=2, num_heads=8, num_kv_heads=2)
# Rows grow beyond the first half of the cache's 64 slots: that is where `sequence` splits them.
NEW_TOKENS, CACHE_LENGTH = 28, 48
# Children by depth: two tokens after the root, two after the first, one more.
TREE = ((0,), (1,), (0, 0), (0, 1), (0, 0, 0))


def pairs_of(layout: str, extent: str = 'cut') -> list[tuple[str, str]]:
  """What runs under a layout; `extent` is 'short', 'cut', 'pairs' or 'full'."""
  if extent == 'short':
    if layout == ONE_DEVICE:
      return list(dict.fromkeys(pair for pairs in SHORT.values() for pair in pairs))
    return SHORT[layout]
  if extent == 'full' or extent == 'pairs' and layout == ONE_DEVICE:
    return ALL
  if extent == 'pairs':
    turn = list(LAYOUTS).index(layout)
    return [
        (drafter, rule)
        for number, (drafter, rules) in enumerate(FAMILIES.items())
        for place, rule in enumerate(rules)
        if (number + place) % len(LAYOUTS) == turn
    ]
  if layout == ONE_DEVICE:
    return list(dict.fromkeys([*MANY, *(pair for pairs in FEW.values() for pair in pairs)]))
  return FEW.get(layout, MANY)


class Models:
  """The target, its plain outputs, and drafters of every family, on a layout or one device.

  Everything is made on one device first, so that it is the same under every layout.
  """

  def __init__(self):
    import numpy as np
    import specjax
    from tests.support import mesh_heads
    from tests.support import tiny

    self.target = tiny.model(0, **TARGET)
    # The target's own first layer: what it drafts is accepted at times.
    self.draft = tiny.model(0, **{**TARGET, 'num_layers': 1})
    self.prompts = tiny.PROMPTS
    self.hot_law = specjax.sampling.make(
        batch_size=len(self.prompts), temperature=0.9, top_p=0.95
    )
    self.options = dict(max_new_tokens=NEW_TOKENS, seeds=3, cache_length=CACHE_LENGTH)
    # What plain decoding says, for the tree to propose in part: else nothing would be accepted.
    hot = dict(rule=specjax.verify.coupled(), sampling=self.hot_law)
    self.references = {
        False: specjax.decode(self.target, self.prompts, **self.options),
        True: specjax.decode(self.target, self.prompts, **hot, **self.options),
    }
    texts = np.concatenate([each.tokens for each in self.references.values()])
    self.heads = dict(
        # A chain over half of the vocabulary, a tree over all of it.
        eagle=mesh_heads.eagle(self.target, mesh_heads.most_said(texts, tiny.VOCAB // 2)),
        eagle_tree=mesh_heads.eagle(self.target),
        medusa=mesh_heads.medusa(self.target, texts),
        early_exit=mesh_heads.early_exit(self.target),
        dspark=mesh_heads.dspark(self.target, texts, mesh_heads.most_said(texts, tiny.VOCAB // 2)),
        dspark_tree=mesh_heads.dspark(self.target, texts),
    )

  def on(self, layouts):
    """(target, drafter name and rule -> drafter) on `sharding.Layouts`, or one device."""
    import jax.numpy as jnp
    from specjax import drafters
    from specjax import models
    from specjax import sharding
    from tests.support import tiny

    target, draft, heads = self.target, self.draft, self.heads
    if layouts is not None:
      target = models.place(target, layouts.target)
      draft = models.place(draft, layouts.draft)
      heads = {name: sharding.place_head(head, layouts.draft) for name, head in heads.items()}
    grown = drafters.dynamic_tree(num_nodes=5, depth=3, width=2)
    chain = dict(num_speculative_tokens=3)
    free = drafters.suffix(vocab_size=tiny.VOCAB, num_speculative_tokens=5, min_match=2)

    def make(name: str, rule: str):
      how = {'k_sequential': 'with_replacement'}.get(rule, 'without_replacement')
      shape = dict(tree=TREE, siblings=how)
      reference = self.references[rule != 'greedy']
      return {
          'plain': lambda: None,
          'model': lambda: drafters.model(draft, **chain),
          'eagle': lambda: drafters.eagle(heads['eagle'], target, **chain),
          'medusa': lambda: drafters.medusa(heads['medusa'], target, **chain),
          'early exit': lambda: drafters.early_exit(heads['early_exit'], target, **chain),
          'dspark': lambda: drafters.dflash(heads['dspark'], target, **chain),
          'ngram': lambda: drafters.ngram(**chain),
          'suffix': lambda: free,
          'combined': lambda: drafters.combined(free, drafters.model(draft, **chain)),
          'model tree': lambda: drafters.model_tree(draft, **shape),
          'model tree, grown': lambda: drafters.model_tree(draft, tree=grown),
          'eagle tree': lambda: drafters.eagle(heads['eagle_tree'], target, **shape),
          'medusa tree': lambda: drafters.medusa(heads['medusa'], target, **shape),
          'early exit tree': lambda: drafters.early_exit(heads['early_exit'], target, **shape),
          'dspark tree': lambda: drafters.dflash(heads['dspark_tree'], target, **shape),
          'tree': lambda: drafters.synthetic(
              jnp.asarray(reference.tokens),
              reference_lengths=jnp.asarray(reference.lengths),
              acceptance=0.7, vocab_size=tiny.VOCAB, parents=(0, 0, 1, 1),
          ),
      }[name]()

    return target, make


def cases(models: Models, layouts, pairs):
  """Tokens of every (drafter, rule), on the layouts given or on one device where None."""
  import jax
  import specjax

  target, make = models.on(layouts)
  found = {}
  for number, (drafter, rule) in enumerate(pairs):
    if number % 16 == 15:
      jax.clear_caches()  # each case is a program of its own; a process may only hold so many
    output = specjax.generate(
        target,
        models.prompts,
        drafter=make(drafter, rule),
        rule=getattr(specjax.verify, rule)(),
        sampling=None if rule == 'greedy' else models.hot_law,
        prefill_chunk=16,
        logprobs='raw',
        **models.options,
    )
    found[f'{drafter}, {rule}'] = dict(
        tokens=[output.new_tokens(row).tolist() for row in range(len(models.prompts))],
        logprobs=output.logprobs.tolist(),
        passes=output.target_passes,
        accepted=int(output.stats.accepted.sum()),
    )
  return found


def loading(folder: pathlib.Path) -> dict[str, bool]:
  """Whether what is loaded onto eight devices is what one device loads."""
  import jax
  import numpy as np
  from specjax import models
  from specjax import sharding
  from specjax.models import quantization
  from tests.support import mesh_heads
  from tests.support import tiny

  layout = sharding.make(**LAYOUTS['tensor']).target
  model = tiny.model(0, num_layers=2, num_heads=8, num_kv_heads=2, qkv_bias=True)
  models.save_hf(model, folder / 'model', max_shard_bytes=20_000)
  equal = lambda one, other: all(
      jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), one, other))
  )
  split = models.load_hf(folder / 'model', layout=layout)
  models.save_hf(split, folder / 'again')
  eight_bits = models.load_hf(folder / 'model', layout=layout, int8=True)
  wanted = quantization.quantize_params(split.params)
  parts = {
      leaf.addressable_shards[0].data.size * layout.mesh.size == leaf.size
      for path, leaf in jax.tree_util.tree_flatten_with_path(split.params)[0]
      if path[-1].key in ('qkv', 'out', 'down', 'gate_up', 'head', 'embedding')
  }
  # A head is split over the first part of the model axis, its cache too.
  layouts = sharding.make(**LAYOUTS['tensor'])
  head = sharding.place_head(mesh_heads.eagle(tiny.model(0, num_heads=8)), layouts.draft)
  cache = head.module.init_cache(batch_size=2, cache_length=32, max_append=4)
  halves = [
      each.addressable_shards[0].data.size * 2 == each.size
      for each in (head.params['head'], head.params['fuse'], *cache.keys)
  ]
  return {
      'heads': all(halves) and head.params['final_norm']['scale'].is_fully_replicated,
      'files': len(list((folder / 'model').glob('*.safetensors'))) > 2,
      'placed': equal(split.params, models.place(model, layout).params),
      'split': parts == {True},
      'saved': equal(models.load_hf(folder / 'again').params, model.params),
      'int8': equal(eight_bits.params, wanted),
  }


def training(folder: pathlib.Path) -> dict[str, list[float]]:
  """Losses of the same six steps: on one device, FSDP, and resumed on another mesh."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax
  from specjax import models
  from specjax import sharding
  from specjax.training import losses
  from specjax.training import train

  config = models.TransformerConfig(
      vocab_size=64, width=32, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=64
  )
  params = models.Transformer(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  rng = np.random.default_rng(0)
  data = rng.integers(0, 64, (6, 8, 17)).astype(np.int32)

  def fit(layout, steps, workdir):
    module = models.Transformer(config, layout=layout)

    def loss(params, batch):
      value = losses.cross_entropy(
          module.apply({'params': params}, batch[:, :-1]).logits, batch[:, 1:]
      )
      return value, {'loss': value}

    rows = []
    train.fit(
        params=params['params'], loss_fn=loss, optimizer=optax.adam(1e-2),
        batches=lambda step: data[step], num_steps=steps, workdir=workdir, checkpoint_every=3,
        record_every=1, record=lambda row: rows.append(row.metrics['loss']), layout=layout,
    )
    return rows

  fsdp = sharding.make(**LAYOUTS['fsdp']).target
  other = sharding.make('fsdp', data=2, model=2, devices=jax.devices()[:4]).target
  first = fit(fsdp, 3, folder / 'moved')
  return {
      'one': fit(None, 6, folder / 'one'),
      'fsdp': fit(fsdp, 6, folder / 'fsdp'),
      'moved': first + fit(other, 6, folder / 'moved'),
  }


def head_training(folder: pathlib.Path) -> dict[str, list[dict[str, float]]]:
  """Rows of the same run of `experiments.train`, an EAGLE-3 head: on one device, and FSDP."""
  import io

  from configs import train_eagle3_zoo
  from experiments import train
  from experiments import workdir
  import rich.console
  from specjax import models
  from specjax.training import data
  from tests.support import tiny

  text = pathlib.Path(tiny.__file__).read_text()
  for number in range(4):
    (folder / 'files').mkdir(exist_ok=True)
    (folder / 'files' / f'module_{number}.py').write_text(text * 4 + f'x = {number}\n')
  (folder / 'files' / 'queue.py').write_text(text * 4)  # a held-out name
  data.train_tokenizer([text], 304).save(str(folder / 'tokenizer.json'))
  target = tiny.model(0, vocab_size=304, max_positions=256)
  models.save_hf(target, folder / 'target', extra_files=[folder / 'tokenizer.json'])
  found = {}
  for name, mesh in (('one', {}), ('fsdp', LAYOUTS['fsdp'])):
    config = train_eagle3_zoo.get_config('smoke')
    config.dtype, config.num_steps = 'float32', 10
    config.target.path, config.corpus.root = str(folder / 'target'), str(folder / 'files')
    config.model.update(
        vocab_size=304, width=48, num_heads=4, num_kv_heads=2, head_dim=16, mlp_width=64
    )
    config.mesh.update(mesh)
    config.evaluate_every = config.checkpoint_every = config.num_steps
    # Decoded with on the mesh alone, where rows must be for every device.
    config.measure.update(num_prompts=2 if mesh else 0, new_tokens=4)
    train.run(config, str(folder / name), console=rich.console.Console(file=io.StringIO()))
    found[name] = workdir.read_rows(folder / name)
  return found


def compare(result, other) -> int:
  """Prints where the tokens of two sets of layouts differ; returns how many cases do.

  A layout that only one of them has is held against the other's single device.
  """
  import numpy as np

  different = 0
  for layout in result:
    if layout not in LAYOUTS:
      continue
    them = other.get(layout, other.get(ONE_DEVICE))
    worst = 0.0
    for case, found in result[layout].items():
      there = them[case]
      largest = np.abs(np.asarray(found['logprobs']) - np.asarray(there['logprobs'])).max()
      same = found['tokens'] == there['tokens'] and found['accepted'] == there['accepted']
      if same:
        worst = max(worst, largest)
        continue
      different += 1
      for row, (one, two) in enumerate(zip(found['tokens'], there['tokens'])):
        place = next((i for i, pair in enumerate(zip(one, two)) if pair[0] != pair[1]), None)
        if place is not None:
          print(f'{layout}: {case}: row {row} differs from new token {place} on', flush=True)
    print(
        f'{layout}: {len(result[layout])} cases, {different} different so far; where equal, '
        f'log-probabilities differ by at most {worst:.1e}', flush=True,
    )
  return different


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('out')
  parser.add_argument('--devices', type=int)
  parser.add_argument('--few', action='store_true', help='one layout, for several processes')
  extents = parser.add_mutually_exclusive_group()
  extents.add_argument('--short', action='store_true', help='the least of the cut')
  extents.add_argument('--full', action='store_true', help='every drafter under every rule')
  extents.add_argument('--pairs', action='store_true', help='each of these under one layout')
  parser.add_argument('--layouts', help='names of layouts, with commas; all where not given')
  parser.add_argument('--rules', help='names of rules, with commas; all where not given')
  parser.add_argument('--against', help='a file to compare OUT with; nothing is run')
  arguments = parser.parse_args()
  if arguments.against:
    one, two = (json.loads(pathlib.Path(p).read_text()) for p in (arguments.out, arguments.against))
    print('the same bits' if one == two else 'not the same bits')
    sys.exit(compare(one, two) > 0)
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = (
      f'--xla_force_host_platform_device_count={arguments.devices} '
      # Programs that run for a moment need not be optimised.
      '--xla_backend_optimization_level=0'
  )
  from specjax import sharding
  from specjax.sharding import processes

  several = processes.start()
  alone = not several and not arguments.few and not arguments.layouts
  names = arguments.layouts.split(',') if arguments.layouts else list(LAYOUTS)
  if arguments.few:
    names = ['data x tensor']
  if alone:
    names.append(ONE_DEVICE)
  given = [name for name in ('short', 'full', 'pairs') if getattr(arguments, name)]
  extent = given[0] if given else 'cut'
  models, result = Models(), {}
  for name in names:
    layouts = None if name == ONE_DEVICE else sharding.make(**LAYOUTS[name])
    pairs = [
        pair for pair in pairs_of(name, extent)
        if not arguments.rules or pair[1] in arguments.rules.split(',')
    ]
    result[name] = cases(models, layouts, pairs)
    print(name, len(pairs), flush=True)
    unused = [c for c, each in result[name].items() if not each['accepted'] and 'plain' not in c]
    if unused:
      sys.exit(f'{name}: nothing was accepted, which says little: {", ".join(unused)}')
    if extent in ('pairs', 'full') and processes.is_first():
      pathlib.Path(arguments.out).write_text(json.dumps(result))
  if alone:
    compare({n: r for n, r in result.items() if n != ONE_DEVICE}, {ONE_DEVICE: result[ONE_DEVICE]})
    with tempfile.TemporaryDirectory() as folder:
      result['loading'] = loading(pathlib.Path(folder))
      result['training'] = training(pathlib.Path(folder))
    with tempfile.TemporaryDirectory() as folder:
      result['head training'] = head_training(pathlib.Path(folder))
  if processes.is_first():
    pathlib.Path(arguments.out).write_text(json.dumps(result))


if __name__ == '__main__':
  main()
