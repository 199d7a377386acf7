"""The one train loop: any loss over a parameter tree, with checkpoints and resumption."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import os
import pathlib
import shutil
import time
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from specjax import sharding
from specjax.training import checkpoints as checkpoints_lib

Array = jax.Array
Params = Any
# (params, batch) -> (loss, metrics); batch is what `batches(step)` returned.
LossFn = Callable[[Params, Any], tuple[Array, dict[str, Array]]]


@struct.dataclass
class TrainState:
  """Everything that a resumed run needs.

  Attributes:
    step: int32 scalar, steps done.
    params: parameter tree, float32.
    optimizer: the optimiser's state.
  """

  step: Array
  params: Params
  optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class Progress:
  """One line of a run's record.

  Attributes:
    step: steps done.
    num_steps: steps in all.
    metrics: means since the last record (training) or over the held-out batches.
    kind: 'train' or 'held_out'.
    tokens_per_second: of training alone: compilation, evaluations and checkpoints are not
      counted; 0 for held-out records and before the second step of a process.
    seconds_left: estimate for the rest of the run, evaluations and checkpoints included.
  """

  step: int
  num_steps: int
  metrics: dict[str, float]
  kind: str
  tokens_per_second: float
  seconds_left: float


def fit(
    *,
    params: Params,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    batches: Callable[[int], Any],
    num_steps: int,
    workdir: str | pathlib.Path,
    held_out: Callable[[], Iterator[Any]] | None = None,
    measure: Callable[[Params], dict[str, float]] | None = None,
    checkpoint_every: int = 100,
    evaluate_every: int = 100,
    record_every: int = 10,
    gradient_accumulation: int = 1,
    train_metrics: tuple[str, ...] | None = None,
    record: Callable[[Progress], None] = lambda progress: None,
    layout: sharding.Layout | None = None,
) -> TrainState:
  """Trains until `num_steps`, from the newest checkpoint in `workdir` if there is one.

  A run that was killed and started again takes the same steps on the same batches from
  its last checkpoint, to bitwise the same losses on the same machine.

  Args:
    params: initial parameters (float32); where a checkpoint is resumed only their shapes
      count, which must be the checkpoint's.
    loss_fn: (params, batch) -> (scalar loss, dict of scalars to report, 'loss' among them).
      A `jax.tree_util.Partial` hands its bound arrays (a frozen target's weights) to the
      compiled step as arguments, where a plain closure would build them in.
    optimizer: an optax transformation.
    batches: step -> batch, a pure function of the step; the leading axis is the batch.
    num_steps: steps in all.
    workdir: `checkpoints/` is made below it.
    held_out: returns a fresh iterator over held-out batches of equal size, or None.
    measure: params -> numbers that join the held-out record, such as the acceptance length
      of decoding with them, or None.
    checkpoint_every: steps between checkpoints, a multiple of `record_every`; the last
      step is always saved.
    evaluate_every: steps between passes over the held-out batches; one follows the last.
    record_every: steps between records.
    gradient_accumulation: equal slices of a batch whose gradients are averaged before a
      step; the result is that of the whole batch in less memory.
    train_metrics: those of the loss's metrics that a training step computes, 'loss' in any
      case; None takes all. The rest are computed for held-out batches alone.
    record: called with each `Progress`.
    layout: how parameters, optimiser and batches are split over devices; that of the module
      that `loss_fn` applies. A checkpoint may be resumed with another one.

  Returns:
    The state after the last step.

  Raises:
    FloatingPointError: if loss, gradients or parameters are no longer finite, before that
      state is saved.
    OSError: if the disk lacks room for two checkpoints, before the first step.
    ValueError: for a count that is not positive, a loss that is no scalar, a batch that
      cannot be sliced; if a resumed checkpoint does not fit, or is beyond `num_steps`.
  """
  _check_counts(
      num_steps=num_steps,
      checkpoint_every=checkpoint_every,
      evaluate_every=evaluate_every,
      record_every=record_every,
      gradient_accumulation=gradient_accumulation,
  )
  if not isinstance(loss_fn, jax.tree_util.Partial):
    loss_fn = jax.tree_util.Partial(loss_fn)
  _check_loss(loss_fn, params, batches(0), gradient_accumulation)
  store = checkpoints_lib.Checkpoints(pathlib.Path(workdir) / 'checkpoints')
  try:
    state = _first_state(store, params, optimizer, num_steps, layout)
    step_fn = _make_step(optimizer, gradient_accumulation, layout, train_metrics)
    evaluate = jax.jit(lambda loss_fn, params, batch: loss_fn(params, batch)[1])
    meter = _Meter(num_steps)
    for step in range(int(state.step), num_steps):
      batch = sharding.put_batch(batches(step), layout)
      state, metrics = step_fn(loss_fn, state, batch)
      meter.add(metrics, _num_tokens(batch))
      done = step + 1
      last = done == num_steps
      if done % record_every == 0 or last:
        record(meter.read(done, store.directory))
      if held_out is not None and (done % evaluate_every == 0 or last):
        with meter.paused(state):
          values = [
              evaluate(loss_fn, state.params, sharding.put_batch(batch, layout))
              for batch in held_out()
          ]
          means = _means(values) | (measure(state.params) if measure else {})
        record(Progress(done, num_steps, means, 'held_out', 0.0, meter.seconds_left(done)))
      if done % checkpoint_every == 0 or last:
        with meter.paused(state):
          store.save(done, state)
  finally:
    store.close()
  return state


def _num_tokens(batch) -> int:
  """Tokens of a batch: its integers; features beside them are no tokens."""
  leaves = jax.tree.leaves(batch)
  return sum(np.size(leaf) for leaf in leaves if np.issubdtype(leaf.dtype, np.integer))


class _Meter:
  """Metrics and time since the last record; `paused` keeps other work off the clock."""

  def __init__(self, num_steps: int):
    self._num_steps = num_steps
    self._pending: list[dict[str, Array]] = []
    self._tokens = 0
    self._steps = 0
    self._since = time.perf_counter()
    self._started: float | None = None

  def add(self, metrics: dict[str, Array], num_tokens: int) -> None:
    """Takes one step's metrics, without waiting for them."""
    self._pending.append(metrics)
    if self._started is None:
      # The first step compiles: the clock starts after it.
      jax.block_until_ready(metrics)
      self._started = self._since = time.perf_counter()
      return
    self._tokens += num_tokens
    self._steps += 1

  def read(self, done: int, directory: pathlib.Path) -> Progress:
    """Means since the last call; waits for the steps.

    Raises:
      FloatingPointError: if one of the steps was not finite.
    """
    metrics = _means(self._pending)
    seconds = max(time.perf_counter() - self._since, 1e-9)
    if metrics.pop('_finite') < 1.0:
      raise FloatingPointError(
          f'Loss, gradients or parameters became NaN or infinite within the '
          f'{len(self._pending)} steps up to step {done} (mean loss {metrics["loss"]}). Lower '
          f'the learning rate; the newest checkpoint in {directory} is from before.'
      )
    speed = self._tokens / seconds
    self._pending, self._tokens, self._since = [], 0, time.perf_counter()
    return Progress(done, self._num_steps, metrics, 'train', speed, self.seconds_left(done))

  def seconds_left(self, done: int) -> float:
    """From the time of all steps of this process but the first, pauses included."""
    elapsed = time.perf_counter() - self._started
    return elapsed / max(self._steps, 1) * (self._num_steps - done)

  @contextlib.contextmanager
  def paused(self, state: TrainState) -> Iterator[None]:
    """Keeps what happens inside off the clock; waits for `state` first."""
    jax.block_until_ready(state.step)
    start = time.perf_counter()
    yield
    self._since += time.perf_counter() - start


def _means(values: list[dict[str, Array]]) -> dict[str, float]:
  values = jax.device_get(values)
  return {name: float(np.mean([float(v[name]) for v in values])) for name in sorted(values[0])}


def _check_counts(**counts: int) -> None:
  for name, value in counts.items():
    if value < 1:
      raise ValueError(f'{name} must be at least 1, got {value}.')
  every, records = counts['checkpoint_every'], counts['record_every']
  if every % records:
    # Otherwise a resumed run's first record would be a mean over fewer steps.
    raise ValueError(
        f'checkpoint_every must be a multiple of record_every, got {every} and {records}.'
    )


def _check_loss(loss_fn, params: Params, batch, slices: int) -> None:
  for leaf in jax.tree.leaves(batch):
    if np.shape(leaf)[0] % slices:
      raise ValueError(
          f'A batch of {np.shape(leaf)[0]} rows cannot be cut into gradient_accumulation='
          f'{slices} equal slices; choose a divisor.'
      )
  loss, metrics = jax.eval_shape(loss_fn, params, batch)
  if loss.shape or 'loss' not in metrics:
    raise ValueError(
        'loss_fn must return a scalar loss and a dict of scalars with the key "loss"; got '
        f'shape {loss.shape} and keys {sorted(metrics)}.'
    )


def _first_state(store, params: Params, optimizer, num_steps: int, layout) -> TrainState:
  """The newest checkpoint's state, or a fresh one."""

  def fresh(params: Params) -> TrainState:
    return TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))

  if layout is None:
    # The step donates its state: the caller's own arrays must outlive it.
    state = fresh(jax.tree.map(jnp.array, params))
  else:
    placed = sharding.like_params(jax.eval_shape(fresh, params), params, layout)
    params = jax.tree.map(sharding.put_array, params, placed.params)
    state = jax.jit(fresh, out_shardings=placed)(params)
  first = store.latest_step()
  if first is None:
    _check_disk(store.directory, state)
    return state
  if first > num_steps:
    raise ValueError(
        f'{store.directory} holds step {first}, beyond the {num_steps} steps asked for. '
        'Raise num_steps, or give another workdir.'
    )
  return store.restore(first, state)


def _check_disk(directory: pathlib.Path, state: TrainState) -> None:
  # A new checkpoint is whole before the oldest of the two kept is removed.
  need = 3 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  free = shutil.disk_usage(directory).free
  if free < need:
    raise OSError(
        f'Checkpoints in {directory} need up to {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB '
        'are free. Make room or give another workdir.'
    )
  if not os.access(directory, os.W_OK):
    raise OSError(f'{directory} cannot be written to; give another workdir.')


def _make_step(
    optimizer: optax.GradientTransformation, slices: int, layout=None, kept=None
):
  """The jitted step (loss_fn, state, batch) -> (state, metrics), the state donated."""

  def step(loss_fn, state: TrainState, batch) -> tuple[TrainState, dict[str, Array]]:

    def loss(params, part):
      value, metrics = loss_fn(params, part)
      if kept is not None:
        # What nobody reads is not computed.
        metrics = {name: metrics[name] for name in metrics if name == 'loss' or name in kept}
      return value, metrics

    grad_fn = jax.grad(loss, has_aux=True)
    if slices == 1:
      grads, metrics = grad_fn(state.params, batch)
    else:
      parts = jax.tree.map(lambda x: x.reshape(slices, -1, *x.shape[1:]), batch)
      shapes = jax.eval_shape(grad_fn, state.params, jax.tree.map(lambda x: x[0], parts))
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

      def add(sums, part):
        return jax.tree.map(jnp.add, sums, grad_fn(state.params, part)), None

      sums, _ = jax.lax.scan(add, zeros, parts)
      grads, metrics = jax.tree.map(lambda x: x / slices, sums)
    updates, opt_state = optimizer.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics['loss'] + norm + optax.tree.norm(params))
    metrics = metrics | {'gradient_norm': norm, '_finite': finite}
    state = TrainState(state.step + 1, params, opt_state)
    if layout is not None:
      placed = sharding.like_params(state, state.params, layout)
      state = jax.lax.with_sharding_constraint(state, placed)
    return state, metrics

  return jax.jit(step, donate_argnums=1)
