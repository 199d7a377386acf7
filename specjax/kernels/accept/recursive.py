"""The sibling rule of trees (`specjax.verify.recursive`), on scalars and masses.

What the target still asks for behind a node, after some of its children were refused, is

  max(scale * target - share * draft, 0) without the refused tokens,

for the laws of all siblings are one law, normalised without the earlier ones or not. So two
numbers a sequence stand for a residual of any depth, and a refusal costs one pass over two
rows for its mass; chosen tokens (one-hot laws) cost none.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import types
from specjax.kernels.accept import base
from specjax.kernels.accept import rules
from specjax.verify import siblings

Array = jax.Array


class _Walk(NamedTuple):
  """The loop's state; see `specjax.verify.recursive`.

  Attributes:
    node: [B] int32, accepted last; 0 is the root.
    child: [B] int32, tried next; 0 where there is none.
    scale: [B] float32; share: [B] float32, as above.
    draft_row: [B] int32, the draft's row of what was refused last.
    tried: [B, N] bool.
    path: [B, N] int32; num_accepted: [B] int32; accept_probs: [B, N] float32.
    source: of flips.
  """

  node: Array
  child: Array
  scale: Array
  share: Array
  draft_row: Array
  tried: Array
  path: Array
  num_accepted: Array
  accept_probs: Array
  source: Any


def recursive(
    backend, inputs: base.Inputs, parents: Array, source, *, without_replacement: bool
) -> tuple[base.Accepted, Any]:
  """Tries the children of the last accepted node in turn.

  Args:
    backend: the implementation.
    inputs: the arrays; a chosen tree has no draft.
    parents: [B, N] int32.
    source: `base.Uniforms`, or any `specjax.types.Source` in jnp.
    without_replacement: static, whether siblings were drawn so.

  Returns:
    What was decided, and the source to use next.
  """
  batch, size = inputs.tokens.shape
  scan = backend.scan(inputs, 'recursive', parents)
  proposal = types.Proposal(
      tokens=inputs.tokens, parents=parents, valid=inputs.valid & rules.drawn(scan.draft), law=None,
      rows=inputs.draft_rows, kind=types.ONE_HOT,
  )
  zeros = jnp.zeros((batch,), jnp.int32)
  walk = _Walk(
      node=zeros, child=zeros, scale=jnp.ones((batch,), jnp.float32),
      share=jnp.zeros((batch,), jnp.float32), draft_row=zeros,
      tried=jnp.zeros((batch, size), bool), path=jnp.zeros((batch, size), jnp.int32),
      num_accepted=zeros, accept_probs=jnp.zeros((batch, size), jnp.float32), source=source,
  )
  if size:
    walk = walk._replace(child=siblings.next_child(proposal, walk.node, walk.tried))
    walk = jax.lax.while_loop(
        lambda walk: jnp.any(walk.child > 0),
        lambda walk: _try(backend, inputs, scan, proposal, walk, without_replacement),
        walk,
    )
  token, last, source = backend.finish(
      inputs, scan, _draw(proposal, inputs, walk, walk.node), walk.source
  )
  has_child = jnp.any(proposal.valid & (parents == walk.node[:, None]), axis=1)
  index, end = jnp.arange(size + 1), walk.num_accepted[:, None]
  path = jnp.where(index[:size] < end, walk.path, 0)
  drafted = jnp.take_along_axis(scan.target, jnp.maximum(path - 1, 0), axis=1) if size else path
  log_probs = jnp.pad(drafted.astype(jnp.float32), ((0, 0), (0, 1)))
  return base.Accepted(
      num_accepted=walk.num_accepted,
      next_token=token,
      log_probs=jnp.where(index < end, log_probs, jnp.where(index == end, last[:, None], 0.0)),
      is_bonus=~has_child,
      accept_probs=walk.accept_probs,
      path=path,
  ), source


def _draw(proposal: types.Proposal, inputs: base.Inputs, walk: _Walk, node: Array) -> base.Draw:
  """What is left to draw from behind `node` [B]."""
  batch, size = proposal.tokens.shape
  refused = walk.tried & (proposal.parents == node[:, None])
  without = jnp.where(refused, proposal.tokens, -1)
  return base.Draw(
      node=node,
      row=jnp.arange(batch, dtype=jnp.int32) * (size + 1) + node,
      draft_row=walk.draft_row,
      scale=walk.scale,
      share=walk.share,
      without=without if size else jnp.full((batch, 1), -1, jnp.int32),
  )


def _try(backend, inputs, scan, proposal, walk: _Walk, without_replacement: bool) -> _Walk:
  """Tries one child of every sequence that has one left."""
  child, has_draft = walk.child, inputs.draft is not None
  at = lambda values: siblings.of_node(values, child)
  target, draft, token = jnp.exp(at(scan.target)), jnp.exp(at(scan.draft)), at(proposal.tokens)
  refused = walk.tried & (proposal.parents == at(proposal.parents)[:, None])
  again = jnp.any(refused & (proposal.tokens == token[:, None]), axis=1)
  whole = jnp.ones_like(target)
  if without_replacement:
    # The draft's law without the tokens of the siblings before, normalised.
    whole = 1.0 - jnp.sum(jnp.where(refused, jnp.exp(scan.draft), 0.0), axis=1)
    whole = jnp.where(whole > 0, whole, 1.0)
  # What the target still asks of this token; nothing if a sibling with it was refused.
  wanted = walk.scale * target
  if has_draft:
    wanted = jnp.maximum(wanted - walk.share * draft, 0.0)
  wanted = jnp.where(again, 0.0, wanted)
  prob = siblings.accept_prob(wanted, draft / whole)
  flips, source = walk.source.flip(prob, purpose=randomness.ACCEPT, node=child)
  accepted, rejected = flips & (child > 0), ~flips & (child > 0)
  tried = siblings.mark(walk.tried, child)
  left = walk._replace(
      tried=tried,
      share=jnp.where(rejected, walk.share + (1.0 / whole if has_draft else 0.0), walk.share),
      draft_row=jnp.where(rejected, at(inputs.flat_draft_rows), walk.draft_row),
  )
  if has_draft:
    draw = _draw(proposal, inputs, left, walk.node)
    mass = jax.lax.cond(
        jnp.any(rejected), lambda: backend.mass(inputs, scan, draw), lambda: whole
    )
  else:
    mass = 1.0 - wanted  # of a law, whose mass is 1
  # Nothing left: only rounding leads here, and `finish` then draws from the target's law.
  mass = jnp.where(rejected & (mass > 0), mass, 1.0)
  node = jnp.where(accepted, child, walk.node)
  depth = jnp.where(accepted, walk.num_accepted + 1, 0)
  return left._replace(
      node=node,
      child=siblings.next_child(proposal, node, tried),
      scale=jnp.where(accepted, 1.0, left.scale / mass),
      share=jnp.where(accepted, 0.0, left.share / mass),
      path=siblings.set_node(walk.path, depth, child),
      num_accepted=jnp.maximum(walk.num_accepted, depth),
      accept_probs=siblings.set_node(walk.accept_probs, child, prob),
      source=source,
  )
