"""Times the acceptance op beside the form that computes probabilities of every row.

    python -m benchmarks.acceptance [--batch=1 --num_speculative_tokens=4 --vocab_size=128256]

All forms decide on the same logits with the same random numbers, take turns within one run, and
must agree. Rows of `--workdir`/metrics.jsonl: `name`, `milliseconds` (median), `ratio` (to the
form that draws noise for all rows), and the settings. On an accelerator its best implementation is
timed too.
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

_BATCH = flags.DEFINE_integer('batch', 1, 'Number of sequences.')
_SIZE = flags.DEFINE_integer('num_speculative_tokens', 4, 'Draft tokens per sequence.')
_VOCAB = flags.DEFINE_integer('vocab_size', 128_256, 'Entries of a row.')
_REPETITIONS = flags.DEFINE_integer('repetitions', 40, 'Timed calls of each form.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/acceptance', 'Folder for metrics.jsonl.')

NOISY = 'rejection, all rows, noise'


def inputs(batch: int, size: int, vocab_size: int, seed: int = 0):
  """Logits of target [B, K + 1, V] and draft [B, K, V], tokens [B, K], and random numbers.

  About half of the draft tokens are accepted.
  """
  rng = np.random.default_rng(seed)
  target = 3 * rng.normal(size=(batch, size + 1, vocab_size)).astype(np.float32)
  draft = target[:, :size] + rng.normal(size=(batch, size, vocab_size)).astype(np.float32)
  tokens = np.argmax(draft + rng.gumbel(size=draft.shape), axis=-1).astype(np.int32)
  source = randomness.KeySource(
      randomness.row_keys(jnp.arange(batch)), jnp.full((batch,), 7, jnp.int32)
  )
  return jnp.asarray(target), jnp.asarray(draft), jnp.asarray(tokens), source


@jax.jit
def noisy_all_rows(target, draft, tokens, source):
  """Rejection as commonly written: softmax of all rows, noise for the whole vocabulary."""
  size = tokens.shape[1]
  probs, draft_probs = jax.nn.softmax(target), jax.nn.softmax(draft)
  take = lambda rows: jnp.take_along_axis(rows, tokens[..., None], axis=2)[..., 0]
  ratio = take(probs[:, :size]) / take(draft_probs)
  accepted = source.uniform(randomness.ACCEPT, jnp.arange(size)) < ratio
  count = jnp.cumprod(accepted, axis=1).sum(axis=1)
  residual = jnp.maximum(probs[:, :size] - draft_probs, 0.0)
  rows = jnp.concatenate([residual, probs[:, size:]], axis=1)
  noise = jax.random.gumbel(jax.random.key(0), rows.shape)
  tokens = jnp.argmax(jnp.log(rows) + noise, axis=-1)
  return count, jnp.take_along_axis(tokens, count[:, None], axis=1)[:, 0]


@functools.partial(jax.jit, static_argnames='rule')
def all_rows(target, draft, tokens, source, *, rule):
  """The rule of `specjax.verify`, from normalised laws of all rows."""
  batch, size = tokens.shape
  sampling = sampling_lib.make(batch_size=batch)
  parents = tree.chain_parents(batch, size)
  proposal = types.Proposal(
      tokens=tokens, parents=parents, valid=jnp.ones(tokens.shape, bool),
      law=sampling_lib.law(draft, sampling), rows=parents, kind=types.SAMPLED,
  )
  verification, _ = rule(
      target_law=sampling_lib.law(target, sampling), proposal=proposal,
      positions=jnp.zeros((batch, size + 1), jnp.int32), source=source,
  )
  return verification.num_accepted, verification.next_token


@functools.partial(jax.jit, static_argnames=('rule', 'implementation', 'draft_is_law'))
def op(target, draft, tokens, source, *, rule, implementation, draft_is_law):
  """The op, on flat logits or (as in the engine) on the law that the draft was drawn from."""
  batch, size = tokens.shape
  if rule == 'coupled':
    positions = jnp.broadcast_to(jnp.arange(size + 1, dtype=jnp.int32), (batch, size + 1))
    numbers = accept_lib.Noise(source.keys, positions)
  else:
    numbers = accept_lib.Uniforms(
        source.uniform(randomness.ACCEPT, jnp.arange(size)),
        source.uniform(randomness.NEXT, jnp.arange(size + 1)),
    )
  result = accept_lib.accept(
      target, tokens, rule=rule, numbers=numbers,
      sampling=sampling_lib.make(batch_size=batch), draft_logits=draft, draft_is_law=draft_is_law,
      implementation=implementation,
  )
  return result.num_accepted, result.next_token


def forms(target, draft, tokens, source):
  """What is timed: a name, which begins with the rule, to a call without arguments."""
  vocab_size = target.shape[-1]
  flat = target.reshape(-1, vocab_size), draft.reshape(-1, vocab_size)
  law = jax.nn.log_softmax(flat[1])
  calls = {NOISY: functools.partial(noisy_all_rows, target, draft, tokens, source)}
  for rule in (verify.rejection(), verify.block()):
    calls[f'{rule.name}, all rows'] = functools.partial(
        all_rows, target, draft, tokens, source, rule=rule
    )
  # On a GPU the kernels as well, which are not the default before they are proven.
  best = 'mosaic_gpu' if jax.default_backend() == 'gpu' else api.best()
  for implementation in dict.fromkeys(('xla', best)):
    for rule in ('rejection', 'block', 'coupled'):
      for draft_is_law in (False,) if rule == 'coupled' else (False, True):
        name = f'{rule}, {implementation}' + (', draft law given' if draft_is_law else '')
        calls[name] = functools.partial(
            op, flat[0], law if draft_is_law else flat[1], tokens, source, rule=rule,
            implementation=implementation, draft_is_law=draft_is_law,
        )
  return calls


def check_agreement(calls) -> None:
  """Raises AssertionError unless all forms of a rule decide alike; noise is another draw."""
  decisions = {}
  for name, call in calls.items():
    if name != NOISY:
      decision = jax.tree.map(np.asarray, call())
      first = decisions.setdefault(name.split(',')[0], decision)
      jax.tree.map(np.testing.assert_array_equal, first, decision)


def main(argv):
  del argv
  calls = forms(*inputs(_BATCH.value, _SIZE.value, _VOCAB.value))
  check_agreement(calls)
  times = timing.in_turns(
      lambda name, case: (timing.seconds_of(calls[name]), None),
      list(calls), repetitions=_REPETITIONS.value, warm_ups=3,
  ).medians()
  folder = pathlib.Path(_WORKDIR.value)
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'metrics.jsonl', 'w', encoding='utf-8') as file:
    for name, (seconds,) in times.items():
      milliseconds, ratio = 1e3 * seconds, seconds / times[NOISY][0]
      row = dict(
          name=name, milliseconds=round(milliseconds, 4), ratio=round(ratio, 4),
          batch=_BATCH.value, num_speculative_tokens=_SIZE.value, vocab_size=_VOCAB.value,
          floor_bytes=(2 * _SIZE.value + 3) * _VOCAB.value * 4 * _BATCH.value,
          jax=jax.__version__, device=jax.devices()[0].device_kind,
      )
      file.write(json.dumps(row) + '\n')
      print(f'{name:40s} {milliseconds:8.3f} ms  {ratio:6.3f}')


if __name__ == '__main__':
  app.run(main)
