"""The decisions, from scalars of rows, shared by the implementations of the op.

Rejection and block need of each drafted token its log-probability under target and draft,
and the block rule one mass a row; nothing here is as large as the vocabulary. The formulas
are those of `specjax.verify`.
"""

from flax import struct
import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import tree
from specjax import types
from specjax.kernels.accept import base
from specjax.verify import acceptance
from specjax.verify.block import conditional
from specjax.verify.block import stop_probs
from specjax.verify.rejection import token_probs

Array = jax.Array


@struct.dataclass
class Decision:
  """Where a chain stops, and what its next token is drawn from.

  The next token is drawn from max(scale * target - draft, 0) at row `num_accepted`, from the
  target's law where everything was accepted.

  Attributes:
    num_accepted: [B] int32.
    is_bonus: [B] bool.
    scale: [B] float32 in [0, 1].
    accept_probs: [B, K] float32.
  """

  num_accepted: Array
  is_bonus: Array
  scale: Array
  accept_probs: Array


def rejection(target: Array, draft: Array, valid: Array, source) -> tuple[Decision, object]:
  """The rejection rule.

  Args:
    target: [B, K] float32, log-probabilities of the drafted tokens under the target's law.
    draft: [B, K] float32, under the draft's; 0 for chosen tokens.
    valid: [B, K] bool, a prefix.
    source: has `flip`; consumed.

  Returns:
    The decision, and the source to use next.
  """
  probs = token_probs(target, draft, valid)
  flips, source = source.flip(probs, purpose=randomness.ACCEPT)
  num_accepted = acceptance.prefix_length(flips & valid).astype(jnp.int32)
  return Decision(
      num_accepted=num_accepted,
      is_bonus=num_accepted == acceptance.prefix_length(valid),
      scale=jnp.ones(num_accepted.shape, jnp.float32),
      accept_probs=probs,
  ), source


def block(
    prefix: Array, surplus: Array, valid: Array, source
) -> tuple[Decision, object]:
  """The block rule.

  Args:
    prefix: [B, K] float32, `prefix_probs` of the tokens.
    surplus: [B, K - 1] float32, the sum of max(p_i target - draft, 0) at rows 1 … K - 1.
    valid: [B, K] bool, a prefix.
    source: has `flip`; consumed.

  Returns:
    The decision, and the source to use next.
  """
  stops = stop_probs(prefix, surplus, valid)
  flips, source = source.flip(stops, purpose=randomness.ACCEPT)
  nodes = jnp.arange(1, valid.shape[1] + 1, dtype=jnp.int32)
  num_accepted = jnp.max(jnp.where(flips & valid, nodes, 0), axis=1)
  whole = jnp.pad(prefix, ((0, 0), (1, 0)), constant_values=1.0)
  return Decision(
      num_accepted=num_accepted,
      is_bonus=num_accepted == acceptance.prefix_length(valid),
      scale=jnp.take_along_axis(whole, num_accepted[:, None], axis=1)[:, 0],
      accept_probs=conditional(stops),
  ), source


def drawn(draft: Array) -> Array:
  """Whether tokens were drawn from the draft's law, by their log-probabilities under it.

  Of a law that is empty or NaN nothing is drawn: such a token is not valid, whatever the
  drafter says. Elementwise; kernels call it too.
  """
  return draft > -jnp.inf


def nothing_drafted(batch_size: int) -> Decision:
  """With K = 0: a token is drawn from the target's law."""
  zeros = jnp.zeros((batch_size,), jnp.int32)
  return Decision(
      num_accepted=zeros,
      is_bonus=zeros == 0,
      scale=jnp.ones((batch_size,), jnp.float32),
      accept_probs=jnp.zeros((batch_size, 0), jnp.float32),
  )


def one_hot_surplus(prefix: Array, target: Array) -> Array:
  """The surplus where tokens were chosen: all of the target's law but the token.

  Args:
    prefix: p_i before the token; target: the token's log-probability, of one shape.
  """
  return prefix * -jnp.expm1(target)


def draw_of(decision: Decision, inputs: base.Inputs) -> base.Draw:
  """What the next token of a chain is drawn from."""
  batch, size = inputs.tokens.shape
  at, is_bonus = decision.num_accepted, decision.is_bonus
  without, draft_row = jnp.full((batch, 1), -1, jnp.int32), jnp.zeros((batch,), jnp.int32)
  scale, share = decision.scale, jnp.zeros((batch,), jnp.float32)
  if size:
    node = jnp.minimum(at, size - 1)[:, None]
    if inputs.draft is None:
      # The scaled target never exceeds 1, so that the residual is the target without the token.
      token = jnp.take_along_axis(inputs.tokens, node, axis=1)
      without = jnp.where(is_bonus[:, None], -1, token)
    else:
      draft_row = jnp.take_along_axis(inputs.flat_draft_rows, node, axis=1)[:, 0]
      share = jnp.where(is_bonus, 0.0, 1.0)
  return base.Draw(
      node=at,
      row=jnp.arange(batch, dtype=jnp.int32) * (size + 1) + at,
      draft_row=draft_row,
      scale=jnp.where(is_bonus, 1.0, scale),
      share=share,
      without=without,
  )


def emitted_log_probs(num_accepted: Array, drafted: Array, last: Array) -> Array:
  """Log-probabilities [B, K + 1] of what a chain emits, 0 beyond.

  Args:
    num_accepted: [B] int32.
    drafted: [B, K] float32, of the drafted tokens.
    last: [B] float32, of the next token.
  """
  index = jnp.arange(drafted.shape[1] + 1)
  values = jnp.pad(drafted, ((0, 0), (0, 1)))
  end = num_accepted[:, None]
  return jnp.where(index < end, values, jnp.where(index == end, last[:, None], 0.0))


def chain(backend, inputs: base.Inputs, rule: str, source) -> tuple[base.Accepted, object]:
  """Rejection or block by an implementation's `scan` and `finish`.

  Args:
    backend: the implementation.
    inputs: the arrays.
    rule: 'rejection' or 'block'.
    source: numbers; consumed.

  Returns:
    What was decided, and the source to use next.
  """
  batch, size = inputs.tokens.shape
  scan = backend.scan(inputs, rule, tree.chain_parents(batch, size))
  valid = chain_valid(inputs.valid, scan.draft)
  if not size:
    decision = nothing_drafted(batch)
  elif rule == 'block':
    decision, source = block(scan.prefix, scan.surplus, valid, source)
  else:
    decision, source = rejection(scan.target, scan.draft, valid, source)
  token, last, source = backend.finish(inputs, scan, draw_of(decision, inputs), source)
  return base.Accepted(
      num_accepted=decision.num_accepted,
      next_token=token,
      log_probs=emitted_log_probs(decision.num_accepted, scan.target, last),
      is_bonus=decision.is_bonus,
      accept_probs=decision.accept_probs,
      path=chain_path(decision.num_accepted, size),
  ), source


def chain_valid(valid: Array, draft: Array) -> Array:
  """[B, K] bool, the prefix of `valid` tokens that were `drawn`."""
  kept = acceptance.prefix_length(valid & drawn(draft))
  return jnp.arange(valid.shape[1]) < kept[:, None]


def chain_path(num_accepted: Array, size: int) -> Array:
  """[B, K] int32: 1, 2, … as far as a chain of K tokens was accepted; 0 beyond."""
  nodes = jnp.arange(1, size + 1, dtype=jnp.int32)
  return jnp.where(nodes <= num_accepted[:, None], nodes, 0)


def follow(backend, inputs: base.Inputs, rule: str, numbers, parents) -> base.Accepted:
  """Greedy and coupled: the target chooses at every row, and the path is walked.

  Args:
    backend: the implementation; only its `choose` is called.
    inputs: the arrays.
    rule: 'greedy' or 'coupled'.
    numbers: None, or `base.Noise`.
    parents: [B, K] int32, or None for a chain.
  """
  batch, size = inputs.tokens.shape
  tokens, log_probs = backend.choose(inputs, rule, numbers)
  parents = tree.chain_parents(batch, size) if parents is None else parents
  found = acceptance.follow(tokens, types.Proposal(
      tokens=inputs.tokens, parents=parents, valid=inputs.valid, law=None, rows=parents,
      kind=types.ONE_HOT,
  ))
  rows = jnp.pad(found.path, ((0, 0), (1, 0)))
  emitted = jnp.take_along_axis(log_probs, rows, axis=1)
  index = jnp.arange(size + 1)
  return base.Accepted(
      num_accepted=found.num_accepted,
      next_token=found.next_token,
      log_probs=jnp.where(index <= found.num_accepted[:, None], emitted, 0.0),
      is_bonus=found.is_bonus,
      accept_probs=found.accept_probs,
      path=found.path,
  )
