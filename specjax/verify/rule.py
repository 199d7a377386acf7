"""The contract of a verification rule, and how a rule with an earlier contract is run.

A rule is told numbers of one round's rows (`specjax.verify.rows`) and decides how many of the
drafted tokens stay, and which token follows them.
"""

import dataclasses
from typing import Any, Protocol

import jax

from specjax import types
from specjax.verify import rows as rows_lib
from specjax.verify import whole

Array = jax.Array


class Rule(Protocol):
  """A verification rule: hashable, so that it is static under `jit`.

  A rule of your own may also be any hashable object with the four attributes that is called as
  `RuleBase.__call__` is, with the target's laws in memory.

  Attributes:
    name: as in reports.
    lossless: whether the law of the output is that of plain decoding.
    mode: how drafters and the engine sample: 'greedy' (argmax), 'sample' (draws of `Source.draw`)
      or 'coupled' (argmax of law plus shared noise).
    handles_trees: whether proposals may branch; other rules take chains only.
    takes_infinite_logits: whether its rows have a law where a logit is +inf.
  """

  name: str
  lossless: bool
  mode: str
  handles_trees: bool
  takes_infinite_logits: bool

  def check(self, proposal: types.Proposal) -> None:
    """Raises ValueError, at trace time, for a draft law that the rule cannot use."""

  def rows(
      self, logits: Array, *, sampling: types.Sampling, proposal: types.Proposal
  ) -> rows_lib.Rows:
    """The rows that the rule decides from; what `decide` takes, the engine hands on unread.

    Args:
      logits: [B, N + 1, V], after `specjax.sampling.control`; row r follows node r, 0 the root.
      sampling: the settings.
      proposal: what was drafted.
    """

  def decide(
      self, rows: rows_lib.Rows, *, positions: Array, source: types.Source
  ) -> tuple[types.Verification, types.Source]:
    """Decides one round.

    Args:
      rows: of `rows`. In `rows.proposal` N = 0 is plain decoding, and `valid` is as the engine
        leaves it: a prefix in a chain, and what is below an invalid node is invalid. Laws of
        invalid nodes, and rows of the target whose children are invalid, may hold NaN.
      positions: [B, N + 1] int32, the absolute position that a token drawn from the row takes.
      source: where random choices come from.

    Returns:
      The decision and the source to use next. Its `path` is [B, N]: entries beyond
      `num_accepted`, which never exceeds the depth, are 0.
    """


@dataclasses.dataclass(frozen=True)
class RuleBase:
  """What the shipped rules share: whole rows unless `specjax.kernels.accept` decides, and a call.

  Subclasses are frozen dataclasses with the attributes of `Rule`, and add `decide`.
  """

  # Not fields: no setting of a rule.
  takes_infinite_logits = False

  def check(self, proposal: types.Proposal) -> None:
    """As `Rule.check`: any draft will do."""

  def rows(self, logits, *, sampling, proposal) -> rows_lib.Rows:
    """As `Rule.rows`: laws in memory."""
    return whole.rows_of(logits, mode=self.mode, sampling=sampling, proposal=proposal)

  def decide(self, rows: rows_lib.Rows, *, positions, source):
    """As `Rule.decide`."""
    raise NotImplementedError

  def __call__(
      self,
      *,
      target_law: Array,
      proposal: types.Proposal,
      positions: Array | None,
      source: types.Source,
  ) -> tuple[types.Verification, types.Source]:
    """Decides one round from laws in memory.

    Args:
      target_law: [B, N + 1, V] float32, log-probabilities of the target's law at every row. In
        mode 'coupled' they may be more by a constant per row, and in mode 'greedy' logits.
      proposal: what was drafted, see `decide`.
      positions: needed in mode 'coupled' alone.
      source: consumed.

    Returns:
      As `decide`.

    Raises:
      ValueError: as `check`.
    """
    self.check(proposal)
    rows = whole.WholeRows(target_law, proposal)
    return self.decide(rows, positions=positions, source=source)


@dataclasses.dataclass(frozen=True)
class CalledRule:
  """A rule that is called with whole laws, as `RuleBase.__call__` is; see `as_rule`."""

  rule: Any
  takes_infinite_logits = False

  def __getattr__(self, name: str) -> Any:
    if name == 'rule' or name.startswith('__'):
      raise AttributeError(name)
    return getattr(self.rule, name)

  def check(self, proposal: types.Proposal) -> None:
    """As `Rule.check`: the call does it."""

  def rows(self, logits, *, sampling, proposal) -> rows_lib.Rows:
    """As `Rule.rows`."""
    return whole.rows_of(logits, mode=self.rule.mode, sampling=sampling, proposal=proposal)

  def decide(self, rows: rows_lib.Rows, *, positions, source):
    """As `Rule.decide`."""
    return self.rule(
        target_law=rows.law(), proposal=rows.proposal, positions=positions, source=source
    )


def as_rule(rule: Any) -> Any:
  """The rule as the engine runs it: itself, or a `CalledRule` if it only knows how to be called.

  A subclass of a shipped rule that has a `__call__` of its own is called, too.
  """
  if not hasattr(rule, 'decide'):
    return CalledRule(rule)
  if isinstance(rule, RuleBase) and type(rule).__call__ is not RuleBase.__call__:
    return CalledRule(rule)
  return rule


def check_chain(proposal: types.Proposal, *, rule: str) -> None:
  """Raises ValueError for draft laws that a rule for independent chains cannot use."""
  if proposal.kind == types.COUPLED:
    raise ValueError(
        f'verify.{rule}() needs draft tokens that were chosen or drawn from a law of their own; '
        'these share their noise with the target (kind COUPLED): use verify.coupled().'
    )
  if proposal.kind == types.WITHOUT_REPLACEMENT:
    raise ValueError(
        f'verify.{rule}() verifies one drafted token per position; this proposal draws siblings '
        'without replacement: use verify.recursive() or verify.traversal(), which take trees, or '
        'draft a chain.'
    )
  if proposal.kind == types.SAMPLED and proposal.law is None and proposal.num_nodes:
    raise ValueError(
        f'verify.{rule}() needs the law that the draft tokens were drawn from, but '
        '`proposal.law` is None: keep the law that `context.sampler.draw` returns, or mark '
        'tokens that were chosen rather than drawn as kind ONE_HOT.'
    )


def check_tree(proposal: types.Proposal, *, rule: str, kinds: tuple[str, ...]) -> None:
  """Raises ValueError for draft laws that a rule for sampled trees cannot use."""
  if not proposal.num_nodes:
    return
  if proposal.kind not in kinds:
    raise ValueError(
        f'verify.{rule}() verifies drafts of kind {", ".join(kinds)}, and this one is of kind '
        f'{proposal.kind}. Coupled drafts take verify.coupled(); '
        "verify.recursive() and verify.traversal() take the others; a tree drafter's siblings= "
        'says how it draws.'
    )
  if proposal.kind != types.ONE_HOT and proposal.law is None:
    raise ValueError(
        f'verify.{rule}() needs the law that the draft tokens were drawn from, but '
        '`proposal.law` is None: keep the laws, or mark chosen tokens as kind ONE_HOT.'
    )
