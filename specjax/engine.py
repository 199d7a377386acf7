"""The speculative loop on the device: prefill, one round, and rounds until all rows end.

Plain decoding is the same loop with a drafter that proposes nothing, so that a speed-up
compares like with like. The host side (checks, buckets, streaming) is `specjax.generation`.

Invariant between rounds: `tokens[lengths - 1]` is the root, emitted but not yet in the
target's cache, which holds `lengths - 1` positions.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from specjax import sampling as sampling_lib
from specjax import sharding
from specjax import tree as tree_lib
from specjax.cache import kv_cache
from specjax.models import widths
from specjax.randomness import KeySource
from specjax.stats import (
    LENGTH,
    NOT_A_NUMBER,
    NOTHING_ALLOWED,
    RECENT,
    RUNNING,
    STOP_TOKEN,
    Rounds,
    Stats,
    Trace,
    tally,
)
from specjax.types import Context, History, Proposal, Sampling, Verification
from specjax.verify import rule as rule_lib
from specjax.verify import whole

Array = jax.Array
PyTree = Any


@struct.dataclass
class DecodeState:
  """All that the loop carries.

  Attributes:
    tokens: [B, S] int32, prompt and output.
    lengths: [B] int32.
    limits: [B] int32, the length at which a row ends.
    done: [B] bool.
    finish: [B] int32, why a row ended (`RUNNING`, `STOP_TOKEN`, …).
    keys: [B, 2] uint32.
    target_cache: `lengths - 1` positions per row.
    drafter: the drafter's state.
    history: what penalties and constraints have seen.
    features: [B, D + 1, F] of the tokens committed last.
    features_valid: [B, D + 1] bool.
    logprobs: [B, S] float32 of emitted tokens, or None.
    stats: counts.
    trace: the rounds, or None.
    round: int32 scalar, rounds so far.
    recent: the last `RECENT` rounds, round r at entry r % RECENT, for a cut that is found only
      after they ran; or None.
  """

  tokens: Array
  lengths: Array
  limits: Array
  done: Array
  finish: Array
  keys: Array
  target_cache: kv_cache.KVCache
  drafter: PyTree
  history: History
  features: Array
  features_valid: Array
  logprobs: Array | None
  stats: Stats
  trace: Trace | None
  round: Array
  recent: Rounds | None = None

  @property
  def roots(self) -> Array:
    """[B] int32, each row's last token, which the target has not read."""
    return jnp.take_along_axis(self.tokens, self.lengths[:, None] - 1, axis=1)[:, 0]


@struct.dataclass
class Setup:
  """What stays the same during a run; the static part selects the compiled program.

  Attributes:
    target: a `specjax.models.LanguageModel`.
    drafter: a `specjax.types.Drafter`.
    sampling: settings, one entry per row.
    stop_tokens: [n] int32, padded with -1.
    rule: static, a verification rule.
    width: static, tokens a target pass reads, at least N + 1; more is padding. Plain
      decoding at the width of a speculative run gives bitwise the same logits.
    logprobs: static, None, 'raw' or 'controlled': which log-probabilities are kept.
    source_fn: static, (keys, lengths) -> Source; None is the engine's own.
  """

  target: Any
  drafter: Any
  sampling: Sampling
  stop_tokens: Array
  rule: Any = struct.field(pytree_node=False)
  width: int = struct.field(pytree_node=False)
  logprobs: str | None = struct.field(pytree_node=False, default=None)
  source_fn: Callable[[Array, Array], Any] | None = struct.field(pytree_node=False, default=None)

  @property
  def layout(self) -> sharding.Layout | None:
    """How the run is split over devices: the target's layout."""
    return getattr(self.target, 'layout', None)

  def source(self, keys: Array, lengths: Array) -> Any:
    """Where the random choices of a round come from.

    Args:
      keys: [B, 2] uint32, the rows' keys.
      lengths: [B] int32, row lengths at the round's start.
    """
    if self.source_fn is not None:
      return self.source_fn(keys, lengths)
    return KeySource(keys, lengths, layout=self.layout)


@functools.partial(jax.jit, donate_argnames=('target_cache', 'drafter_state'))
def prefill_chunk(setup: Setup, target_cache, drafter_state, tokens: Array, num_new: Array):
  """Reads one chunk of the prompts into both caches.

  Args:
    setup: the run's setup.
    target_cache: donated.
    drafter_state: donated.
    tokens: [B, T] int32.
    num_new: [B] int32, how many are real in each row.

  Returns:
    The cache, the drafter's state, and the features [B, F] of each row's last real token
    of the chunk (garbage where there was none).
  """
  out = setup.target(
      tokens,
      cache=target_cache,
      num_new=num_new,
      feature_layers=setup.drafter.feature_layers,
      with_logits=False,
  )
  drafter_state = setup.drafter.prefill(
      drafter_state,
      target=setup.target,
      tokens=tokens,
      num_new=num_new,
      features=out.features,
  )
  last = jnp.maximum(num_new - 1, 0)[:, None, None]
  last_features = jnp.take_along_axis(out.features, last, axis=1)[:, 0]
  return sharding.constrain((out.cache, drafter_state, last_features), setup.layout)


def speculative_round(setup: Setup, state: DecodeState) -> DecodeState:
  """Drafts, scores, verifies and commits one round; pure and traceable."""
  # The scopes name the parts of a round in compiled programs and profiles.
  with jax.named_scope('draft'):
    proposal, drafter_state, context = setup.drafter.propose(_context(setup, state), state.drafter)
  with jax.named_scope('score'):
    scores = _score(setup, state, context, proposal)
  with jax.named_scope('verify'):
    decision = _verify(setup, state, context, proposal, scores)
  with jax.named_scope('commit'):
    new_state = _commit(setup, state, scores, decision)
    new_state = _store(setup.drafter, state, new_state, scores, decision.verification)
  if state.trace is not None:
    new_state = new_state.replace(trace=_record(state, decision))
  context = context.replace(
      tokens=new_state.tokens,
      lengths=new_state.lengths,
      done=new_state.done,
      target_cache=new_state.target_cache,
      features=new_state.features,
      features_valid=new_state.features_valid,
  )
  with jax.named_scope('draft'):
    drafter_state = setup.drafter.update(drafter_state, decision.verification, context)
  new_state = new_state.replace(drafter=drafter_state)
  return sharding.constrain(new_state, setup.layout)


@functools.partial(jax.jit, donate_argnames='state')
def run(setup: Setup, state: DecodeState, max_rounds: Array) -> DecodeState:
  """Rounds until every row is done, or `max_rounds` more; the state is donated.

  Cutting a run into calls of any `max_rounds` gives identical results.
  """
  last = state.round + max_rounds

  def cond(state: DecodeState) -> Array:
    return (state.round < last) & ~state.done.all()

  state = jax.lax.while_loop(cond, lambda state: speculative_round(setup, state), state)
  return sharding.constrain(state, setup.layout)


@struct.dataclass
class _Scores:
  """What the target says of a round.

  Attributes:
    tokens: [B, N + 1] int32, the root's and every node's.
    paths: [B, N + 1, D] int32, nodes on the way to each row (`tree.paths`).
    depths: [B, N + 1] int32.
    logits: [B, N + 1, V], raw.
    features: [B, N + 1, F].
    cache: the target's, with all rows appended.
  """

  tokens: Array
  paths: Array
  depths: Array
  logits: Array
  features: Array
  cache: kv_cache.KVCache


@struct.dataclass
class _Decision:
  """What a round comes to.

  Attributes:
    proposal: as it was verified.
    verification: the rule's.
    lawless: [B, N + 1], `_lawless` of the target's rows.
    law: [B, N + 1, V] float32, the target's law; None where nobody asks for it.
  """

  proposal: Proposal
  verification: Verification
  lawless: Array
  law: Array | None


def _context(setup: Setup, state: DecodeState) -> Context:
  """What the drafter sees before the round."""
  mode = setup.rule.mode
  sampler = sampling_lib.Sampler(
      source=setup.source(state.keys, state.lengths),
      sampling=setup.sampling,
      history=state.history,
      mode=mode,
      keep_law=mode == 'sample' or state.trace is not None,
  )
  return Context(
      tokens=state.tokens,
      lengths=state.lengths,
      done=state.done,
      sampler=sampler,
      target=setup.target,
      target_cache=state.target_cache,
      features=state.features,
      features_valid=state.features_valid,
  )


def _gather(rows: Array, nodes: Array) -> Array:
  """Entries [B, ...] of `rows` [B, N + 1] at node numbers [B, ...]."""
  flat = jnp.take_along_axis(rows, nodes.reshape(nodes.shape[0], -1), axis=1)
  return flat.reshape(nodes.shape)


def _chain_paths(batch_size: int, num_nodes: int) -> tuple[Array, Array]:
  """`tree.paths` of a chain, as constants."""
  numbers = jnp.arange(num_nodes + 1, dtype=jnp.int32)
  nodes = jnp.where(numbers[1:] <= numbers[:, None], numbers[1:], 0)
  shape = (batch_size, num_nodes + 1)
  return jnp.broadcast_to(nodes, (*shape, num_nodes)), jnp.broadcast_to(numbers, shape)


def _score(setup: Setup, state: DecodeState, context: Context, proposal: Proposal) -> _Scores:
  """One pass of the target over the root and all nodes."""
  drafter, num_rows = setup.drafter, proposal.num_nodes + 1
  if drafter.is_chain:
    paths, depths = _chain_paths(state.lengths.shape[0], drafter.num_nodes)
  else:
    paths, depths = tree_lib.paths(proposal.parents, drafter.depth)
  tokens = jnp.concatenate([state.roots[:, None], proposal.tokens], axis=1)
  positions = tree_mask = None
  if not drafter.is_chain:
    positions, tree_mask = state.lengths[:, None] - 1 + depths, tree_lib.ancestor_mask(paths)
  padded = widths.pad_pass(tokens, positions, tree_mask, width=setup.width)
  out = setup.target(
      padded.tokens,
      padded.positions,
      context.target_cache,
      tree_mask=padded.tree_mask,
      num_new=padded.num_new,
      feature_layers=drafter.feature_layers,
  )
  return _Scores(
      tokens=tokens,
      paths=paths,
      depths=depths,
      logits=out.logits[:, :num_rows],
      features=out.features[:, :num_rows],
      cache=out.cache,
  )


def _verify(
    setup: Setup, state: DecodeState, context: Context, proposal: Proposal, scores: _Scores
) -> _Decision:
  """Asks the rule, of the target's controlled logits."""
  rule = rule_lib.as_rule(setup.rule)
  controlled = sampling_lib.control(
      scores.logits,
      sampling=setup.sampling,
      history=state.history,
      path=_gather(scores.tokens, scores.paths),
      path_valid=scores.paths > 0,
  )
  lawless = _lawless(rule, setup.sampling, scores.logits, controlled)
  proposal = _usable(proposal, lawless, is_chain=setup.drafter.is_chain)
  rule.check(proposal)
  rows = rule.rows(controlled, sampling=setup.sampling, proposal=proposal)
  verification, _ = rule.decide(
      rows,
      positions=state.lengths[:, None] + scores.depths,
      source=context.sampler.source,
  )
  # Rules know nodes, not depths: what is beyond the deepest path is zero.
  path = verification.path[:, : setup.drafter.depth]
  law = None
  if setup.logprobs == 'controlled' or state.trace is not None:
    has_law = rule.mode == 'sample' and isinstance(rows, whole.WholeRows)
    law = rows.law() if has_law else sampling_lib.law(controlled, setup.sampling)
  return _Decision(
      proposal=proposal,
      verification=verification.replace(path=path),
      lawless=lawless,
      law=law,
  )


def _lawless(rule: Any, sampling: Sampling, raw: Array, controlled: Array) -> Array:
  """Why nothing can be drawn from a row, [B, N + 1]: a reason to end, `RUNNING` where it can."""
  best = top = jnp.max(raw, axis=-1)
  if sampling.constraint is not None or sampling.logit_bias is not None:
    best = jnp.max(controlled, axis=-1)
  is_broken = jnp.isnan(top) | (top == -jnp.inf)
  if rule.mode != 'greedy' and not rule.takes_infinite_logits:
    # A normalised law has no place for an infinite logit.
    is_broken |= best == jnp.inf
  reason = jnp.where(best == -jnp.inf, NOTHING_ALLOWED, RUNNING)
  return jnp.where(is_broken, NOT_A_NUMBER, reason)


def _usable(proposal: Proposal, lawless: Array, *, is_chain: bool) -> Proposal:
  """The proposal with every node invalid that no rule can decide about, whoever drafted it.

  These are nodes that were not drawn from the law that they name, for their own log-probability
  in it is not finite; children of a row from which the target can draw nothing; and all that is
  below an invalid node. What was drawn decides none of it: a token that was drawn from a law has
  a probability there, and a row is what the tokens before it make it.

  Args:
    proposal: as a drafter hands it over.
    lawless: [B, N + 1], `_lawless` of the target's rows.
    is_chain: static.
  """
  if not proposal.num_nodes:
    return proposal
  valid = proposal.valid & (_gather(lawless, proposal.parents) == RUNNING)
  if proposal.law is not None:
    valid &= jnp.isfinite(proposal.log_probs())
  if is_chain:
    valid = jnp.arange(proposal.num_nodes) < tree_lib.prefix_length(valid)[:, None]
  else:
    valid = tree_lib.reached_nodes(valid, proposal.parents)
  return proposal.replace(valid=valid)


def _commit(
    setup: Setup, state: DecodeState, scores: _Scores, decision: _Decision
) -> DecodeState:
  """Emits the accepted tokens and the next one, as far as stops and limits let it."""
  verification, lawless = decision.verification, decision.lawless
  path, num_accepted = verification.path, verification.num_accepted
  index = jnp.arange(path.shape[1] + 1)
  emitted = jnp.pad(_gather(scores.tokens, path), ((0, 0), (0, 1)))
  at_end = index == num_accepted[:, None]
  emitted = jnp.where(at_end, verification.next_token[:, None], emitted)

  count = jnp.minimum(num_accepted + 1, state.limits - state.lengths)
  is_stop = (emitted[..., None] == setup.stop_tokens).any(-1)
  is_stop &= index < count[:, None]
  stopped = is_stop.any(-1)
  count = jnp.where(stopped, jnp.argmax(is_stop, axis=-1) + 1, count)
  # Only a row that the next token is drawn from can end the run, and only if it is emitted.
  last = _gather(jnp.pad(path, ((0, 0), (1, 0))), num_accepted[:, None])
  broken = jnp.where(count > num_accepted, _gather(lawless, last)[:, 0], RUNNING)
  active = ~state.done & (broken == RUNNING)
  count = jnp.where(active, count, 0)
  lengths = state.lengths + count

  written = index < count[:, None]
  size = state.tokens.shape[1]
  batch_rows = jnp.arange(state.tokens.shape[0])[:, None]
  slots = jnp.where(written, state.lengths[:, None] + index, size)
  tokens = state.tokens.at[batch_rows, slots].set(emitted, mode='drop')
  logprobs = state.logprobs
  if setup.logprobs is not None:
    kept = scores.logits if setup.logprobs == 'raw' else decision.law
    # The token at entry e was drawn from the row of the node before it: the root, then
    # the path.
    before = jnp.pad(path, ((0, 0), (1, 0)))
    values = _token_logprobs(kept, before, emitted, normalise=setup.logprobs == 'raw')
    logprobs = logprobs.at[batch_rows, slots].set(values, mode='drop')

  full = active & ~stopped & (lengths >= state.limits)
  finish = jnp.where(active & stopped, STOP_TOKEN, state.finish)
  finish = jnp.where(full, LENGTH, finish)
  finish = jnp.where(state.done, finish, jnp.maximum(finish, broken))
  this = _this_round(state.lengths, count, scores.depths, decision)
  return state.replace(
      tokens=tokens,
      lengths=lengths,
      done=state.done | (finish != RUNNING),
      finish=finish,
      history=sampling_lib.update_history(
          state.history, emitted, written, constraint=setup.sampling.constraint
      ),
      logprobs=logprobs,
      stats=jax.tree.map(jnp.add, state.stats, tally(this)),
      round=state.round + 1,
      recent=None if state.recent is None else _remember(state.recent, this, state.round),
  )


def _token_logprobs(logits, rows, tokens, *, normalise: bool) -> Array:
  """Log-probabilities [B, n] of `tokens` [B, n] at rows [B, n] of logits [B, N + 1, V]."""
  batch = jnp.arange(tokens.shape[0])[:, None]
  values = logits[batch, rows, tokens]
  if normalise:
    values -= jnp.take_along_axis(jax.nn.logsumexp(logits, axis=-1), rows, axis=1)
  return values


def _this_round(lengths, count, depths, decision: _Decision) -> Rounds:
  """The round that emits `count` [B] tokens after `lengths` [B], as `Rounds` with R = 1."""
  levels = jnp.arange(1, decision.verification.path.shape[1] + 1)
  at_level = (depths[:, 1:, None] == levels) & decision.proposal.valid[..., None]
  this = Rounds(
      starts=lengths,
      nodes_at=at_level.sum(axis=1, dtype=jnp.int32),
      num_accepted=decision.verification.num_accepted,
      num_emitted=count,
  )
  return jax.tree.map(lambda x: x[:, None], this)


def _remember(recent: Rounds, this: Rounds, round_: Array) -> Rounds:
  write = lambda buffer, value: buffer.at[:, round_ % RECENT].set(value[:, 0])
  return jax.tree.map(write, recent, this)


def _store(
    drafter: Any, state: DecodeState, new_state: DecodeState, scores: _Scores,
    verification: Verification,
) -> DecodeState:
  """Rolls the target's cache to the committed path and keeps its features."""
  cache = scores.cache
  if drafter.is_chain:
    cache = kv_cache.roll_back(cache, new_state.lengths - 1)
  else:
    kept = jnp.maximum(new_state.lengths - state.lengths - 1, 0)
    cache = kv_cache.keep_path(
        cache, state.lengths - 1, verification.path, kept, num_nodes=drafter.num_nodes
    )
    cache = kv_cache.roll_back(cache, new_state.lengths - 1)
  new_state = new_state.replace(target_cache=cache)
  if not drafter.feature_layers:
    return new_state
  rows = jnp.pad(verification.path, ((0, 0), (1, 0)))
  index = jnp.arange(rows.shape[1])
  return new_state.replace(
      features=jnp.take_along_axis(scores.features, rows[..., None], axis=1),
      features_valid=index < (new_state.lengths - state.lengths)[:, None],
  )


def _record(state: DecodeState, decision: _Decision) -> Trace:
  """Writes this round into the trace."""
  trace, at = state.trace, state.round
  proposal, verification = decision.proposal, decision.verification
  batch = jnp.arange(proposal.tokens.shape[0])[:, None]
  target_probs = jnp.exp(decision.law[batch, proposal.parents, proposal.tokens])
  draft_probs = jnp.ones_like(target_probs)
  if proposal.law is not None:
    draft_probs = jnp.exp(proposal.log_probs())
  values = Trace(
      starts=jnp.where(state.done, 0, state.lengths),
      tokens=proposal.tokens,
      parents=proposal.parents,
      valid=proposal.valid,
      path=verification.path,
      num_accepted=verification.num_accepted,
      next_token=verification.next_token,
      is_bonus=verification.is_bonus,
      accept_probs=verification.accept_probs,
      target_probs=target_probs,
      draft_probs=draft_probs,
  )
  return jax.tree.map(lambda buffer, value: buffer.at[:, at].set(value), trace, values)
