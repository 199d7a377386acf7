"""Counts and traces of a run's rounds, and the reasons why its rows end."""

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# Why a row ended.
RUNNING, STOP_TOKEN, LENGTH, NOT_A_NUMBER, NOTHING_ALLOWED = 0, 1, 2, 3, 4

# The last rounds that a state keeps where the host looks for stop strings.
RECENT = 16


@struct.dataclass
class Stats:
  """Counts of each row's rounds, of what is in the output alone.

  The last round of a row may be cut: by a stop token or a limit inside the accepted tokens, or
  by a stop string that ends before the round does. Of a round that is cut after n draft tokens,
  these n are accepted and the nodes at depths 1 … n are proposed; what lies deeper counts
  neither for the draft nor against it. So a draft that is always right has a rate of 1 at every
  depth, however it ends, and emitted tokens are `accepted + rounds`, less one where the row's
  last round is cut.

  `drafted_at` and `decided_at` count the same rounds without the cut, as they were drafted and
  as the rule decided: a drafter's cost and accuracy do not depend on where an output ends.
  Forecasts are made from them.

  Attributes:
    rounds: [B] int32, rounds that emitted a token of the output (target passes).
    proposed: [B] int32, valid nodes.
    accepted: [B] int32, accepted draft tokens.
    proposed_at: [B, D] int32, rounds with a valid node at depth d + 1.
    accepted_at: [B, D] int32, rounds that accepted at least d + 1 tokens.
    drafted_at: [B, D] int32, `proposed_at` without the cut.
    decided_at: [B, D] int32, `accepted_at` without the cut.
  """

  rounds: Array
  proposed: Array
  accepted: Array
  proposed_at: Array
  accepted_at: Array
  drafted_at: Array
  decided_at: Array

  @classmethod
  def zeros(cls, batch_size: int, depth: int) -> 'Stats':
    """The counts before the first round, of rows whose drafter is `depth` deep."""
    row = lambda: jnp.zeros((batch_size,), jnp.int32)
    at = lambda: jnp.zeros((batch_size, depth), jnp.int32)
    return cls(row(), row(), row(), at(), at(), at(), at())


@struct.dataclass
class Rounds:
  """Some rounds of every row, as far as `Stats` counts them.

  Attributes:
    starts: [B, R] int32, the row's length before the round.
    nodes_at: [B, R, D] int32, valid nodes at depth d + 1.
    num_accepted: [B, R] int32, as the rule decided.
    num_emitted: [B, R] int32, tokens emitted; 0 where the row had no such round.
  """

  starts: Array
  nodes_at: Array
  num_accepted: Array
  num_emitted: Array


@struct.dataclass
class Trace:
  """Every round of every row, for reports; R is the largest possible number of rounds.

  Attributes:
    starts: [B, R] int32, the row's length before the round; 0 where there was none.
    tokens: [B, R, N] int32, the nodes.
    parents: [B, R, N] int32.
    valid: [B, R, N] bool.
    path: [B, R, D] int32, accepted node numbers, then zeros.
    num_accepted: [B, R] int32, as the rule decided. A stop may cut off some of them;
      `specjax.analysis.traces.rounds` has those that were emitted.
    next_token: [B, R] int32.
    is_bonus: [B, R] bool; otherwise the next token was recovered.
    accept_probs: [B, R, N] float32, the rule's.
    target_probs: [B, R, N] float32, of each node under the target's law.
    draft_probs: [B, R, N] float32, of each node under the draft's law; 1 for one-hot laws.
  """

  starts: Array
  tokens: Array
  parents: Array
  valid: Array
  path: Array
  num_accepted: Array
  next_token: Array
  is_bonus: Array
  accept_probs: Array
  target_probs: Array
  draft_probs: Array


def empty_recent(batch_size: int, depth: int) -> Rounds:
  """No rounds, for `DecodeState.recent` of rows whose drafter is `depth` deep."""
  zeros = lambda *shape: jnp.zeros((batch_size, RECENT, *shape), jnp.int32)
  return Rounds(zeros(), zeros(depth), zeros(), zeros())


def tally(rounds: Rounds) -> Stats:
  """The counts of some rounds: the one definition of `Stats`, for numpy and jax alike."""
  entry = lambda x: x[..., None]
  levels = np.arange(1, rounds.nodes_at.shape[-1] + 1, dtype=np.int32)
  took_place = rounds.num_emitted > 0
  is_cut = rounds.num_emitted <= rounds.num_accepted
  in_output = entry(took_place) & (entry(~is_cut) | (levels <= entry(rounds.num_emitted)))
  decided = entry(took_place) & (levels <= entry(rounds.num_accepted))
  accepted = decided & (levels <= entry(rounds.num_emitted))
  nodes = rounds.nodes_at * in_output
  total = lambda x: x.sum(axis=1, dtype=np.int32)
  return Stats(
      rounds=total(took_place),
      proposed=total(nodes.sum(axis=-1)),
      accepted=total(accepted.sum(axis=-1)),
      proposed_at=total(nodes > 0),
      accepted_at=total(accepted),
      drafted_at=total(entry(took_place) & (rounds.nodes_at > 0)),
      decided_at=total(decided),
  )


def beyond(rounds: Rounds, end: Array) -> Stats:
  """The part of the counts of some rounds that belongs to tokens at `end` [B] and later.

  Subtracted from the counts of rows that a stop string ends at `end`, it leaves those of the
  output that is kept, as if the rows had ended there by themselves.
  """
  kept = (end[:, None] - rounds.starts).clip(0)
  kept = rounds.replace(num_emitted=np.minimum(rounds.num_emitted, kept))
  return jax.tree.map(lambda whole, part: whole - part, tally(rounds), tally(kept))


def empty_trace(batch_size: int, num_rounds: int, drafter) -> Trace:
  """A trace for at most `num_rounds` rounds of a drafter's proposals."""

  def zeros(*shape, dtype=jnp.int32):
    return jnp.zeros((batch_size, num_rounds, *shape), dtype)

  nodes, depth = drafter.num_nodes, drafter.depth
  return Trace(
      starts=zeros(),
      tokens=zeros(nodes),
      parents=zeros(nodes),
      valid=zeros(nodes, dtype=bool),
      path=zeros(depth),
      num_accepted=zeros(),
      next_token=zeros(),
      is_bonus=zeros(dtype=bool),
      accept_probs=zeros(nodes, dtype=jnp.float32),
      target_probs=zeros(nodes, dtype=jnp.float32),
      draft_probs=zeros(nodes, dtype=jnp.float32),
  )
