"""What the tests of meshes run in processes of their own, with several CPU devices each.

    python -m tests.mesh_run OUT.json --devices=8 [--coordinator=HOST:PORT --number=0 --count=2]

Writes, for every layout x drafter x rule, the tokens of a run, and those on one device where
there is one process alone.
"""

import argparse
import json
import os
import pathlib
import tempfile

RULES = ('greedy', 'rejection', 'block', 'coupled', 'typical')
# Preset and sizes for eight devices; two key-value heads, which tensor=8 keeps four times.
LAYOUTS = {
    'tensor': dict(preset='tensor', model=8, draft=2),
    'data x tensor': dict(preset='tensor', data=2, model=4, draft=1),
    'sequence': dict(preset='sequence', sequence=2, model=2, data=2, draft=2),
    'fsdp': dict(preset='fsdp', data=4, model=2, draft=2),
}
# With --full every layout runs all of these; else the first does, and the others two.
PAIRS = [('model', rule) for rule in RULES] + [
    ('plain', 'greedy'), ('ngram', 'rejection'), ('tree', 'coupled'), ('tree', 'greedy')
]
MANY = [
    ('model', 'greedy'), ('model', 'block'), ('model', 'coupled'), ('ngram', 'rejection'),
    ('tree', 'coupled'),
]
FEW = [('model', 'block'), ('tree', 'coupled')]
# Rows grow beyond the first half of the cache's 64 slots: that is where `sequence` splits them.
NEW_TOKENS, CACHE_LENGTH = 28, 48


def pairs_of(layout: str, full: bool = False) -> list[tuple[str, str]]:
  """What runs under a layout."""
  if full:
    return PAIRS
  return MANY if layout in ('tensor', 'one device') else FEW


def cases(layout, pairs):
  """Tokens of every (drafter, rule), on the layouts given or on one device where None."""
  import jax.numpy as jnp
  import specjax
  from specjax import sharding
  from tests import tiny

  shape = dict(num_layers=2, num_heads=8, num_kv_heads=2)
  target = tiny.model(0, **shape)
  # The target's own first layer: what it drafts is accepted at times.
  draft = tiny.model(0, **{**shape, 'num_layers': 1})
  prompts = tiny.PROMPTS
  hot_law = specjax.sampling.make(batch_size=len(prompts), temperature=0.9, top_p=0.95)
  options = dict(max_new_tokens=NEW_TOKENS, seeds=3, cache_length=CACHE_LENGTH)
  # What plain decoding says, for the tree to propose in part: else nothing would be accepted.
  references = dict(
      greedy=specjax.decode(target, prompts, **options),
      coupled=specjax.decode(
          target, prompts, rule=specjax.verify.coupled(), sampling=hot_law, **options
      ),
  )
  if layout is not None:
    target = sharding.place(target, layout.target)
    draft = sharding.place(draft, layout.draft)
  drafters = dict(
      model=lambda _: specjax.drafters.model(draft, num_speculative_tokens=3),
      ngram=lambda _: specjax.drafters.ngram(num_speculative_tokens=3),
      plain=lambda _: None,
      tree=lambda rule: specjax.drafters.synthetic(
          jnp.asarray(references[rule].tokens),
          reference_lengths=jnp.asarray(references[rule].lengths),
          acceptance=0.7, vocab_size=tiny.VOCAB, parents=(0, 0, 1, 1),
      ),
  )
  found = {}
  for drafter, rule in pairs:
    output = specjax.generate(
        target,
        prompts,
        drafter=drafters[drafter](rule),
        rule=getattr(specjax.verify, rule)(),
        sampling=None if rule == 'greedy' else hot_law,
        prefill_chunk=16,
        logprobs='raw',
        **options,
    )
    found[f'{drafter}, {rule}'] = dict(
        tokens=[output.new_tokens(row).tolist() for row in range(len(prompts))],
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
  from tests import tiny

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
  return {
      'files': len(list((folder / 'model').glob('*.safetensors'))) > 2,
      'placed': equal(split.params, sharding.place(model, layout).params),
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


def report(result) -> None:
  """Prints where a layout's tokens differ from one device's."""
  import numpy as np

  for layout in LAYOUTS:
    for case, found in result[layout].items():
      there = result['one device'][case]
      same = found['tokens'] == there['tokens']
      largest = np.abs(np.asarray(found['logprobs']) - np.asarray(there['logprobs'])).max()
      verdict = 'same tokens' if same else 'DIFFERENT'
      print(f'{layout}: {case}: {verdict}, log-probabilities differ by {largest:.1e}', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('out')
  parser.add_argument('--devices', type=int, required=True)
  parser.add_argument('--coordinator')
  parser.add_argument('--number', type=int)
  parser.add_argument('--count', type=int)
  parser.add_argument('--few', action='store_true', help='one layout, for several processes')
  parser.add_argument('--full', action='store_true', help='all of PAIRS under every layout')
  arguments = parser.parse_args()
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = (
      f'--xla_force_host_platform_device_count={arguments.devices} '
      # Programs that run for a moment need not be optimised.
      '--xla_backend_optimization_level=0'
  )
  from specjax import sharding
  from specjax.sharding import processes

  processes.start(
      coordinator_address=arguments.coordinator,
      num_processes=arguments.count,
      process_id=arguments.number,
  )
  result = {}
  for name, sizes in LAYOUTS.items():
    if arguments.few and name != 'data x tensor':
      continue
    result[name] = cases(sharding.make(**sizes), pairs_of(name, arguments.full))
    print(name, flush=True)
  if not arguments.few:
    result['one device'] = cases(None, pairs_of('one device', arguments.full))
    report(result)
    with tempfile.TemporaryDirectory() as folder:
      result['loading'] = loading(pathlib.Path(folder))
      result['training'] = training(pathlib.Path(folder))
  if processes.is_first():
    pathlib.Path(arguments.out).write_text(json.dumps(result))


if __name__ == '__main__':
  main()
