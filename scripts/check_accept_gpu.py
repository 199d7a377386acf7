"""Checks and times the acceptance op on a Hopper GPU: equality with its definition, milliseconds.

    python scripts/check_accept_gpu.py [--workdir=runs/check_accept_gpu]

For B in 1, 8, 64 and K in 1, 4, 8, 16 at V = 128,256 (float32, both logits 13 GB at the largest):

- `equal`: whether `mosaic_gpu` decides as `xla` does with the same random numbers, per rule; sums
  are rounded differently, so that one decision in 10,000 may differ, next to a breakpoint;
- `milliseconds` of both, of a torch port of the usual verifier (softmax, gather, compare, residual,
  sample: one launch each) if torch with CUDA is installed, and of the bytes floor, (2K + 3) V
  itemsize per sequence, at the bandwidth that a copy reaches on this machine.

Writes `metrics.jsonl`, one row per size and rule, and prints it; each row names the device, JAX and
the commit. Fails if a row is not equal, and refuses to run on anything but such a GPU.

The kernels become the default for a kind of device once it has passed: put the rows of a clean
checkout into `results/accept/gpu.jsonl` and its `device_kind` into `PROVEN_GPUS` of
`specjax/kernels/accept/api.py`, if they are faster there too. Until then the definition decides on
GPUs. It has not been run yet, for lack of such a machine.
"""

from collections.abc import Sequence
import functools
import json
import pathlib
import subprocess
import sys

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from specjax import randomness
from specjax import sampling as sampling_lib
from specjax.analysis import timing
from specjax.kernels import accept as accept_lib

_WORKDIR = flags.DEFINE_string('workdir', 'runs/check_accept_gpu', 'Folder for metrics.jsonl.')
_BATCHES = flags.DEFINE_list('batches', ['1', '8', '64'], 'Numbers of sequences, B.')
_SIZES = flags.DEFINE_list('sizes', ['1', '4', '8', '16'], 'Draft tokens per sequence, K.')
_VOCAB = flags.DEFINE_integer('vocab_size', 128_256, 'Entries of a row, V.')
_REPETITIONS = flags.DEFINE_integer('repetitions', 30, 'Timed calls of each.')

IMPLEMENTATIONS = ('xla', 'mosaic_gpu')
RULES = ('greedy', 'rejection', 'block', 'coupled')


def inputs(batch: int, size: int, vocab_size: int):
  """Flat logits and tokens, made on the device."""
  keys = jax.random.split(jax.random.key(0), 3)
  target = 3 * jax.random.normal(keys[0], (batch, size + 1, vocab_size))
  draft = target[:, :size] + jax.random.normal(keys[1], (batch, size, vocab_size))
  tokens = jax.random.categorical(keys[2], draft, axis=-1).astype(jnp.int32)
  return target.reshape(-1, vocab_size), draft.reshape(-1, vocab_size), tokens


def op(target, draft, tokens, seed, *, rule, implementation):
  """The op with the random numbers of a seed."""
  batch, size = tokens.shape
  source = randomness.KeySource(
      randomness.row_keys(seed + jnp.arange(batch)), jnp.zeros((batch,), jnp.int32)
  )
  numbers = accept_lib.Uniforms(
      source.uniform(randomness.ACCEPT, jnp.arange(size)),
      source.uniform(randomness.NEXT, jnp.arange(size + 1)),
  )
  if rule in ('greedy', 'coupled'):
    positions = jnp.broadcast_to(jnp.arange(size + 1, dtype=jnp.int32), (batch, size + 1))
    numbers, draft = accept_lib.Noise(source.keys, positions), None
  return accept_lib.accept(
      target, tokens, rule=rule, numbers=None if rule == 'greedy' else numbers,
      sampling=sampling_lib.make(batch_size=batch), draft_logits=draft,
      implementation=implementation,
  )


def milliseconds(call, wait, repetitions: int) -> float:
  """Median milliseconds of a call."""
  run = lambda key, case: (timing.seconds_of(call, wait), None)
  times = timing.in_turns(run, ('call',), repetitions=repetitions, warm_ups=3)
  return 1e3 * times.medians()['call'][0]


def bandwidth(num_elements: int = 1 << 30) -> float:
  """Bytes per second that a copy of float32 (by default 4 GB of it) reads and writes."""
  array = jnp.zeros((num_elements,), jnp.float32)
  copy = jax.jit(lambda x: x + 1)
  return 2 * array.nbytes / (milliseconds(lambda: copy(array), jax.block_until_ready, 10) / 1e3)


def commit() -> str:
  """The checkout's commit, followed by `-dirty` if files differ; '' if there is none."""
  process = subprocess.run(
      ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'],
      cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, check=False,
  )
  return process.stdout.strip()


def torch_verifier(batch: int, size: int, vocab_size: int):
  """The usual verifier in torch as a call, and how to wait for it; None without CUDA's torch."""
  try:
    import torch
  except ImportError:
    return None
  if not torch.cuda.is_available():
    return None
  target = 3 * torch.randn(batch, size + 1, vocab_size, device='cuda')
  draft = target[:, :size] + torch.randn(batch, size, vocab_size, device='cuda')
  tokens = torch.distributions.Categorical(logits=draft).sample()

  def call():
    probs, draft_probs = target.softmax(-1), draft.softmax(-1)
    take = lambda rows: rows.gather(2, tokens[..., None])[..., 0]
    ratio = take(probs[:, :size]) / take(draft_probs)
    count = (torch.rand_like(ratio) < ratio).int().cumprod(1).sum(1)
    residual = (probs[:, :size] - draft_probs).clamp(min=0)
    rows = torch.cat([residual, probs[:, size:]], 1)
    noise = torch.empty_like(rows).exponential_()
    recovered = (rows / noise).argmax(-1)
    return count, recovered.gather(1, count[:, None].long())

  return call, lambda _: torch.cuda.synchronize()


def measure(
    batch: int, size: int, vocab_size: int, bytes_per_second: float, *, repetitions: int,
    implementations: tuple[str, ...] = IMPLEMENTATIONS, rules: Sequence[str] = RULES,
):
  """Yields the rows of one size, one per rule.

  Args:
    batch: B.
    size: K.
    vocab_size: V.
    bytes_per_second: of a copy on this machine, for the floor.
    repetitions: timed calls of each implementation.
    implementations: the definition, then the one to compare with it, if any.
    rules: of the op.
  """
  target, draft, tokens = inputs(batch, size, vocab_size)
  floor = (2 * size + 3) * vocab_size * 4 * batch
  peer = torch_verifier(batch, size, vocab_size)
  peer_time = milliseconds(*peer, repetitions) if peer else None
  for rule in rules:
    decisions, times = [], []
    for implementation in implementations:
      call = jax.jit(functools.partial(op, rule=rule, implementation=implementation))
      results = [call(target, draft, tokens, seed) for seed in range(20)]
      decisions.append(jax.tree.map(lambda *x: np.stack(x), *results))
      times.append(milliseconds(
          lambda call=call: call(target, draft, tokens, 0), jax.block_until_ready, repetitions
      ))
    expected, actual = decisions[0], decisions[-1]
    differs = (
        (expected.num_accepted != actual.num_accepted) | (expected.next_token != actual.next_token)
    )
    yield dict(
        name=f'{rule}, B={batch}, K={size}', batch=batch, num_speculative_tokens=size,
        vocab_size=vocab_size, decisions=int(differs.size), different=int(differs.sum()),
        equal=int(differs.sum()) <= 1e-4 * differs.size,
        largest_log_prob_difference=float(np.abs(
            np.where(differs[..., None], 0.0, expected.log_probs - actual.log_probs)
        ).max()),
        milliseconds=times[-1], milliseconds_xla=times[0],
        milliseconds_torch=peer_time, milliseconds_floor=1e3 * floor / bytes_per_second,
        bandwidth=bytes_per_second, device=jax.devices()[0].device_kind, jax=jax.__version__,
        commit=commit(),
    )


def main(argv):
  del argv
  device = jax.devices()[0]
  if device.platform != 'gpu' or float(device.compute_capability) < 9.0:
    sys.exit(f'This check needs a Hopper GPU or newer; this is {device.device_kind}.')
  folder = pathlib.Path(_WORKDIR.value)
  folder.mkdir(parents=True, exist_ok=True)
  bytes_per_second, different = bandwidth(), []
  with open(folder / 'metrics.jsonl', 'w', encoding='utf-8') as file:
    for batch in map(int, _BATCHES.value):
      for size in map(int, _SIZES.value):
        rows = measure(
            batch, size, _VOCAB.value, bytes_per_second, repetitions=_REPETITIONS.value
        )
        for row in rows:
          file.write(json.dumps(row) + '\n')
          file.flush()
          print(json.dumps(row), flush=True)
          if not row['equal']:
            different.append(row['name'])
  if different:
    sys.exit(f'Not equal to the definition: {"; ".join(different)}.')


if __name__ == '__main__':
  app.run(main)
