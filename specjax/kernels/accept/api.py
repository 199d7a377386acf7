"""The front of the op: arguments, checks, and which implementation runs."""

from typing import Any

import jax
import jax.numpy as jnp

from specjax import tree
from specjax import types
from specjax import verify
from specjax.kernels.accept import base
from specjax.kernels.accept import mosaic_tpu
from specjax.kernels.accept import sharded
from specjax.kernels.accept import tiles
from specjax.kernels.accept import xla
from specjax.verify import rows as rows_lib

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
    rule: 'greedy', 'rejection', 'block', 'coupled', 'recursive' or 'traversal', as in
      `specjax.verify`: it is that rule which runs.
    numbers: `Noise` for coupled, None for greedy, `Uniforms` for the others.
    sampling: settings, one per sequence. The greedy rule ignores them, but for the
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
    without_replacement: static; siblings were drawn without replacement (recursive and traversal).
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
  if rule in ('greedy', 'coupled'):
    draft_logits = draft_rows = None  # not even their sums are made
  inputs = _checked(
      target_logits, draft_tokens, rule, numbers, sampling, draft_logits, draft_is_law,
      draft_rows, valid, parents, without_replacement,
  )
  positions = numbers.positions if rule == 'coupled' else None
  return decide(
      verify.named(rule), inputs, numbers, positions, implementation=implementation, split=split
  )[0]


def decide(
    rule: Any, inputs: base.Inputs, source: Any, positions: Array | None, *,
    implementation: str | None, split: sharded.Split | None,
) -> tuple[types.Verification, Any]:
  """What a rule of `specjax.verify` decides from logits.

  Args:
    rule: the rule.
    inputs: the arrays.
    source: `base.Uniforms`; something with `keys` for the coupled rule; None for the greedy one. In
      jnp any `specjax.types.Source` will do for the other rules, which is how the output's law is
      enumerated.
    positions: of the coupled rule, see `base.Noise`.
    implementation: as for `accept`.
    split: as for `accept`.

  Returns:
    The decision, and the source to use next.

  Raises:
    ValueError: if there is no implementation of this name, or not for these inputs.
  """
  if split is not None:
    if implementation not in (None, 'xla'):
      raise ValueError(
          f'A sharded vocabulary is decided by xla on every shard; got {implementation!r}. Leave '
          'implementation out.'
      )
    return sharded.decide(split, rule, inputs, source, positions), source
  rows = rows_of(implementation or best(), inputs)
  return rule.decide(rows, positions=positions, source=source)


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


def rows_of(implementation: str, inputs: base.Inputs) -> rows_lib.Rows:
  """The rows of a round, by the implementation of a name.

  Raises:
    ValueError: if there is none of this name, or not for these inputs.
  """
  vocab_size = inputs.target.shape[-1]
  if implementation == 'xla':
    return xla.TileRows(inputs, tiles.Tiles(vocab_size))
  if implementation == 'mosaic_tpu':
    return mosaic_tpu.MosaicTpuRows(inputs)
  if implementation == 'mosaic_gpu':
    # Imported here, for it is not part of every build of JAX.
    from specjax.kernels.accept import mosaic_gpu
    return mosaic_gpu.rows_of(inputs)
  raise ValueError(
      f'implementation must be one of {base.IMPLEMENTATIONS}, or None for the best on this '
      f'device; got {implementation!r}.'
  )


def _checked(
    target, tokens, rule, numbers, sampling, draft, draft_is_law, draft_rows, valid, parents,
    without_replacement,
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
  drawn = types.WITHOUT_REPLACEMENT if without_replacement else types.SAMPLED
  return inputs_of(
      target, tokens, sampling=sampling, draft=draft, draft_is_law=draft_is_law,
      draft_rows=draft_rows, valid=valid, parents=parents,
      kind=types.ONE_HOT if draft is None else drawn,
  )


def inputs_of(
    target, tokens, *, sampling, draft, draft_is_law, draft_rows, valid, parents, kind
) -> base.Inputs:
  """The inputs with everything optional filled in; None of `parents` is a chain."""
  batch, size = tokens.shape
  in_order = tree.chain_parents(batch, size)
  if draft is not None:
    if draft.ndim != 2 or draft.shape[0] % batch or draft.shape[1] != target.shape[1]:
      raise ValueError(
          f'draft_logits must be flat, [B * M, V] with B = {batch} and V = {target.shape[1]}; '
          f'got {draft.shape}.'
      )
    each = draft.shape[0] // batch
    if draft_rows is None and each != size:
      raise ValueError(
          f'draft_logits has {each} rows per sequence for {size} tokens: give draft_rows, the row '
          'that each token was drawn from.'
      )
  return base.Inputs(
      target=target,
      draft=draft,
      proposal=types.Proposal(
          tokens=tokens.astype(jnp.int32),
          parents=in_order if parents is None else parents,
          valid=jnp.ones(tokens.shape, bool) if valid is None else valid,
          law=None,
          rows=in_order if draft_rows is None else draft_rows,
          kind=kind,
      ),
      sampling=sampling,
      draft_is_law=draft_is_law,
      is_chain=parents is None,
      all_valid=valid is None,
      in_order=draft_rows is None,
  )
