"""Times the acceptance op beside the form that makes probabilities of every row.

    python -m benchmarks.acceptance [--batch=1 --num_speculative_tokens=4 --vocab_size=128256]

All forms decide with the same inputs and numbers, in turns within one run, and must agree.
Rows of `--workdir`/metrics.jsonl: `name`, `milliseconds` (median), `ratio` (against the all-rows
form) and what was measured. On an accelerator the best implementation for it is timed too.
"""

import functools
import json
import pathlib

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from specjax import randomness
from specjax import sampling as sampling_lib
from specjax import tree
from specjax import types
from specjax import verify
from specjax.analysis import timing
from specjax.kernels import accept as accept_lib
from specjax.kernels.accept import api

_BATCH = flags.DEFINE_integer('batch', 1, 'Sequences.')
_SIZE = flags.DEFINE_integer('num_speculative_tokens', 4, 'Draft tokens of each.')
_VOCAB = flags.DEFINE_integer('vocab_size', 128_256, 'Entries of a row.')
_REPEATS = flags.DEFINE_integer('repetitions', 40, 'Timed calls of each form.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/acceptance', 'Where metrics.jsonl goes.')


def inputs(batch: int, size: int, vocab_size: int, seed: int = 0):
  """Logits of target and draft that agree about half of the time, tokens and numbers."""
  rng = np.random.default_rng(seed)
  target = 3 * rng.normal(size=(batch, size + 1, vocab_size)).astype(np.float32)
  draft = target[:, :size] + rng.normal(size=(batch, size, vocab_size)).astype(np.float32)
  tokens = np.argmax(draft + rng.gumbel(size=draft.shape), axis=-1).astype(np.int32)
  source = randomness.KeySource(
      randomness.row_keys(jnp.arange(batch)), jnp.full((batch,), 7, jnp.int32)
  )
  return jnp.asarray(target), jnp.asarray(draft), jnp.asarray(tokens), source


@functools.partial(jax.jit, static_argnames='rule')
def noisy_all_rows(target, draft, tokens, source, rule=None):
  """Rejection as commonly written: softmax of all rows, noise for the whole vocabulary."""
  del rule
  batch, size = tokens.shape
  probs, draft_probs = jax.nn.softmax(target), jax.nn.softmax(draft)
  take = lambda rows: jnp.take_along_axis(rows, tokens[..., None], axis=2)[..., 0]
  ratio = take(probs[:, :size]) / take(draft_probs)
  flips = source.uniform(randomness.ACCEPT, jnp.arange(size)) < ratio
  count = jnp.cumprod(flips, axis=1).sum(axis=1)
  residual = jnp.maximum(probs[:, :size] - draft_probs, 0.0)
  rows = jnp.concatenate([residual, probs[:, size:]], axis=1)
  noise = jax.random.gumbel(jax.random.key(0), rows.shape)
  tokens = jnp.argmax(jnp.log(rows) + noise, axis=-1)
  return count, jnp.take_along_axis(tokens, count[:, None], axis=1)[:, 0]


@functools.partial(jax.jit, static_argnames='rule')
def all_rows(target, draft, tokens, source, rule):
  """The rule of `specjax.verify`, from normalised laws of all rows."""
  batch, size = tokens.shape
  sampling = sampling_lib.make(batch_size=batch)
  parents = tree.chain_parents(batch, size)
  proposal = types.Proposal(
      tokens=tokens, parents=parents, valid=jnp.ones(tokens.shape, bool),
      law=sampling_lib.law(draft, sampling), rows=parents, kind=types.SAMPLED,
  )
  found, _ = rule(
      target_law=sampling_lib.law(target, sampling), proposal=proposal,
      positions=jnp.zeros((batch, size + 1), jnp.int32), source=source,
  )
  return found.num_accepted, found.next_token


def op(target, draft, tokens, source, *, rule, implementation, is_law):
  """The op, on logits or (as the engine calls it) on the law that the draft was drawn from."""
  batch, size = tokens.shape
  if rule == 'coupled':
    positions = jnp.broadcast_to(jnp.arange(size + 1, dtype=jnp.int32), (batch, size + 1))
    numbers = accept_lib.Noise(source.keys, positions)
  else:
    numbers = accept_lib.Uniforms(
        source.uniform(randomness.ACCEPT, jnp.arange(size)),
        source.uniform(randomness.NEXT, jnp.arange(size + 1)),
    )
  found = accept_lib.accept(
      target, tokens, rule=rule, numbers=numbers,
      sampling=sampling_lib.make(batch_size=batch), draft_logits=draft, draft_is_law=is_law,
      implementation=implementation,
  )
  return found.num_accepted, found.next_token


def forms(target, draft, tokens, source):
  """Name -> a call without arguments."""
  vocab_size = target.shape[-1]
  flat = target.reshape(-1, vocab_size), draft.reshape(-1, vocab_size)
  law = jax.nn.log_softmax(flat[1])
  found = {
      'rejection, all rows, noise': lambda: noisy_all_rows(target, draft, tokens, source),
  }
  for rule in (verify.rejection(), verify.block()):
    found[f'{rule.name}, all rows'] = functools.partial(
        all_rows, target, draft, tokens, source, rule=rule
    )
  # On a GPU the kernels as well, which are not the default before they are proven.
  named = 'mosaic_gpu' if jax.default_backend() == 'gpu' else api.best()
  for implementation in dict.fromkeys(('xla', named)):
    for rule in ('rejection', 'block', 'coupled'):
      for is_law in (False, True):
        if rule == 'coupled' and is_law:
          continue
        call = jax.jit(functools.partial(
            op, rule=rule, implementation=implementation, is_law=is_law
        ))
        name = f'{rule}, {implementation}' + (', draft law given' if is_law else '')
        found[name] = functools.partial(
            call, flat[0], law if is_law else flat[1], tokens, source
        )
  return found


def times(calls, repetitions: int) -> dict[str, float]:
  """Median milliseconds of each call, taken in turns."""
  measured = timing.in_turns(
      lambda name, case: (timing.seconds_of(calls[name]), None),
      list(calls), repetitions=repetitions, warm_ups=3,
  )
  return {name: 1e3 * median for name, (median,) in measured.medians().items()}


def main(argv):
  del argv
  made = inputs(_BATCH.value, _SIZE.value, _VOCAB.value)
  calls = forms(*made)
  agreed = {}
  for name, call in calls.items():
    rule = name.split(',')[0]
    if 'noise' not in name:
      agreed.setdefault(rule, []).append(jax.tree.map(np.asarray, call()))
  for rule, results in agreed.items():
    for found in results[1:]:
      jax.tree.map(np.testing.assert_array_equal, results[0], found)
  found = times(calls, _REPEATS.value)
  base = found['rejection, all rows, noise']
  folder = pathlib.Path(_WORKDIR.value)
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'metrics.jsonl', 'w', encoding='utf-8') as file:
    for name, milliseconds in found.items():
      row = dict(
          name=name, milliseconds=round(milliseconds, 4), ratio=round(milliseconds / base, 4),
          batch=_BATCH.value, num_speculative_tokens=_SIZE.value, vocab_size=_VOCAB.value,
          floor_bytes=(2 * _SIZE.value + 3) * _VOCAB.value * 4 * _BATCH.value,
          jax=jax.__version__, device=jax.devices()[0].device_kind,
      )
      file.write(json.dumps(row) + '\n')
      print(f'{name:40s} {milliseconds:8.3f} ms  {milliseconds / base:6.3f}')


if __name__ == '__main__':
  app.run(main)
