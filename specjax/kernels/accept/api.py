"""The front of the op: arguments, checks, and which implementation runs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from specjax import tree
from specjax import types
from specjax.kernels.accept import base
from specjax.kernels.accept import mosaic_tpu
from specjax.kernels.accept import recursive
from specjax.kernels.accept import sharded
from specjax.kernels.accept import tiles
from specjax.kernels.accept import xla

Array = jax.Array

_HOPPER = 9.0
# Kinds of GPUs (JAX's `device_kind`) that have passed scripts/check_accept_gpu.py. Each has its
# rows in results/accept/gpu.jsonl, which name device, JAX and commit; a test looks for them.
PROVEN_GPUS: tuple[str, ...] = ()


def accept(
    target_logits: Array,
    draft_tokens: Array,
    *,
    rule: str,
    numbers: base.Uniforms | base.Noise | None = None,
    sampling: types.Sampling,
    draft_logits: Array | None = None,
    draft_is_law: bool = False,
    draft_rows: Array | None = None,
    valid: Array | None = None,
    parents: Array | None = None,
    without_replacement: bool = False,
    implementation: str | None = None,
    split: sharded.Split | None = None,
) -> base.Accepted:
  """Decides how many drafted tokens stay, and draws the token that follows them.

  The laws are those of `specjax.sampling.law`: of the logits after temperature, top-k, top-p
  and min-p, thresholds found without sorting. Penalties, bias and constraints are not
  applied; they belong to the logits (`specjax.sampling.control`). Logits may be infinite:
  -inf excludes a token, and what is +inf shares all of the mass. NaN are not looked for.

  Bytes read of a sequence, floor (2K + 3) V itemsize: K + 1 target rows and K draft rows for
  their log-sum-exps, and two for the residual. See the implementations for theirs.

  Args:
    target_logits: [B * (K + 1), V] bfloat16 or float32; flat, for `[B, K + 1, V]` is laid out
      anew as a whole on TPUs.
    draft_tokens: [B, K] int32.
    rule: 'greedy', 'rejection', 'block', 'coupled' or 'recursive', as in `specjax.verify`.
    numbers: `Noise` for coupled, None for greedy, `Uniforms` for the others.
    sampling: settings, one a sequence. The greedy rule ignores them, but for the
      log-probabilities.
    draft_logits: [B * M, V] that the tokens were drawn from under the same settings, or None
      for tokens that were chosen (one-hot laws; greedy and coupled never read them).
    draft_is_law: static; they are the log-probabilities of the laws themselves.
    draft_rows: [B, K] int32, the row among a sequence's M that each token was drawn from;
      None for 0 … K - 1.
    valid: [B, K] bool, None for all. A prefix in a chain; an invalid token ends the draft, and
      so does one that its own law does not know: whose log-probability there is not finite.
    parents: [B, K] int32 of a tree (`specjax.types`), not for rejection and block; None is a
      chain.
    without_replacement: static; siblings were drawn without replacement (recursive only).
    implementation: one of `IMPLEMENTATIONS`; None takes the best for the default device. A
      named one runs or raises.
    split: how the logits lie on a mesh, if their vocabulary is sharded; then the
      implementation is `xla`, on every shard.

  Returns:
    What was decided.

  Raises:
    ValueError: shapes that do not belong together, numbers of the wrong kind, an unknown or
      impossible implementation; at trace time.
  """
  inputs = _checked(
      target_logits, draft_tokens, rule, numbers, sampling, draft_logits, draft_is_law,
      draft_rows, valid, parents,
  )
  return decide(
      inputs, rule, numbers, parents, implementation, split, without_replacement
  )[0]


def decide(
    inputs: base.Inputs, rule: str, source, parents: Array | None, implementation: str | None,
    split: sharded.Split | None, without_replacement: bool = False,
) -> tuple[base.Accepted, Any]:
  """`run` by the implementation of a name, or on the shards of a mesh; see `accept`.

  Raises:
    ValueError: if there is no implementation of this name, or not for these inputs.
  """
  if split is not None:
    if implementation not in (None, 'xla'):
      raise ValueError(
          f'A sharded vocabulary is decided by xla on every shard; got {implementation!r}. Leave '
          'implementation out.'
      )
    decision = functools.partial(run, without_replacement=without_replacement)
    return sharded.run(split, decision, inputs, rule, source, parents), source
  return run(
      backend(implementation or best(), inputs), inputs, rule, source, parents,
      without_replacement,
  )


def best(device: Any = None) -> str:
  """The best implementation for a device, the default one where None: what an unnamed one is.

  What is not proven is not a default. On GPUs the definition (`xla`) decides until a device of
  their kind has passed `scripts/check_accept_gpu.py` (see `PROVEN_GPUS`); `mosaic_gpu` runs there
  where it is named. The TPU kernels are the default unproven, for no TPU was at hand: on the
  op's suite, interpreted with stale memory and races looked for, and on what the TPU's compiler
  schedules and counts, 8 to 30 times less than for the definition (`results/accept`).
  `implementation='xla'` goes back to the definition there.
  """
  device = jax.devices()[0] if device is None else device
  if device.platform == 'tpu':
    return 'mosaic_tpu'
  is_hopper = device.platform == 'gpu' and _capability(device) >= _HOPPER
  if is_hopper and device.device_kind in PROVEN_GPUS:
    return 'mosaic_gpu'
  return 'xla'


def _capability(device) -> float:
  """A GPU's CUDA compute capability; 0 where it has none (AMD's)."""
  try:
    return float(getattr(device, 'compute_capability', 0.0))
  except ValueError:
    return 0.0


def backend(implementation: str, inputs: base.Inputs):
  """The implementation of a name.

  Raises:
    ValueError: if there is none of this name, or not for these inputs.
  """
  if implementation == 'xla':
    return xla.Xla(tiles.Tiles(inputs.target.shape[-1]))
  if implementation == 'mosaic_tpu':
    return mosaic_tpu.MosaicTpu()
  if implementation == 'mosaic_gpu':
    # Imported here, for it is not part of every build of JAX.
    from specjax.kernels.accept import mosaic_gpu
    return mosaic_gpu.implementation(inputs.target.shape[1])
  raise ValueError(
      f'implementation must be one of {base.IMPLEMENTATIONS}, or None for the best on this '
      f'device; got {implementation!r}.'
  )


def run(
    backend, inputs: base.Inputs, rule: str, source, parents: Array | None = None,
    without_replacement: bool = False,
) -> tuple[base.Accepted, Any]:
  """The op by one implementation.

  Args:
    backend: the implementation.
    inputs: the arrays.
    rule: the rule.
    source: numbers as for `accept`. In jnp any `specjax.types.Source` will do for rejection
      and block, which is how the output's law is enumerated.
    parents: as for `accept`.
    without_replacement: as for `accept`.

  Returns:
    What was decided, and the source to use next.
  """
  if rule in ('greedy', 'coupled'):
    return backend.follow(inputs, rule, source, parents), source
  if rule == 'recursive':
    batch, size = inputs.tokens.shape
    return recursive.recursive(
        backend, inputs, tree.chain_parents(batch, size) if parents is None else parents, source,
        without_replacement=without_replacement,
    )
  return backend.chain(inputs, rule, source)


def _checked(
    target, tokens, rule, numbers, sampling, draft, draft_is_law, draft_rows, valid, parents
) -> base.Inputs:
  """The inputs, or a ValueError that says what is wrong with them."""
  if rule not in base.RULES:
    raise ValueError(f'rule must be one of {base.RULES}; got {rule!r}.')
  if tokens.ndim != 2:
    raise ValueError(f'draft_tokens must be [B, K]; got {tokens.shape}.')
  batch, size = tokens.shape
  if target.ndim != 2 or target.shape[0] != batch * (size + 1):
    raise ValueError(
        f'target_logits must be flat, [B * (K + 1), V] with B = {batch} and K = {size} as '
        f'draft_tokens has them: {batch * (size + 1)} rows; got {target.shape}.'
    )
  for name, logits in (('target_logits', target), ('draft_logits', draft)):
    if logits is not None and logits.dtype not in (jnp.float32, jnp.bfloat16):
      raise ValueError(f'{name} must be float32 or bfloat16; got {logits.dtype}.')
  wanted = {'greedy': None, 'coupled': base.Noise}.get(rule, base.Uniforms)
  if wanted and not isinstance(numbers, wanted):
    raise ValueError(
        f'rule={rule!r} takes numbers={wanted.__name__}(...); got {type(numbers).__name__}.'
    )
  if wanted and jnp.shape(jax.tree.leaves(numbers)[1]) != (batch, size + 1):
    raise ValueError(
        f'{wanted.__name__} must be for [B, K + 1] = {(batch, size + 1)}; got '
        f'{jnp.shape(jax.tree.leaves(numbers)[1])}.'
    )
  if parents is not None and rule in ('rejection', 'block'):
    raise ValueError(f'rule={rule!r} verifies chains: leave parents out, or use recursive.')
  if sampling.temperature.shape != (batch,):
    raise ValueError(
        f'sampling is for {sampling.temperature.shape[0]} sequences, draft_tokens has {batch}.'
    )
  return inputs_of(
      target, tokens, sampling=sampling, draft=draft, draft_is_law=draft_is_law,
      draft_rows=draft_rows, valid=valid,
  )


def inputs_of(
    target, tokens, *, sampling, draft, draft_is_law, draft_rows, valid
) -> base.Inputs:
  """The inputs with everything optional filled in."""
  batch, size = tokens.shape
  rows = tree.chain_parents(batch, size) if draft_rows is None else draft_rows
  if draft is not None:
    if draft.ndim != 2 or draft.shape[0] % batch or draft.shape[1] != target.shape[1]:
      raise ValueError(
          f'draft_logits must be flat, [B * M, V] with B = {batch} and V = {target.shape[1]}; '
          f'got {draft.shape}.'
      )
    each = draft.shape[0] // batch
    if draft_rows is None and each != size:
      raise ValueError(
          f'draft_logits has {each} rows a sequence for {size} tokens: say in draft_rows which '
          'row each token was drawn from.'
      )
  return base.Inputs(
      target=target,
      draft=draft,
      tokens=tokens.astype(jnp.int32),
      draft_rows=rows,
      valid=jnp.ones(tokens.shape, bool) if valid is None else valid,
      sampling=sampling,
      draft_is_law=draft_is_law,
      all_valid=valid is None,
      in_order=draft_rows is None,
  )
