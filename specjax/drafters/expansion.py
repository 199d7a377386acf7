"""Token trees from any drafter that can say what follows a node.

A drafter gives the logits after the root and a step function, which reads one level of
nodes and gives the logits after each of them; `expand` decides which children there are,
by which law they count as drawn, and which of them are kept.

| mode    | `siblings`            | children                            | kind of law         |
|---------|-----------------------|-------------------------------------|---------------------|
| greedy  | any                   | the most probable                   | ONE_HOT             |
| sample  | `RANK`                | the most probable                   | ONE_HOT             |
| sample  | `WITH_REPLACEMENT`    | independent draws from the law      | SAMPLED             |
| sample  | `WITHOUT_REPLACEMENT` | draws, each without those before it | WITHOUT_REPLACEMENT |
| coupled | any                   | the largest of law + shared noise   | COUPLED             |

A dynamic or a best-first tree prunes, so what it keeps must not have been drawn: sampled siblings
take a static tree. Coupled siblings may be pruned, for the coupled rule asks for no law.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from specjax import tree as tree_lib
from specjax import types
from specjax.drafters import base
from specjax.drafters import best_first
from specjax.drafters import children as children_lib

Array = jax.Array
PyTree = Any

SIBLINGS = children_lib.SIBLINGS
RANK, WITH_REPLACEMENT, WITHOUT_REPLACEMENT = SIBLINGS


class Frontier(NamedTuple):
  """The nodes of one depth that a step reads; R nodes were read before in this round.

  Nodes count in the order in which they are read: 0 is the root, 1 … R those before.

  Attributes:
    depth: static int, of these nodes; 1 for children of the root.
    tokens: [B, W] int32.
    parents: [B, W] int32, which of the R + 1 nodes read before is the parent.
    mask: [B, W, R + W] bool, which of the nodes 1 … R + W each of these sees: ancestors and
      itself; the root and all before it are visible to everyone.
    depths: static [R + W] int32 numpy, of the nodes 1 … R + W.
  """

  depth: int
  tokens: Array
  parents: Array
  mask: Array
  depths: np.ndarray


# (state, frontier) -> raw logits [B, W, V] after each node, in the target's vocabulary, and
# the state to go on with.
Step = Callable[[PyTree, Frontier], tuple[Array, PyTree]]


class Expansion(NamedTuple):
  """What `expand` returns.

  Attributes:
    proposal: the tree.
    state: the step function's, after the last level it read.
    context: with its sampler advanced.
    reads: [B, N] int32, where in the order of reading each node stands, 0 if it was not
      read. A node that was read has a parent that was.
  """

  proposal: types.Proposal
  state: PyTree
  context: types.Context
  reads: Array


def expand(
    context: types.Context,
    logits: Array,
    step: Step,
    state: PyTree,
    *,
    shape: tree_lib.StaticTree | tree_lib.DynamicTree,
    siblings: str | None = None,
    active: Array | None = None,
) -> Expansion:
  """Drafts a tree.

  The nodes of rows that are not active are not valid; where no row is, no level is read.

  Args:
    context: of the round.
    logits: [B, V] raw logits after the root, in the target's vocabulary (-inf for tokens
      that the drafter does not know; where all are, there are no children).
    step: reads a level; called once for each depth at which a node has children.
    state: handed to the first call of `step`, which gives it back with the same shapes.
    shape: from `specjax.tree`.
    siblings: one of `SIBLINGS`; None takes `RANK` for a dynamic tree and
      `WITHOUT_REPLACEMENT` for a static one.
    active: [B] bool, instead of `context.active`; for one version.

  Returns:
    An `Expansion`.

  Raises:
    ValueError: see `check`.
  """
  siblings = check(shape, siblings)
  grow = {tree_lib.StaticTree: _static, tree_lib.DynamicTree: _dynamic}.get(
      type(shape), _best_first
  )
  how = {'greedy': RANK, 'coupled': types.COUPLED}.get(context.sampler.mode, siblings)
  if active is None:
    active = context.active
  else:
    warnings.warn(
        'expand(active=…) goes with the next version: it takes the rows from context.active.',
        DeprecationWarning,
        stacklevel=2,
    )
  if active is None:
    return grow(context, logits, step, state, shape, how)

  def drafted(sampler, state) -> Expansion:
    return grow(context.replace(sampler=sampler), logits, step, state, shape, how)

  return _where_any(active, drafted, context, state)


def _where_any(active: Array, drafted: Callable[..., Expansion], context, state) -> Expansion:
  """`drafted(sampler, state)` where any row is active, else no node at all.

  A loop of one turn or none: a conditional would copy the caches that it hands through.
  """

  def parts(expansion: Expansion):
    return expansion.state, expansion.context.sampler, expansion.proposal, expansion.reads

  def turn(carry):
    _, (state, sampler, *_) = carry
    return jnp.bool_(False), parts(drafted(sampler, state))

  made = jax.eval_shape(lambda *args: parts(drafted(*args)), context.sampler, state)
  nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), made[2:])
  start = active.any(), (state, context.sampler, *nothing)
  _, (state, sampler, proposal, reads) = jax.lax.while_loop(lambda carry: carry[0], turn, start)
  proposal = proposal.replace(valid=proposal.valid & active[:, None])
  return Expansion(proposal, state, context.replace(sampler=sampler), reads)


def check(shape: tree_lib.StaticTree | tree_lib.DynamicTree, siblings: str | None) -> str:
  """How siblings are chosen where the rule samples.

  Raises:
    ValueError: if there is no such way, or a dynamic tree would prune what was drawn.
  """
  is_static = isinstance(shape, tree_lib.StaticTree)
  if siblings is None:
    return WITHOUT_REPLACEMENT if is_static else RANK
  if siblings not in SIBLINGS:
    raise ValueError(f'siblings must be one of {SIBLINGS} or None, got {siblings!r}.')
  if siblings != RANK and not is_static:
    raise ValueError(
        'This tree keeps nodes because of what they are: had they been drawn, the output '
        f"would be biased. Use siblings='{RANK}', or a static tree for siblings={siblings!r}."
    )
  return siblings


def chain_or_tree(
    num_speculative_tokens: int | None,
    tree: Any,
    siblings: str | None,
    *,
    is_independent: bool = False,
):
  """The shape of K or of a tree, one of which is given.

  Raises:
    ValueError: for K < 1, both of them, a tree that is none, or siblings that do not fit.
  """
  if tree is not None and num_speculative_tokens is not None:
    raise ValueError('Give num_speculative_tokens= for a chain or tree= for a tree, not both.')
  if tree is None:
    count = 4 if num_speculative_tokens is None else num_speculative_tokens
    tree = (1,) * base.check_num_speculative_tokens(count)
  shape = tree_lib.as_tree(tree, is_independent=is_independent)
  check(shape, siblings)
  return shape


def _static(context, logits, step, state, shape: tree_lib.StaticTree, how: str) -> Expansion:
  """A tree of a fixed shape, level by level."""
  batch = logits.shape[0]
  tokens = valid = jnp.zeros((batch, 0), jnp.int32)
  laws, law_rows, read = [], {}, []
  sampler, logits = context.sampler, logits[:, None]
  for depth, level in enumerate(shape.levels(), start=1):
    if depth > 1:
      read += level.rows
      logits, state = step(state, _static_frontier(shape, depth - 1, level.rows, read, tokens))
    paths = np.asarray([shape.path(row) for row in level.rows], np.int32)
    path = tokens[:, paths.reshape(len(level.rows), depth - 1) - 1]
    counts = np.asarray(level.counts)
    children = children_lib.of_rows(
        sampler, logits, path, context.lengths + depth - 1, counts, level.first, how
    )
    sampler = children.sampler
    exists = np.flatnonzero(np.arange(counts.max()) < counts[:, None])
    flat = lambda x: x.reshape(batch, -1)[:, exists]
    tokens = jnp.concatenate([tokens, flat(children.tokens)], axis=1)
    valid = jnp.concatenate([valid, flat(children.scores) > -jnp.inf], axis=1)
    law_rows |= {row: len(law_rows) + index for index, row in enumerate(level.rows)}
    laws.append(children.law)
  each_row = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.int32), tokens.shape)
  proposal = types.Proposal(
      tokens=tokens,
      parents=each_row(shape.parents),
      valid=valid.astype(bool),
      law=None if laws[0] is None else jnp.concatenate(laws, axis=1),
      rows=each_row([law_rows[parent] for parent in shape.parents]),
      kind=children_lib.kind_of(how, max(max(level.counts) for level in shape.levels())),
  )
  order = {node: index for index, node in enumerate(read, start=1)}
  reads = each_row([order.get(node, 0) for node in range(1, shape.num_nodes + 1)])
  return Expansion(proposal, state, context.replace(sampler=sampler), reads)


def _static_frontier(shape, depth: int, rows, read: list[int], tokens: Array) -> Frontier:
  """The nodes `rows` of `depth`, the last ones of those `read`."""
  order = {node: index for index, node in enumerate([0, *read])}
  sees = np.asarray([[node in shape.path(row) for node in read] for row in rows])
  parents = np.asarray([order[shape.parents[row - 1]] for row in rows], np.int32)
  batch = tokens.shape[0]
  return Frontier(
      depth=depth,
      tokens=tokens[:, np.asarray(rows) - 1],
      parents=jnp.broadcast_to(jnp.asarray(parents), (batch, len(rows))),
      mask=jnp.broadcast_to(jnp.asarray(sees), (batch, *sees.shape)),
      depths=np.asarray([shape.depths[node] for node in read], np.int32),
  )


def _best_first(context, logits, step, state, shape: tree_lib.BestFirstTree, how: str) -> Expansion:
  """DDTree: the laws of all depths along the most probable path, then the best nodes of all."""
  batch, sampler = logits.shape[0], context.sampler
  path = jnp.zeros((batch, 0), jnp.int32)
  levels, logits = [], logits[:, None]
  for depth in range(1, shape.depth + 1):
    if depth > 1:
      frontier = Frontier(
          depth=depth - 1,
          tokens=path[:, -1:],
          parents=jnp.full((batch, 1), depth - 2, jnp.int32),
          mask=jnp.ones((batch, 1, depth - 1), bool),
          depths=np.arange(1, depth, dtype=np.int32),
      )
      logits, state = step(state, frontier)
    children = children_lib.of_rows(
        sampler, logits, path[:, None], context.lengths + depth - 1, np.asarray([shape.width]), 0,
        how,
    )
    sampler = children.sampler
    levels.append(children)
    path = jnp.concatenate([path, children.tokens[:, 0, :1]], axis=1)
  stacked = lambda name: jnp.concatenate([getattr(level, name) for level in levels], axis=1)
  law = None if levels[0].law is None else stacked('law')
  kind = children_lib.kind_of(how, shape.width)
  proposal = best_first.proposal(
      stacked('tokens'), stacked('scores'), law, num_nodes=shape.num_nodes, kind=kind
  )
  reads = jnp.zeros_like(proposal.tokens)
  return Expansion(proposal, state, context.replace(sampler=sampler), reads)


class _Candidates(NamedTuple):
  """All children of all levels, C of them; a level's are those of its rows, row by row.

  Attributes:
    tokens: [B, C] int32.
    scores: [B, C] float32, joint log-probability; -inf is no node.
    parents: [B, C] int32, candidate number from 1 on; 0 is the root.
    rows: [B, C] int32, the law that each was drawn from.
    reads: [B, C] int32, its place in the order of reading, or 0.
  """

  tokens: Array
  scores: Array
  parents: Array
  rows: Array
  reads: Array


def _dynamic(context, logits, step, state, shape: tree_lib.DynamicTree, how: str) -> Expansion:
  """EAGLE-2: expands the best nodes of every level and keeps the best of all."""
  batch, width = logits.shape[0], shape.width
  zeros = lambda *size: jnp.zeros((batch, *size), jnp.int32)
  sampler, logits = context.sampler, logits[:, None]
  levels, laws, num_rows, first = [], [], 0, 1
  # Of the rows that are expanded: candidate number, place in the order of reading, joint
  # score, path, and what they see of the nodes read.
  number, place, score, path = zeros(1), zeros(1), jnp.zeros((batch, 1)), zeros(1, 0)
  sees = jnp.zeros((batch, 1, 0), bool)
  for depth in range(1, shape.depth + 1):
    rows = number.shape[1]
    children = children_lib.of_rows(
        sampler, logits, path, context.lengths + depth - 1, np.full(rows, width), 0, how
    )
    sampler = children.sampler
    laws.append(children.law)
    of_row = np.repeat(np.arange(rows), width)
    flat = lambda x: x.reshape(batch, -1)
    candidates = _Candidates(
        tokens=flat(children.tokens),
        scores=flat(score[..., None] + children.scores),
        parents=number[:, of_row],
        rows=jnp.broadcast_to(num_rows + of_row, (batch, rows * width)).astype(jnp.int32),
        reads=zeros(rows * width),
    )
    num_rows += rows
    if depth < shape.depth:
      score, best = jax.lax.top_k(candidates.scores, width)
      num_read = width * (depth - 1)
      pick = lambda x, best=best: jnp.take_along_axis(x, best, axis=1)
      own = jnp.broadcast_to(jnp.eye(width, dtype=bool), (batch, width, width))
      token, row = pick(candidates.tokens), best // width
      of = lambda x, row=row: jnp.take_along_axis(x, row[..., None], axis=1)
      sees = jnp.concatenate([of(sees), own], axis=-1)
      frontier = Frontier(
          depth=depth,
          tokens=token,
          parents=jnp.take_along_axis(place, row, axis=1),
          mask=sees,
          depths=np.repeat(np.arange(1, depth + 1, dtype=np.int32), width),
      )
      logits, state = step(state, frontier)
      path = jnp.concatenate([of(path), token[..., None]], axis=-1)
      number = first + best
      place = jnp.broadcast_to(num_read + 1 + jnp.arange(width), (batch, width))
      at_rows = jnp.arange(batch)[:, None]
      candidates = candidates._replace(reads=candidates.reads.at[at_rows, best].set(place))
    levels.append(candidates)
    first += rows * width
  candidates = _Candidates(*(jnp.concatenate(parts, axis=1) for parts in zip(*levels)))
  law = None if laws[0] is None else jnp.concatenate(laws, axis=1)
  proposal, reads = _keep_best(candidates, law, shape.num_nodes, children_lib.kind_of(how, width))
  return Expansion(proposal, state, context.replace(sampler=sampler), reads)


def _keep_best(candidates: _Candidates, law, num_nodes: int, kind: str):
  """The proposal of the most probable candidates, and where they were read.

  Of equals `top_k` takes the earlier one, so a parent, which is at least as probable as its
  children and comes before them, is kept where one of them is.
  """
  _, kept = jax.lax.top_k(candidates.scores, num_nodes)
  kept = jnp.sort(kept, axis=1)
  kept_of = lambda x: jnp.take_along_axis(x, kept, axis=1)
  parents = kept_of(candidates.parents)
  # Candidates 1, 3 and 4, with parents 0, 1 and 3, become nodes 1, 2 and 3 with 0, 1 and 2.
  is_parent = parents[:, :, None] == kept[:, None, :] + 1
  numbers = jnp.arange(1, num_nodes + 1, dtype=jnp.int32)
  proposal = types.Proposal(
      tokens=kept_of(candidates.tokens),
      parents=jnp.sum(jnp.where(is_parent, numbers, 0), axis=-1, dtype=jnp.int32),
      valid=kept_of(candidates.scores) > -jnp.inf,
      law=law,
      rows=kept_of(candidates.rows),
      kind=kind,
  )
  return proposal, kept_of(candidates.reads)
